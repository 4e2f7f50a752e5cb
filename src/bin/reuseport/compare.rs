//! `reuseport compare`: the ways to accept, one beside the other.

mod picture;
mod report;
mod ways;

use core::hash::{BuildHasher, BuildHasherDefault, Hash};
use core::net::SocketAddr;
use core::time::Duration;
use std::fs::{self, OpenOptions};
use std::hash::DefaultHasher;
use std::io;
use std::net::TcpStream;
use std::thread::{self, Builder, sleep};
use std::time::Instant;

use crate::Failure;
use crate::args::Args;
use crate::client::Client;
use crate::histogram::Histogram;
use crate::output::{print, progress, ratio};
use crate::slow::Slow;
use report::{Report, Round, Row};
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
    let servers = here
        .iter()
        .map(|way| Server::start(way, acceptors, &handling));
    let mut servers = servers.collect::<Result<Vec<_>, _>>()?;
    let mut rows: Vec<_> = here.iter().map(|way| Row::new(way.name)).collect();
    let ways = rows.len();
    let measured: Result<(), Failure> = (0..rounds * ways).try_for_each(|turn| {
        let round = turn / ways;
        let at = (round + turn) % ways; // so that each is the first now and then
        let (server, row) = (&mut servers[at], &mut rows[at]);
        progress(&format!("round {} of {rounds}: {}", round + 1, row.name));
        row.rounds.push(load.measure(server, round)?);
        Ok(())
    });
    progress("");
    measured?;
    drop(servers);

    let udp = if udp { " --udp" } else { "" };
    let options = handling.options().join(" ");
    let space = if options.is_empty() { "" } else { " " };
    let command = format!(
        "reuseport compare{udp} --acceptors {acceptors} --clients {clients} --think {think}{space}\
         {options} --rounds {rounds} --seconds {seconds}"
    );
    let report = Report {
        command,
        rows,
        base: BASE,
    };
    let drawn = svg.map_or(Ok(()), |path| {
        let written = fs::write(&path, report.drawing());
        written.map_err(|error| cannot_write(&path, &error))
    });
    print(&report.table());
    for way in missing {
        print(&format!("{:20}  not on this kernel\n", way.name));
    }
    print(&format!("\n{}", report.conclusions()));
    drawn
}

/// Allows itself as many descriptors as it may, if that many connections could want them.
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
    // Where it fails, so does a connection, if there are too many; and that is told.
    // SAFETY: `limit` is readable.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}

fn cannot_write(path: &str, error: &io::Error) -> Failure {
    Failure::Failed(format!("{path}: {error}"))
}

/// How many datagrams a client sends before it waits for the answers.
const BURST: usize = 8;

/// How many clients there are at most that do so: all their datagrams find room in one queue, of
/// which Linux gives 256 places, and a quarter back only when it is empty. One that is dropped
/// would be waited for in vain.
const MOST_IN_BURSTS: usize = 20;

/// What the clients do, alike for every way.
struct Load {
    clients: usize,
    /// They send datagrams.
    udp: bool,
    /// The mean of the pauses.
    think: Duration,
    turn: Duration,
    /// Clients that say nothing. If there is a number, the others send a byte.
    silent: Option<usize>,
}

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it waits where silent clients may have stopped the server.
const PATIENCE_BESIDE_SILENT: Duration = Duration::from_secs(1);

impl Load {
    /// One server's turn.
    fn measure(&self, server: &mut Server, round: usize) -> Result<Round, Failure> {
        let before = server.used()?;
        let failed = |why| Failure::Failed(format!("{}: {why}", server.way.name));
        let (durations, in_time) = self.run(server.address, round).map_err(failed)?;
        let after = server.used()?;
        let used: Vec<_> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        let (used, handled) = used.split_at(2);
        let total = handled.iter().sum();
        let (Some(least), Some(most)) = (handled.iter().min(), handled.iter().max()) else {
            return Err(failed("it has no thread".to_owned()));
        };
        // Silent clients may have stopped it.
        if in_time == 0 && self.silent.unwrap_or_default() == 0 {
            return Err(failed("no connection ended within its turn".to_owned()));
        }
        let millis = |per_mille| durations.percentile(per_mille).as_secs_f64() * 1e3;
        Ok(Round {
            rate: ratio(in_time, 1) / self.turn.as_secs_f64(),
            p50: millis(500),
            p99: millis(990),
            p999: millis(999),
            longest: millis(1000),
            fairness: ratio(*least, *most),
            switches: ratio(used[1], total),
            cpu: ratio(used[0], total),
        })
    }

