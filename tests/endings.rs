//! How a server ends where its user makes it hard: in a forked child, a second time, and with
//! handlers that panic as they are dropped.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::os::fd::AsRawFd;
use std::panic::panic_any;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use reuseport::{Connection, Group, Steering, StopToken, UdpSocket};
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

/// In at least one of ten departures none is misrouted: the indexes are wrong for microseconds, and
/// for longer only if the thread is held up just then.
#[test]
fn datagrams_by_byte_reach_their_member_while_another_leaves() {
    let (served, misrouted) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let counters = [Arc::clone(&served), Arc::clone(&misrouted)];
    let options = Group::udp_options().steering(Steering::Byte(0));
    let server = options
        .bind(ANY_PORT, 3)
        .unwrap()
        .spawn(move |receiver, datagram| {
            let is_its_own = datagram.payload() == [u8::try_from(receiver).unwrap()];
            counters[usize::from(!is_its_own)].fetch_add(1, Relaxed);
        });
    let server = server.unwrap();
    let mut least = usize::MAX;

    for _ in 0..10 {
        let members = server.members();
        let [first, .., last] = &members[..] else {
            panic!("{members:?}");
        };
        let (byte, before) = (
            u8::try_from(last.stats.id).unwrap(),
            misrouted.load(Relaxed),
        );
        let left = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !left.load(Relaxed) {
                    // Each is a flow of its own: the hash is right about half of them.
                    let client = UdpSocket::bind(ANY_PORT).unwrap();
                    client.send_to(&[byte], server.local_addr()).unwrap();
                    thread::sleep(Duration::from_micros(100));
                }
            });
            server.retire(first.stats.id).unwrap();
            left.store(true, Relaxed);
        });
        least = least.min(misrouted.load(Relaxed) - before);
        server.add().unwrap();
    }

    assert!(served.load(Relaxed) > 0);
    assert_eq!(least, 0);
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
