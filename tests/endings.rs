//! How a server ends where its user makes it hard: in a forked child, a second time, and with
//! handlers that panic as they are dropped.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use core::time::Duration;
use std::os::fd::AsRawFd;
use std::panic::panic_any;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use reuseport::{Connection, Group, StopToken};
use support::{BOUND, play, role, visit};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

#[test]
fn server_dropped_in_a_forked_child_leaves_the_parents() {
    play(&mut role("forks"));
}

#[test]
#[ignore = "played in a process of its own: it forks"]
fn forks() {
    let group = Group::bind(ANY_PORT, 2).unwrap();
    let server = group.spawn(|_, connection| _ = connection.send(b"parent"));
    let server = server.unwrap();
    // SAFETY: the child drops the server and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: takes an integer: a child that waits for ever is killed.
        unsafe { libc::alarm(30) };
        drop(server);
        // SAFETY: takes an integer.
        unsafe { libc::_exit(0) };
    }
    let mut status = -1;

    // SAFETY: `status` is writable.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };

    assert_eq!((waited, status), (child, 0));
    (0..20).for_each(|_| assert_eq!(visit(server.local_addr()), "parent"));
}

#[test]
fn drop_after_stop_waits_for_no_second_grace() {
    let gate = Arc::new(Barrier::new(2));
    let its = Arc::clone(&gate);
    let group = Group::options().grace(2 * BOUND).bind(ANY_PORT, 1).unwrap();
    let server = group.spawn(move |_, connection| {
        _ = connection.send(b"begun");
        _ = connection.shutdown(libc::SHUT_WR);
        its.wait();
    });
    let server = server.unwrap();
    assert_eq!(visit(server.local_addr()), "begun");

    let stats = server.stop(Duration::ZERO);
    let before = Instant::now();
    drop(server);

    assert!(stats[0].running, "{stats:?}");
    assert!(before.elapsed() < BOUND, "{:?}", before.elapsed());
    gate.wait();
}

/// Panics when it is dropped, and so does what it panics with.
struct PanicsTwice(bool);

impl Drop for PanicsTwice {
    fn drop(&mut self) {
        if core::mem::take(&mut self.0) {
            panic_any(PanicsTwice(!std::thread::panicking()));
        }
    }
}

#[test]
fn handler_that_panics_twice_as_it_is_dropped_ends_its_thread() {
    let group = Group::bind(ANY_PORT, 2).unwrap();
    let server = group.spawn_with(|_| {
        let state = PanicsTwice(true);
        move |connection: Connection, _: &StopToken| {
            let _whole = &state;
            _ = connection.send(b"served");
        }
    });
    let server = server.unwrap();
    (0..20).for_each(|_| assert_eq!(visit(server.local_addr()), "served"));

    let before = Instant::now();
    let stats = server.stop(2 * BOUND);

    assert!(before.elapsed() < BOUND, "{:?}", before.elapsed());
    assert!(stats.iter().all(|stats| !stats.running), "{stats:?}");
}

#[test]
fn listener_for_a_runtime_never_blocks() {
    let server = Group::bind(ANY_PORT, 1).unwrap().into_server().unwrap();
    // As a new process does that serves with threads.
    server.listener(0).unwrap().set_nonblocking(false).unwrap();

    let listener = server.listener(0).unwrap();

    // SAFETY: takes two integers.
    let flags = unsafe { libc::fcntl(listener.as_raw_fd(), libc::F_GETFL) };
    assert_ne!(flags & libc::O_NONBLOCK, 0);
    server.stop(Duration::ZERO);
}
