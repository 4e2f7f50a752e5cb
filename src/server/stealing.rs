//! How an acceptor waits that helps its siblings: on its own listener first, and while it is idle
//! also on theirs, for connections whose owner is busy (Linux, Android).
//!
//! Every acceptor has an epoll of its own, in which every listener is registered with
//! `EPOLLEXCLUSIVE`. A listener wakes the epolls in the order in which they were registered with
//! it, passes over those in which nobody waits, and stops at the first in which somebody does. So
//! the order of registration alone makes the owner the first to be asked: each listener goes into
//! its owner's epoll before it goes into any sibling's.
//!
//! The wake-up goes to one sleeper, and no other hears of it. Hence two rules: an acceptor takes
//! one event at a time and serves what it was woken for, whatever else it would rather serve; and
//! it leaves on its own wake-up alone, never on its way back from a listener's.
//!
//! Three system calls a connection: `epoll_wait`, `accept`, `close`.

use core::ffi::c_int;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock};
use std::vec::Vec;

use libc::{EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLEXCLUSIVE, EPOLLIN, epoll_event};

use crate::acceptors::{Leave, Next, Seat, add_one};
use crate::error::{AcceptAction, Call, Error, check};
use crate::listener::Connection;
use crate::server::blocking::Flags;
use crate::server::worker::eventfd;

/// What the epoll of an acceptor reports when it is to leave: no acceptor has this number.
const LEAVE: u64 = u64::MAX;

/// All who steal from one another.
#[derive(Default)]
pub(crate) struct Ring(RwLock<Vec<Place>>);

/// One of them, as the others see it.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) seat: Arc<Seat>,
    pub(crate) flags: Arc<Flags>,
    pub(crate) epoll: Arc<Epoll>,
}

impl Place {
    /// Has this one woken for the listener of `other`.
    fn watch(&self, other: &Place) -> Result<(), Error> {
        let (fd, id) = (other.seat.socket.raw(), other.seat.id as u64);
        self.epoll
            .control(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLEXCLUSIVE, id)
    }
}

impl Ring {
    /// Lets `newcomers` in. If one cannot be let in, none is.
    pub(crate) fn enter(&self, newcomers: Vec<Place>) -> Result<(), Error> {
        let mut places = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let owners = newcomers.iter().map(|new| (new, new));
        let for_old = places
            .iter()
            .flat_map(|old| newcomers.iter().map(move |new| (old, new)));
        let for_new = newcomers.iter().flat_map(|new| {
            let others = places.iter().chain(&newcomers);
            others
                .filter(|other| other.seat.id != new.seat.id)
                .map(move |other| (new, other))
        });
        let mut all = owners.chain(for_old).chain(for_new);
        let entered = all.try_for_each(|(one, other)| one.watch(other));
        match entered {
            Ok(()) => places.extend(newcomers),
            Err(_) => places
                .iter()
                .for_each(|old| newcomers.iter().for_each(|new| old.epoll.forget(new))),
        }
        entered
    }

    /// Takes one's listener out of every epoll: before it is shut down, which would be reported to
    /// all for as long as it is open.
    ///
    /// The others' listeners stay in its own epoll. It may have been woken for one of them and not
    /// have run yet: taken out now, that wake-up would be nobody's.
    pub(crate) fn leave(&self, id: usize) {
        let mut places = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = places.iter().position(|place| place.seat.id == id) else {
            return;
        };
        let leaver = places.remove(at);
        for other in places.iter().chain([&leaver]) {
            other.epoll.forget(&leaver);
        }
    }

    /// Whose listener has this number, if it is still here.
    fn find(&self, id: u64) -> Option<Place> {
        let places = self.0.read().unwrap_or_else(PoisonError::into_inner);
        places
            .iter()
            .find(|place| place.seat.id as u64 == id)
            .cloned()
    }
}

/// An epoll, and an event in it by which its acceptor is told to leave.
pub(crate) struct Epoll {
    epoll: OwnedFd,
    leave: OwnedFd,
}

impl Epoll {
    pub(crate) fn new() -> Result<Epoll, Error> {
        // SAFETY: takes an integer.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        let fd = check(Call::EpollCreate, fd)?;
        // SAFETY: the kernel has just opened it for us alone.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        let leave = eventfd()?;
        let made = Epoll { epoll, leave };
        made.control(EPOLL_CTL_ADD, made.leave.as_raw_fd(), EPOLLIN, LEAVE)?;
        Ok(made)
    }

    fn control(&self, what: c_int, fd: c_int, events: c_int, id: u64) -> Result<(), Error> {
        let events = u32::try_from(events).unwrap_or_default();
        let mut event = epoll_event { events, u64: id };
        // SAFETY: `event` is readable; the kernel checks both descriptors.
        let done = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), what, fd, &raw mut event) };
        check(Call::EpollCtl, done).map(drop)
    }

    /// No more wakes its acceptor for the listener of `other`.
    fn forget(&self, other: &Place) {
        // It fails where the listener was not watched.
        _ = self.control(EPOLL_CTL_DEL, other.seat.socket.raw(), 0, 0);
    }

    /// Waits for one event; returns what it was registered with.
    fn wait(&self) -> Result<u64, Error> {
        let mut event = epoll_event { events: 0, u64: 0 };
        // SAFETY: there is room for the one event asked for.
        let count = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), &raw mut event, 1, -1) };
        check(Call::EpollWait, count)?;
        Ok(event.u64)
    }

    /// Tells its acceptor to leave.
    pub(crate) fn dismiss(&self) {
        let one = 1_u64;
        // It fails only once it has been done more often than 64 bits count.
        // SAFETY: `one` is readable for its eight bytes.
        unsafe { libc::write(self.leave.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

/// One acceptor's own view.
pub(crate) struct Stealing {
    pub(crate) ring: Arc<Ring>,
    pub(crate) flags: Arc<Flags>,
    pub(crate) epoll: Arc<Epoll>,
}

impl Next for Stealing {
    fn next(&mut self, seat: &Seat) -> Result<Connection, Leave> {
        loop {
            let id = match self.epoll.wait() {
                Ok(LEAVE) => return self.flags.last_ones(seat),
                Ok(id) => id,
                Err(_) => continue, // a signal came
            };
            if id == seat.id as u64 {
                match seat.accept() {
                    Ok(Some(connection)) => {
                        self.flags.unfilter(&connection);
                        return Ok(connection);
                    }
                    Ok(None) => {}
                    Err(Leave) => {
                        // It has failed, or somebody has shut it down.
                        self.ring.leave(seat.id);
                        self.flags.close(&seat.socket);
                        self.epoll.dismiss();
                    }
                }
            } else if let Some(owner) = self.ring.find(id) {
                match owner.seat.socket.accept() {
                    Ok(connection) => {
                        owner.flags.unfilter(&connection);
                        add_one(&seat.counters.stolen);
                        return Ok(connection);
                    }
                    // Its owner is to leave for that, and may be long in its handler.
                    Err(error)
                        if matches!(
                            error.accept_action(),
                            AcceptAction::Closed | AcceptAction::Fatal
                        ) =>
                    {
                        self.epoll.forget(&owner);
                    }
                    Err(error) => _ = seat.heed(error),
                }
            }
        }
    }
}
