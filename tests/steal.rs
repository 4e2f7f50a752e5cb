//! Nobody waits beside an idle acceptor.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/load.rs"]
mod load;
mod support;

use core::ffi::c_int;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, RwLock, mpsc};
use std::thread;

use load::{Load, answer, churn};
use reuseport::steering::Instruction;
use reuseport::{Call, Error, Group, GroupError, GroupOptions, Server, sys};
use support::{BOUND, ServeProcess, connect_from, run, visit, wait_until};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn steal() -> GroupOptions {
    Group::options().steal(true).grace(BOUND)
}

/// Where acceptor 0 stops while it is closed, and whether it stands there.
#[derive(Default)]
struct Gate {
    closed: RwLock<()>,
    stands: AtomicBool,
}

/// A group in which the kernel chooses member 0 for every connection.
fn all_to_the_first(gate: &Arc<Gate>) -> (Server, SocketAddr) {
    let group = steal().bind(ANY_PORT, 3).unwrap();
    let address = group.local_addr();
    let first = Instruction {
        code: 0x06,
        ..Instruction::default()
    };
    group.sockets()[0].attach_program(&[first]).unwrap();
    let gate = Arc::clone(gate);
    let server = group.spawn(move |acceptor, connection| {
        if acceptor == 0 {
            gate.stands.store(true, SeqCst);
            drop(gate.closed.read());
            gate.stands.store(false, SeqCst);
        }
        _ = connection.send(b"x");
    });
    (server.unwrap(), address)
}

#[test]
fn while_the_owner_is_busy_its_idle_siblings_serve() {
    let gate = Arc::<Gate>::default();
    let (server, address) = all_to_the_first(&gate);
    for round in 0..200 {
        let closed = gate.closed.write().unwrap();
        let mut held = Vec::new();
        // Until the owner has gone back to sleep, siblings serve for it.
        wait_until("the owner is busy", || {
            held.push(TcpStream::connect(address).unwrap());
            wait_until("somebody takes it", || {
                gate.stands.load(SeqCst) || served(held.last_mut().unwrap())
            });
            gate.stands.load(SeqCst)
        });
        // Two at once, while the owner stands at the gate: each is served by a sibling.
        let clients = [
            TcpStream::connect(address).unwrap(),
            TcpStream::connect(address).unwrap(),
        ];
        for mut client in clients {
            client.set_read_timeout(Some(BOUND)).unwrap();
            client.read_exact(&mut [0]).expect("served in time");
        }
        assert!(
            gate.stands.load(SeqCst),
            "round {round}: the owner is still busy"
        );
        drop(closed);
        wait_until("it is free again", || !gate.stands.load(SeqCst));
    }
    let stolen: usize = server.stop(BOUND).iter().map(|count| count.stolen).sum();
    assert!(stolen >= 400, "{stolen}");
}

/// Nobody stands at the gate.
const NOBODY: usize = usize::MAX;

/// Connects and sends one byte.
fn ask(address: SocketAddr, byte: u8) -> TcpStream {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    client.write_all(&[byte]).unwrap();
    client
}

#[test]
fn nor_while_members_come_and_go() {
    let gate = Arc::new((RwLock::new(()), AtomicUsize::new(NOBODY)));
    let handlers = Arc::clone(&gate);
    let server = steal().bind(ANY_PORT, 4).unwrap().spawn(move |id, client| {
        let mut asked = [0];
        if client.recv(&mut asked) == Ok(1) && asked == *b"s" {
            handlers.1.store(id, SeqCst);
            drop(handlers.0.read());
            handlers.1.store(NOBODY, SeqCst);
        }
        _ = client.send(b"x");
    });
    let server = server.unwrap();
    let address = server.local_addr();
    let (closed, stands) = (&gate.0, || gate.1.load(SeqCst));
    // Two at once, whichever listeners they are given: of four members one stands at the gate, one
    // may be leaving, and two are there for them.
    let two = || {
        for mut client in [ask(address, b'q'), ask(address, b'q')] {
            client.read_exact(&mut [0]).expect("served in time");
        }
    };
    for round in 0..100 {
        let closed = closed.write().unwrap();
        let _held = ask(address, b's');
        wait_until("somebody is busy", || stands() != NOBODY);
        let busy = stands();
        thread::scope(|scope| {
            let change = scope.spawn(|| {
                server.add().unwrap();
                let ids = server.members().into_iter().map(|member| member.stats.id);
                server
                    .retire(ids.filter(|id| *id != busy).min().unwrap())
                    .unwrap();
            });
            while !change.is_finished() {
                two();
            }
        });
        // Nothing but a wake-up of their own brings these to anybody.
        two();
        assert_eq!(stands(), busy, "round {round}: it is still busy");
        drop(closed);
        wait_until("it is free again", || stands() == NOBODY);
    }
    let counts = server.stop(BOUND);
    let stolen: usize = counts.iter().map(|count| count.stolen).sum();
    // At least 400, of which the busy one was to have a quarter or a fifth: less than 20 are given
    // to it with a chance below 1e-15.
    assert!(counts.len() == 104 && stolen >= 20, "{stolen} stolen");
}

