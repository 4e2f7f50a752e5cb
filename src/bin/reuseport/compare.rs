//! `reuseport compare`: the ways to accept, one beside the other.

mod load;
mod picture;
mod report;
mod ways;

use core::time::Duration;
use std::fs::{self, OpenOptions};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Failure;
use crate::args::Args;
use crate::output::{count, print, progress, ratio};
use crate::signals::Signals;
use crate::slow::Slow;
use load::{Load, MOST_IN_BURSTS};
use report::{Report, Row};
use ways::{BASE, Handling, Server, WAYS, Way};

pub(crate) const HELP: &str = "\
Compares the ways to accept: each is a server of its own, and all have the same load in turn

Usage: reuseport compare [OPTIONS]

  --acceptors N      threads of each server [4]
  --clients N        clients, each with one connection at a time; at most 20 with --udp [16]
  --think MS         milliseconds, on average, from a client's one connection to its next:
                     exponentially distributed, alike for every way [0]
  --slow P:MS        handle P percent of the connections slowly, each for MS milliseconds
  --compute P:M      P percent of the handlers compute M million steps, each of which needs the one
                     before: about 1.5 ms a million on a core of their own
  --silent N         N further clients connect when a turn begins, say nothing, and stay connected
                     until it ends. The handler of every connection then waits for one byte, which
                     the other clients send. They give up after a second without an answer: that
                     second counts in the times, but not as a connection. With 0 no client is
                     silent, and the handlers wait for the byte all the same
  --rounds N         how often each way has its turn [13]
  --seconds S        how long a turn takes [0.4]
  --svg FILE         draw it, too
  --udp              compare the ways to receive datagrams: see below

The ways:

  single             one thread accepts, and hands the connections to workers through a channel
  shared             the threads compete for the connections of one listener
  reuseport          each thread has its own listener, and the kernel's hash chooses
  reuseport + hand-off
                     the same, and a spare thread accepts while a handler blocks
  reuseport + cpu    each thread runs on one CPU, and the receiving CPU's is chosen: threads
                     beyond the number of CPUs get nothing
  cpu + hand-off     the same, and a spare thread accepts while a handler blocks

With --udp a client sends eight datagrams at once, from a port of its own, and waits until all have
come back; conn/s counts datagrams, and the times are for all eight:

  udp one            one thread receives
  udp shared         the threads compete for the datagrams of one socket
  udp reuseport      each thread has its own socket, and the kernel's hash chooses
  udp + cpu          each thread runs on one CPU, and the receiving CPU's is chosen
  batched ...        the same, and a thread receives and answers many by one system call

The columns, each the median of the rounds:

  conn/s, spread     connections a second; how far the rounds are from that
  shared             conn/s by those of `shared` in the same round; with a ? where the rounds are
                     too few, or agree too little, to say that they differ; with - where
                     `shared` had none
  p50, p99, p99.9    milliseconds from connect to the end of the connection
  max                the longest of them
  fair               connections of the thread that had the fewest, by those of the one that
                     had the most
  switches, cpu      the server's context switches and microseconds of processor time, for each
                     connection

SIGINT (Ctrl-C) and SIGTERM end it early: the rounds that are complete are printed.
";

