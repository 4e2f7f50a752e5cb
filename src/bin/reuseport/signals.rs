//! Signals, waited for instead of handled: no code runs inside a signal handler.

use core::mem::MaybeUninit;
use core::ptr::null_mut;
use core::time::Duration;
use std::fs::File;
use std::thread::{Builder, sleep};
use std::time::Instant;

use crate::Failure;

/// What a signal asks of a server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caught {
    /// SIGUSR1.
    Report,
    /// SIGUSR2; SIGHUP where no terminal controls the process.
    HandOver,
    /// SIGINT, SIGTERM; SIGHUP of the controlling terminal.
    End,
}

/// Blocked from now on, in this thread and all that it starts.
pub(crate) struct Signals {
    blocked: libc::sigset_t,
    /// Whether SIGHUP means that the terminal is gone.
    hangup_ends: bool,
}

/// Those that end a command.
const ENDING: [i32; 2] = [libc::SIGINT, libc::SIGTERM];

/// Those that a server knows.
const OF_A_SERVER: [i32; 5] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGHUP,
];

impl Signals {
    /// Blocks the signals of a server. A SIGHUP that is ignored, as `nohup` has it, stays ignored.
    pub(crate) fn of_a_server() -> Signals {
        let mut signals = OF_A_SERVER.to_vec();
        signals.retain(|signal| *signal != libc::SIGHUP || !is_ignored(*signal));
        Signals::block(&signals)
    }

    fn block(signals: &[i32]) -> Signals {
        let blocked = set(signals);
        // SAFETY: the set is initialised; null asks for no copy of the old one.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, null_mut()) };
        // It is asked for now: when the terminal is closed, no terminal controls the process.
        let hangup_ends = File::open("/dev/tty").is_ok();
        Signals {
            blocked,
            hangup_ends,
        }
    }

    /// Has a thread wait for SIGINT or SIGTERM. At the first it calls `finish`, which says what is
    /// done so far, and ends the process by that signal; the next one ends it at once.
    pub(crate) fn at_an_early_end(finish: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
        let signals = Signals::block(&ENDING);
        let wait = move || {
            let signal = signals.next();
            let_the_next_end_it();
            finish();
            // SAFETY: takes an integer. This thread does not block the signal any more.
            unsafe { libc::raise(signal) };
        };
        let started = Builder::new().spawn(wait);
        started.map_or_else(|error| Err(Failure::thread(&error)), |_| Ok(()))
    }

    /// Waits for one of them, at most for `timeout`. After one that says to end, SIGINT and SIGTERM
    /// do so at once.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Option<Caught> {
        match self.take(timeout)? {
            libc::SIGUSR1 => Some(Caught::Report),
            libc::SIGUSR2 => Some(Caught::HandOver),
            libc::SIGHUP if !self.hangup_ends => Some(Caught::HandOver),
            _ => {
                let_the_next_end_it();
                Some(Caught::End)
            }
        }
    }

    /// Takes one of them, and waits for it at most for `timeout`.
    fn take(&self, timeout: Option<Duration>) -> Option<i32> {
        let Some(timeout) = timeout else {
            return Some(self.next());
        };
        let begun = Instant::now();
        loop {
            let mut pending = self.blocked;
            // SAFETY: `pending` is writable; sigpending initialises it.
            unsafe { libc::sigpending(&raw mut pending) };
            let is_pending = |signal: &i32| has(&pending, *signal) && has(&self.blocked, *signal);
            if OF_A_SERVER.iter().any(is_pending) {
                // One is pending, so this does not wait.
                return Some(self.next());
            }
            let left = timeout.checked_sub(begun.elapsed())?;
            sleep(left.min(Duration::from_millis(1)));
        }
    }

    fn next(&self) -> i32 {
        let mut signal = 0;
        // SAFETY: the set is initialised, `signal` writable.
        unsafe { libc::sigwait(&raw const self.blocked, &raw mut signal) };
        signal
    }

    /// Takes those that have come meanwhile.
    #[cfg(linux_kernel)]
    pub(crate) fn take_pending(&self) -> Vec<i32> {
        core::iter::from_fn(|| self.take(Some(Duration::ZERO))).collect()
    }
}

/// The next SIGINT or SIGTERM has its usual deadly effect. The other signals, which ask for what is
/// no more, stay blocked.
pub(crate) fn let_the_next_end_it() {
    let ending = set(&ENDING);
    // SAFETY: the set is initialised; null asks for no copy of the old one.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const ending, null_mut()) };
}

fn set(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `set` is writable; sigemptyset initialises it.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by the line above.
    let mut set = unsafe { set.assume_init() };
    for signal in signals {
        // SAFETY: `set` is an initialised set, `signal` a valid number.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    set
}

fn has(set: &libc::sigset_t, signal: i32) -> bool {
    // SAFETY: `set` is an initialised set.
    unsafe { libc::sigismember(set, signal) == 1 }
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: made of integers, pointers and optional functions, for which zeros are a value.
    let mut now: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: a null action changes nothing; `now` is writable.
    unsafe { libc::sigaction(signal, core::ptr::null(), &raw mut now) };
    now.sa_sigaction == libc::SIG_IGN
}
