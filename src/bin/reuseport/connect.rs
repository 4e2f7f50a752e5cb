//! `reuseport connect`: a client that counts what becomes of its connections.

use core::fmt::Write as _;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::Failure;
use crate::args::Args;
use crate::client::Client;
use crate::histogram::Histogram;
use crate::output::{print, progress, ratio};
use crate::signals::Signals;

pub(crate) const HELP: &str = "\
Connects, reads until the server closes, and counts; exits 1 if any connection failed

Usage: reuseport connect [OPTIONS]

  --addr ADDRESS     where to, such as 127.0.0.1:3000, [::1]:3000 or localhost:3000
                     [127.0.0.1:3000]
  --connections N    how many to make in all [10]
  --concurrency N    how many clients make them at the same time [1]
  --hold MS          milliseconds to stay connected before reading [0]
  --timeout MS       milliseconds to wait for an answer [10000]
  --udp              send a datagram instead, each from a port of its own, and wait for it to come
                     back: for `serve --udp --echo`

SIGINT (Ctrl-C) and SIGTERM end it early: what it has counted so far is printed.
";

type Visit = fn(&Client) -> Result<Duration, String>;

/// What a client has seen.
#[derive(Default)]
struct Seen {
    durations: Histogram,
    failures: BTreeMap<String, usize>,
}

pub(crate) fn run(mut args: Args) -> Result<(), Failure> {
    let connections = args.number("--connections", 1, 1_000_000_000, 10)?;
    let concurrency = args.number("--concurrency", 1, 10_000, 1)?.min(connections);
    let udp = args.flag("--udp");
    let hold = if udp {
        args.unwanted(&["--hold"], "it cannot be used with --udp");
        0
    } else {
        args.number("--hold", 0, 86_400_000, 0)?
    };
    let timeout = millis(args.number("--timeout", 1, 86_400_000, 10_000)?);
    let client = Client {
        addresses: args.addresses()?,
        hold: millis(hold),
        timeout,
    };
    let (visit, what, server): (Visit, _, _) = if udp {
        (Client::ask, "answers", "serve --udp --echo")
    } else {
        (Client::visit, "connections", "serve")
    };
    let server = format!("`reuseport {server}` at {}", client.addresses[0]);
    args.finish()?;

    let begun = Instant::now();
    let seen: Arc<[Mutex<Seen>]> = (0..concurrency).map(|_| Mutex::default()).collect();
    let so_far = Arc::clone(&seen);
    Signals::at_an_early_end(move || {
        progress("");
        Seen::all(&so_far).print(what, begun.elapsed());
    })?;
    let started = AtomicUsize::new(0);
    thread::scope(|scope| {
        let (ended, ends) = mpsc::channel::<()>();
        for seen in &*seen {
            let (ended, client, started) = (ended.clone(), &client, &started);
            let thread = thread::Builder::new().stack_size(128 * 1024);
            let spawned = thread.spawn_scoped(scope, move || {
                let _ended = ended; // dropped at the end
                while started.fetch_add(1, Relaxed) < connections {
                    let outcome = visit(client);
                    lock(seen).add(outcome);
                }
            });
            spawned.map_err(|error| Failure::thread(&error))?;
        }
        drop(ended);
        while ends.recv_timeout(Duration::from_millis(200)) == Err(RecvTimeoutError::Timeout) {
            let started = started.load(Relaxed).min(connections);
            progress(&format!("{started} of {connections} {what}"));
        }
        progress("");
        Ok::<_, Failure>(())
    })?;
    let all = Seen::all(&seen);
    all.print(what, begun.elapsed());
    all.verdict(what, &server)
}

fn millis(count: usize) -> Duration {
    Duration::from_millis(count as u64)
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    fn all(clients: &[Mutex<Seen>]) -> Seen {
        let mut all = Seen::default();
        for seen in clients {
            let seen = lock(seen);
            all.durations.merge(&seen.durations);
            for (failure, times) in &seen.failures {
                *all.failures.entry(failure.clone()).or_default() += times;
            }
        }
        all
    }

    fn add(&mut self, outcome: Result<Duration, String>) {
        match outcome {
            Ok(duration) => self.durations.add(duration),
            Err(failure) => *self.failures.entry(failure).or_default() += 1,
        }
    }

    fn print(&self, what: &str, elapsed: Duration) {
        let made = self.durations.len();
        let seconds = elapsed.as_secs_f64();
        let [half, most, all] =
            [500, 990, 1000].map(|at| self.durations.percentile(at).as_secs_f64() * 1e3);
        let mut text = format!("{made} {what} in {seconds:.2} s");
        if made > 0 {
            let rate = ratio(made, 1) / seconds;
            _ = write!(
                text,
                ", {rate:.0} a second; p50 {half:.3} ms, p99 {most:.3} ms, max {all:.3} ms"
            );
        }
        text.push('\n');
        for (failure, times) in &self.failures {
            _ = writeln!(text, "{times} failed: {failure}");
        }
        print(&text);
    }

    /// `server`: what to look for if there is no answer at all.
    fn verdict(&self, what: &str, server: &str) -> Result<(), Failure> {
        let (made, failed) = (self.durations.len(), self.failures.values().sum::<usize>());
        let hint = match made {
            0 => format!("; is there a {server}?"),
            _ => String::new(),
        };
        match failed {
            0 => Ok(()),
            _ => Err(Failure::Failed(format!(
                "{failed} of {} {what} failed{hint}",
                made + failed
            ))),
        }
    }
}
