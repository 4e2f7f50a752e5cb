//! What happens to real servers: no thread to be had, no descriptor, handlers that panic or never
//! return, signals at any moment, a listener that is shut down under its acceptor.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/load.rs"]
mod load;
mod support;

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use load::Load;
use reuseport::{Call, Connection, Error, Group, GroupError, Server, StopToken, sys};
use support::{descriptors, visit, wait_until};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);
const NOBODY: u32 = 65534;
/// Far more than any grace here, and far less than for ever.
const SOON: Duration = support::BOUND;

fn greet(_: usize, connection: Connection) {
    let greeting = connection.send(b"hello");
    assert_eq!(greeting, Ok(5));
    drop(connection);
}

/// Plays a role in a process of its own, as a user whom limits bind.
#[track_caller]
fn play(role: &str) {
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } == 0 {
        support::play_as(NOBODY, role, |_| {});
    } else {
        support::play(&mut support::role(role));
    }
}

/// Sets a soft limit, at most the hard one, and returns what it was.
fn limit(resource: support::Resource, to: libc::rlim_t) -> libc::rlim_t {
    support::limit_softly(resource, to).unwrap()
}

/// Has each of the group's members serve: one of three has none of 300 with a chance of 5e-53.
#[track_caller]
fn whole(server: &Server, members: usize) {
    let accepted = || -> Vec<usize> {
        let members = server.members();
        assert!(
            members.iter().all(|member| member.stats.running),
            "{members:?}"
        );
        members.iter().map(|member| member.stats.accepted).collect()
    };
    let before = accepted();
    assert_eq!(before.len(), members);
    (0..300).for_each(|_| assert_eq!(visit(server.local_addr()), "hello"));
    let after = accepted();
    assert!(
        after.iter().zip(&before).all(|(now, then)| now > then),
        "{before:?} {after:?}"
    );
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn has_no_thread_left() {
    let none = Error::new(Call::PthreadCreate, libc::EAGAIN);
    // A member that is added takes a spare thread that a busy machine has made necessary.
    let options = Group::options().spare_threads(0);
    let group = options.bind(ANY_PORT, 3).unwrap();
    let before = descriptors("self");
    // This process alone has two threads by now.
    let usual = limit(libc::RLIMIT_NPROC, 1);

    let failure = group.spawn(greet).unwrap_err();
    assert_eq!(failure.error(), none);
    let group = failure.into_group();
    assert_eq!((group.sockets().len(), descriptors("self")), (3, before));
    limit(libc::RLIMIT_NPROC, usual);
    let server = group.spawn(greet).unwrap();
    whole(&server, 3);

    let before = descriptors("self");
    limit(libc::RLIMIT_NPROC, 1);
    let failure = server.add().unwrap_err();
    let address = server.local_addr();
    assert_eq!(
        failure,
        GroupError::Call {
            error: none,
            address,
            member: 3
        }
    );
    assert_eq!(descriptors("self"), before);
    whole(&server, 3);
    // To make way takes no thread.
    assert!(!server.retire(1).unwrap().running);
    whole(&server, 2);
    limit(libc::RLIMIT_NPROC, usual);
    assert_eq!(server.add(), Ok(3));
    whole(&server, 3);
}

#[test]
fn add_without_threads_changes_nothing() {
    play("has_no_thread_left");
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn has_no_descriptor_left() {
    let none = Error::new(Call::Socket, libc::EMFILE);
    // Numbers count: behind this one there are no holes.
    let full: Vec<_> = (0..40)
        .map(|_| fs::File::open("/dev/null").unwrap())
        .collect();
    let last = full.iter().map(AsRawFd::as_raw_fd).max().unwrap();
    let before = descriptors("self");
    let room_for = |more: i32| limit(libc::RLIMIT_NOFILE, (last + 1 + more).try_into().unwrap());
    let usual = room_for(2);

    let failure = Group::bind(ANY_PORT, 3).unwrap_err();
    assert!(matches!(failure, GroupError::Call { error, member: 2, .. } if error == none));

    limit(libc::RLIMIT_NOFILE, usual);
    assert_eq!(descriptors("self"), before);

    let group = Group::options()
        .grace(Duration::from_millis(20))
        .bind(ANY_PORT, 3)
        .unwrap();
    let server = group.spawn(greet).unwrap();
    whole(&server, 3);

    room_for(3);

    let failure = server.add().unwrap_err();
    assert_eq!(
        failure,
        GroupError::Call {
            error: none,
            address: server.local_addr(),
            member: 3
        }
    );

    assert_eq!(server.members().len(), 3);

    // It cannot ask for the handshakes, and gives them the whole grace. Then the acceptor leaves.
    for round in 0..3 {
        room_for(3);
        server.retire(round).unwrap();
        wait_until("who has left is gone", || !support::runs(&server, round));
        limit(libc::RLIMIT_NOFILE, usual);
        assert_eq!(server.add(), Ok(3 + round));
    }

    whole(&server, 3);

    drop(server);
    // The grace may be over before the threads are.
    wait_until("all is closed", || descriptors("self") == before);
}

#[test]
fn add_without_descriptors_changes_nothing() {
    play("has_no_descriptor_left");
}

#[test]
fn handler_that_panics_is_counted_and_the_group_goes_on() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("a payload that panics when it is dropped");
        }
    }
    let _none = support::no_process_starts();
    let calls = AtomicUsize::new(0);
    let group = Group::bind(ANY_PORT, 2).unwrap();
    let server = group.spawn(move |id, connection| match calls.fetch_add(1, SeqCst) {
        0 => panic!("a handler that panics"),
        1 => std::panic::panic_any(Bomb),
        _ => greet(id, connection),
    });
    let server = server.unwrap();

    assert_eq!(visit(server.local_addr()), "");
    assert_eq!(visit(server.local_addr()), "");
    whole(&server, 2);

    let counts = server.stop(SOON);
    assert_eq!(counts.iter().map(|count| count.panicked).sum::<usize>(), 2);
    assert_eq!(
        counts.iter().map(|count| count.accepted).sum::<usize>(),
        302
    );
}

