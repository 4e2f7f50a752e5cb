//! Which CPUs a thread may run on (Linux, Android).

use core::panic::AssertUnwindSafe;
use std::panic::{catch_unwind, resume_unwind};
use std::vec::Vec;

use crate::error::{Call, Error, check};

/// A set of CPU numbers as the kernel keeps it, a bit each: room for 8192.
#[derive(Clone, Copy)]
pub(crate) struct Cpus([u64; 128]);

impl Cpus {
    /// Those that the calling thread may run on: `sched_getaffinity(2)`. Numbers may have holes.
    pub(crate) fn allowed() -> Result<Cpus, Error> {
        let mut cpus = Cpus([0; 128]);
        let (size, set) = (size_of::<Cpus>(), (&raw mut cpus.0).cast());
        // SAFETY: `cpus` is writable for the size stated; 0 is the calling thread.
        let result = unsafe { libc::sched_getaffinity(0, size, set) };
        check(Call::SchedGetAffinity, result)?;
        Ok(cpus)
    }

    fn only(cpu: u32) -> Cpus {
        let mut cpus = Cpus([0; 128]);
        if let Some(word) = cpus.0.get_mut(cpu as usize / 64) {
            *word = 1 << (cpu % 64);
        }
        cpus
    }

    /// In rising order.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        let is_in = |cpu: &u32| self.0[*cpu as usize / 64] >> (cpu % 64) & 1 == 1;
        (0..8192).filter(is_in).collect()
    }

    fn apply(&self) -> Result<(), Error> {
        let (size, set) = (size_of::<Cpus>(), (&raw const self.0).cast());
        // SAFETY: the set is readable for the size stated; 0 is the calling thread.
        let result = unsafe { libc::sched_setaffinity(0, size, set) };
        check(Call::SchedSetAffinity, result).map(drop)
    }
}

/// Runs `start` on one CPU alone: `sched_setaffinity(2)`. A thread started there stays there.
pub(crate) fn on<T>(cpu: u32, start: impl FnOnce() -> T) -> Result<T, Error> {
    let before = Cpus::allowed()?;
    Cpus::only(cpu).apply()?;
    // It runs the user's code: back also from a panic.
    let started = catch_unwind(AssertUnwindSafe(start));
    let back = before.apply();
    let started = started.unwrap_or_else(|payload| resume_unwind(payload));
    back.map(|()| started)
}
