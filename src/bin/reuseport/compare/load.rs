//! The load: clients that do the same whatever the way.

use core::hash::{BuildHasher, BuildHasherDefault, Hash};
use core::net::SocketAddr;
use core::time::Duration;
use std::hash::DefaultHasher;
use std::net::TcpStream;
use std::thread::{self, Builder, sleep};
use std::time::Instant;

use super::report::Round;
use super::ways::Server;
use crate::Failure;
use crate::client::Client;
use crate::histogram::Histogram;
use crate::output::ratio;

/// How many datagrams a client sends before it waits for the answers.
const BURST: usize = 8;

/// How many clients there are at most that do so: all their datagrams find room in one queue, of
/// which Linux gives 256 places, and a quarter back only when it is empty. One that is dropped
/// would be waited for in vain.
pub(super) const MOST_IN_BURSTS: usize = 20;

/// What the clients do, alike for every way.
pub(super) struct Load {
    pub(super) clients: usize,
    /// They send datagrams.
    pub(super) udp: bool,
    /// The mean of the pauses.
    pub(super) think: Duration,
    pub(super) turn: Duration,
    /// Clients that say nothing. If there is a number, the others send a byte.
    pub(super) silent: Option<usize>,
}

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it waits where silent clients may have stopped the server.
const PATIENCE_BESIDE_SILENT: Duration = Duration::from_secs(1);

impl Load {
    /// One server's turn.
    pub(super) fn measure(&self, server: &mut Server, round: usize) -> Result<Round, Failure> {
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
            let (mut all, mut in_time) = (Histogram::default(), 0);
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
        let (mut durations, mut in_time) = (Histogram::default(), 0);
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
