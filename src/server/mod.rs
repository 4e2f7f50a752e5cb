//! [`Server`]: a group at work.

mod drain;
mod error;
mod handoff;
mod mark;
pub(crate) mod member;
#[cfg(linux_kernel)]
mod new_process;
mod polling;
mod pool;
mod start;
mod steering;
mod tcp;
mod udp;
pub(crate) mod worker;

use core::net::SocketAddr;
use core::{fmt, mem};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use std::vec::Vec;

pub(crate) use drain::deadline_after;
pub use error::SpawnError;
use member::{Entry, Member};
pub use member::{MemberState, MemberStats, OtherListeners};
use pool::Pool;
use worker::{Waiting, Worker};

use crate::acceptors::Stats;
use crate::error::Error;
use crate::group::{GroupConfig, GroupError, OldProcess};
use crate::socket::protocol::{Protocol, Tcp};

/// What `mark.rs` is made of: a test of its interleavings puts other types here.
mod atomic {
    pub(super) use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
}

/// [`Tcp`] or [`Udp`](crate::Udp): what a [`Server`] serves. The trait is sealed.
pub trait Serve: Protocol {
    /// What the threads are called, before their number.
    #[doc(hidden)]
    const THREAD_NAME: &'static str;

    /// How the workers of one member wait, and are woken.
    #[doc(hidden)]
    type Source: Send + Sync;

    #[doc(hidden)]
    fn new_source(
        config: &GroupConfig<Self>,
        sibling: Option<&Self::Source>,
    ) -> Result<Self::Source, Error>;

    /// Returns how many connections are queued on a member; 0 where the kernel does not tell.
    #[doc(hidden)]
    fn queued(member: &Member<Self>) -> Result<u32, Error>;

    /// Has no new connection reach the members with these numbers. `last`: none stays.
    #[doc(hidden)]
    fn turn_away(
        server: &Server<Self>,
        control: &Control<Self>,
        ids: &[usize],
        last: bool,
    ) -> Result<(), GroupError>;

    /// Waits until nothing more can reach these members, and nothing is queued on them; at most
    /// until `deadline`.
    #[doc(hidden)]
    fn drain(server: &Server<Self>, members: &[Arc<Member<Self>>], deadline: Instant);

    /// Takes the member's socket out of the kernel's group, and wakes its workers. It may be called
    /// again.
    #[doc(hidden)]
    fn leave_group(member: &Member<Self>) -> Result<(), Error>;
}

/// A group at work: threads that accept connections, or receive datagrams, and call a handler.
///
/// [`Group::spawn`](crate::Group::spawn) makes one. Dropping it is [`stop`](Self::stop) with the
/// group's [`grace`](crate::GroupOptions::grace) period; a handler that has not returned by then
/// finishes alone.
///
/// # Examples
/// ```
/// use reuseport::Group;
///
/// let group = Group::bind(([127, 0, 0, 1], 0), 2)?;
/// let server = group.spawn(|acceptor, connection| {
///     _ = connection.send(format!("acceptor {acceptor}\n").as_bytes());
/// })?;
///
/// // Replace a member, without losing a connection.
/// let new = server.add()?;
/// assert_eq!(new, 2);
/// server.retire(0)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping a server stops it"]
pub struct Server<P: Serve = Tcp> {
    address: SocketAddr,
    /// Held by a change of the group, for as long as that takes: one change at a time.
    control: Mutex<Control<P>>,
    pub(crate) pool: Arc<Pool<P>>,
    monitor: Mutex<Option<JoinHandle<()>>>,
}

/// What a change of the group needs.
#[derive(Debug)]
pub struct Control<P: Serve> {
    pub(crate) config: GroupConfig<P>,
    next_id: usize,
    /// The process that handed the group over to this one, until it has left.
    old_process: Option<OldProcess>,
    /// [`Server::stop`] has begun.
    stopped: bool,
    /// A new process is taking over.
    pub(crate) handing_over: bool,
    /// A new process has taken over.
    pub(crate) handed_over: bool,
}

impl<P: Serve> Server<P> {
    /// Returns the address of every member.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns what each member has done so far, and what is queued on it now, in index order.
    pub fn members(&self) -> Vec<MemberStats<P>> {
        let state = self.pool.lock();
        let members = state.members.iter().map(|entry| MemberStats {
            stats: entry.stats(),
            queue: P::queue(&entry.member.socket),
            state: entry.state,
        });
        members.collect()
    }

    /// Returns what was done for every member so far, also for those that have left, in the order
    /// of their numbers.
    pub fn stats(&self) -> Vec<Stats> {
        self.pool.lock().stats()
    }

    /// Returns how many threads there are beside one for each member, and the most that there were:
    /// see [`spare_threads`](crate::GroupOptions::spare_threads).
    pub fn spare_threads(&self) -> SpareThreads {
        let state = self.pool.lock();
        SpareThreads {
            now: state.spares(),
            idle: state.spares.len(),
            most: state.most_spares,
        }
    }

