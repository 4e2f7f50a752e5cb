//! Hand-off: a listener always has a worker that accepts.
//!
//! A worker that enters a handler marks it, and marks that it leaves. The monitor, one thread,
//! looks at the marks once a millisecond while a worker that holds a listener is in a handler. A
//! worker that is still in the same handler at the next look is blocked: its listener goes to a
//! spare worker, which accepts on it at once. When the handler returns, its thread is a spare.
//!
//! - Where more connections are queued than one worker can take, more spares begin, and twice as
//!   many at each look.
//! - The monitor sleeps after [`QUIET_LOOKS`] looks at which nothing has changed, and a worker
//!   wakes it with one futex call when it enters a handler: so an idle server makes no system call.
//! - At the limit of [`spare_threads`](crate::GroupOptions::spare_threads), or where no thread can
//!   be had, the monitor looks again after [`STARVED_INTERVAL`], or when a worker becomes a spare.
//!
//! The way of a quick connection takes no lock and makes no system call for this: see `mark.rs`.

use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use std::sync::Arc;
use std::thread::{self, Builder, JoinHandle};
use std::vec::Vec;

use super::Serve;
use super::list::PoolState;
use super::mark::is_handling;
use super::member::{Entry, Member, MemberState};
use super::pool::Pool;
use super::worker::{Order, Worker};
use crate::error::{Call, Error};

/// How often the monitor looks.
const INTERVAL: Duration = Duration::from_millis(1);

/// How often it looks while no spare worker can be had.
const STARVED_INTERVAL: Duration = Duration::from_millis(100);

/// After so many looks at which no worker was in a handler, or has been since the last, it sleeps.
const QUIET_LOOKS: u32 = 20;

/// What the monitor has seen at one look.
struct Look<P: Serve> {
    /// A worker that holds a listener is in a handler, or has been.
    active: bool,
    orders: Vec<Wanted<P>>,
    /// A blocked member could not get a spare.
    starved: bool,
}

/// A spare worker that is wanted.
struct Wanted<P: Serve> {
    member: Arc<Member<P>>,
    /// As in [`Order::Take`].
    extra: bool,
    /// One that waits; with none a thread is started.
    spare: Option<Arc<Worker<P>>>,
}

/// Starts the monitor's thread.
pub(super) fn start_monitor<P: Serve>(pool: &Arc<Pool<P>>) -> Result<JoinHandle<()>, Error> {
    let its = Arc::clone(pool);
    let thread = Builder::new().name("monitor".into());
    let handle = thread.spawn(move || monitor(&its)).map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
        Error::new(Call::PthreadCreate, errno)
    })?;
    pool.lock().monitor = Some(handle.thread().clone());
    Ok(handle)
}

fn monitor<P: Serve>(pool: &Arc<Pool<P>>) {
    let mut quiet = 0;
    while !pool.lock().closing {
        let look = look(pool);
        let mut starved = look.starved;
        quiet = if look.active { 0 } else { quiet + 1 };
        for wanted in look.orders {
            starved |= !hand_off(pool, wanted);
        }
        if quiet < QUIET_LOOKS {
            thread::park_timeout(if starved { STARVED_INTERVAL } else { INTERVAL });
            continue;
        }
        quiet = 0;
        pool.sleep.begin();
        if must_stay_awake(pool) {
            pool.sleep.end();
        }
        while pool.sleep.lasts() {
            thread::park();
        }
    }
}

impl<P: Serve> Pool<P> {
    /// Wakes the monitor if it sleeps: the calling worker has entered a handler.
    #[inline]
    pub(super) fn wake_monitor(&self) {
        if self.sleep.must_wake() {
            self.unpark_monitor();
        }
    }

    #[cold]
    fn unpark_monitor(&self) {
        let monitor = self.lock().monitor.clone();
        if let Some(monitor) = monitor {
            monitor.unpark();
        }
    }
}

/// Returns whether a worker has entered a handler, or the server was closed, before the sleep had
/// begun: that has not ended the sleep.
fn must_stay_awake<P: Serve>(pool: &Pool<P>) -> bool {
    let state = pool.lock();
    let mut holders = state.members.iter().flat_map(|entry| &entry.holders);
    state.closing || holders.any(|holder| is_handling(holder.mark.look()))
}

