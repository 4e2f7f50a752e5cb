//! [`Server`]: a group at work.

mod drain;
mod error;
mod handoff;
mod mark;
pub(crate) mod member;
mod polling;
mod tcp;
mod udp;
mod without_worker;
pub(crate) mod worker;

use core::net::SocketAddr;
use core::time::Duration;
use core::{fmt, mem};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use std::{boxed::Box, vec::Vec};

pub(crate) use drain::deadline_after;
pub use error::SpawnError;
use member::{Entry, Member};
pub use member::{MemberState, MemberStats};
use worker::{Order, Pool, Work, Worker};

use crate::acceptors::Stats;
use crate::error::Error;
use crate::group::{Group, GroupConfig, GroupError, OldProcess, Slot, Steering};
use crate::os;
use crate::socket::protocol::{Protocol, Tcp};

/// What `mark.rs` is made of: a test of its interleavings puts other types here.
mod atomic {
    pub(super) use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
}

/// [`Tcp`](crate::Tcp) or [`Udp`](crate::Udp): what a [`Server`] serves. The trait is sealed.
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

    /// Waits until nothing more can reach these members, and nothing is queued on them; at most until
    /// `deadline`.
    #[doc(hidden)]
    fn drain(
        server: &Server<Self>,
        control: &Control<Self>,
        members: &[Arc<Member<Self>>],
        deadline: Instant,
    );

    /// Takes the member's socket out of the kernel's group, and wakes its workers. It may be called
    /// again.
    #[doc(hidden)]
    fn leave_group(member: &Member<Self>) -> Result<(), Error>;
}

/// A group at work: threads that accept connections, or receive datagrams, and call a handler.
///
/// [`Group::spawn`] makes one. Dropping it is [`stop`](Self::stop) with the group's
/// [`grace`](crate::GroupOptions::grace) period; a handler that has not returned by then finishes
/// alone.
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
    /// Held by whoever changes the group, for as long as that takes: one change at a time.
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

impl<P: Serve> Group<P> {
    /// Starts the threads. `work` makes what a thread does, on that thread.
    fn start(
        self,
        work: Box<dyn Fn() -> Box<dyn Work<P>> + Send + Sync>,
    ) -> Result<Server<P>, SpawnError<P>> {
        let options = &self.config.options;
        let (spare_limit, shared) = (options.spare_threads, options.shared);
        let spare_limit = if P::HAS_PAYLOAD { 0 } else { spare_limit };
        let pins = self.config.clone();
        let pins = Box::new(move |cpu_index| pins.pinned_cpu(cpu_index).ok().flatten());
        let pool = Pool::new(work, pins, spare_limit, shared);
        let prepared = self.prepare(&pool);
        let (ready, monitor) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                pool.close();
                pool.wait_until(None, |state| state.threads == 0);
                pool.join_all(deadline_after(Duration::MAX));
                return Err(SpawnError::new(error, self));
            }
        };
        let mut control = Control {
            config: self.config,
            next_id: self.sockets.len(),
            old_process: self.old_process,
            stopped: false,
            handing_over: false,
            handed_over: false,
        };
        control.config.options.nonblocking = polls(&control.config);
        let address = control.config.address;
        for (id, ((worker, source), socket)) in ready.into_iter().zip(self.sockets).enumerate() {
            pool.employ(Member::new(id, id, socket, source), worker);
        }
        if let Some(old_process) = &mut control.old_process {
            old_process.notify();
        }
        Ok(Server {
            address,
            control: Mutex::new(control),
            pool,
            monitor: Mutex::new(monitor),
        })
    }

    /// Does all that can fail: threads that wait for their member, and how they will wait.
    #[allow(clippy::type_complexity)] // named nowhere else
    fn prepare(
        &self,
        pool: &Arc<Pool<P>>,
    ) -> Result<(Vec<(Arc<Worker<P>>, P::Source)>, Option<JoinHandle<()>>), Error> {
        let mut ready = Vec::new();
        let mut prepare = || {
            for (id, socket) in self.sockets.iter().enumerate() {
                let sibling = ready.first().map(|(_, source)| source);
                let source = P::new_source(&self.config, sibling)?;
                P::descriptor(socket).set_nonblocking(polls(&self.config))?;
                let cpu = self.config.pinned_cpu(id)?;
                ready.push((pool.start_worker(id, cpu)?, source));
            }
            match pool.spare_limit {
                0 => Ok(None),
                _ => handoff::start_monitor(pool).map(Some),
            }
        };
        let monitor = prepare();
        if monitor.is_err() {
            ready.iter().for_each(|(worker, _)| worker.give(Order::End));
        }
        Ok((ready, monitor?))
    }
}

