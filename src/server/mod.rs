//! [`Server`]: a group at work.
//!
//! Its locks, in the order in which one thread may take them:
//!
//! | lock | held |
//! |---|---|
//! | `Server::control` | for a whole change of the group, up to its grace |
//! | `Server::monitor` | by `stop`, to take the monitor's handle |
//! | `Begun` in `handshakes.rs` | to read or replace a list of handshakes |
//! | `Pool::state` | to read or change the lists, and for short calls on a member's socket |
//! | `Worker::order` | to give an order; a worker waits for one on its condition |
//!
//! No code of the user runs under one of them, and no thread is joined under any.

mod add;
mod drain;
mod error;
mod external;
mod handoff;
mod handshakes;
mod list;
mod mark;
pub(crate) mod member;
#[cfg(linux_kernel)]
mod new_process;
mod polling;
mod pool;
mod receive;
mod start;
mod steering;
mod stop;
mod tcp;
mod totals;
mod udp;
pub(crate) mod worker;

use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use std::vec::Vec;

pub(crate) use drain::deadline_after;
pub use error::SpawnError;
use member::{Entry, Member};
pub use member::{MemberState, MemberStats, OtherListeners};
use pool::Pool;
pub use totals::Totals;

use crate::acceptors::Stats;
use crate::error::Error;
use crate::group::{GroupConfig, GroupError, Left, OldProcess};
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

    /// Returns how many connections are queued on a member; 0 where the kernel does not say.
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

    /// Whether the member's socket has left the kernel's group without
    /// [`leave_group`](Self::leave_group), as far as the kernel says.
    #[doc(hidden)]
    fn has_left(member: &Member<Self>) -> bool;

    /// Takes the member's socket out of the kernel's group, and wakes its workers. It may be called
    /// again.
    #[doc(hidden)]
    fn leave_group(member: &Member<Self>) -> Result<(), Error>;

    /// Undoes [`turn_away`](Self::turn_away), but for the steering.
    #[doc(hidden)]
    fn take_new(_: &[Arc<Member<Self>>]) {}

    /// Lets the workers of members that have left the group end, where
    /// [`leave_group`](Self::leave_group) does not.
    #[doc(hidden)]
    fn release(_: &Server<Self>, _: &[Arc<Member<Self>>]) {}
}

/// A group at work: threads that accept connections, or receive datagrams, and call a handler.
///
/// [`Group::spawn`](crate::Group::spawn) makes one. Dropping it is [`stop`](Self::stop) with the
/// group's [`grace`](crate::GroupOptions::grace) period; a handler that has not returned by then
/// goes on until it does.
///
/// # In a child that is forked without `exec`
/// The child has the sockets and one thread, a copy of the one that has called `fork`.
///
/// - Dropping the server does nothing, [`stop`](Self::stop) returns no row, and the parent goes on
///   serving. No other method may be called: another thread may have held a lock at the `fork`,
///   and in the child it is held for ever.
/// - A child that is forked by a handler must not return from it: the copy of the thread would
///   accept the parent's connections. It ends by `_exit`, which runs no destructors.
/// - The copies keep the sockets open. If the parent is killed, or closes a
///   [`Listener`](crate::Listener) or a [`Group`](crate::Group), clients still connect and nobody
///   accepts, until the child has ended. `stop` in the parent shuts its listeners down, copies or
///   not.
///
/// A [`Command`](std::process::Command) runs `exec`, which closes the copies.
///
/// # Examples
/// ```
/// use reuseport::Group;
///
/// let group = Group::bind(([127, 0, 0, 1], 0), 2)?;
/// let server = group.spawn(|acceptor, connection| {
///     let _request = connection.recv(&mut [0; 1024]); // unread, it would reset the connection
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
    /// The pid of the process that has started it.
    process: u32,
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
    /// Members with a socket of other processes, which blocked before.
    blocked: Vec<Arc<Member<P>>>,
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
            routing_byte: entry.member.routing_byte,
        });
        members.collect()
    }

    /// Returns what was done so far for each member that is there, in the order of their numbers.
    ///
    /// A member that has left is there until its handlers have returned, and until a call has
    /// returned its row: [`retire`](Self::retire), or [`wait_failed`](Self::wait_failed) for one
    /// that an error has ended. Of such rows the last 1024 are kept.
    pub fn stats(&self) -> Vec<Stats> {
        self.pool.lock().stats()
    }

    /// Returns the sums for all members that there were: they never fall when members leave.
    ///
    /// # Examples
    /// ```
    /// # use reuseport::{Group, Server};
    /// /// Counters for a metrics exporter, and figures of the members that are there.
    /// fn metrics(server: &Server) -> String {
    ///     let totals = server.totals();
    ///     let mut text = format!("accepted_total {}\n", totals.accepted);
    ///     text += &format!("members_failed_total {}\n", totals.failed);
    ///     for member in server.members() {
    ///         let (id, queued) = (member.stats.id, member.queue.map_or(0, |queue| queue.len));
    ///         text += &format!("queued{{member=\"{id}\"}} {queued}\n");
    ///     }
    ///     text
    /// }
    /// # let server = Group::bind(([127, 0, 0, 1], 0), 2)?.spawn(|_, _| {})?;
    /// # assert!(metrics(&server).starts_with("accepted_total 0\nmembers_failed_total 0\nqueued"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn totals(&self) -> Totals {
        self.pool.lock().totals()
    }

    /// Waits until an error ends a member that was not [retired](Self::retire), and returns what
    /// was done for it, with the [error](Stats::error): each such member once. Returns `None` after
    /// `timeout`, and once the server has stopped.
    ///
    /// Such a member has left the group, and its connections were reset. [`add`](Self::add)
    /// replaces it, also if it was the last.
    ///
    /// # Examples
    /// ```
    /// # use reuseport::{Group, GroupError};
    /// # use std::time::Duration;
    /// # let server = Group::bind(([127, 0, 0, 1], 0), 2)?.spawn(|_, _| {})?;
    /// # server.stop(Duration::ZERO);
    /// // On a thread of its own:
    /// while let Some(failed) = server.wait_failed(Duration::MAX) {
    ///     eprintln!("member {}: {:?}", failed.id, failed.error);
    ///     while let Err(error @ GroupError::Call { .. }) = server.add() {
    ///         eprintln!("it is not replaced yet: {error}");
    ///         std::thread::sleep(Duration::from_secs(1));
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_failed(&self, timeout: Duration) -> Option<Stats> {
        let failed = self.pool.wait_for(deadline_after(timeout), |state| {
            let failed = state.tell(|stats| stats.error.is_some());
            failed.map(Some).or(state.closing.then_some(None))
        });
        failed.flatten()
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

    /// Waits until every member has failed: see [`wait_failed`](Self::wait_failed).
    pub fn join(self) -> Vec<Stats> {
        self.pool
            .wait_until(deadline_after(Duration::MAX), |state| {
                let mut all = state.members.iter().chain(&state.departed);
                !all.any(Entry::is_running)
            });
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
        if let Some(old_process) = &control.old_process {
            let left = old_process.left().ok_or(GroupError::PredecessorLeaving)?;
            let mut list = self.pool.lock();
            list.scrambled |= left == Left::InAnyOrder && list.members.len() > 1;
            list.stale = true;
        }
        control.old_process = None;
        self.pool.detach_ended();
        self.employ_orphans(&control);
        // If this fails, so does the change that follows.
        _ = self.steer_if_stale(&control);
        Ok(control)
    }

    pub(crate) fn control(&self) -> MutexGuard<'_, Control<P>> {
        // No change leaves it half made when it panics: it runs no code of the user.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
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
