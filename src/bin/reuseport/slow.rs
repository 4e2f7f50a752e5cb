//! Handlers that take long, now and then.

use core::fmt;
use core::hint::black_box;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::thread;

use crate::Failure;
use crate::args::Args;
use crate::output::ratio;

/// A share of the connections that takes long, spread evenly over them.
pub(crate) struct Slow {
    percent: f64,
    work: Work,
    handled: AtomicUsize,
}

/// What takes long.
enum Work {
    Sleep(Duration),
    /// Millions of steps of a computation: as much work however busy the machine is.
    Compute(u32),
}

impl Slow {
    /// `--slow`, if it is there.
    pub(crate) fn option(args: &mut Args) -> Result<Option<Slow>, Failure> {
        let wanted = "PERCENT:MILLISECONDS, such as 0.5:50";
        args.value("--slow", wanted, |value| {
            let millis = |number: &str| Some(Duration::from_millis(number.parse().ok()?));
            Slow::parse(value, |number| millis(number).map(Work::Sleep))
        })
    }

    /// `--compute`, if it is there.
    pub(crate) fn computing(args: &mut Args) -> Result<Option<Slow>, Failure> {
        let wanted = "PERCENT:MILLIONS, such as 10:15";
        args.value("--compute", wanted, |value| {
            Slow::parse(value, |number| number.parse().ok().map(Work::Compute))
        })
    }

    fn parse(value: &str, work: impl Fn(&str) -> Option<Work>) -> Option<Slow> {
        let (percent, amount) = value.split_once(':')?;
        let percent = percent.parse().ok();
        Some(Slow {
            percent: percent.filter(|percent| (0.0..=100.0).contains(percent))?,
            work: work(amount)?,
            handled: AtomicUsize::new(0),
        })
    }

    /// Takes long, if it is this connection's turn.
    pub(crate) fn handle(&self) {
        let before = self.handled.fetch_add(1, Relaxed);
        let slow_ones = |handled: usize| (ratio(handled, 100) * self.percent).floor();
        if slow_ones(before + 1) > slow_ones(before) {
            match self.work {
                Work::Sleep(pause) => thread::sleep(pause),
                Work::Compute(millions) => compute(millions),
            }
        }
    }
}

/// Takes a million steps so often, each of which needs the one before: about 1.5 ms a million.
fn compute(millions: u32) {
    // The shift keeps the compiler from making one multiplication of several.
    let step = |number: u64, _| (number ^ (number >> 32)).wrapping_mul(0x5851_f42d_4c95_7f2d);
    black_box((0..u64::from(millions) * 1_000_000).fold(black_box(1), step));
}

/// As the option takes it.
impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.percent)?;
        match self.work {
            Work::Sleep(pause) => write!(f, "{}", pause.as_millis()),
            Work::Compute(millions) => write!(f, "{millions}"),
        }
    }
}
