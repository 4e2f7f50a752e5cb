//! `reuseport connect`: a client that counts what becomes of its connections.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Instant;

use crate::Failure;
use crate::args::Args;
use crate::client::Client;
use crate::histogram::Histogram;
use crate::output::{print, progress};

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
";

type Visit = fn(&Client) -> Result<Duration, String>;

/// What a client has seen.
struct Seen {
    durations: Histogram,
    failures: BTreeMap<String, usize>,
}

pub(crate) fn run(mut args: Args) -> Result<(), Failure> {
    let connections = args.number("--connections", 1, 1_000_000_000, 10)?;
    let concurrency = args.number("--concurrency", 1, 10_000, 1)?.min(connections);
    let udp = args.flag("--udp");
    let hold = if udp {
        args.unwanted(&["--hold"], "of datagrams there is nothing to hold");
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
    let started = AtomicUsize::new(0);
    let mut all = Seen {
        durations: Histogram::new(),
        failures: BTreeMap::new(),
    };
    thread::scope(|scope| {
        let (done, arrivals) = mpsc::channel();
        for _ in 0..concurrency {
            let (done, client, started) = (done.clone(), &client, &started);
            let thread = thread::Builder::new().stack_size(128 * 1024);
            let spawned = thread.spawn_scoped(scope, move || {
                let seen = visit_while(
                    || visit(client),
                    || started.fetch_add(1, Relaxed) < connections,
                );
                _ = done.send(seen);
            });
            spawned.map_err(|error| Failure::Failed(format!("starting a thread: {error}")))?;
        }
        drop(done);
        loop {
            match arrivals.recv_timeout(Duration::from_millis(200)) {
                Ok(seen) => all.merge(seen),
                Err(RecvTimeoutError::Timeout) => {
                    let started = started.load(Relaxed).min(connections);
                    progress(&format!("{started} of {connections} {what}"));
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        progress("");
        Ok::<_, Failure>(())
    })?;
    all.tell(what, connections, begun.elapsed(), &server)
}

fn millis(count: usize) -> Duration {
    Duration::from_millis(count as u64)
}

fn visit_while(
    visit: impl Fn() -> Result<Duration, String>,
    mut more: impl FnMut() -> bool,
) -> Seen {
    let mut seen = Seen {
        durations: Histogram::new(),
        failures: BTreeMap::new(),
    };
    while more() {
        match visit() {
            Ok(duration) => seen.durations.add(duration),
            Err(failure) => *seen.failures.entry(failure).or_default() += 1,
        }
    }
    seen
}

impl Seen {
    fn merge(&mut self, other: Seen) {
        self.durations.merge(&other.durations);
        for (failure, times) in other.failures {
            *self.failures.entry(failure).or_default() += times;
        }
    }

    /// `server`: what to look for if there is no answer at all.
    fn tell(
        &self,
        what: &str,
        connections: usize,
        elapsed: Duration,
        server: &str,
    ) -> Result<(), Failure> {
        let failed: usize = self.failures.values().sum();
        let made = connections - failed;
        let seconds = elapsed.as_secs_f64();
        #[allow(clippy::cast_precision_loss)] // printed as a whole number
        let rate = made as f64 / seconds;
        let [half, most, all] =
            [500, 990, 1000].map(|at| self.durations.percentile(at).as_secs_f64() * 1e3);
        print(&format!("{made} {what} in {seconds:.2} s"));
        if made > 0 {
            print(&format!(
                ", {rate:.0} a second; p50 {half:.3} ms, p99 {most:.3} ms, max {all:.3} ms"
            ));
        }
        print("\n");
        for (failure, times) in &self.failures {
            print(&format!("{times} failed: {failure}\n"));
        }
        let hint = match made {
            0 => format!("; is there a {server}?"),
            _ => String::new(),
        };
        match failed {
            0 => Ok(()),
            _ => Err(Failure::Failed(format!(
                "{failed} of {connections} {what} failed{hint}"
            ))),
        }
    }
}
