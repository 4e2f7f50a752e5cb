//! Which worker holds a listener: the marks by which workers and the monitor agree without a lock.
//!
//! `tests/crates/interleavings` runs this file through every interleaving that the memory model
//! allows.

use super::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use super::atomic::{AtomicBool, AtomicUsize, fence};

/// What a worker does with the listener that it holds: the two low bits. The others count its
/// handlers, so that the monitor can distinguish one handler from the next.
#[derive(Debug)]
pub(crate) struct Mark(AtomicUsize);

/// It waits in `accept`, or is about to.
const ACCEPTING: usize = 0;
/// It is in a handler.
const HANDLING: usize = 1;
/// It is in a handler, and its listener was handed to another worker.
const TAKEN: usize = 2;
const STATE: usize = 3;
const NEXT: usize = 4;

impl Mark {
    pub(crate) fn new() -> Mark {
        Mark(AtomicUsize::new(ACCEPTING))
    }

    /// The worker enters a handler. Returns the mark, which [`leave`](Self::leave) takes.
    #[inline]
    pub(crate) fn enter(&self) -> usize {
        let entered = (self.0.load(Relaxed) & !STATE).wrapping_add(NEXT) | HANDLING;
        self.0.store(entered, Relaxed);
        entered
    }

    /// The worker leaves the handler that it entered. Returns whether it still holds the listener.
    #[inline]
    pub(crate) fn leave(&self, entered: usize) -> bool {
        self.0.swap(entered - HANDLING, AcqRel) == entered
    }

    /// Takes the listener from a worker that is in the handler in which it was `seen`. Returns
    /// false if the worker has left that handler.
    pub(crate) fn take(&self, seen: usize) -> bool {
        let taken = seen & !STATE | TAKEN;
        is_handling(seen)
            && self
                .0
                .compare_exchange(seen, taken, AcqRel, Relaxed)
                .is_ok()
    }

    pub(crate) fn look(&self) -> usize {
        self.0.load(Relaxed)
    }

    pub(crate) fn is_accepting(&self) -> bool {
        self.look() & STATE == ACCEPTING
    }
}

/// Whether a worker with this mark is in a handler and holds its listener.
pub(crate) fn is_handling(mark: usize) -> bool {
    mark & STATE == HANDLING
}

/// Whether the monitor sleeps.
///
/// A worker marks that it enters a handler, then looks whether the monitor sleeps. The monitor
/// marks that it goes to sleep, then looks whether a worker is in a handler. Without the two fences
/// both could look before they see the other's mark: the monitor would sleep beside a blocked
/// worker.
#[derive(Debug)]
pub(crate) struct Sleep(AtomicBool);

impl Sleep {
    pub(crate) fn new() -> Sleep {
        Sleep(AtomicBool::new(false))
    }

    /// Returns whether the calling worker, which has entered a handler, has to wake the monitor.
    #[inline]
    pub(crate) fn must_wake(&self) -> bool {
        fence(SeqCst);
        self.0.load(Relaxed) && self.end()
    }

    /// The monitor goes to sleep, unless it then finds a worker in a handler.
    pub(crate) fn begin(&self) {
        self.0.store(true, Relaxed);
        fence(SeqCst);
    }

    /// Ends the sleep. Returns whether it had begun.
    pub(crate) fn end(&self) -> bool {
        self.0.swap(false, AcqRel)
    }

    pub(crate) fn lasts(&self) -> bool {
        self.0.load(Relaxed)
    }
}
