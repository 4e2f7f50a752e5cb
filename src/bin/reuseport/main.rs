//! The command `reuseport`: the C program's job as a demonstration, as a server to try, and with a
//! client to try it from.

mod args;
mod claims;
mod client;
mod compare;
mod connect;
mod demo;
mod explain;
mod hints;
mod histogram;
#[cfg(linux_kernel)]
mod inspect;
#[cfg(linux_kernel)]
mod list;
mod output;
mod replace;
mod restart;
mod serve;
mod signals;
mod slow;
mod work;

use std::process::ExitCode;

use reuseport::{GroupError, Serve, SpawnError};

use args::Args;
use output::{explain, print, report};

/// Why a command failed.
enum Failure {
    /// Its arguments are wrong: exit 2.
    Usage(String),
    /// It could not: exit 1.
    Failed(String),
}

impl Failure {
    fn thread(error: &std::io::Error) -> Failure {
        Failure::Failed(format!("starting a thread: {error}"))
    }
}

impl From<GroupError> for Failure {
    fn from(error: GroupError) -> Failure {
        Failure::Failed(explain(&error, false))
    }
}

impl<P: Serve> From<SpawnError<P>> for Failure {
    fn from(error: SpawnError<P>) -> Failure {
        Failure::Failed(error.to_string())
    }
}

const HELP: &str = "\
reuseport: many listening sockets on one port, the kernel spreads the connections

Usage: reuseport [COMMAND] [OPTIONS]

  demo       acceptors and clients in one process: who gets what (also without a command)
  serve      a server: prints `acceptor N` for every connection, until it is stopped
  connect    a client: makes connections and counts what becomes of them
  compare    the ways to accept, one beside the other under the same load
  inspect    who shares a port on this machine (Linux)
  explain    tries on this kernel what the guide says of SO_REUSEPORT

`reuseport help COMMAND` lists the options of each. `reuseport --version`.
";

type Run = fn(Args) -> Result<(), Failure>;

/// Each by its name, with how to use it.
const COMMANDS: &[(&str, &str, Run)] = &[
    ("demo", demo::HELP, demo::run),
    ("serve", serve::HELP, serve::run),
    ("connect", connect::HELP, connect::run),
    ("compare", compare::HELP, compare::run),
    #[cfg(linux_kernel)]
    ("inspect", inspect::HELP, inspect::run),
    ("explain", explain::HELP, explain::run),
];

fn command(name: &str) -> Option<(&'static str, Run)> {
    let found = COMMANDS.iter().find(|command| command.0 == name);
    found.map(|(_, help, run)| (*help, *run))
}

fn names() -> Vec<&'static str> {
    COMMANDS.iter().map(|command| command.0).collect()
}

fn known(name: &str) -> Result<(&'static str, Run), Failure> {
    let unknown = || {
        let names = names().join(", ");
        Failure::Usage(format!("there is no command \"{name}\"; there are {names}"))
    };
    command(name).ok_or_else(unknown)
}

/// Runs the command of this name, or prints how to use it.
fn run(name: Option<&str>, mut args: Args) -> Result<(), Failure> {
    if name == Some("help") {
        let of = args.command();
        args.finish()?;
        let help = of.map_or(Ok(HELP), |name| known(&name).map(|command| command.0));
        print(help?);
        return Ok(());
    }
    let (help, run): (_, Run) = if let Some(name) = name {
        known(name)?
    } else {
        args.unwanted(&names(), "a command stands before its options");
        (HELP, demo::run)
    };
    if args.flag("--help") || args.flag("-h") {
        print(help);
    } else if name.is_none() && (args.flag("--version") || args.flag("-V")) {
        print(concat!("reuseport ", env!("CARGO_PKG_VERSION"), "\n"));
    } else {
        run(args)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let mut args = Args::from_env();
    let name = args.command();
    match run(name.as_deref(), args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(line)) => {
            let known = name.filter(|name| command(name).is_some());
            let of = known.map_or(String::new(), |name| format!("{name} "));
            report(&format!("{line} (see: reuseport {of}--help)"));
            ExitCode::from(2)
        }
        Err(Failure::Failed(line)) => {
            report(&line);
            ExitCode::FAILURE
        }
    }
}
