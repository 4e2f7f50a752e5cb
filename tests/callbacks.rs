//! Code of the user that calls the server from where it is called itself: none of it may hold the
//! server up.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::net::TcpStream;
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use reuseport::{Acceptors, Connection, Group, GroupError, Server, Steering, StopToken};
use support::{BOUND, wait_until};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

#[test]
fn acceptors_stopped_by_their_own_handler_end() {
    static ACCEPTORS: Mutex<Option<Acceptors>> = Mutex::new(None);
    let (listeners, address) = support::listeners(2);
    let (sender, stopped) = std::sync::mpsc::channel();
    let handler = move |_, _: Connection| {
        let taken = ACCEPTORS.lock().unwrap().take();
        _ = sender.send(taken.map(Acceptors::stop));
    };
    let acceptors = Acceptors::spawn(listeners, handler).unwrap();
    ACCEPTORS.lock().unwrap().replace(acceptors);

    support::visit(address);

    let stats = stopped.recv_timeout(BOUND).unwrap().unwrap();
    assert_eq!(stats.iter().map(|one| one.accepted).sum::<usize>(), 1);
    wait_until("nobody listens", || TcpStream::connect(address).is_err());
}

#[test]
fn thread_local_destructor_that_calls_the_server_holds_nothing_up() {
    static SERVER: OnceLock<Server> = OnceLock::new();
    static FLUSHED: AtomicUsize = AtomicUsize::new(0);
    struct Flush;
    impl Drop for Flush {
        fn drop(&mut self) {
            let server = SERVER.get().unwrap();
            thread::sleep(Duration::from_millis(20));
            assert!(!server.stats().is_empty());
            // It is a change of the group.
            _ = server.set_steering(Steering::Hash);
            FLUSHED.fetch_add(1, SeqCst);
        }
    }
    thread_local!(static FLUSH: Cell<Option<Flush>> = const { Cell::new(None) });
    let _none = support::no_process_starts();
    let group = Group::options().spare_threads(0).bind(ANY_PORT, 3).unwrap();
    let handler = |_, _: Connection| FLUSH.set(FLUSH.take().or_else(|| Some(Flush)));
    let server = SERVER.get_or_init(|| group.spawn(handler).unwrap());
    for _ in 0..100 {
        support::visit(server.local_addr());
    }

    let (sender, done) = std::sync::mpsc::channel();
    thread::spawn(move || sender.send([0, 1].map(|member| server.retire(member).is_ok())));

    assert_eq!(done.recv_timeout(BOUND), Ok([true; 2]));
    wait_until("both have ended", || FLUSHED.load(SeqCst) == 2);
}

#[test]
fn stop_joins_threads_whose_destructors_call_the_server() {
    static SERVER: OnceLock<Server> = OnceLock::new();
    struct Flush;
    impl Drop for Flush {
        fn drop(&mut self) {
            let server = SERVER.get().unwrap();
            // Until `stop` has begun to wait for this thread.
            thread::sleep(Duration::from_millis(20));
            assert_eq!(server.add(), Err(GroupError::Stopped));
        }
    }
    thread_local!(static FLUSH: Cell<Option<Flush>> = const { Cell::new(None) });
    let _none = support::no_process_starts();
    let group = Group::options().spare_threads(0).bind(ANY_PORT, 1).unwrap();
    let group = group.spawn(|_, _: Connection| FLUSH.set(Some(Flush)));
    let server = SERVER.get_or_init(|| group.unwrap());
    support::visit(server.local_addr());

    let (sender, done) = std::sync::mpsc::channel();
    thread::spawn(move || sender.send(server.stop(BOUND)[0].running));

    assert_eq!(done.recv_timeout(BOUND), Ok(false));
}

#[test]
fn make_that_changes_the_server_holds_nothing_up() {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let _none = support::no_process_starts();
    let group = Group::bind(ANY_PORT, 2).unwrap();
    let make = |_| {
        if let Some(server) = SERVER.get() {
            _ = server.set_steering(Steering::Random);
        }
        |_: Connection, _: &StopToken| {}
    };
    let server = SERVER.get_or_init(|| group.spawn_with(make).unwrap());

    let (sender, done) = std::sync::mpsc::channel();
    thread::spawn(move || sender.send(server.add().unwrap()));

    assert_eq!(done.recv_timeout(BOUND), Ok(2));
    support::visit(server.local_addr());
}

