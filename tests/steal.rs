//! Nobody waits beside an idle acceptor.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/load.rs"]
mod load;
mod support;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, RwLock};

use load::{Load, answer, churn};
use reuseport::steering::Instruction;
use reuseport::{Group, GroupError, GroupOptions, Serving};
use support::{BOUND, Server, run, visit, wait_until};

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
fn all_to_the_first(gate: &Arc<Gate>) -> (Serving, SocketAddr) {
    let group = steal().bind(ANY_PORT, 3).unwrap();
    let address = group.local_addr();
    let first = Instruction {
        code: 0x06,
        ..Instruction::default()
    };
    group.listeners()[0].steer(&[first]).unwrap();
    let gate = Arc::clone(gate);
    let serving = group.spawn(move |acceptor, connection| {
        if acceptor == 0 {
            gate.stands.store(true, SeqCst);
            drop(gate.closed.read());
            gate.stands.store(false, SeqCst);
        }
        _ = connection.send(b"x");
    });
    (serving.unwrap(), address)
}

#[test]
fn while_the_owner_is_busy_its_idle_siblings_serve() {
    let gate = Arc::<Gate>::default();
    let (serving, address) = all_to_the_first(&gate);
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
    let stolen: usize = serving.stop(BOUND).iter().map(|count| count.stolen).sum();
    assert!(stolen >= 400, "{stolen}");
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
    let (serving, address) = all_to_the_first(&Arc::default());
    for _ in 0..300 {
        assert_eq!(visit(address), "x");
    }
    let counts = serving.stop(BOUND);
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
    let serving = group.spawn(|_, connection| answer(&connection)).unwrap();
    let load = Load::start(serving.local_addr(), 16);
    wait_until("the load is on", || load.made() > 100);
    let took = churn(&serving, 0, |retired| retired < 100);
    let report = load.stop();
    let counts = serving.stop(BOUND);
    assert_eq!(report.lost(), 0, "{report:?}");
    assert_eq!(counts.len(), 4 + took.len());
    let accepted: usize = counts.iter().map(|count| count.accepted).sum();
    assert!(accepted >= report.made, "{counts:?}");
}

#[test]
fn too_many_are_refused() {
    assert_eq!(
        steal().bind(ANY_PORT, 129).unwrap_err(),
        GroupError::TooMany
    );
    let serving = steal()
        .bind(ANY_PORT, 128)
        .unwrap()
        .spawn(|_, _| {})
        .unwrap();
    assert_eq!(serving.add().unwrap_err(), GroupError::TooMany);
    let shared = steal().shared(true).bind(ANY_PORT, 2);
    assert_eq!(shared.unwrap_err(), GroupError::OneSocket);
}

#[test]
fn the_command_steals_and_is_slow_where_told() {
    let server = Server::start(&["--quiet", "--steal", "--acceptors", "4", "--slow", "10:20"]);
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
