//! Signals, waited for instead of handled: no code runs inside a signal handler.

use core::mem::MaybeUninit;
use core::ptr::null_mut;
use core::time::Duration;
use std::thread::sleep;
use std::time::Instant;

/// What a signal asks of a server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caught {
    /// SIGUSR1.
    Report,
    /// SIGHUP.
    HandOver,
    /// SIGINT, SIGTERM.
    End,
}

const HELD: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGUSR1, libc::SIGHUP];

/// Held back from now on, in this thread and all that it starts.
pub(crate) struct Signals(libc::sigset_t);

impl Signals {
    pub(crate) fn hold() -> Signals {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `set` is writable; sigemptyset initialises it.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised by the line above.
        let mut set = unsafe { set.assume_init() };
        for signal in HELD {
            // SAFETY: `set` is an initialised set, `signal` a valid number.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: `set` is an initialised set; null asks for no copy of the old one.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, null_mut()) };
        Signals(set)
    }

    /// Waits for one of them, at most for `timeout`. After one that says to end, the next does so
    /// at once.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Option<Caught> {
        match self.take(timeout)? {
            libc::SIGUSR1 => Some(Caught::Report),
            libc::SIGHUP => Some(Caught::HandOver),
            _ => {
                self.let_the_next_end_it();
                Some(Caught::End)
            }
        }
    }

    /// Takes one of them, and waits for it at most for `timeout`.
    fn take(&self, timeout: Option<Duration>) -> Option<i32> {
        let Some(timeout) = timeout else {
            let mut signal = 0;
            // SAFETY: the set is initialised, `signal` writable.
            unsafe { libc::sigwait(&raw const self.0, &raw mut signal) };
            return Some(signal);
        };
        let begun = Instant::now();
        loop {
            let mut pending = self.0;
            // SAFETY: `pending` is writable; sigpending initialises it.
            unsafe { libc::sigpending(&raw mut pending) };
            let is_pending = |signal: &i32| {
                // SAFETY: `pending` is an initialised set.
                unsafe { libc::sigismember(&raw const pending, *signal) == 1 }
            };
            if HELD.iter().any(is_pending) {
                // One is pending, so this does not wait.
                return self.take(None);
            }
            let left = timeout.checked_sub(begun.elapsed())?;
            sleep(left.min(Duration::from_millis(1)));
        }
    }

    /// The next SIGINT or SIGTERM has its usual deadly effect. The others, which ask for what is no
    /// more, go on being held back.
    pub(crate) fn let_the_next_end_it(&self) {
        let mut ending = self.0;
        for signal in [libc::SIGUSR1, libc::SIGHUP] {
            // SAFETY: `ending` is an initialised set, `signal` a valid number.
            unsafe { libc::sigdelset(&raw mut ending, signal) };
        }
        // SAFETY: as in `hold`.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const ending, null_mut()) };
    }

    /// Takes those that have come meanwhile.
    #[cfg(linux_kernel)]
    pub(crate) fn take_pending(&self) -> Vec<i32> {
        core::iter::from_fn(|| self.take(Some(Duration::ZERO))).collect()
    }
}
