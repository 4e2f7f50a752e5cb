//! The C program's threads: one acceptor for each listener, each waiting in its own `accept`.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use core::{mem, panic::AssertUnwindSafe, time::Duration};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle, sleep};
use std::{io, panic::catch_unwind, vec::Vec};

use crate::error::{AcceptAction, Error};
use crate::listener::{Connection, Listener};
use crate::sys;

/// Running acceptor threads, named `acceptor-0` and so on. Dropping them stops them.
#[derive(Debug)]
pub struct Acceptors(Vec<Acceptor>);

impl Acceptors {
    /// Gives each listener a thread, which hands its number and every connection to `handler`.
    ///
    /// While a handler runs, whatever the kernel has chosen for this listener waits. A handler that
    /// panics is counted, its connection is closed, and the acceptor goes on (but with
    /// `panic = "abort"` the process ends). The listeners are set to block.
    ///
    /// Fails as [`Builder::spawn`] does; then no acceptor is left running.
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

    /// As [`spawn`](Self::spawn), with a handler of its own for each acceptor: it may change what
    /// it owns without a lock, and it learns when the acceptors are being stopped.
    pub fn spawn_with<M, H>(listeners: Vec<Listener>, mut make: M) -> io::Result<Acceptors>
    where
        M: FnMut(usize) -> H,
        H: FnMut(Connection, &StopToken) + Send + 'static,
    {
        let mut acceptors = Acceptors(Vec::new());
        for (id, listener) in listeners.into_iter().enumerate() {
            listener.set_nonblocking(false)?;
            let (seat, handler) = (Arc::new(Seat::new(id, listener)), make(id));
            let taken = Arc::clone(&seat);
            let thread = Builder::new().name(std::format!("acceptor-{id}"));
            let thread = thread.spawn(move || taken.work(Blocking, handler))?;
            acceptors.0.push(Acceptor { seat, thread });
        }
        Ok(acceptors)
    }

    /// What each acceptor has done so far, in the order of their numbers; to be asked at any time.
    pub fn stats(&self) -> Vec<Stats> {
        self.0.iter().map(Acceptor::count).collect()
    }

    /// Waits until every acceptor has left of itself: for ever, unless their listeners fail.
    pub fn join(mut self) -> Vec<Stats> {
        self.0.drain(..).map(Acceptor::join).collect()
    }

    /// Stops at once, and waits for the handlers that run. What waits to be accepted is reset.
    ///
    /// On Linux `shutdown(2)` wakes the acceptors; elsewhere each leaves after its next connection.
    pub fn stop(self) -> Vec<Stats> {
        self.0.iter().for_each(|acceptor| acceptor.seat.leave());
        self.join()
    }
}

impl Drop for Acceptors {
    fn drop(&mut self) {
        self.0.iter().for_each(|acceptor| acceptor.seat.leave());
        self.0.drain(..).for_each(|acceptor| _ = acceptor.join());
    }
}

/// One acceptor: its thread, and what it shares with its owner.
#[derive(Debug)]
pub(crate) struct Acceptor<S = Listener> {
    pub(crate) seat: Arc<Seat<S>>,
    pub(crate) thread: JoinHandle<()>,
}

impl<S> Acceptor<S> {
    pub(crate) fn count(&self) -> Stats {
        self.seat.count(!self.thread.is_finished())
    }

    pub(crate) fn join(self) -> Stats {
        _ = self.thread.join();
        self.seat.count(false)
    }
}

/// What the thread works with and its owner sees.
#[derive(Debug)]
pub(crate) struct Seat<S = Listener> {
    pub(crate) id: usize,
    pub(crate) socket: S,
    pub(crate) stop: StopToken,
    pub(crate) counters: Counters,
}

/// Only the acceptor writes them, so a load and a store add one.
#[derive(Debug, Default)]
#[repr(align(128))] // a pair of cache lines: processors fetch two
pub(crate) struct Counters {
    accepted: AtomicUsize,
    panicked: AtomicUsize,
    pub(crate) transient_errors: AtomicUsize,
    backoffs: AtomicUsize,
    pub(crate) failed: OnceLock<Error>,
    pub(crate) stolen: AtomicUsize,
}

impl Seat {
    /// The thread.
    pub(crate) fn work(
        &self,
        mut next: impl Next,
        mut handler: impl FnMut(Connection, &StopToken),
    ) {
        while let Ok(connection) = next.next(self) {
            self.handle(|| handler(connection, &self.stop));
        }
    }

