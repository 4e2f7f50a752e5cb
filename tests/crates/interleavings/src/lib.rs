//! Every interleaving of `src/server/mark.rs` that the memory model allows, tried by loom.
#![cfg(test)]

#[allow(dead_code)] // each test needs a part of it
#[path = "../../../../src/server/mark.rs"]
mod mark;

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
}

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use loom::thread;
use mark::{Mark, Sleep, is_handling};

/// One worker that enters a handler in which it blocks, and the monitor that goes to sleep.
#[test]
fn monitor_that_sleeps_beside_a_blocked_worker_is_woken() {
    loom::model(|| {
        let shared = Arc::new((Mark::new(), Sleep::new()));

        let worker = Arc::clone(&shared);
        let worker = thread::spawn(move || {
            worker.0.enter();
            worker.1.must_wake()
        });
        shared.1.begin();
        let awake = is_handling(shared.0.look()) && shared.1.end();
        let woken = worker.join().unwrap();

        let sleeps = shared.1.lasts();
        assert!(!sleeps, "the monitor sleeps beside a blocked worker");
        assert!(awake || woken, "nobody has ended the sleep");
    });
}

/// Two workers enter a handler: the sleep has one end, and one of them makes the call for it.
#[test]
fn two_workers_that_enter_wake_the_monitor_at_most_once() {
    loom::model(|| {
        let shared = Arc::new((Mark::new(), Mark::new(), Sleep::new()));

        let second = Arc::clone(&shared);
        let second = thread::spawn(move || {
            second.1.enter();
            second.2.must_wake()
        });
        let first = Arc::clone(&shared);
        let first = thread::spawn(move || {
            first.0.enter();
            first.2.must_wake()
        });
        shared.2.begin();
        let handling = is_handling(shared.0.look()) || is_handling(shared.1.look());
        let awake = handling && shared.2.end();
        let woken = [first.join().unwrap(), second.join().unwrap()];

        assert!(!shared.2.lasts(), "the monitor sleeps");
        let ends = woken.into_iter().chain([awake]).filter(|ended| *ended);
        assert_eq!(ends.count(), 1);
    });
}

/// A server that closes has the monitor end, also one that is about to sleep: see `monitor` and
/// `Pool::close`.
#[test]
fn monitor_that_goes_to_sleep_while_the_server_closes_ends() {
    loom::model(|| {
        let shared = Arc::new((loom::sync::Mutex::new(false), Sleep::new()));

        let closer = Arc::clone(&shared);
        let closer = thread::spawn(move || {
            *closer.0.lock().unwrap() = true;
            closer.1.end();
        });
        shared.1.begin();
        if *shared.0.lock().unwrap() {
            shared.1.end();
        }
        closer.join().unwrap();

        assert!(!shared.1.lasts(), "the monitor sleeps for ever");
    });
}

#[test]
fn leave_and_take_one_of_them_gets_the_listener() {
    loom::model(|| {
        let mark = Arc::new(Mark::new());
        let entered = mark.enter();

        let taker = Arc::clone(&mark);
        let taker = thread::spawn(move || taker.take(taker.look()));
        let kept = mark.leave(entered);
        let taken = taker.join().unwrap();

        assert_ne!(kept, taken);
        assert!(mark.is_accepting());
    });
}

/// What the worker has written before it entered is there for the one that takes, and the other way
/// round: the listener's owner changes with the mark.
#[test]
fn leave_after_a_take_sees_what_the_taker_has_done() {
    loom::model(|| {
        let shared = Arc::new((Mark::new(), loom::cell::UnsafeCell::new(0)));
        let entered = shared.0.enter();

        let taker = Arc::clone(&shared);
        let taker = thread::spawn(move || {
            // SAFETY: the worker reads only once the listener was taken.
            taker.1.with_mut(|cell| unsafe { *cell = 1 });
            taker.0.take(entered)
        });
        if !shared.0.leave(entered) {
            // SAFETY: the taker wrote before it took.
            let seen = shared.1.with(|cell| unsafe { *cell });
            assert_eq!(seen, 1);
        }

        taker.join().unwrap();
    });
}

#[test]
fn two_takers_at_most_one_gets_the_listener() {
    loom::model(|| {
        let mark = Arc::new(Mark::new());
        let entered = mark.enter();
        let owners = Arc::new(AtomicUsize::new(0));

        let takers = [(); 2].map(|()| {
            let (mark, owners) = (Arc::clone(&mark), Arc::clone(&owners));
            thread::spawn(move || {
                if mark.take(entered) {
                    owners.fetch_add(1, SeqCst);
                }
            })
        });
        if mark.leave(entered) {
            owners.fetch_add(1, SeqCst);
        }
        takers.into_iter().for_each(|taker| taker.join().unwrap());

        assert_eq!(owners.load(SeqCst), 1);
    });
}

/// The monitor saw one handler; the worker is in the next: it is not blocked.
#[test]
fn handler_that_follows_is_not_taken_with_the_mark_of_the_one_before() {
    loom::model(|| {
        let mark = Arc::new(Mark::new());
        let first = mark.enter();

        let taker = Arc::clone(&mark);
        let taker = thread::spawn(move || taker.take(first));
        let kept_first = mark.leave(first);
        let kept_second = kept_first.then(|| {
            let second = mark.enter();
            mark.leave(second)
        });
        let taken = taker.join().unwrap();

        assert_ne!(kept_first, taken);
        assert_ne!(
            kept_second,
            Some(false),
            "the old mark took the new handler"
        );
    });
}
