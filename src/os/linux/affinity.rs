//! The CPUs that a thread may run on, and its name.

use core::panic::AssertUnwindSafe;
use std::ffi::CStr;
use std::panic::{catch_unwind, resume_unwind};
use std::vec::Vec;

use super::constants::PR_SET_NAME;
use crate::error::{Call, Error, check};

/// A set of CPU numbers as the kernel keeps it: a bit each, in words of C's `unsigned long`.
#[derive(Clone, Copy)]
struct CpuSet([usize; MAX_CPUS / WORD]);

const MAX_CPUS: usize = 8192;
const WORD: usize = usize::BITS as usize;

impl CpuSet {
    const EMPTY: CpuSet = CpuSet([0; MAX_CPUS / WORD]);

    /// The set of the calling thread: `sched_getaffinity(2)`.
    fn current() -> Result<CpuSet, Error> {
        let mut cpus = CpuSet::EMPTY;
        let (size, set) = (size_of::<CpuSet>(), (&raw mut cpus.0).cast());
        // SAFETY: `cpus` is writable for the size stated; 0 is the calling thread.
        let result = unsafe { libc::sched_getaffinity(0, size, set) };
        check(Call::SchedGetAffinity, result)?;
        Ok(cpus)
    }

    fn of(cpus: &[u32]) -> CpuSet {
        let mut set = CpuSet::EMPTY;
        for cpu in cpus {
            if let Some(word) = set.0.get_mut(*cpu as usize / WORD) {
                *word |= 1 << (*cpu as usize % WORD);
            }
        }
        set
    }

    /// Makes it the calling thread's: `sched_setaffinity(2)`.
    fn apply(&self) -> Result<(), Error> {
        let (size, set) = (size_of::<CpuSet>(), (&raw const self.0).cast());
        // SAFETY: the set is readable for the size stated; 0 is the calling thread.
        let result = unsafe { libc::sched_setaffinity(0, size, set) };
        check(Call::SchedSetAffinity, result).map(drop)
    }
}

/// Returns the CPUs that the calling thread may run on, in rising order. The numbers may have gaps.
pub(crate) fn allowed_cpus() -> Result<Vec<u32>, Error> {
    let set = CpuSet::current()?;
    let is_in = |cpu: &usize| set.0[cpu / WORD] >> (cpu % WORD) & 1 == 1;
    let numbers = (0..MAX_CPUS).filter(is_in);
    Ok(numbers.filter_map(|cpu| cpu.try_into().ok()).collect())
}

/// Runs `start` on one CPU, so that a thread which it starts stays there.
pub(crate) fn start_on_cpu<T>(cpu: u32, start: impl FnOnce() -> T) -> Result<T, Error> {
    let before = CpuSet::current()?;
    CpuSet::of(&[cpu]).apply()?;
    // The caller's set is restored also after a panic.
    let started = catch_unwind(AssertUnwindSafe(start));
    let restored = before.apply();
    let started = started.unwrap_or_else(|payload| resume_unwind(payload));
    restored.map(|()| started)
}

/// Has the calling thread run on these CPUs from now on. It makes one system call, no more.
pub(crate) fn move_to_cpus(cpus: &[u32]) -> Result<(), Error> {
    CpuSet::of(cpus).apply()
}

/// Names the calling thread, as `ps -L` and debuggers show it: at most 15 bytes.
pub(crate) fn name_thread(name: &CStr) {
    // It cannot fail: the string is readable to its end.
    // SAFETY: `name` ends with a zero; the kernel copies at most 16 bytes.
    unsafe { libc::prctl(PR_SET_NAME, name.as_ptr()) };
}
