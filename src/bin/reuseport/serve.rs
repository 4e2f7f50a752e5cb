//! `reuseport serve`: the C program.

use core::net::SocketAddr;
use core::time::Duration;

use reuseport::{Group, GroupOptions, Serving, Steering};

use crate::Failure;
use crate::args::Args;
use crate::output::{explain, print, report, report_lines, tally};
use crate::signals::{Caught, Signals};

const HELP: &str = "\
Accepts and closes, and prints `acceptor N` on stdout for every connection

Usage: reuseport serve [OPTIONS]

  --addr ADDRESS     where to listen, such as 127.0.0.1:3000, [::1]:3000, localhost:3000;
                     port 0 is any free one [127.0.0.1:3000]
  --acceptors N      threads, each with its own listening socket [3]
  --backlog N        connections that may wait on each socket [as many as the kernel allows]
  --join             share the port with other servers that do, instead of claiming it
  --shared           one listening socket for all threads
  --steer HOW        hash: the kernel's own way; cpu: the receiving CPU's acceptor; random [hash]
  --pin              run each acceptor on one CPU
  --grace MS         at the end, how long to wait for handshakes and handlers at most [1000]
  --quiet            print no connections

SIGUSR1 prints what each acceptor did, and its queue, on stderr. SIGINT (Ctrl-C) and SIGTERM end
it: every connection made by then is served, and a tally comes on stderr. A second one ends it at
once.
";

pub(crate) fn run(mut args: Args) -> Result<(), Failure> {
    if args.flag("--help") || args.flag("-h") {
        print(HELP);
        return Ok(());
    }
    let acceptors = args.number("--acceptors", 1, 1024, 3)?;
    let mut options = Group::options();
    let backlog = args.value("--backlog", "a whole number from 0 up", |value| {
        value.parse().ok().filter(|n| *n >= 0)
    })?;
    if let Some(connections) = backlog {
        options = options.backlog(connections);
    }
    let steering = args.value("--steer", "hash, cpu or random", |value| match value {
        "hash" => Some(Steering::Hash),
        "cpu" => Some(Steering::Cpu),
        "random" => Some(Steering::Random),
        _ => None,
    })?;
    options = options
        .steering(steering.unwrap_or_default())
        .pin(args.flag("--pin"));
    options = options
        .join(args.flag("--join"))
        .shared(args.flag("--shared"));
    let grace = Duration::from_millis(args.number("--grace", 0, 86_400_000, 1000)? as u64);
    let quiet = args.flag("--quiet");
    let addresses = args.addresses()?;
    args.finish()?;

    // Before the first thread, which inherits it.
    let signals = Signals::hold();
    let group = bind(&options, &addresses, acceptors)?;
    let address = group.local_addr();
    let serving = spawn(group, move |acceptor| {
        if !quiet {
            print(&format!("acceptor {acceptor}\n"));
        }
    })?;
    report(&format!(
        "listening on {address} with {acceptors} acceptors"
    ));
    while signals.wait() == Caught::Report {
        let members = serving
            .members()
            .into_iter()
            .map(|member| (member.count, member.queue));
        report_lines(&tally(&members.collect::<Vec<_>>()));
    }
    let counts = serving.stop(grace);
    report_lines(&tally(
        &counts
            .into_iter()
            .map(|count| (count, None))
            .collect::<Vec<_>>(),
    ));
    Ok(())
}

/// Binds a group to the first of `addresses` that lets it.
pub(crate) fn bind(
    options: &GroupOptions,
    addresses: &[SocketAddr],
    members: usize,
) -> Result<Group, Failure> {
    let mut failures = Vec::new();
    for address in addresses {
        match options.bind(*address, members) {
            Ok(group) => return Ok(group),
            Err(error) => failures.push(explain(&error)),
        }
    }
    Err(Failure::Failed(failures.join("; ")))
}

pub(crate) fn spawn(
    group: Group,
    each: impl Fn(usize) + Send + Sync + 'static,
) -> Result<Serving, Failure> {
    let spawned = group.spawn(move |acceptor, _| each(acceptor));
    spawned.map_err(|failure| Failure::Failed(failure.to_string()))
}