/// Looks at all marks, and decides which members need spare workers.
fn look<P: Serve>(pool: &Pool<P>) -> Look<P> {
    let mut look = Look {
        active: false,
        orders: Vec::new(),
        starved: false,
    };
    let mut state = pool.lock();
    let mut blocked = Vec::new();
    for (index, entry) in state.members.iter_mut().enumerate() {
        if entry.state == MemberState::HandedOver || entry.holders.is_empty() {
            continue;
        }
        if all_are_blocked(entry, &mut look.active) {
            blocked.push(index);
        }
    }
    // Of a shared socket any worker accepts for all members.
    let serving = state
        .members
        .iter()
        .filter(|entry| !entry.holders.is_empty());
    if pool.shared && blocked.len() < serving.count() {
        return look;
    }
    let only = if pool.shared { 1 } else { blocked.len() };
    for index in blocked.into_iter().take(only) {
        order_spares(pool, &mut state, index, &mut look);
    }
    look
}

/// Whether every holder of a member is in the same handler as at the last look.
fn all_are_blocked<P: Serve>(entry: &mut Entry<P>, active: &mut bool) -> bool {
    let mut blocked = true;
    for holder in &entry.holders {
        let mark = holder.mark.look();
        let seen = holder.seen.swap(mark, Relaxed);
        let handling = is_handling(mark);
        *active |= handling || mark != seen;
        blocked &= handling && mark == seen;
        if !handling {
            entry.burst = 1;
            entry.starved = false;
        }
    }
    blocked && entry.ordered == 0
}

/// Chooses spare workers for a member whose holders are blocked.
fn order_spares<P: Serve>(
    pool: &Pool<P>,
    state: &mut PoolState<P>,
    index: usize,
    look: &mut Look<P>,
) {
    let member = Arc::clone(&state.members[index].member);
    let queued = P::queued(&member).unwrap_or_default() as usize;
    let wanted = state.members[index].burst.min(queued.max(1));
    let limit = state.members.len() + pool.spare_limit;
    let mut new_threads = look
        .orders
        .iter()
        .filter(|order| order.spare.is_none())
        .count();
    for n in 0..wanted {
        let spare = state.spares.pop();
        if spare.is_none() {
            if state.threads + new_threads >= limit {
                if n == 0 {
                    look.starved = true;
                    state.note_starved(&member);
                }
                break;
            }
            new_threads += 1;
        }
        state.members[index].ordered += 1;
        look.orders.push(Wanted {
            member: Arc::clone(&member),
            extra: n > 0,
            spare,
        });
    }
    let entry = &mut state.members[index];
    entry.burst = (2 * entry.burst).min(pool.spare_limit.max(1));
}

impl<P: Serve> PoolState<P> {
    /// Notes that a blocked member could not get a spare, once until its holders are blocked again.
    fn note_starved(&mut self, member: &Member<P>) {
        self.starving = true;
        let entry = self.entry(member.id);
        if entry.is_some_and(|entry| !core::mem::replace(&mut entry.starved, true)) {
            member.counters.starved.fetch_add(1, Relaxed);
        }
    }
}

/// Has a spare worker take the member, a new one if there is none. Returns false if no thread
/// can be had.
fn hand_off<P: Serve>(pool: &Arc<Pool<P>>, wanted: Wanted<P>) -> bool {
    let Wanted {
        member,
        extra,
        spare,
    } = wanted;
    let started = spare.map_or_else(
        || {
            pool.detach_ended();
            pool.start_thread(&std::format!("{}-spare", P::THREAD_NAME))
        },
        Ok,
    );
    let Ok(worker) = started else {
        pool.cancel(&member);
        if !extra {
            pool.lock().note_starved(&member);
        }
        return false;
    };
    let mut state = pool.lock();
    state.most_spares = state.most_spares.max(state.spares());
    drop(state);
    worker.give(Order::Take { member, extra });
    true
}
