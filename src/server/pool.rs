//! [`Pool`]: all threads and all members of a server. Workers without a member wait there as
//! spares.

use core::mem;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use std::boxed::Box;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use std::vec::Vec;

use super::Serve;
use super::list::PoolState;
use super::mark::Sleep;
use super::member::{Member, MemberState};
use super::worker::{MakeWork, Order, Outcome, Worker};

/// How long a spare worker waits for a member before its thread ends.
const IDLE_LIMIT: Duration = Duration::from_secs(5);

/// All threads and all members of a server.
pub(crate) struct Pool<P: Serve> {
    /// Makes what a thread does, on that thread; `None` where another runtime accepts.
    pub(super) work: Option<MakeWork<P>>,
    /// The CPUs in the order of the members, if workers are pinned.
    pub(crate) pins: Box<dyn Fn(usize) -> Option<u32> + Send + Sync>,
    /// The most threads beside one for each member.
    pub(crate) spare_limit: usize,
    /// All members are one socket.
    pub(crate) shared: bool,
    pub(crate) sleep: Sleep,
    state: Mutex<PoolState<P>>,
    changed: Condvar,
}

impl<P: Serve> Pool<P> {
    pub(crate) fn new(
        work: Option<MakeWork<P>>,
        pins: Box<dyn Fn(usize) -> Option<u32> + Send + Sync>,
        spare_limit: usize,
        shared: bool,
    ) -> Arc<Pool<P>> {
        Arc::new(Pool {
            work,
            pins,
            spare_limit,
            shared,
            sleep: Sleep::new(),
            state: Mutex::new(PoolState::new()),
            changed: Condvar::new(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, PoolState<P>> {
        // Nothing that could panic half way is done while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done` says so of the lists, at most until `deadline`; returns whether it did.
    pub(crate) fn wait_until(
        &self,
        deadline: Instant,
        done: impl Fn(&PoolState<P>) -> bool,
    ) -> bool {
        self.wait_for(deadline, |state| done(state).then_some(()))
            .is_some()
    }

    /// Waits until `look` finds something in the lists, at most until `deadline`.
    pub(crate) fn wait_for<T>(
        &self,
        deadline: Instant,
        mut look: impl FnMut(&mut PoolState<P>) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(found) = look(&mut state) {
                return Some(found);
            }
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets the threads go that have ended. Their thread-local destructors may still run, which are
    /// the user's code and may call the server: so they are not joined.
    pub(crate) fn detach_ended(&self) {
        self.lock().handles.retain(|handle| !handle.is_finished());
    }

    /// Joins the threads that have ended, without the lock.
    fn join_ended(&self) {
        let mut state = self.lock();
        let handles = mem::take(&mut state.handles).into_iter();
        let (ended, running): (Vec<_>, _) = handles.partition(JoinHandle::is_finished);
        state.handles = running;
        drop(state);
        let this = thread::current().id();
        for handle in ended {
            if handle.thread().id() != this {
                _ = handle.join();
            }
        }
    }

    /// Returns whether the calling thread is one of its workers.
    #[cfg(linux_kernel)]
    pub(crate) fn runs_here(&self) -> bool {
        let caller = thread::current().id();
        let state = self.lock();
        state
            .handles
            .iter()
            .any(|handle| handle.thread().id() == caller)
    }

    /// Joins all threads, at most until `deadline`: each has ended, or is about to.
    pub(crate) fn join_all(&self, deadline: Instant) {
        loop {
            self.join_ended();
            let done = self.lock().handles.is_empty();
            if done || Instant::now() >= deadline {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends all spare workers, and every other worker once it is without a member.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        let (spares, monitor) = (mem::take(&mut state.spares), state.monitor.take());
        drop(state);
        self.changed.notify_all();
        for spare in spares {
            spare.give(Order::End);
        }
        if let Some(monitor) = monitor {
            self.sleep.end();
            monitor.unpark();
        }
    }

    /// Notes that a thread is about to end.
    pub(super) fn thread_ends(&self) {
        self.lock().threads -= 1;
        self.changed.notify_all();
    }

    /// Takes a member for a spare worker. Returns false if it is not needed.
    pub(super) fn take(&self, worker: &Arc<Worker<P>>, member: &Member<P>, extra: bool) -> bool {
        let queued = if extra {
            P::queued(member).unwrap_or_default()
        } else {
            0
        };
        let mut state = self.lock();
        let Some(entry) = state.entry(member.id) else {
            return false;
        };
        entry.ordered -= 1;
        if entry.state == MemberState::Closed {
            return false;
        }
        let before = entry.holders.len();
        let blocked = |holder: &Arc<Worker<P>>| holder.mark.take(holder.seen.load(Relaxed));
        entry.holders.retain(|holder| !blocked(holder));
        entry.detached += before - entry.holders.len();
        let needed = entry.holders.is_empty() || entry.holders.len() < queued as usize;
        if needed {
            entry.holders.push(Arc::clone(worker));
            member.counters.handed_off.fetch_add(1, Relaxed);
        }
        entry.update_surplus();
        needed
    }

    /// Takes back an order that was not carried out.
    pub(crate) fn cancel(&self, member: &Member<P>) {
        if let Some(entry) = self.lock().entry(member.id) {
            entry.ordered -= 1;
        }
    }

    /// Lets a worker go that has left its handler, if another one accepts on the listener.
    #[cold]
    pub(crate) fn release_surplus(&self, worker: &Arc<Worker<P>>, member: &Member<P>) -> bool {
        let mut state = self.lock();
        let Some(entry) = state.entry(member.id) else {
            return false;
        };
        let is_other = |holder: &&Arc<Worker<P>>| !Arc::ptr_eq(holder, worker);
        let mut others = entry.holders.iter().filter(is_other);
        let released = others.any(|other| other.mark.is_accepting());
        if released {
            entry.holders.retain(|holder| !Arc::ptr_eq(holder, worker));
        }
        entry.update_surplus();
        released
    }

    /// Notes that a worker no longer serves a member. Returns whether the member has failed.
    pub(super) fn left(
        &self,
        worker: &Arc<Worker<P>>,
        member: Arc<Member<P>>,
        outcome: Outcome,
    ) -> bool {
        let mut state = self.lock();
        if let Some(entry) = state.entry(member.id) {
            match outcome {
                Outcome::Taken => entry.detached -= 1,
                Outcome::Surplus => {}
                Outcome::Ended => entry.holders.retain(|holder| !Arc::ptr_eq(holder, worker)),
            }
            entry.update_surplus();
        }
        let failed = member.counters.error.get().is_some();
        if failed {
            state.fail(&member);
        }
        state.forget_finished();
        // A UDP member that has left is closed before another one can be bound.
        drop(member);
        drop(state);
        self.changed.notify_all();
        failed
    }

    /// Returns what a worker without a member is to do; `None`: its thread ends. `failed`: so has
    /// the member that it served, and another may take that one's place.
    pub(super) fn next_order(&self, worker: &Arc<Worker<P>>, failed: bool) -> Option<Order<P>> {
        let mut state = self.lock();
        if let Some(orphan) = state.members.iter_mut().find(|entry| entry.orphan) {
            let order = orphan.employ(Some(worker));
            state.stale = true;
            return order;
        }
        // Threads are at most as many as members and spares.
        let limit = state.members.len() + usize::from(failed) + self.spare_limit;
        if state.closing || state.threads > limit {
            return None;
        }
        state.spares.push(Arc::clone(worker));
        let monitor = state.starving.then(|| state.monitor.clone()).flatten();
        state.starving = false;
        drop(state);
        if let Some(monitor) = monitor {
            monitor.unpark();
        }
        let order = worker.wait_for_order(IDLE_LIMIT);
        order.or_else(|| {
            let mut state = self.lock();
            let waits = |spare: &Arc<Worker<P>>| Arc::ptr_eq(spare, worker);
            let at = state.spares.iter().position(waits);
            at.map(|at| state.spares.swap_remove(at));
            drop(state);
            // One that is no spare any more has been given an order.
            if at.is_some() {
                None
            } else {
                worker.wait_for_order(Duration::MAX)
            }
        })
    }
}
