//! Handlers that take long, now and then.

use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::thread;

use crate::Failure;
use crate::args::Args;
use crate::output::ratio;

/// A share of the connections that takes long, spread evenly over them.
pub(crate) struct Slow {
    percent: f64,
    pause: Duration,
    handled: AtomicUsize,
}

impl Slow {
    /// `--slow`, if it is there.
    pub(crate) fn option(args: &mut Args) -> Result<Option<Slow>, Failure> {
        let wanted = "PERCENT:MILLISECONDS, such as 0.5:50";
        args.value("--slow", wanted, Slow::parse)
    }

    fn parse(value: &str) -> Option<Slow> {
        let (percent, millis) = value.split_once(':')?;
        let percent = percent
            .parse()
            .ok()
            .filter(|percent| (0.0..=100.0).contains(percent))?;
        let pause = Duration::from_millis(millis.parse().ok()?);
        Some(Slow {
            percent,
            pause,
            handled: AtomicUsize::new(0),
        })
    }

    /// Takes long, if it is this connection's turn.
    pub(crate) fn handle(&self) {
        let before = self.handled.fetch_add(1, Relaxed);
        let slow_ones = |handled: usize| (ratio(handled, 100) * self.percent).floor();
        if slow_ones(before + 1) > slow_ones(before) {
            thread::sleep(self.pause);
        }
    }
}

/// As `--slow` takes it.
impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.percent, self.pause.as_millis())
    }
}
