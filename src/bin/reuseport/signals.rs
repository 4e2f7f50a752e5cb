//! Signals, waited for instead of handled: no code runs inside a signal handler.

use core::mem::MaybeUninit;
use core::ptr::null_mut;

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

/// Held back from now on, in this thread and all that it starts.
pub(crate) struct Signals(libc::sigset_t);

impl Signals {
    pub(crate) fn hold() -> Signals {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `set` is writable; sigemptyset initialises it.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised by the line above.
        let mut set = unsafe { set.assume_init() };
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGUSR1, libc::SIGHUP] {
            // SAFETY: `set` is an initialised set, `signal` a valid number.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: `set` is an initialised set; null asks for no copy of the old one.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, null_mut()) };
        Signals(set)
    }

    /// Waits for one of them. After one that says to end, the next does so at once.
    pub(crate) fn wait(&self) -> Caught {
        let mut signal = 0;
        // SAFETY: the set is initialised, `signal` writable.
        unsafe { libc::sigwait(&raw const self.0, &raw mut signal) };
        match signal {
            libc::SIGUSR1 => Caught::Report,
            libc::SIGHUP => Caught::HandOver,
            _ => {
                self.let_the_next_end_it();
                Caught::End
            }
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

    /// Takes a signal that says to end and has come meanwhile, for whoever it concerns now.
    #[cfg(linux_kernel)]
    pub(crate) fn pending_end(&self) -> Option<i32> {
        let mut pending = self.0;
        // SAFETY: `pending` is writable; sigpending initialises it.
        unsafe { libc::sigpending(&raw mut pending) };
        let both = [libc::SIGINT, libc::SIGTERM];
        // SAFETY: `pending` is an initialised set.
        let came = both
            .into_iter()
            .find(|s| unsafe { libc::sigismember(&raw const pending, *s) } == 1)?;
        let mut only = pending;
        // SAFETY: `only` is a set; sigemptyset initialises it anew.
        unsafe { libc::sigemptyset(&raw mut only) };
        // SAFETY: `only` is an initialised set, `came` a valid number.
        unsafe { libc::sigaddset(&raw mut only, came) };
        let mut taken = 0;
        // It is pending, so this does not wait.
        // SAFETY: the set is initialised, `taken` writable.
        unsafe { libc::sigwait(&raw const only, &raw mut taken) };
        Some(came)
    }
}
