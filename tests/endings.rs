//! How a server ends where its user makes it hard: in a forked child, a second time, and with
//! handlers that panic as they are dropped.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::panic_any;
use std::process::Stdio;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use reuseport::{Acceptors, Connection, Group, Listener, Server, Steering};
use reuseport::{StopToken, UdpSocket};
use support::{BOUND, play, role, visit};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

#[test]
fn what_is_ended_in_a_forked_child_goes_on_in_the_parent() {
    play(&mut role("forks"));
}

/// Runs `code` in a child, and waits until it has ended.
fn in_a_child(code: impl FnOnce()) {
    // SAFETY: the child runs `code`, which takes no lock that another thread holds, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: takes an integer: a child that waits for ever is killed.
        unsafe { libc::alarm(30) };
        code();
        // SAFETY: takes an integer.
        unsafe { libc::_exit(0) };
    }
    let mut status = -1;
    // SAFETY: `status` is writable.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
}

#[test]
#[ignore = "played in a process of its own: it forks"]
fn forks() {
    type End<T> = fn(T);
    let ends: [(End<Server>, End<Acceptors>); 2] = [
        (drop, drop),
        (
            |server| _ = server.stop(BOUND),
            |threads| _ = threads.stop(),
        ),
    ];
    for (end_server, end_acceptors) in ends {
        let group = Group::bind(ANY_PORT, 2).unwrap();
        let server = group.spawn(|_, connection| _ = connection.send(b"parent"));
        let server = ManuallyDrop::new(server.unwrap());
        let listener = Listener::bind(ANY_PORT).unwrap();
        let address = listener.local_addr().unwrap();
        let serve = |_, connection: Connection| _ = connection.send(b"parent");
        let acceptors = ManuallyDrop::new(Acceptors::spawn(vec![listener], serve).unwrap());

        // SAFETY: the child takes its copies, once; the parent has its own.
        in_a_child(|| end_server(unsafe { core::ptr::read(&raw const *server) }));
        // SAFETY: as above.
        in_a_child(|| end_acceptors(unsafe { core::ptr::read(&raw const *acceptors) }));

        for address in [server.local_addr(), address] {
            (0..20).for_each(|_| assert_eq!(visit(address), "parent"));
        }
        _ = ManuallyDrop::into_inner(acceptors).stop();
        _ = ManuallyDrop::into_inner(server).stop(BOUND);
    }
}

#[test]
fn copies_of_a_forked_child_keep_a_closed_listener_open_and_not_a_stopped_server() {
    play(&mut role("leaves_copies_to_a_child"));
}

#[test]
#[ignore = "played in a process of its own: it forks"]
fn leaves_copies_to_a_child() {
    let listener = Listener::bind(ANY_PORT).unwrap();
    let address = listener.local_addr().unwrap();
    let server = Group::bind(ANY_PORT, 2).unwrap().spawn(|_, _| {}).unwrap();
    let (stopped, held) = (server.local_addr(), UnixStream::pair().unwrap());
    // SAFETY: the child reads until the parent closes its end, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(held.1);
        let ended = (&held.0).read(&mut [0]);
        // SAFETY: takes an integer.
        unsafe { libc::_exit(i32::from(ended.is_err())) };
    }

    drop(listener);
    server.stop(BOUND);
    let mut client = TcpStream::connect(address).expect("the child's copy listens");
    let refused = TcpStream::connect(stopped).map(drop);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    drop(held);

    client.set_read_timeout(Some(BOUND)).unwrap();
    let reset = client.read(&mut [0]).unwrap_err();
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    let mut status = -1;
    // SAFETY: `status` is writable.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn hands_over_and_forks() {
    let group = Group::bind(ANY_PORT, 2).unwrap();
    let server = group.spawn(|_, connection| _ = connection.send(b"old"));
    let server = server.unwrap();
    let mut successor = role("forks_and_takes_over");
    successor.stdin(Stdio::piped()).stdout(Stdio::null());
    let hand_over = ManuallyDrop::new(server.hand_over(successor, BOUND).unwrap());

    // SAFETY: the child takes its copy, once; the parent has its own.
    in_a_child(|| drop(unsafe { core::ptr::read(&raw const *hand_over) }));

    (0..20).for_each(|_| assert_eq!(visit(server.local_addr()), "new"));
    let mut child = ManuallyDrop::into_inner(hand_over).leave(BOUND).unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn forks_and_takes_over() {
    let group = Group::from_env().unwrap().pop().unwrap();
    let group = ManuallyDrop::new(group);
    // SAFETY: the child takes its copy, once; the parent has its own.
    in_a_child(|| drop(unsafe { core::ptr::read(&raw const *group) }));
    let group = ManuallyDrop::into_inner(group);
    let server = group.spawn(|_, connection| _ = connection.send(b"new"));
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    server.unwrap().stop(BOUND);
}

#[test]
fn hand_over_dropped_in_a_forked_child_goes_on() {
    play(&mut role("hands_over_and_forks"));
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