    /// One `accept`. `None`: nothing came of it, ask again.
    #[inline]
    pub(crate) fn accept(&self) -> Result<Option<Connection>, Leave> {
        let accepted = self.socket.accept().map(Some);
        accepted.or_else(|error| self.heed(error).map(|()| None))
    }

    fn leave(&self) {
        self.stop.0.store(true, Relaxed);
        // It fails where the listener has failed before: the acceptor has left.
        // SAFETY: the descriptor is the listener's, which this seat owns.
        _ = unsafe { sys::shutdown(self.socket.raw(), sys::SHUT_RD) };
    }
}

impl<S> Seat<S> {
    pub(crate) fn new(id: usize, socket: S) -> Seat<S> {
        let (stop, counters) = Default::default();
        Seat {
            id,
            socket,
            stop,
            counters,
        }
    }

    /// Counts, and runs a handler, which may panic.
    pub(crate) fn handle(&self, handler: impl FnOnce()) {
        add_one(&self.counters.accepted);
        if let Err(payload) = catch_unwind(AssertUnwindSafe(handler)) {
            add_one(&self.counters.panicked);
            // Dropping what was thrown may throw again; that is let lie.
            catch_unwind(AssertUnwindSafe(|| drop(payload))).unwrap_or_else(mem::forget);
        }
    }

    /// Does what an error asks for.
    #[cold]
    pub(crate) fn heed(&self, error: Error) -> Result<(), Leave> {
        match error.accept_action() {
            AcceptAction::Retry => add_one(&self.counters.transient_errors),
            AcceptAction::WouldBlock => {}
            AcceptAction::BackOff => {
                add_one(&self.counters.backoffs);
                // All acceptors run out of descriptors together; they return one by one.
                let turn = 31 * self.id + 17 * self.counters.backoffs.load(Relaxed);
                sleep(Duration::from_millis(10 + turn as u64 % 91));
            }
            AcceptAction::Closed | AcceptAction::Fatal => {
                if !self.stop.requested() {
                    _ = self.counters.failed.set(error);
                }
                return Err(Leave);
            }
        }
        Ok(())
    }

    fn count(&self, running: bool) -> Stats {
        let live = &self.counters;
        Stats {
            id: self.id,
            accepted: live.accepted.load(Relaxed),
            panicked: live.panicked.load(Relaxed),
            transient_errors: live.transient_errors.load(Relaxed),
            backoffs: live.backoffs.load(Relaxed),
            error: live.failed.get().copied(),
            running,
            stolen: live.stolen.load(Relaxed),
        }
    }
}

#[inline]
pub(crate) fn add_one(counter: &AtomicUsize) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// Where an acceptor's connections come from: the one thing in which the drivers differ.
pub(crate) trait Next {
    fn next(&mut self, seat: &Seat) -> Result<Connection, Leave>;
}

/// The acceptor is to end.
pub(crate) struct Leave;

/// The C program's way: wait in `accept`.
struct Blocking;

impl Next for Blocking {
    #[inline]
    fn next(&mut self, seat: &Seat) -> Result<Connection, Leave> {
        while !seat.stop.requested() {
            if let Some(connection) = seat.accept()? {
                return Ok(connection);
            }
        }
        Err(Leave)
    }
}

/// Tells a handler whether its acceptors are being stopped.
#[derive(Debug, Default)]
pub struct StopToken(pub(crate) AtomicBool);

impl StopToken {
    /// Whether to come to an end.
    pub fn requested(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// What one acceptor did.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Its number.
    pub id: usize,
    /// Connections, or datagrams, given to the handler.
    pub accepted: usize,
    /// Handlers that panicked.
    pub panicked: usize,
    /// Errors passed over: [`AcceptAction::Retry`]; and answers that could not be sent.
    pub transient_errors: usize,
    /// Pauses for want of a descriptor or of memory: [`AcceptAction::BackOff`].
    pub backoffs: usize,
    /// What ended it, if nobody did: [`AcceptAction::Closed`], [`AcceptAction::Fatal`].
    pub error: Option<Error>,
    /// Its thread still runs.
    pub running: bool,
    /// Of those accepted, how many were a busy sibling's.
    pub stolen: usize,
}