    /// All clients at once: how long their connections took, and how many ended within the turn.
    /// Those that end after it are timed too; otherwise the slow ones would be missing.
    ///
    /// The server closes first, so what lingers (`TIME_WAIT`) is the server's, and the clients'
    /// ports are free again at once.
    fn run(&self, address: SocketAddr, round: usize) -> Result<(Histogram, usize), String> {
        let silent = |_| TcpStream::connect_timeout(&address, PATIENCE);
        thread::scope(|scope| {
            let client = |number| {
                let thread = Builder::new().stack_size(128 * 1024);
                thread.spawn_scoped(scope, move || self.client(address, (round, number)))
            };
            let clients: Vec<_> = (0..self.clients).map(client).collect();
            // They hang up when the others are done.
            let silent = (0..self.silent.unwrap_or_default()).map(silent);
            let _silent = silent
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| format!("a silent client: {error}"))?;
            let (mut all, mut in_time) = (Histogram::new(), 0);
            for client in clients {
                let client = client.map_err(|error| format!("starting a thread: {error}"))?;
                let seen = client
                    .join()
                    .map_err(|_| "a client panicked".to_owned())??;
                all.merge(&seen.0);
                in_time += seen.1;
            }
            Ok((all, in_time))
        })
    }

    /// One client, until the turn is over or a connection fails. Its pauses depend on `seed` alone.
    fn client(
        &self,
        address: SocketAddr,
        seed: (usize, usize),
    ) -> Result<(Histogram, usize), String> {
        let patience = match self.silent {
            Some(_) => PATIENCE_BESIDE_SILENT,
            None => PATIENCE,
        };
        let client = Client {
            addresses: vec![address],
            hold: Duration::ZERO,
            timeout: patience,
        };
        let (mut durations, mut in_time) = (Histogram::new(), 0);
        let end = Instant::now() + self.turn;
        for visit in 0_usize.. {
            let pause = self.think.mul_f64(exponential((seed, visit)));
            let left = end.saturating_duration_since(Instant::now());
            if !pause.is_zero() {
                sleep(pause.min(left));
            }
            if pause >= left {
                break;
            }
            let begun = Instant::now();
            let (duration, done) = match (self.udp, self.silent) {
                (true, _) => (client.ask_for(BURST)?, BURST),
                (false, None) => (client.visit()?, 1),
                (false, Some(_)) => match client.visit_saying(b"?") {
                    Ok(duration) => (duration, 1),
                    Err(_) if begun.elapsed() >= patience => (begun.elapsed(), 0),
                    Err(error) => return Err(error),
                },
            };
            durations.add(duration);
            in_time += if Instant::now() < end { done } else { 0 };
        }
        Ok((durations, in_time))
    }
}

/// A number of the exponential distribution with the mean 1, the same for the same seed.
fn exponential(seed: impl Hash) -> f64 {
    let hash = BuildHasherDefault::<DefaultHasher>::new().hash_one(seed);
    let uniform = f64::from(u32::try_from(hash >> 32).unwrap_or(0)) + 0.5;
    -(uniform / 4_294_967_296.0).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_have_the_mean_that_was_asked_for() {
        // A fixed sequence: the mean of 100 000 is within 1 % of 1, three standard errors.
        let sum: f64 = (0..100_000).map(exponential).sum();
        assert!((sum / 100_000.0 - 1.0).abs() < 0.01, "{sum}");
        assert!((0..100_000).map(exponential).all(|pause| pause > 0.0));
    }
}
