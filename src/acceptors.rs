//! The C program's threads: one acceptor for each listener, each waiting in its own `accept`.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use core::{ffi::c_int, mem, panic::AssertUnwindSafe, time::Duration};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Builder, JoinHandle, sleep};
use std::{io, panic::catch_unwind, process, vec::Vec};

use crate::error::{AcceptAction, Error};
use crate::listener::{Connection, Listener};
use crate::sys;

/// Running acceptor threads, named `acceptor-0` and so on. Dropping them stops them; in a child
/// that is forked without `exec`, a drop and `stop` do nothing.
#[doc = include_str!("examples/acceptors.md")]
#[derive(Debug)]
#[must_use = "dropping acceptors stops them"]
pub struct Acceptors(Vec<Acceptor>, u32);

impl Acceptors {
    /// Starts a thread for each listener. It hands its number and every connection to `handler`.
    ///
    /// While a handler runs, the connections that the kernel has chosen for this listener wait: a
    /// handler that blocks stops them. ([`Group::spawn`](crate::Group::spawn) has a cure.) A
    /// handler that panics is counted, its connection is closed, and the acceptor goes on; with
    /// `panic = "abort"` the process ends. The listeners are set to block.
    ///
    /// # Errors
    /// Those of [`Builder::spawn`]. No acceptor is left running then.
    pub fn spawn<H>(listeners: Vec<Listener>, handler: H) -> io::Result<Acceptors>
    where
        H: Fn(usize, Connection) + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        Acceptors::spawn_with(listeners, |acceptor| {
            let handler = Arc::clone(&handler);
            move |connection, _: &StopToken| handler(acceptor, connection)
        })
    }

    /// Starts a thread for each listener, as [`spawn`](Self::spawn), with a handler of its own: it
    /// may change what it owns without a lock, and it learns when the acceptors are being stopped.
    pub fn spawn_with<M, H>(listeners: Vec<Listener>, mut make: M) -> io::Result<Acceptors>
    where
        M: FnMut(usize) -> H,
        H: FnMut(Connection, &StopToken) + Send + 'static,
    {
        let mut acceptors = Acceptors(Vec::new(), process::id());
        for (id, listener) in listeners.into_iter().enumerate() {
            listener.set_nonblocking(false)?;
            let shared = Arc::new(Shared {
                id,
                listener,
                stop: StopToken::default(),
                counters: Counters::default(),
            });
            let (taken, mut handler) = (Arc::clone(&shared), make(id));
            let thread = Builder::new().name(std::format!("acceptor-{id}"));
            let thread = thread.spawn(move || taken.accept_loop(&mut handler))?;
            acceptors.0.push(Acceptor { shared, thread });
        }
        Ok(acceptors)
    }

    /// Returns what each acceptor has done so far, in the order of their numbers.
    pub fn stats(&self) -> Vec<Stats> {
        self.0.iter().map(Acceptor::stats).collect()
    }

    /// Waits until every acceptor has ended by itself: it returns only if all listeners fail.
    pub fn join(mut self) -> Vec<Stats> {
        self.0.drain(..).map(Acceptor::join).collect()
    }

    /// Stops at once, and waits for the handlers that run. Queued connections are reset.
    ///
    /// # Platforms
    /// On Linux `shutdown(2)` wakes the acceptors; elsewhere each ends after its next connection.
    pub fn stop(mut self) -> Vec<Stats> {
        self.end()
    }

    fn end(&mut self) -> Vec<Stats> {
        if process::id() != self.1 {
            return self.stats(); // a forked child shares the listeners
        }
        self.0.iter().for_each(|acceptor| acceptor.shared.stop());
        self.0.drain(..).map(Acceptor::join).collect()
    }
}

impl Drop for Acceptors {
    fn drop(&mut self) {
        self.end();
    }
}

/// One acceptor: its thread, and what it shares with its owner.
#[derive(Debug)]
struct Acceptor {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Acceptor {
    fn stats(&self) -> Stats {
        let running = !self.thread.is_finished();
        self.shared.counters.stats(self.shared.id, running)
    }

    fn join(self) -> Stats {
        if self.thread.thread().id() == thread::current().id() {
            return self.stats(); // its own handler stops it: it ends when that returns
        }
        _ = self.thread.join();
        self.shared.counters.stats(self.shared.id, false)
    }
}

/// What the thread works with and its owner sees.
#[derive(Debug)]
struct Shared {
    id: usize,
    listener: Listener,
    stop: StopToken,
    counters: Counters,
}

impl Shared {
    fn accept_loop(&self, handler: &mut impl FnMut(Connection, &StopToken)) {
        let fd = self.listener.raw();
        // C: for (;;) {
        while !self.stop.requested() {
            // C: int client = accept(server, NULL, NULL);
            match self.listener.accept() {
                Ok(connection) => self.counters.run(|| handler(connection, &self.stop)),
                Err(error) if self.counters.handle(fd, error, &self.stop).is_err() => return,
                Err(_) => {}
            }
        }
    }

