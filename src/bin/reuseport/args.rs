//! The command line: `--name value`, `--name=value` and flags, in any order.

use core::net::{SocketAddr, SocketAddrV6};
use std::env;
use std::ffi::CString;
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
        let given = self.address()?;
        given.map_or_else(|| resolve("127.0.0.1:3000"), |name| resolve(&name))
    }

    /// The same for each `--addr`.
    pub(crate) fn all_addresses(&mut self) -> Result<Vec<Vec<SocketAddr>>, Failure> {
        let mut all = vec![self.addresses()?];
        while let Some(name) = self.address()? {
            all.push(resolve(&name)?);
        }
        Ok(all)
    }

    fn address(&mut self) -> Result<Option<String>, Failure> {
        let wanted = "an address such as 127.0.0.1:3000, [::1]:3000 or localhost:3000";
        let given = self.value("--addr", wanted, |value| {
            let is_path = value.starts_with(['/', '@', '.']) || value.starts_with("unix:");
            let right = is_path || split(value).is_some();
            right.then(|| (is_path, value.to_owned()))
        })?;
        match given {
            Some((true, path)) => Err(Failure::Usage(format!(
                "--addr needs {wanted}: a UNIX socket, such as {path}, has no port to share"
            ))),
            given => Ok(given.map(|(_, name)| name)),
        }
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

/// An address in its parts: host and port. An IPv6 address stands in brackets, which are left out.
fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let is_host = !host.is_empty() && !host.contains(':');
    let host = inner.or(is_host.then_some(host))?;
    Some((host, port.parse().ok()?))
}

/// The addresses that a name stands for.
fn resolve(name: &str) -> Result<Vec<SocketAddr>, Failure> {
    let unknown = || Failure::Failed(format!("no address is known for {name}"));
    let (host, port) = split(name).ok_or_else(unknown)?;
    if let Some((ip, zone)) = host.split_once('%') {
        let ip = ip.parse().map_err(|_| unknown())?;
        let scope = scope(zone).ok_or_else(|| {
            Failure::Failed(format!("{name}: there is no network interface \"{zone}\""))
        })?;
        return Ok(vec![SocketAddrV6::new(ip, port, 0, scope).into()]);
    }
    match (host, port).to_socket_addrs().map(Vec::from_iter) {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(unknown()),
    }
}

/// The number of an interface, which is given by number or by name.
fn scope(zone: &str) -> Option<u32> {
    let by_name = || {
        let name = CString::new(zone).ok()?;
        // SAFETY: `name` is a C string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        (index > 0).then_some(index)
    };
    zone.parse().ok().or_else(by_name)
}
