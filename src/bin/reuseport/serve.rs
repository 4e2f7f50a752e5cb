//! `reuseport serve`: the C program.

use core::net::SocketAddr;

use reuseport::{Acceptors, Listener};

use crate::Failure;
use crate::args::Args;
use crate::output::{explain, print, report, tally};
use crate::signals::Signals;

const HELP: &str = "\
Accepts and closes, and prints `acceptor N` on stdout for every connection

Usage: reuseport serve [OPTIONS]

  --addr ADDRESS     where to listen, such as 127.0.0.1:3000, [::1]:3000, localhost:3000;
                     port 0 is any free one [127.0.0.1:3000]
  --acceptors N      threads, each with its own listening socket [3]
  --backlog N        connections that may wait on each socket [as many as the kernel allows]
  --quiet            print no connections

SIGINT (Ctrl-C) and SIGTERM end it with a tally on stderr; a second one ends it at once.
";

pub(crate) fn run(mut args: Args) -> Result<(), Failure> {
    if args.flag("--help") || args.flag("-h") {
        print(HELP);
        return Ok(());
    }
    let acceptors = args.number("--acceptors", 1, 1024, 3)?;
    let backlog = args.value("--backlog", "a whole number from 0 up", |value| {
        value.parse().ok().filter(|n| *n >= 0)
    })?;
    let quiet = args.flag("--quiet");
    let addresses = args.addresses()?;
    args.finish()?;

    // Before the first thread, which inherits it.
    let signals = Signals::hold();
    let (listeners, address) = bind(&addresses, acceptors, backlog)?;
    let running = Acceptors::spawn(listeners, move |acceptor, _| {
        if !quiet {
            print(&format!("acceptor {acceptor}\n"));
        }
    })
    .map_err(|error| Failure::Failed(format!("starting a thread: {error}")))?;
    report(&format!(
        "listening on {address} with {acceptors} acceptors"
    ));
    signals.wait();
    eprint_tally(&running.stop());
    Ok(())
}

fn eprint_tally(counts: &[reuseport::Count]) {
    use std::io::Write;
    _ = std::io::stderr().write_all(tally(counts).as_bytes());
}

/// Binds `n` listeners to the first of `addresses` that lets it, and says which that was.
pub(crate) fn bind(
    addresses: &[SocketAddr],
    n: usize,
    backlog: Option<i32>,
) -> Result<(Vec<Listener>, SocketAddr), Failure> {
    let mut failures = Vec::new();
    for address in addresses {
        match bind_one(*address, n, backlog) {
            Ok(bound) => return Ok(bound),
            Err(error) => failures.push(explain(error, *address)),
        }
    }
    Err(Failure::Failed(failures.join("; ")))
}

fn bind_one(
    mut address: SocketAddr,
    n: usize,
    backlog: Option<i32>,
) -> Result<(Vec<Listener>, SocketAddr), reuseport::Error> {
    let options = Listener::options().backlog(backlog.unwrap_or(reuseport::sys::MAX_BACKLOG));
    let mut listeners = Vec::new();
    for _ in 0..n {
        let listener = options.bind(address)?;
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok((listeners, address))
}