    fn stop(&self) {
        self.stop.request(true);
        // It fails where the listener has failed before: the acceptor has ended.
        // SAFETY: the descriptor is the listener's, which this value owns.
        _ = unsafe { sys::shutdown(self.listener.raw(), sys::SHUT_RD) };
    }
}

/// What was done for one listener, or one UDP socket.
#[derive(Debug, Default)]
#[repr(align(128))] // a pair of cache lines: processors fetch two
pub(crate) struct Counters {
    pub(crate) accepted: AtomicUsize,
    panicked: AtomicUsize,
    pub(crate) transient_errors: AtomicUsize,
    backoffs: AtomicUsize,
    pub(crate) error: OnceLock<Error>,
    pub(crate) handed_off: AtomicUsize,
    pub(crate) starved: AtomicUsize,
    pub(crate) reset: AtomicUsize,
}

/// The worker is to end.
pub(crate) struct Stopped;

impl Counters {
    /// Counts, and runs a handler, which may panic.
    #[inline]
    pub(crate) fn run(&self, handler: impl FnOnce()) {
        self.accepted.fetch_add(1, Relaxed);
        self.catch(handler);
    }

    /// Runs code of the user, which may panic. Returns whether it did not.
    #[inline]
    pub(crate) fn catch(&self, code: impl FnOnce()) -> bool {
        let Err(payload) = catch_unwind(AssertUnwindSafe(code)) else {
            return true;
        };
        self.panicked.fetch_add(1, Relaxed);
        // Dropping the payload may panic again; then it is leaked.
        catch_unwind(AssertUnwindSafe(|| drop(payload))).unwrap_or_else(mem::forget);
        false
    }

    /// Does what an error of `accept` or of a receiving call asks for.
    #[cold]
    pub(crate) fn handle(&self, fd: c_int, error: Error, stop: &StopToken) -> Result<(), Stopped> {
        match error.accept_action() {
            AcceptAction::Retry => _ = self.transient_errors.fetch_add(1, Relaxed),
            AcceptAction::WouldBlock if wait_until_readable(fd) => {}
            AcceptAction::WouldBlock | AcceptAction::BackOff => {
                // All acceptors run out of descriptors together; they try again one by one.
                let turn = 31 * fd.unsigned_abs() as usize + self.backoffs.fetch_add(1, Relaxed);
                sleep(Duration::from_millis(10 + turn as u64 % 91));
            }
            AcceptAction::Closed | AcceptAction::Fatal => {
                if !stop.requested() {
                    _ = self.error.set(error);
                }
                return Err(Stopped);
            }
        }
        Ok(())
    }

    pub(crate) fn stats(&self, id: usize, running: bool) -> Stats {
        Stats {
            id,
            accepted: self.accepted.load(Relaxed),
            panicked: self.panicked.load(Relaxed),
            transient_errors: self.transient_errors.load(Relaxed),
            backoffs: self.backoffs.load(Relaxed),
            error: self.error.get().copied(),
            running,
            handed_off: self.handed_off.load(Relaxed),
            starved: self.starved.load(Relaxed),
            reset: self.reset.load(Relaxed),
        }
    }
}

/// Waits until `fd`, which another holder has set not to block, is readable or was shut down.
fn wait_until_readable(fd: c_int) -> bool {
    let mut entry = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `entry` is one entry, readable and writable.
    unsafe { libc::poll(&raw mut entry, 1, -1) >= 0 }
}

/// Tells a handler whether its acceptor is being stopped.
#[derive(Debug, Default)]
pub struct StopToken(AtomicBool);

impl StopToken {
    /// Returns whether the handler should come to an end.
    pub fn requested(&self) -> bool {
        self.0.load(Relaxed)
    }

    pub(crate) fn request(&self, on: bool) {
        self.0.store(on, Relaxed);
    }
}

/// What was done for one member of a group since it was made.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// The member's number.
    pub id: usize,
    /// Connections, or datagrams, that were given to a handler.
    pub accepted: usize,
    /// Handlers that panicked.
    pub panicked: usize,
    /// Errors that were passed over ([`AcceptAction::Retry`]), and replies that could not be sent.
    pub transient_errors: usize,
    /// Pauses of 10 to 100 ms ([`AcceptAction::BackOff`]), mostly for want of a descriptor.
    pub backoffs: usize,
    /// The error that ended it: `Closed` or `Fatal` of [`AcceptAction`]. A stop leaves none.
    pub error: Option<Error>,
    /// Whether a thread or a runtime accepts for it, or one of its handlers has not returned.
    pub running: bool,
    /// How often its listener was handed to a spare thread.
    pub handed_off: usize,
    /// How often its handlers were blocked and no spare thread could be had.
    pub starved: usize,
    /// Queued connections that the kernel reset when the member was stopped.
    pub reset: usize,
}
