//! How an acceptor waits on a listener that this process has made and holds alone: in `accept`
//! itself, out of which a shutdown wakes it (Linux, Android).

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::acceptors::{Leave, Next, Seat};
use crate::error::AcceptAction;
use crate::listener::{Connection, Descriptor, Listener};
use crate::sys;

/// What the acceptor of a listener that is about to be shut down has to know.
#[derive(Default)]
pub(crate) struct Flags {
    /// The listener has a packet filter, which its connections inherit.
    pub(crate) filtered: AtomicBool,
    /// The listener is about to be shut down, but could not be emptied yet: no descriptor is left.
    last: AtomicBool,
    /// What waited when the listener was shut down.
    waiting: Mutex<VecDeque<Connection>>,
}

impl Flags {
    /// Takes from a new connection what it has inherited.
    #[inline]
    pub(crate) fn unfilter(&self, connection: &Connection) {
        if self.filtered.load(Relaxed) {
            connection.detach_filter();
        }
    }

    /// Takes what waits on the listener from its queue, for the acceptor, and shuts it down. Where
    /// there is no descriptor to take it with, the acceptor does both when there is one.
    pub(crate) fn close(&self, listener: &Listener) {
        // If this failed, the loop below would wait; nothing is taken then.
        let mut emptied = listener.set_nonblocking(true).is_err();
        while !emptied {
            match listener.accept() {
                Ok(connection) => {
                    connection.detach_filter();
                    self.taken().push_back(connection);
                }
                Err(error) => match error.accept_action() {
                    AcceptAction::Retry => {}
                    // Without a descriptor this is also the answer where nothing waits.
                    AcceptAction::BackOff if nothing_waits(listener) => emptied = true,
                    AcceptAction::BackOff => return self.last.store(true, Relaxed),
                    AcceptAction::WouldBlock | AcceptAction::Closed | AcceptAction::Fatal => {
                        emptied = true
                    }
                },
            }
        }
        shut_down(&listener.0);
    }

    /// What is left for an acceptor that is told to leave.
    pub(crate) fn last_ones(&self, seat: &Seat) -> Result<Connection, Leave> {
        loop {
            if let Some(connection) = self.taken().pop_front() {
                return Ok(connection);
            }
            if !self.last.load(Relaxed) {
                return Err(Leave);
            }
            if let Some(connection) = seat.accept()? {
                connection.detach_filter();
                return Ok(connection);
            }
            if nothing_waits(&seat.socket) {
                shut_down(&seat.socket.0);
                return Err(Leave);
            }
        }
    }

    /// What was taken from the queue for the acceptor.
    fn taken(&self) -> MutexGuard<'_, VecDeque<Connection>> {
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
    #[inline]
    fn next(&mut self, seat: &Seat) -> Result<Connection, Leave> {
        loop {
            let error = match seat.socket.accept() {
                Ok(connection) => {
                    self.0.unfilter(&connection);
                    return Ok(connection);
                }
                Err(error) => error,
            };
            match seat.heed(error) {
                Ok(()) if self.0.last.load(Relaxed) => return self.0.last_ones(seat),
                Ok(()) => {}
                Err(Leave) => {
                    if !seat.stop.requested() {
                        // It has failed, or somebody has shut it down. While it is open the kernel
                        // may go on choosing it, and nobody would accept.
                        self.0.close(&seat.socket);
                    }
                    return self.0.last_ones(seat);
                }
            }
        }
    }
}

/// Takes a listener that nobody else holds out of its group; of any socket, wakes who waits there.
pub(crate) fn shut_down(socket: &Descriptor) {
    // It fails where it has been done before.
    // SAFETY: the descriptor is its own.
    _ = unsafe { sys::shutdown(socket.raw(), sys::SHUT_RD) };
}

/// Whether its queue is empty, as far as the kernel tells.
pub(crate) fn nothing_waits(listener: &Listener) -> bool {
    listener.backlog().is_ok_and(|[waiting, _]| waiting == 0)
}
