//! The command `reuseport`: the article's program at work, a server to try it with, a client to
//! try it from.

mod args;
mod claims;
mod client;
mod compare;
mod connect;
mod demo;
mod explain;
mod histogram;
mod output;
mod serve;
mod signals;
mod slow;

use std::process::ExitCode;

use reuseport::{GroupError, Protocol, SpawnError};

use args::Args;
use output::{explain, print, report};

/// Why a command did not do what it was told.
enum Failure {
    /// It was told wrongly: exit 2.
    Usage(String),
    /// It could not: exit 1.
    Failed(String),
}

impl From<GroupError> for Failure {
    fn from(error: GroupError) -> Failure {
        Failure::Failed(explain(&error))
    }
}

impl<P: Protocol> From<SpawnError<P>> for Failure {
    fn from(error: SpawnError<P>) -> Failure {
        Failure::Failed(error.to_string())
    }
}

const HELP: &str = "\
reuseport: many listening sockets on one port, the kernel spreads the connections

Usage: reuseport [COMMAND] [OPTIONS]

  demo       acceptors and clients in one process: who gets what (also without a command)
  serve      the C program: prints `acceptor N` for every connection, until it is stopped
  connect    a client: makes connections and counts what becomes of them
  compare    the ways to accept, one beside the other under the same load
  explain    tries on this kernel what the guide says of SO_REUSEPORT

`reuseport COMMAND --help` lists the options of each. `reuseport --version`.
";

fn main() -> ExitCode {
    let mut args = Args::from_env();
    let name = args.command();
    let result = match name.as_deref() {
        None if args.flag("--help") || args.flag("-h") => {
            print(HELP);
            Ok(())
        }
        None if args.flag("--version") || args.flag("-V") => {
            print(concat!("reuseport ", env!("CARGO_PKG_VERSION"), "\n"));
            Ok(())
        }
        None | Some("demo") => demo::run(args),
        Some("serve") => serve::run(args),
        Some("connect") => connect::run(args),
        Some("compare") => compare::run(args),
        Some("explain") => explain::run(args),
        Some(other) => Err(Failure::Usage(format!(
            "there is no command \"{other}\"; they are demo, serve, connect, compare and explain"
        ))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(line)) => {
            let of = name.map_or(String::new(), |name| format!("{name} "));
            report(&format!("{line} (see: reuseport {of}--help)"));
            ExitCode::from(2)
        }
        Err(Failure::Failed(line)) => {
            report(&line);
            ExitCode::FAILURE
        }
    }
}