#[test]
fn every_listener_keeps_its_even_share_whoever_serves_it() {
    // Connections inherit their listener's timeout: it tells which one the kernel chose.
    let chosen: Arc<[AtomicUsize; 4]> = Arc::default();
    let member = AtomicUsize::new(0);
    let mark = move |fd: c_int| {
        let mark = timeval(member.fetch_add(1, SeqCst) + 1000);
        let at = (&raw const mark).cast();
        let size = size_of_val(&mark).try_into().unwrap();
        // SAFETY: `mark` is readable for its size, and the option takes that struct.
        unsafe { sys::setsockopt(fd, sys::SOL_SOCKET, libc::SO_RCVTIMEO, at, size) }
    };
    let group = steal().before_bind(mark).bind(ANY_PORT, 4).unwrap();
    let address = group.local_addr();
    let gate = Arc::new(RwLock::new(()));
    let (counts, passed) = (Arc::clone(&chosen), Arc::clone(&gate));
    let busy = AtomicUsize::new(NOBODY);
    let server = group.spawn(move |acceptor, connection| {
        let mut mark = timeval(0);
        let (at, mut size) = (
            (&raw mut mark).cast(),
            size_of::<libc::timeval>().try_into().unwrap(),
        );
        let fd = connection.as_fd().as_raw_fd();
        let option = libc::SO_RCVTIMEO;
        // SAFETY: `mark` is writable for the size stated.
        unsafe { sys::getsockopt(fd, sys::SOL_SOCKET, option, at, &raw mut size) }.unwrap();
        counts[usize::try_from(mark.tv_sec).unwrap() - 1000].fetch_add(1, SeqCst);
        // The first who gets one stands there until all the others have been served.
        if busy.swap(acceptor, SeqCst) == NOBODY {
            drop(passed.read());
        }
    });
    let server = server.unwrap();
    let closed = gate.write().unwrap();
    let all = || -> usize { chosen.iter().map(|count| count.load(SeqCst)).sum() };
    for batch in 1..=80 {
        let numbers = 100 * batch..100 * batch + 100;
        let clients: Vec<_> = numbers.map(|n| connect_from(n, address)).collect();
        wait_until("all are served", || all() == 100 * batch as usize);
        drop(clients);
    }
    drop(closed);
    let counts = server.stop(BOUND);
    let chosen = chosen.each_ref().map(|count| count.load(SeqCst));
    support::a_fair_lottery(&chosen);
    // One served a single connection, and yet its listener had the share of any other.
    let least = counts.iter().min_by_key(|count| count.accepted).unwrap();
    assert_eq!(least.accepted, 1, "{counts:?}");
    let stolen: usize = counts.iter().map(|count| count.stolen).sum();
    assert!(stolen + 1 >= chosen[least.id], "{chosen:?} {counts:?}");
}

fn timeval(seconds: usize) -> libc::timeval {
    libc::timeval {
        tv_sec: seconds.try_into().unwrap(),
        tv_usec: 0,
    }
}

/// Whether the answer has come.
fn served(client: &mut TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let done = client.peek(&mut [0]).is_ok();
    client.set_nonblocking(false).unwrap();
    done
}

#[test]
fn an_idle_owner_comes_first() {
    let (server, address) = all_to_the_first(&Arc::default());
    for _ in 0..300 {
        assert_eq!(visit(address), "x");
    }
    let counts = server.stop(BOUND);
    // After each the owner has to get back to sleep first, so a few are a sibling's.
    assert!(counts[0].accepted > 150, "{counts:?}");
    assert_eq!(
        counts.iter().map(|count| count.accepted).sum::<usize>(),
        300
    );
}

#[test]
fn members_that_steal_come_and_go_and_nothing_is_lost() {
    let group = steal().bind(ANY_PORT, 4).unwrap();
    let server = group.spawn(|_, connection| answer(&connection)).unwrap();
    let load = Load::start(server.local_addr(), 16);
    wait_until("the load is on", || load.made() > 100);
    let took = churn(&server, 0, |retired| retired < 100);
    let report = load.stop();
    let counts = server.stop(BOUND);
    assert_eq!(report.lost(), 0, "{report:?}");
    assert_eq!(counts.len(), 4 + took.len());
    let accepted: usize = counts.iter().map(|count| count.accepted).sum();
    assert!(accepted >= report.made, "{counts:?}");
}

/// Three acceptors, of which one stands at its own gate.
struct Apart {
    server: Server,
    address: SocketAddr,
    /// By which others may shut the listeners down.
    outside: Vec<OwnedFd>,
    threads: Arc<Mutex<BTreeMap<usize, i32>>>,
}