    /// Adds a member with its worker, and returns its number: one that no other member had.
    ///
    /// Connections do not move: each stays with the member that the kernel chose for it.
    ///
    /// # Errors
    /// The group is then as it was.
    /// - [`GroupError::Call`]: a system call failed; `pthread_create` with `EAGAIN` if no thread
    ///   can be had.
    /// - [`GroupError::UserMismatch`]: the process has dropped its privileges since.
    /// - [`GroupError::Inherited`]: other processes hold the sockets too.
    /// - [`GroupError::PredecessorLeaving`], [`GroupError::HandingOver`]: try again later.
    pub fn add(&self) -> Result<usize, GroupError> {
        let mut control = self.change()?;
        let (index, cpu_index, first) = {
            let state = self.pool.lock();
            let index = state.members.len();
            let taken = |cpu: &usize| state.members.iter().any(|e| e.member.cpu_index == *cpu);
            let cpu_index = (0..=index).find(|cpu| !taken(cpu)).unwrap_or_default();
            let first = state.members.first().map(|entry| Arc::clone(&entry.member));
            (index, cpu_index, first)
        };
        let config = &control.config;
        let call = |error| GroupError::call(error, self.address, index);
        let sibling = first.as_ref().map(|first| &first.source);
        let source = P::new_source(config, sibling).map_err(call)?;
        let only = match first.filter(|_| config.options.shared) {
            Some(first) => Some(config.share(&first.socket, index)?),
            None => None,
        };
        let id = self.unused_id(&control);
        let worker = self.spare_or_new_worker(config, id, cpu_index);
        let worker = Waiting::new(worker.map_err(call)?);
        let socket = only.map_or_else(|| config.open(index), Ok)?;
        control.next_id = id + 1;
        let member = Member::new(id, cpu_index, socket, source);
        self.pool.employ(member, &worker.employ());
        if let Err(error) = self.steer(&control) {
            self.undo_add(&control, id);
            return Err(error);
        }
        Ok(id)
    }

    /// Returns the next number that no member has had, and that no member shares its last byte
    /// with: [`Steering::Byte`](crate::Steering::Byte) goes by that. With 256 members or more it
    /// cannot be had.
    pub(super) fn unused_id(&self, control: &Control<P>) -> usize {
        let state = self.pool.lock();
        let collides = |id: &usize| state.members.iter().any(|e| e.id() % 256 == id % 256);
        let mut ids = control.next_id..control.next_id + 256;
        ids.find(|id| !collides(id)).unwrap_or(control.next_id)
    }

    fn spare_or_new_worker(
        &self,
        config: &GroupConfig<P>,
        id: usize,
        cpu_index: usize,
    ) -> Result<Arc<Worker<P>>, Error> {
        let spare = self.pool.lock().spares.pop();
        let new = || self.pool.start_worker(id, config.pinned_cpu(cpu_index)?);
        spare.map_or_else(new, Ok)
    }

    /// Waits until every worker has ended by itself: it never returns unless their sockets fail.
    pub fn join(self) -> Vec<Stats> {
        let idle = |entry: &Entry<P>| !entry.is_running();
        self.pool
            .wait_until(None, |state| state.members.iter().all(idle));
        self.pool.detach_ended();
        self.stats()
    }

    /// Begins a change of the group, after those before it.
    pub(crate) fn change(&self) -> Result<MutexGuard<'_, Control<P>>, GroupError> {
        let mut control = self.control();
        if control.stopped {
            return Err(GroupError::Stopped);
        }
        if control.handed_over {
            return Err(GroupError::HandedOver);
        }
        if control.handing_over {
            return Err(GroupError::HandingOver);
        }
        if control.config.inherited {
            return Err(GroupError::Inherited);
        }
        if control
            .old_process
            .as_ref()
            .is_some_and(OldProcess::is_leaving)
        {
            return Err(GroupError::PredecessorLeaving);
        }
        control.old_process = None;
        self.reap_failed(&control);
        Ok(control)
    }

    pub(crate) fn control(&self) -> MutexGuard<'_, Control<P>> {
        // No change leaves it half made when it panics: it runs no code of the user.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the members out of the list whose sockets have failed, in the order in which they did:
    /// the kernel has taken them out of the group so.
    fn reap_failed(&self, control: &Control<P>) {
        self.pool.detach_ended();
        let mut state = self.pool.lock();
        let failed = mem::take(&mut state.failed);
        for id in &failed {
            let at = state.members.iter().position(|entry| entry.id() == *id);
            at.into_iter().for_each(|at| state.depart(at));
        }
        drop(state);
        if !failed.is_empty() {
            // If this fails, so does the change that follows.
            _ = self.steer(control);
        }
    }
}

impl<P: Serve> fmt::Debug for Server<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("members", &self.members())
            .finish_non_exhaustive()
    }
}

/// The threads of a server beside one for each member: see [`Server::spare_threads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpareThreads {
    /// How many there are.
    pub now: usize,
    /// How many of these wait for work. The others are in a handler, or accept.
    pub idle: usize,
    /// The most that there were at a time.
    pub most: usize,
}
