//! The command line: `--name value`, `--name=value` and flags, in any order.

use core::net::SocketAddr;
use std::env;
use std::net::ToSocketAddrs;

use crate::Failure;

pub(crate) struct Args {
    /// The words not yet understood.
    words: Vec<String>,
    /// Why such a word is not wanted, if it is left in the end.
    unwanted: Vec<(&'static str, &'static str)>,
}

const BEFORE: &str = "it was given before";

impl Args {
    pub(crate) fn from_env() -> Args {
        Args {
            words: env::args_os()
                .skip(1)
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            unwanted: Vec::new(),
        }
    }

    /// Says `why`, should one of `names` be left in the end.
    pub(crate) fn unwanted(&mut self, names: &[&'static str], why: &'static str) {
        self.unwanted.extend(names.iter().map(|name| (*name, why)));
    }

    /// Takes the first word, unless it is an option.
    pub(crate) fn command(&mut self) -> Option<String> {
        let first = self.words.first();
        let is_command = first.is_some_and(|word| !word.starts_with('-'));
        is_command.then(|| self.words.remove(0))
    }

    /// Takes `name`, and says whether it was there.
    pub(crate) fn flag(&mut self, name: &'static str) -> bool {
        let Some(at) = self.words.iter().position(|word| word == name) else {
            return false;
        };
        self.words.remove(at);
        self.unwanted(&[name], BEFORE);
        true
    }

    /// Takes `name` and the value behind it. `parse` makes something of the value; `wanted` says
    /// what it takes.
    pub(crate) fn value<T>(
        &mut self,
        name: &'static str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let joined = format!("{name}=");
        let at = self
            .words
            .iter()
            .position(|word| word == name || word.starts_with(&joined));
        let Some(at) = at else { return Ok(None) };
        self.unwanted(&[name], BEFORE);
        let word = self.words.remove(at);
        let value = match word.strip_prefix(&joined) {
            Some(value) => value.to_owned(),
            None if at < self.words.len() => self.words.remove(at),
            None => return Err(Failure::Usage(format!("{name} needs {wanted} after it"))),
        };
        match parse(&value) {
            Some(value) => Ok(Some(value)),
            None => Err(Failure::Usage(format!(
                "{name} needs {wanted}, not \"{value}\""
            ))),
        }
    }

    /// A whole number from `least` to `most`.
    pub(crate) fn number(
        &mut self,
        name: &'static str,
        least: usize,
        most: usize,
        default: usize,
    ) -> Result<usize, Failure> {
        let wanted = format!("a whole number from {least} to {most}");
        let parse = |value: &str| value.parse().ok().filter(|n| (least..=most).contains(n));
        Ok(self.value(name, &wanted, parse)?.unwrap_or(default))
    }

    /// A number, perhaps with a fraction, from `least` to `most`.
    pub(crate) fn decimal(
        &mut self,
        name: &'static str,
        least: f64,
        most: f64,
        default: f64,
    ) -> Result<f64, Failure> {
        let wanted = format!("a number from {least} to {most}");
        let parse = |value: &str| value.parse().ok().filter(|n| (least..=most).contains(n));
        Ok(self.value(name, &wanted, parse)?.unwrap_or(default))
    }

    /// `--addr`, as the addresses that its name stands for; by default 127.0.0.1:3000.
    pub(crate) fn addresses(&mut self) -> Result<Vec<SocketAddr>, Failure> {
        let wanted = "an address such as 127.0.0.1:3000, [::1]:3000 or localhost:3000";
        let looks_right = |value: &str| {
            let (host, port) = value.rsplit_once(':')?;
            let is_host = !host.is_empty() && (!host.contains(':') || host.starts_with('['));
            (is_host && port.parse::<u16>().is_ok()).then(|| value.to_owned())
        };
        let given = self.value("--addr", wanted, looks_right)?;
        let name = given.unwrap_or_else(|| "127.0.0.1:3000".to_owned());
        let found = name
            .to_socket_addrs()
            .map(Vec::from_iter)
            .unwrap_or_default();
        if found.is_empty() {
            return Err(Failure::Failed(format!("no address is known for {name}")));
        }
        Ok(found)
    }

    /// The end: whatever is left was not understood.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        let Some(word) = self.words.first() else {
            return Ok(());
        };
        let name = word.split('=').next();
        let known = self.unwanted.iter().find(|(known, _)| name == Some(known));
        let why = known.map_or(String::new(), |(_, why)| format!(": {why}"));
        Err(Failure::Usage(format!(
            "unexpected argument \"{word}\"{why}"
        )))
    }
}