/// A handler that does not return, until it is let go.
#[derive(Default)]
struct Stuck {
    entered: AtomicBool,
    member: AtomicUsize,
    free: Mutex<bool>,
    freed: Condvar,
}

impl Stuck {
    fn hold(&self, member: usize) {
        self.member.store(member, SeqCst);
        self.entered.store(true, SeqCst);
        let free = self
            .freed
            .wait_while(self.free.lock().unwrap(), |free| !*free);
        drop(free.unwrap());
    }

    fn let_go(&self) {
        *self.free.lock().unwrap() = true;
        self.freed.notify_all();
    }
}

/// Enough where nobody is queued: it is for the handler that never returns.
const GRACE: Duration = Duration::from_millis(100);

/// A group whose first handler is stuck, and the client there. Those behind it have been served.
fn with_a_stuck_handler(members: usize) -> (Arc<Stuck>, Server, TcpStream) {
    let stuck = Arc::new(Stuck::default());
    let held = Arc::clone(&stuck);
    let group = Group::options().grace(GRACE).bind(ANY_PORT, members);
    let first = AtomicBool::new(true);
    let handler = move |id, connection| {
        if first.swap(false, SeqCst) {
            held.hold(id);
        }
        greet(id, connection);
    };
    let server = group.unwrap().spawn(handler).unwrap();
    let client = TcpStream::connect(server.local_addr()).unwrap();
    wait_until("a handler is stuck", || stuck.entered.load(SeqCst));
    let behind = [(); 5].map(|()| TcpStream::connect(server.local_addr()).unwrap());
    behind.into_iter().for_each(greeting);
    (stuck, server, client)
}

