//! The accept path allocates nothing, counted from the first connection.
#![cfg(feature = "std")]

mod support;

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::alloc::System;

use reuseport::Acceptors;

/// The system's allocator; it counts what threads ask for that have a handler running.
struct Counting;

static COUNTED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: each function hands on to the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.get() {
            COUNTED.fetch_add(1, SeqCst);
        }
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn accepting_allocates_nothing() {
    let (listeners, address) = support::listeners(2);
    let acceptors = Acceptors::spawn(listeners, |_, connection| {
        COUNTS.set(true);
        _ = connection.send(b"x");
    })
    .unwrap();
    for _ in 0..200 {
        assert_eq!(support::visit(address), "x");
    }
    assert_eq!(COUNTED.load(SeqCst), 0);
    COUNTS.set(true);
    drop(Box::new(1));
    COUNTS.set(false);
    assert_eq!(COUNTED.load(SeqCst), 1, "the allocator counts");
    assert_eq!(
        acceptors
            .stop()
            .iter()
            .map(|count| count.accepted)
            .sum::<usize>(),
        200
    );
}