/// Whether workers poll: where a shutdown would wake nobody, or would close what others hold too.
fn polls<P: Serve>(config: &GroupConfig<P>) -> bool {
    config.inherited || !os::SHUTDOWN_WAKES
}

impl<P: Serve> Pool<P> {
    /// Enters a member at the end of the list, and gives it to a worker.
    fn employ(&self, member: Arc<Member<P>>, worker: Arc<Worker<P>>) {
        let mut entry = Entry::new(Arc::clone(&member), MemberState::Serving);
        entry.holders.push(Arc::clone(&worker));
        self.lock().members.push(entry);
        worker.give(Order::Serve(member));
    }
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

    /// Returns what was done for every member so far, also for those that have left, in the order of
    /// their numbers.
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
    /// - [`GroupError::Call`]: a system call failed; `pthread_create` with `EAGAIN` if no thread can
    ///   be had.
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
        let id = control.next_id;
        let worker = self.spare_or_new_worker(config, id, cpu_index);
        let worker = worker.map_err(call)?;
        let socket = match only.map_or_else(|| config.open(index), Ok) {
            Ok(socket) => socket,
            Err(error) => {
                worker.give(Order::End);
                return Err(error);
            }
        };
        control.next_id += 1;
        self.pool
            .employ(Member::new(id, cpu_index, socket, source), worker);
        if let Err(error) = self.steer(&control) {
            self.undo_add(&control, id);
            return Err(error);
        }
        Ok(id)
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

    /// Sets how the kernel chooses a member, as [`Group::set_steering`].
    ///
    /// # Errors
    /// Those of [`Group::set_steering`], and [`GroupError::PredecessorLeaving`] and
    /// [`GroupError::HandingOver`]: try again later.
    pub fn set_steering(&self, steering: Steering) -> Result<(), GroupError> {
        let mut control = self.change()?;
        steering.check(self.pool.lock().members.len())?;
        let before = control.config.options.set_steering(steering)?;
        let steered = self.steer(&control);
        if steered.is_err() {
            control.config.options.set_steering(before)?;
        }
        steered
    }

    /// Waits until every worker has ended by itself: it never returns unless their sockets fail.
    pub fn join(self) -> Vec<Stats> {
        let idle = |entry: &Entry<P>| !entry.is_running();
        self.pool
            .wait_until(None, |state| state.members.iter().all(idle));
        self.pool.join_ended();
        self.stats()
    }

    /// Attaches the program that has what is new go to the serving members.
    pub(crate) fn steer(&self, control: &Control<P>) -> Result<(), GroupError> {
        self.steer_to(control, MemberState::Serving)
    }

    /// Attaches the program that has what is new go to the members in `state`.
    pub(crate) fn steer_to(
        &self,
        control: &Control<P>,
        state: MemberState,
    ) -> Result<(), GroupError> {
        if !control.config.can_steer() {
            return Ok(());
        }
        let slots = self.slots(state);
        let member = |entry: &Entry<P>| Arc::clone(&entry.member);
        let through = self.pool.lock().members.last().map(member);
        let Some(through) = through.filter(|_| slots.iter().any(|slot| slot.eligible)) else {
            return Ok(());
        };
        control.config.steer(&through.socket, &slots)
    }

    /// The members in index order, as a steering program has to know them.
    pub(crate) fn slots(&self, state: MemberState) -> Vec<Slot> {
        let list = self.pool.lock();
        let entries = list.members.iter().enumerate();
        entries.map(|(at, entry)| entry.slot(at, state)).collect()
    }

    /// Begins a change of the group, after those before it.
    pub(crate) fn change(&self) -> Result<MutexGuard<'_, Control<P>>, GroupError> {
        let mut control = self.control();
        self.reap_failed(&control);
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
        Ok(control)
    }

    pub(crate) fn control(&self) -> MutexGuard<'_, Control<P>> {
        // No change leaves it half made when it panics: it runs no code of the user.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the members out of the list whose sockets have failed, in the order in which they did:
    /// the kernel has taken them out of the group so.
    fn reap_failed(&self, control: &Control<P>) {
        self.pool.join_ended();
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