/// The greeting, which has come when the server closes.
#[track_caller]
fn greeting(mut client: TcpStream) {
    client.set_read_timeout(Some(SOON)).unwrap();
    let mut heard = String::new();
    client
        .read_to_string(&mut heard)
        .expect("a greeting, and the end");
    assert_eq!(heard, "hello");
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn has_handlers_that_never_return() {
    let before = descriptors("self");
    for act in [
        is_stopped_while_stuck,
        is_dropped_while_stuck,
        retires_a_stuck_member,
    ] {
        act();
        wait_until("all is closed", || descriptors("self") == before);
    }
}

fn is_stopped_while_stuck() {
    let (stuck, server, client) = with_a_stuck_handler(1);

    let counts = server.stop(GRACE);

    let [count] = counts[..] else {
        panic!("{counts:?}")
    };
    assert!(count.running && count.accepted == 6, "{count:?}");

    stuck.let_go();
    greeting(client);
}

fn is_dropped_while_stuck() {
    let (stuck, server, client) = with_a_stuck_handler(1);

    drop(server);

    stuck.let_go();
    greeting(client);
}

fn retires_a_stuck_member() {
    let (stuck, server, client) = with_a_stuck_handler(2);
    let busy = stuck.member.load(SeqCst);

    let count = server.retire(busy).unwrap();

    assert!(count.running, "{count:?}");
    whole(&server, 1);

    stuck.let_go();
    greeting(client);
    wait_until("it has returned", || !support::runs(&server, busy));
    assert_eq!(server.add(), Ok(2));
    whole(&server, 2);
}

#[test]
fn handler_that_never_returns_holds_up_no_client() {
    play("has_handlers_that_never_return");
}

/// A spare thread makes its handler by the user's code, which may panic.
#[test]
fn make_that_panics_on_a_spare_thread_is_counted_and_ends_nothing() {
    let _none = support::no_process_starts();
    let stuck = Arc::new(Stuck::default());
    let (held, made) = (Arc::clone(&stuck), AtomicUsize::new(0));
    let group = Group::bind(ANY_PORT, 1).unwrap();
    let server = group.spawn_with(move |id| {
        assert_eq!(made.fetch_add(1, SeqCst), 0, "one handler is all there is");
        let held = Arc::clone(&held);
        move |_: Connection, _: &StopToken| held.hold(id)
    });
    let server = server.unwrap();
    let clients = [(); 2].map(|()| TcpStream::connect(server.local_addr()).unwrap());
    wait_until("a handler is stuck", || stuck.entered.load(SeqCst));

    wait_until("`make` has panicked more than once", || {
        server.stats()[0].panicked > 1
    });

    // The client that waits is served when the handler has returned.
    assert_eq!(server.stats()[0].accepted, 1);
    stuck.let_go();
    for mut client in clients {
        client.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(client.read(&mut [0]).expect("the end"), 0);
    }
    let [stats] = server.stop(SOON)[..] else {
        panic!("not one")
    };
    assert_eq!((stats.accepted, stats.reset, stats.running), (2, 0, false));
}

#[test]
fn make_that_panics_for_a_pinned_member_is_called_again() {
    let _none = support::no_process_starts();
    let usual = support::cpus();
    let made = AtomicUsize::new(0);
    let group = Group::options().pin(true).bind(ANY_PORT, 1).unwrap();
    let server = group.spawn_with(move |id| {
        assert_ne!(made.fetch_add(1, SeqCst), 1, "the second cannot be made");
        move |connection: Connection, _: &StopToken| greet(id, connection)
    });
    let server = server.unwrap();
    wait_until("the first handler is made", || {
        _ = visit(server.local_addr());
        server.stats()[0].accepted > 0
    });

    assert_eq!(server.add(), Ok(1));

    assert_eq!(support::cpus(), usual);
    wait_until("`make` has panicked", || server.stats()[1].panicked == 1);
    whole(&server, 2);
}

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_signal(_: i32) {
    SIGNALS.fetch_add(1, SeqCst);
}

/// Sends a signal to each thread of this process, and waits until they have been handled: threads
/// that have the CPU for less than a handler takes would never get further. A thread may end before
/// it handles its own, so the wait is short.
fn interrupt_all_threads() {
    let (before, mut sent) = (SIGNALS.load(SeqCst), 0);
    for thread in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let id: libc::c_long = thread.file_name().to_str().unwrap().parse().unwrap();
        // 32 bits wide, or wider.
        let process: libc::c_long = std::process::id().to_string().parse().unwrap();
        // SAFETY: takes three integers. A thread that has ended is an error, no more.
        let done = unsafe { libc::syscall(libc::SYS_tgkill, process, id, libc::SIGUSR2) };
        sent += usize::from(done == 0);
    }
    let begun = Instant::now();
    while SIGNALS.load(SeqCst) < before + sent && begun.elapsed() < Duration::from_millis(20) {
        thread::yield_now();
    }
}

