//! Which CPUs a thread may run on (Linux, Android).

use core::panic::AssertUnwindSafe;
use std::panic::{catch_unwind, resume_unwind};
use std::vec::Vec;

use crate::error::{Call, Error, check};

/// A set of CPU numbers as the kernel keeps it, a bit each, in C's `unsigned long`.
#[derive(Clone, Copy)]
pub(crate) struct Cpus([usize; MOST / WORD]);

const MOST: usize = 8192;
const WORD: usize = usize::BITS as usize;

impl Cpus {
    const NONE: Cpus = Cpus([0; MOST / WORD]);

    /// Those that the calling thread may run on: `sched_getaffinity(2)`. Numbers may have holes.
    pub(crate) fn allowed() -> Result<Cpus, Error> {
        let mut cpus = Cpus::NONE;
        let (size, set) = (size_of::<Cpus>(), (&raw mut cpus.0).cast());
        // SAFETY: `cpus` is writable for the size stated; 0 is the calling thread.
        let result = unsafe { libc::sched_getaffinity(0, size, set) };
        check(Call::SchedGetAffinity, result)?;
        Ok(cpus)
    }

    fn only(cpu: u32) -> Cpus {
        let mut cpus = Cpus::NONE;
        if let Some(word) = cpus.0.get_mut(cpu as usize / WORD) {
            *word = 1 << (cpu as usize % WORD);
        }
        cpus
    }

    /// In rising order.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        let is_in = |cpu: &usize| self.0[cpu / WORD] >> (cpu % WORD) & 1 == 1;
        let numbers = (0..MOST).filter(is_in);
        numbers.filter_map(|cpu| cpu.try_into().ok()).collect()
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