/// Has each of them serve once. `busy` is left at `gate`, which is held.
fn apart(gate: &Arc<RwLock<()>>, busy: usize) -> Apart {
    let group = steal().bind(ANY_PORT, 3).unwrap();
    let address = group.local_addr();
    let to_the_busy = Instruction {
        code: 0x06,
        k: busy.try_into().unwrap(),
        ..Instruction::default()
    };
    group.sockets()[0].attach_program(&[to_the_busy]).unwrap();
    let outside = group.sockets().iter().map(|listener| {
        let listener = listener.as_fd().try_clone_to_owned();
        listener.unwrap()
    });
    let outside = outside.collect();
    let others = Arc::<RwLock<()>>::default();
    let threads = Arc::<Mutex<BTreeMap<_, _>>>::default();
    let (gate, passed, seen) = (Arc::clone(gate), Arc::clone(&others), Arc::clone(&threads));
    let server = group.spawn(move |acceptor, connection| {
        // SAFETY: takes nothing, and always succeeds.
        let thread = unsafe { libc::gettid() };
        seen.lock().unwrap().insert(acceptor, thread);
        drop(if acceptor == busy { &gate } else { &passed }.read());
        _ = connection.send(b"x");
    });
    let closed = others.write().unwrap();
    for served in 1..=3 {
        let _held = TcpStream::connect(address).unwrap();
        wait_until("one more has one", || {
            threads.lock().unwrap().len() == served
        });
    }
    drop(closed);
    Apart {
        server: server.unwrap(),
        address,
        outside,
        threads,
    }
}

/// Whether a thread of this process sleeps.
fn sleeps(thread: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with('S')
}

fn shut_down(listener: &OwnedFd) {
    // SAFETY: the descriptor is open.
    unsafe { sys::shutdown(listener.as_raw_fd(), sys::SHUT_RD) }.unwrap();
}

#[test]
fn a_failed_listener_is_its_owners_affair() {
    let gate = Arc::<RwLock<()>>::default();
    let closed = gate.write().unwrap();
    let group = apart(&gate, 0);
    shut_down(&group.outside[0]);
    let threads = group.threads.lock().unwrap().clone();
    wait_until("its siblings sleep, though it stands open", || {
        sleeps(threads[&1]) && sleeps(threads[&2])
    });
    drop(closed);
    wait_until("it has left", || !group.server.stats()[0].running);
    assert_eq!(visit(group.address), "x");
    let failed = group
        .server
        .stop(BOUND)
        .into_iter()
        .map(|count| count.error);
    let gone = Error::new(Call::Accept, libc::EINVAL);
    assert_eq!(failed.collect::<Vec<_>>(), [Some(gone), None, None]);
}

#[test]
fn what_is_stolen_while_the_end_is_awaited_counts() {
    let gate = Arc::<RwLock<()>>::default();
    let closed = gate.write().unwrap();
    let group = apart(&gate, 1);
    let (tell, told) = mpsc::channel();
    let server = group.server;
    let joining = thread::spawn(move || {
        // SAFETY: takes nothing, and always succeeds.
        tell.send(unsafe { libc::gettid() }).unwrap();
        server.join()
    });
    let thread = told.recv().unwrap();
    wait_until("the end is awaited", || sleeps(thread));
    for _ in 0..20 {
        assert_eq!(visit(group.address), "x");
    }
    drop(closed);
    group.outside.iter().for_each(shut_down);
    let counts = joining.join().unwrap();
    // Acceptor 1 was at the gate, with the one that came first.
    let stolen: usize = counts.iter().map(|count| count.stolen).sum();
    assert_eq!((counts[1].accepted, stolen), (1, 22), "{counts:?}");
}

#[test]
fn until_they_are_served_the_listeners_block_as_any_do() {
    for listener in steal().bind(ANY_PORT, 2).unwrap().into_sockets() {
        // SAFETY: the command takes nothing; the descriptor is open.
        let flags = unsafe { libc::fcntl(listener.as_raw_fd(), libc::F_GETFL) };
        assert_eq!(flags & libc::O_NONBLOCK, 0);
    }
}

#[test]
fn too_many_are_refused() {
    assert_eq!(
        steal().bind(ANY_PORT, 129).unwrap_err(),
        GroupError::TooMany
    );
    let server = steal()
        .bind(ANY_PORT, 128)
        .unwrap()
        .spawn(|_, _| {})
        .unwrap();
    assert_eq!(server.add().unwrap_err(), GroupError::TooMany);
    let shared = steal().shared(true).bind(ANY_PORT, 2);
    assert_eq!(shared.unwrap_err(), GroupError::SharedSocket);
}

#[test]
fn the_command_steals_and_is_slow_where_told() {
    let server =
        ServeProcess::start(&["--quiet", "--steal", "--acceptors", "4", "--slow", "10:20"]);
    let address = server.address.to_string();
    let (code, out, _) = run(&[
        "connect",
        "--addr",
        &address,
        "--connections",
        "400",
        "--concurrency",
        "8",
    ]);
    assert_eq!(code, 0, "{out}");
    let server_said = {
        server.signal(libc::SIGTERM);
        server.end().2
    };
    assert!(server_said.contains(" stolen"), "{server_said}");
    let (code, _, err) = run(&["serve", "--slow", "often"]);
    assert_eq!((code, err.lines().count()), (2, 1), "{err}");
}