/// Counts each SIGUSR2; without `SA_RESTART` each interrupts the call that it meets.
fn handle_signals() {
    // SAFETY: made of integers, a pointer and a set of bits, for all of which zeros are a value.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    let handler: extern "C" fn(i32) = count_signal;
    action.sa_sigaction = handler as libc::sighandler_t;
    // SAFETY: `action` is readable; the handler does but what a handler may.
    let set = unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn is_interrupted_all_the_time() {
    handle_signals();
    let before = descriptors("self");
    let group = Group::options().grace(support::LONG);
    let server = group.bind(ANY_PORT, 3).unwrap().spawn(|_, connection| {
        let mut asked = connection.recv(&mut [0]);
        while asked.is_err_and(|error| error.errno() == libc::EINTR) {
            asked = connection.recv(&mut [0]);
        }
        _ = connection.send(b"!");
    });
    let server = server.unwrap();
    let load = Load::start(server.local_addr(), 4);
    let (over, begun) = (AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) && begun.elapsed() < support::LONG {
                interrupt_all_threads();
            }
        });
        let mut acceptor = 0;
        support::wait_until_within(support::LONG, "thousands of signals have come", || {
            server.add().unwrap();
            let count = server.retire(acceptor).unwrap();
            assert!(!count.running && count.error.is_none(), "{count:?}");
            acceptor += 1;
            acceptor >= 20 && SIGNALS.load(SeqCst) > 5000 && load.made() > 200
        });
        over.store(true, SeqCst);
    });

    let report = load.stop();
    assert_eq!(report.lost(), 0, "{report:?}");

    let counts = server.stop(SOON);
    assert!(
        counts
            .iter()
            .map(|count| count.transient_errors)
            .sum::<usize>()
            > 0,
        "no accept was met"
    );
    assert!(
        counts
            .iter()
            .all(|count| count.panicked == 0 && count.error.is_none())
    );
    assert_eq!(descriptors("self"), before);
}

#[test]
fn signals_in_every_call_lose_no_connection() {
    play("is_interrupted_all_the_time");
}

#[test]
fn listener_shut_down_from_outside_leaves_the_group() {
    let _none = support::no_process_starts();
    for retire in [false, true] {
        let group = Group::bind(ANY_PORT, 3).unwrap();
        let others = group.sockets().iter();
        let others: Vec<_> = others
            .map(|one| one.as_fd().try_clone_to_owned().unwrap())
            .collect();
        let wrong = AtomicBool::new(true);
        let server = group.spawn(move |id, connection| {
            if wrong.swap(false, SeqCst) {
                // SAFETY: the descriptor is open; it is the listener's behind its back.
                unsafe { sys::shutdown(others[id].as_raw_fd(), sys::SHUT_RD) }.unwrap();
            }
            greet(id, connection);
        });
        let server = server.unwrap();

        assert_eq!(visit(server.local_addr()), "hello");
        let left = || -> Option<usize> { server.stats().iter().position(|count| !count.running) };

        wait_until("its acceptor has left", || left().is_some());
        let gone = left().unwrap();
        (0..100).for_each(|_| assert_eq!(visit(server.local_addr()), "hello"));
        assert_eq!(server.stats()[gone].accepted, 1);

        if retire {
            assert_eq!(
                server.retire(gone).unwrap_err(),
                GroupError::NoSuchMember { member: gone }
            );
            let stays = server.members()[0].stats.id;
            assert!(!server.retire(stays).unwrap().running);
            whole(&server, 1);
        } else {
            assert_eq!(server.add(), Ok(3));
            whole(&server, 3);
        }

        assert!(!support::runs(&server, gone));
        let counts = server.stop(SOON);
        let failed = counts.into_iter().find(|count| count.id == gone).unwrap();
        let why = Some(Error::new(Call::Accept, libc::EINVAL));
        assert_eq!((failed.accepted, failed.error), (1, why));
    }
}
