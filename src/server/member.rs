//! [`Member`]: one socket of a group at work. [`Entry`]: its place in the list of members.

use core::ffi::c_int;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;
use std::thread::sleep;
use std::vec::Vec;

use super::Serve;
use super::drain::POLL_INTERVAL;
use super::worker::{Order, Worker};
use crate::acceptors::{Counters, Stats, StopToken, Stopped};
use crate::error::Error;
use crate::group::Slot;
use crate::os;
use crate::socket::protocol::{Protocol, Tcp};

/// So many calls in a row may fail without a pause.
const MOST_FAILURES: usize = 64;

/// One socket of a group at work, as its workers and the server share it.
pub struct Member<P: Serve> {
    pub(crate) id: usize,
    /// The index of its CPU among those that the program may run on.
    pub(crate) cpu_index: usize,
    pub(crate) routing_byte: u8,
    pub(crate) socket: P::Socket,
    /// How its workers wait, and are woken.
    pub(crate) source: P::Source,
    pub(crate) stop: StopToken,
    pub(crate) counters: Counters,
    /// More than one worker holds it.
    pub(crate) has_surplus: AtomicBool,
    failed_in_a_row: AtomicUsize,
    accepted_before: AtomicUsize,
    /// The low 32 bits of its socket's inode, as the kernel's list has them.
    pub(crate) inode: u32,
}

impl<P: Serve> Member<P> {
    pub(crate) fn new(
        id: usize,
        cpu_index: usize,
        routing_byte: u8,
        socket: P::Socket,
        source: P::Source,
    ) -> Arc<Member<P>> {
        #[allow(clippy::cast_possible_truncation)] // as the kernel does
        let inode = os::inode(P::descriptor(&socket).raw()).unwrap_or_default() as u32;
        Arc::new(Member {
            inode,
            id,
            cpu_index,
            routing_byte,
            socket,
            source,
            stop: StopToken::default(),
            counters: Counters::default(),
            has_surplus: AtomicBool::new(false),
            failed_in_a_row: AtomicUsize::new(0),
            accepted_before: AtomicUsize::new(0),
        })
    }

    pub(crate) fn raw(&self) -> c_int {
        P::descriptor(&self.socket).raw()
    }

    /// Does what an error of `accept`, or of a call that receives, asks for.
    pub(crate) fn handle_error(&self, error: Error) -> Result<(), Stopped> {
        self.pause_after_many_failures();
        self.counters.handle(self.raw(), error, &self.stop)
    }

    /// Pauses for 1 ms if so many calls in a row have failed: a policy refuses each of them, or an
    /// error stays on the socket (its error queue, with `IP_RECVERR`). Single errors, which a
    /// remote host can cause, cost no pause.
    pub(crate) fn pause_after_many_failures(&self) {
        let accepted = self.counters.accepted.load(Relaxed);
        if self.accepted_before.swap(accepted, Relaxed) != accepted {
            self.failed_in_a_row.store(0, Relaxed);
        }
        if self.failed_in_a_row.fetch_add(1, Relaxed) >= MOST_FAILURES {
            sleep(POLL_INTERVAL);
        }
    }
}

impl<P: Serve> fmt::Debug for Member<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What a member does in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberState {
    /// It gets new connections.
    Serving,
    /// It gets no new connections, and finishes those that it has.
    Draining,
    /// It is for a new process, which takes over.
    HandedOver,
    /// Its socket has left the kernel's group; a handler still runs.
    Closed,
}

/// Whether sockets of other processes are in the group: see
/// [`Server::other_listeners`](crate::Server::other_listeners).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OtherListeners {
    /// The kernel's list was not asked, or is not available.
    #[default]
    Unknown,
    /// All listeners on the address are members of this server.
    None,
    /// Another process has joined the group; or members have failed at the same moment, so that the
    /// kernel's order of the others is not known.
    Some,
}

/// A member in the list, with its workers.
#[allow(clippy::struct_excessive_bools)] // each is a state of its own
pub(crate) struct Entry<P: Serve> {
    pub(crate) member: Arc<Member<P>>,
    pub(crate) state: MemberState,
    /// The workers that accept on it, or are in a handler and will.
    pub(crate) holders: Vec<Arc<Worker<P>>>,
    /// How many of its handlers run on workers that hold it no more.
    pub(crate) detached: usize,
    /// How many spare workers are on their way to take it.
    pub(crate) ordered: usize,
    /// How many spare workers are sent at once, if its holders are blocked again.
    pub(crate) burst: usize,
    /// Its holders are blocked, and no spare worker can be had.
    pub(crate) starved: bool,
    /// No thread could be had for it: the next worker that is free takes it.
    pub(crate) orphan: bool,
    /// Another runtime accepts on it.
    elsewhere: bool,
    /// What was done for it was returned to the caller.
    pub(crate) told: bool,
}

impl<P: Serve> Entry<P> {
    pub(crate) fn new(member: Arc<Member<P>>, state: MemberState) -> Entry<P> {
        Entry {
            member,
            state,
            holders: Vec::new(),
            detached: 0,
            ordered: 0,
            burst: 1,
            starved: false,
            orphan: false,
            elsewhere: false,
            told: false,
        }
    }

    pub(crate) fn id(&self) -> usize {
        self.member.id
    }

    /// Whether a thread accepts for it, or one of its handlers has not returned.
    pub(crate) fn is_running(&self) -> bool {
        let elsewhere = self.elsewhere && self.state != MemberState::Closed;
        elsewhere || !self.holders.is_empty() || self.detached > 0
    }

    pub(crate) fn stats(&self) -> Stats {
        let member = &self.member;
        member.counters.stats(member.id, self.is_running())
    }

    /// Gives it its worker; returns the order for that one. `None`: another runtime accepts.
    pub(crate) fn employ(&mut self, worker: Option<&Arc<Worker<P>>>) -> Option<Order<P>> {
        self.orphan = false;
        self.elsewhere = worker.is_none();
        self.holders.extend(worker.map(Arc::clone));
        worker.map(|_| Order::Serve(Arc::clone(&self.member)))
    }

    /// Notes that the number of holders has changed.
    pub(crate) fn update_surplus(&self) {
        let surplus = self.holders.len() > 1;
        self.member.has_surplus.store(surplus, Relaxed);
    }

    /// What a steering program has to know of it, when `state` is the one that gets what is new.
    pub(crate) fn slot(&self, index: usize, state: MemberState) -> Slot {
        let mut slot = Slot::new(index, self.member.routing_byte);
        // The new process counts its members from 0.
        if self.state != MemberState::HandedOver {
            (slot.id, slot.cpu_index) = (self.member.id, self.member.cpu_index);
        }
        slot.eligible = self.state == state && !self.orphan;
        slot
    }
}

/// One member of a group at work, at the time of [`Server::members`](crate::Server::members).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MemberStats<P: Protocol = Tcp> {
    /// What was done for it.
    pub stats: Stats,
    /// What is queued on it; `None` where the kernel does not say.
    pub queue: Option<P::Queue>,
    /// Whether it gets new connections.
    pub state: MemberState,
    /// What [`Steering::Quic`](crate::Steering::Quic) finds the member by: the byte that it puts
    /// into the connection ids that it makes. A new process gets the bytes of its members from the
    /// old one, and no two members of the two have the same, as long as there are at most 256.
    pub routing_byte: u8,
}