pub(crate) fn run(mut args: Args) -> Result<(), Failure> {
    let acceptors = args.number("--acceptors", 1, 128, 4)?;
    let mut handling = Handling {
        slow: Slow::option(&mut args)?,
        compute: Slow::computing(&mut args)?,
        silent: None,
    };
    let udp = args.flag("--udp");
    if udp {
        args.unwanted(&["--silent"], "a datagram has no connection to hold");
    } else {
        handling.silent = args.value("--silent", "a whole number from 0 to 10000", |number| {
            number.parse().ok().filter(|number| *number <= 10_000)
        })?;
        allow_descriptors(handling.silent.unwrap_or_default());
    }
    // How this program starts its servers.
    if let Some(way) = args.value("--serve-as", "the name of a way", Way::named)? {
        args.finish()?;
        return way.serve(acceptors, handling);
    }
    let most = if udp { MOST_IN_BURSTS } else { 10_000 };
    let clients = args.number("--clients", 1, most, 16)?;
    let think = args.decimal("--think", 0.0, 60_000.0, 0.0)?;
    let rounds = args.number("--rounds", 1, 1000, 13)?;
    let seconds = args.decimal("--seconds", 0.01, 3600.0, 0.4)?;
    let svg = args.value("--svg", "a file", |path| Some(path.to_owned()))?;
    args.finish()?;
    let load = Load {
        clients,
        udp,
        think: Duration::from_secs_f64(think / 1000.0),
        turn: Duration::from_secs_f64(seconds),
        silent: handling.silent,
    };
    if let Some(path) = &svg {
        // Now, not when the minutes of measuring are over.
        let mut writable = OpenOptions::new();
        let opened = writable.write(true).create(true).truncate(false).open(path);
        opened.map_err(|error| cannot_write(path, &error))?;
    }

    let ways = WAYS.iter().filter(|way| way.udp == udp);
    let (here, missing): (Vec<_>, Vec<_>) = ways.partition(|way| way.here);
    let ways = here.len();
    let udp = if udp { " --udp" } else { "" };
    let options = handling.options().join(" ");
    let space = if options.is_empty() { "" } else { " " };
    let command = format!(
        "reuseport compare{udp} --acceptors {acceptors} --clients {clients} --think {think}{space}\
         {options} --rounds {rounds} --seconds {seconds}"
    );
    let takes = ratio(rounds * ways, 1) * seconds;
    print(&format!(
        "{command}\n{ways} ways, {}, {seconds} s a turn: takes {takes:.0} s or more\n",
        count(rounds, "round")
    ));
    let (verb, what) = if load.udp {
        ("receive", "datagrams")
    } else {
        ("accept", "connections")
    };
    let report = Report {
        command,
        title: format!("Ways to {verb} {what}: {acceptors} threads each, {clients} clients"),
        what,
        rows: here.iter().map(|way| Row::new(way.name)).collect(),
        missing: missing.iter().map(|way| way.name).collect(),
        base: BASE,
    };
    let report = Arc::new(Mutex::new(report));
    let (so_far, path) = (Arc::clone(&report), svg.clone());
    Signals::at_an_early_end(move || {
        progress("");
        let published = publish(&so_far, path.as_deref());
        if let Err(Failure::Failed(line) | Failure::Usage(line)) = published {
            crate::output::report(&line);
        }
    })?;

    let servers = here
        .iter()
        .map(|way| Server::start(way, acceptors, &handling));
    let mut servers = servers.collect::<Result<Vec<_>, _>>()?;
    for turn in 0..rounds * ways {
        let round = turn / ways;
        let at = (round + turn) % ways; // so that each is the first now and then
        progress(&format!(
            "round {} of {rounds}: {}",
            round + 1,
            here[at].name
        ));
        let measured = load.measure(&mut servers[at], round);
        if measured.is_err() {
            progress("");
        }
        lock(&report).rows[at].rounds.push(measured?);
    }
    progress("");
    drop(servers);
    publish(&report, svg.as_deref())
}

fn lock(report: &Mutex<Report>) -> MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints and draws the rounds that are complete. It does so once, though a signal may come while
/// it does.
fn publish(report: &Mutex<Report>, svg: Option<&str>) -> Result<(), Failure> {
    let mut report = lock(report);
    if report.keep_complete_rounds() == 0 {
        return Err(Failure::Failed("no round is complete".to_owned()));
    }
    let drawn = svg.map_or(Ok(()), |path| {
        let written = fs::write(path, report.drawing());
        written.map_err(|error| cannot_write(path, &error))
    });
    print(&format!("\n{}\n{}", report.table(), report.conclusions()));
    // The lock is never given back: the process ends.
    core::mem::forget(report);
    drawn
}

/// Allows itself as many descriptors as it may, if that many connections could need them.
fn allow_descriptors(connections: usize) {
    if connections == 0 {
        return;
    }
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // Where it fails, so does a connection, if there are too many; and that is reported.
    // SAFETY: `limit` is readable.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}

fn cannot_write(path: &str, error: &io::Error) -> Failure {
    Failure::Failed(format!("{path}: {error}"))
}