#[test]
fn stop_from_a_handler_returns_within_its_grace() {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let _none = support::no_process_starts();
    let (sender, done) = std::sync::mpsc::channel();
    let group = Group::bind(ANY_PORT, 2).unwrap();
    let server = group.spawn(move |id, connection| {
        let server = SERVER.get().unwrap();
        let stats = server.stop(Duration::from_millis(300));
        let own = stats.iter().find(|stats| stats.id == id);
        _ = sender.send(own.is_some_and(|stats| stats.running));
        drop(connection);
    });
    let server = SERVER.get_or_init(|| server.unwrap());

    support::visit(server.local_addr());

    assert_eq!(done.recv_timeout(BOUND), Ok(true), "the handler itself");
    wait_until("it has ended", || {
        server.stats().iter().all(|stats| !stats.running)
    });
}

/// The kinds of callback; for each there is a server, which is called by that kind alone.
const KINDS: [&str; 5] = [
    "before_bind",
    "make",
    "a handler",
    "the drop of a handler",
    "a thread-local destructor",
];
static SERVERS: [OnceLock<Server>; 5] = [const { OnceLock::new() }; 5];
static BEGUN: [AtomicBool; 5] = [const { AtomicBool::new(false) }; 5];
static DONE: [AtomicBool; 5] = [const { AtomicBool::new(false) }; 5];

/// A callback of the server with this number.
fn call_all(server: usize, kind: usize) {
    let found = SERVERS[server].get().filter(|_| server == kind);
    let Some(server) = found.filter(|_| !BEGUN[kind].swap(true, SeqCst)) else {
        return;
    };
    _ = (server.local_addr(), server.other_listeners());
    _ = (server.totals(), server.spare_threads());
    _ = (server.members(), server.stats(), format!("{server:?}"));
    assert!(server.wait_failed(Duration::ZERO).is_none());
    assert_eq!(server.listener(0).unwrap_err(), GroupError::HasThreads);
    // What they come to depends on what else goes on.
    _ = server.set_steering(Steering::Random);
    _ = server.add();
    for member in server.members() {
        _ = server.retire(member.stats.id);
    }
    _ = server.retire_all(&[1, 2]);
    _ = server.hand_over(Command::new("true"), BOUND);
    _ = server.stop(Duration::from_millis(50));
    DONE[kind].store(true, SeqCst);
}

/// Makes the calls of its kind when it is dropped.
struct Dropped(usize, usize);

impl Drop for Dropped {
    fn drop(&mut self) {
        call_all(self.0, self.1);
    }
}

fn start_with_callbacks(number: usize) -> &'static Server {
    thread_local!(static AT_END: Cell<Option<Dropped>> = const { Cell::new(None) });
    let options = Group::options().spare_threads(0);
    let options = options.grace(Duration::from_millis(50));
    let options = options.before_bind(move |_| {
        call_all(number, 0);
        Ok(())
    });
    let group = options.bind(ANY_PORT, 3).unwrap();
    let make = move |_| {
        call_all(number, 1);
        let dropped = Dropped(number, 3);
        move |_: Connection, _: &StopToken| {
            _ = &dropped;
            call_all(number, 2);
            AT_END.set(Some(Dropped(number, 4)));
        }
    };
    SERVERS[number].get_or_init(|| group.spawn_with(make).unwrap())
}

#[test]
fn every_call_from_every_kind_of_callback_returns() {
    let _none = support::no_process_starts();
    for (number, kind) in KINDS.iter().enumerate() {
        let server = start_with_callbacks(number);
        let (sender, ended) = std::sync::mpsc::channel();
        thread::spawn(move || {
            // Each of these may find the server stopped.
            for _ in 0..20 {
                _ = std::net::TcpStream::connect(server.local_addr());
            }
            _ = server.add();
            // Its thread ends.
            _ = server.retire(0);
            _ = sender.send(());
        });

        wait_until(kind, || DONE[number].load(SeqCst));

        assert_eq!(ended.recv_timeout(BOUND), Ok(()), "{kind}");
    }
}
