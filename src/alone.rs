//! How an acceptor waits on a listener that this process has made and holds alone: in `accept`
//! itself, out of which a shutdown wakes it (Linux, Android).

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::acceptors::{Leave, Next, Seat};
use crate::listener::{Connection, Listener};
use crate::sys;

/// What the acceptor of a listener that is about to be shut down has to know.
#[derive(Default)]
pub(crate) struct Flags {
    /// The listener has a packet filter, which its connections inherit.
    pub(crate) filtered: AtomicBool,
    /// What waited when the listener was shut down.
    waiting: Mutex<VecDeque<Connection>>,
}

impl Flags {
    /// What was taken from the queue for the acceptor.
    pub(crate) fn taken(&self) -> MutexGuard<'_, VecDeque<Connection>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two system calls a connection: a blocking `accept` and the `close`.
pub(crate) struct Alone(Arc<Flags>);

impl Alone {
    pub(crate) fn new(flags: Arc<Flags>) -> Alone {
        Alone(flags)
    }
}

impl Next for Alone {
    fn next(&mut self, seat: &Seat) -> Result<Connection, Leave> {
        loop {
            match seat.accept(&seat.listener) {
                Ok(Some(connection)) => {
                    if self.0.filtered.load(Relaxed) {
                        connection.unfilter();
                    }
                    return Ok(connection);
                }
                Ok(None) => {}
                Err(Leave) => return self.0.taken().pop_front().ok_or(Leave),
            }
        }
    }
}

/// Takes a listener that nobody else holds out of its group, and wakes who waits there.
pub(crate) fn shut_down(listener: &Listener) {
    // It fails where it has been done before.
    // SAFETY: the descriptor is the listener's.
    _ = unsafe { sys::shutdown(listener.raw(), sys::SHUT_RD) };
}
