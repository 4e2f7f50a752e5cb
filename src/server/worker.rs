//! [`Worker`]: a thread of a server, which serves one member after the other.

use core::sync::atomic::AtomicUsize;
use core::time::Duration;
use std::boxed::Box;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use super::Serve;
use super::mark::Mark;
use super::member::Member;
use super::pool::Pool;
use crate::os;

/// How long a worker waits whose handler could not be made, before it tries again.
const MAKE_BACKOFF: Duration = Duration::from_millis(50);

/// What a thread does with a member. It lives on that thread, and keeps the handler there.
pub(crate) trait Work<P: Serve> {
    /// Makes the handler for this member, which is the user's code. Returns false if it panicked.
    fn prepare(&mut self, member: &Member<P>) -> bool;

    /// Serves the member until its listener is taken from this worker, or the member ends.
    fn serve(&mut self, pool: &Pool<P>, worker: &Arc<Worker<P>>, member: &Member<P>) -> Outcome;
}

/// Makes what a thread does, on that thread.
pub(super) type MakeWork<P> = Box<dyn Fn() -> Box<dyn Work<P>> + Send + Sync>;

/// Why a worker no longer serves a member.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The listener was handed to another worker while this one was in a handler.
    Taken,
    /// Other workers accept on the listener, and this one is not needed.
    Surplus,
    /// The member was stopped, or its socket has failed.
    Ended,
}

/// One thread.
pub(crate) struct Worker<P: Serve> {
    pub(crate) mark: Mark,
    /// The mark at the monitor's last look.
    pub(crate) seen: AtomicUsize,
    order: Mutex<Option<Order<P>>>,
    ordered: Condvar,
}

/// A worker that waits for its first order. Dropped without one, also by a panic of the user's
/// code, its thread ends.
pub(super) struct Waiting<P: Serve> {
    worker: Arc<Worker<P>>,
    employed: bool,
}

impl<P: Serve> Waiting<P> {
    pub(super) fn new(worker: Arc<Worker<P>>) -> Waiting<P> {
        Waiting {
            worker,
            employed: false,
        }
    }

    /// Returns the worker, which is then to be given an order.
    pub(super) fn employ(mut self) -> Arc<Worker<P>> {
        self.employed = true;
        Arc::clone(&self.worker)
    }
}

impl<P: Serve> Drop for Waiting<P> {
    fn drop(&mut self) {
        if !self.employed {
            self.worker.give(Order::End);
        }
    }
}

/// What a worker is to do next.
pub(crate) enum Order<P: Serve> {
    /// Serve a member that it holds already.
    Serve(Arc<Member<P>>),
    /// Take a member from workers that are blocked in their handlers. `extra`: also if others have
    /// taken it, as long as more connections are queued than they can accept.
    Take {
        member: Arc<Member<P>>,
        extra: bool,
    },
    End,
}

impl<P: Serve> Worker<P> {
    pub(super) fn new() -> Arc<Worker<P>> {
        Arc::new(Worker {
            mark: Mark::new(),
            seen: AtomicUsize::new(0),
            order: Mutex::new(None),
            ordered: Condvar::new(),
        })
    }

    pub(crate) fn give(&self, order: Order<P>) {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
        self.ordered.notify_one();
    }

    pub(super) fn wait_for_order(&self, limit: Duration) -> Option<Order<P>> {
        let slot = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .ordered
            .wait_timeout_while(slot, limit, |order| order.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.take()
    }
}

/// The thread of a worker.
pub(super) fn run<P: Serve>(pool: &Arc<Pool<P>>, worker: &Arc<Worker<P>>) {
    let Some(mut work) = pool.work.as_ref().map(|make| make()) else {
        return pool.thread_ends();
    };
    let mut served = None;
    let mut order = worker.wait_for_order(Duration::MAX);
    while let Some(next) = order {
        let mut failed = false;
        match next {
            Order::End => break,
            Order::Serve(member) => {
                if served.replace(member.id).is_some() {
                    adopt(pool, &member);
                }
                while !work.prepare(&member) && !member.stop.requested() {
                    thread::sleep(MAKE_BACKOFF);
                }
                let outcome = work.serve(pool, worker, &member);
                failed = pool.left(worker, member, outcome);
            }
            Order::Take { member, extra } => {
                if served.replace(member.id) != Some(member.id) {
                    adopt(pool, &member);
                }
                if !work.prepare(&member) {
                    thread::sleep(MAKE_BACKOFF);
                    pool.cancel(&member);
                } else if pool.take(worker, &member, extra) {
                    let outcome = work.serve(pool, worker, &member);
                    failed = pool.left(worker, member, outcome);
                }
            }
        }
        order = pool.next_order(worker, failed);
    }
    // The handler is the user's: it may panic, and take its time.
    let dropped = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| drop(work)));
    // To drop what it has panicked with may panic, too.
    dropped.unwrap_or_else(core::mem::forget);
    pool.thread_ends();
}

/// Has the calling thread run where the workers of this member do, under their name.
fn adopt<P: Serve>(pool: &Pool<P>, member: &Member<P>) {
    if let Some(cpu) = (pool.pins)(member.cpu_index) {
        // A worker on another CPU is better than none.
        _ = os::move_to_cpus(&[cpu]);
    }
    let name = std::format!("{}-{}", P::THREAD_NAME, member.id);
    if let Ok(name) = std::ffi::CString::new(name) {
        os::name_thread(&name);
    }
}
