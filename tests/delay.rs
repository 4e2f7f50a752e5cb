//! Members come and go where a handshake takes a real round-trip time, and no connection is lost.
//!
//! On the loopback a handshake is over before anyone can close its listener, so that only a wire
//! with a delay shows whether a retirement waits for those under way.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/load.rs"]
mod load;
mod support;
#[path = "support/wire.rs"]
mod wire;

use std::collections::{HashSet, VecDeque};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use load::{Load, answer, churn};
use reuseport::{Acceptors, Group, Listener, Server, sys};
use wire::{SERVER, Wire};

/// As far as the next town, and as the other side of an ocean.
const NEAR: Duration = Duration::from_millis(20);
const FAR: Duration = Duration::from_millis(80);

static ON: i32 = 1;

/// What was wired, or nothing where that cannot be done.
fn or_skip(wire: io::Result<Wire>) -> Option<Wire> {
    if let Err(error) = &wire {
        support::skip(&format!("no namespaces with TUN devices: {error}"));
    }
    wire.ok()
}

fn wire(round_trip: Duration) -> Option<Wire> {
    or_skip(Wire::new(round_trip))
}

/// Clients at the far end of the wire. A visit takes two round trips, and they begin spread over
/// that time: in step, they would all shake hands at once and then for a while none would.
fn start(wire: &Wire, round_trip: Duration, address: SocketAddr, clients: u32) -> Load {
    let (client, begun) = (wire.client.clone(), Arc::new(AtomicU32::new(0)));
    let enter = move || {
        client.enter();
        thread::sleep(2 * round_trip * begun.fetch_add(1, Relaxed) / clients);
    };
    let clients = clients as usize;
    let load = Load::start_in(address, clients, enter);
    support::wait_until("the load is on", || load.made() > 2 * clients);
    load
}

/// Replaces members under load while `goes_on`, which is told how many have left and how many
/// clients were served. Says what came of it; fails if more than `most` clients were lost.
fn churn_over(
    round_trip: Duration,
    clients: u32,
    most: usize,
    goes_on: impl Fn(usize, usize) -> bool + Sync,
) {
    let Some(wire) = wire(round_trip) else {
        return;
    };
    let (report, mut took) = wire.server.inside(|| {
        // A busy machine may take long.
        let patient = Group::options().grace(support::BOUND);
        let group = patient.bind((SERVER, 0), 4).unwrap();
        let server = group.spawn(|_, connection| answer(&connection)).unwrap();
        let load = start(&wire, round_trip, server.local_addr(), clients);
        let took = churn(&server, 0, |retired| goes_on(retired, load.made()));
        let report = load.stop();
        server.stop(support::BOUND);
        let (members, accepted) = (server.totals().members, server.totals().accepted);
        assert_eq!(members, 4 + took.len());
        assert!(accepted >= report.made, "{accepted} accepted, {report:?}");
        (report, took)
    });
    report.say(&format!("{round_trip:?}"), took.len());

    assert_eq!(wire.lost(), 0, "packets");
    assert!(report.lost() <= most, "{report:?}");

    took.sort_unstable();
    let median = took[took.len() / 2];
    println!(
        "a retirement took {median:?}, at most {:?}",
        took[took.len() - 1]
    );
    // Of so many handshakes under way, some have most of their way before them.
    assert!(median >= round_trip / 2, "{median:?}: it did not wait");
}

#[test]
fn members_replaced_over_a_round_trip_lose_no_connection() {
    churn_over(NEAR, 64, 0, |retired, _| retired < 40);
    churn_over(FAR, 64, 0, |retired, _| retired < 16);
}

/// Runs `what` in a thread without capabilities: an ordinary user's.
fn as_an_ordinary_user<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    let there = || {
        support::drop_capabilities().unwrap();
        what()
    };
    thread::scope(|scope| scope.spawn(there).join().unwrap())
}

/// A client that connects too late is refused, and no other is lost.
#[track_caller]
fn stop_over_a_round_trip(cookies: &str, stop: impl Fn(&Server) + Sync) {
    let Some(wire) = wire(FAR) else {
        return;
    };
    wire.server.set("net/ipv4/tcp_syncookies", cookies);
    for _ in 0..2 {
        let report = wire.server.inside(|| {
            let group = Group::bind((SERVER, 0), 4).unwrap();
            let server = group.spawn(|_, connection| answer(&connection)).unwrap();
            let load = start(&wire, FAR, server.local_addr(), 64);
            stop(&server);
            load.stop()
        });
        let mut lost = report.lost.keys();
        let refused = "connect: Connection refused (os error 111)";
        assert!(lost.all(|what| what == refused), "{report:?}");
    }
    assert_eq!(wire.lost(), 0, "packets");
}

#[test]
fn stop_over_a_round_trip_resets_no_client() {
    stop_over_a_round_trip("1", |server| _ = server.stop(support::BOUND));
}

#[test]
fn stop_where_every_handshake_ends_by_a_cookie_resets_no_client() {
    stop_over_a_round_trip("2", |server| _ = server.stop(support::BOUND));
}

#[test]
fn stop_by_an_ordinary_user_over_a_round_trip_resets_no_client() {
    stop_over_a_round_trip("1", |server| {
        as_an_ordinary_user(|| _ = server.stop(support::BOUND));
    });
}

#[test]
fn joined_server_of_an_ordinary_user_leaves_over_a_round_trip_without_a_loss() {
    let Some(wire) = wire(FAR) else {
        return;
    };
    let report = wire.server.inside(|| {
        let join = Group::options().join(true);
        let bind = |address: SocketAddr| {
            let group = join.bind(address, 2).unwrap();
            group.spawn(|_, connection| answer(&connection)).unwrap()
        };
        let stays = bind((SERVER, 0).into());
        let leaves = bind(stays.local_addr());
        let load = start(&wire, FAR, stays.local_addr(), 64);
        let stats = as_an_ordinary_user(|| leaves.stop(support::BOUND));
        assert!(
            stats
                .iter()
                .all(|stats| stats.accepted > 0 && stats.reset == 0)
        );
        load.stop()
    });

    assert_eq!(wire.lost(), 0, "packets");
    assert_eq!(report.lost(), 0, "{report:?}");
}

#[test]
fn members_retired_by_a_thread_of_another_namespace_lose_no_connection() {
    let Some(wire) = wire(FAR) else {
        return;
    };
    let server = wire.server.inside(|| {
        let patient = Group::options().grace(support::BOUND);
        let group = patient.bind((SERVER, 0), 4).unwrap();
        group.spawn(|_, connection| answer(&connection)).unwrap()
    });
    let load = start(&wire, FAR, server.local_addr(), 64);

    server.retire_all(&[0, 1, 2]).unwrap();

    let report = load.stop();
    assert_eq!(wire.lost(), 0, "packets");
    assert_eq!(report.lost(), 0, "{report:?}");
}

#[test]
#[ignore = "the long form: cargo test --release --test delay -- --ignored --nocapture"]
fn members_replaced_for_50_000_connections_over_a_round_trip_lose_none() {
    for round_trip in [NEAR, FAR] {
        churn_over(round_trip, 256, 1, |retired, made| {
            retired < 200 || made < 50_000
        });
    }
}

#[test]
fn close_without_a_drain_over_a_round_trip_loses_connections() {
    // The control: without it the tests above could not fail.
    for round_trip in [NEAR, FAR] {
        let Some(wire) = wire(round_trip) else {
            return;
        };
        let report = wire.server.inside(|| {
            let first = Listener::bind((SERVER, 0)).unwrap();
            let address = first.local_addr().unwrap();
            let serve = |listener| Acceptors::spawn(vec![listener], |_, c| answer(&c)).unwrap();
            let mut members = VecDeque::from([serve(first)]);
            members.extend((1..4).map(|_| serve(Listener::bind(address).unwrap())));

            let load = start(&wire, round_trip, address, 64);
            support::wait_until_within(support::LONG, "a plain close has lost ten", || {
                members.push_back(serve(Listener::bind(address).unwrap()));
                let made = load.made();
                support::wait_until("they have their share", || load.made() > made + 64);
                members.pop_front().unwrap().stop();
                load.lost() >= 10
            });
            load.stop()
        });

        assert_eq!(wire.lost(), 0, "packets: {report:?}");
        println!("{round_trip:?}: {report:?}");
    }
}

#[test]
fn hand_overs_over_a_round_trip_lose_no_client() {
    let Some(wire) = wire(NEAR) else {
        return;
    };

    let any = SocketAddr::from((SERVER, 0)).to_string();
    let server = wire
        .server
        .inside(|| support::ServeProcess::start(&["--quiet", "--addr", &any]));
    let client =
        |connect: &mut std::process::Command| wire.client.inside(|| support::finish(connect));

    // Where the wire itself was that late, a SYN was sent again on account of that.
    let sent_again = || {
        let in_time = wire.latest() < Duration::from_millis(500);
        in_time.then(|| wire.client.inside(support::syns_sent_again))
    };

    support::ten_hand_overs(server, client, sent_again);
    assert_eq!(wire.lost(), 0, "packets");
}

/// Whether a packet is the last of a handshake: a bare ACK, the first of its connection.
fn is_last_of_handshake(packet: &[u8], seen: &mut HashSet<[u8; 2]>) -> bool {
    let length = 20 + usize::from(packet[32] >> 4) * 4;
    let port = [packet[20], packet[21]];
    packet[33] == 0x10 && packet.len() == length && seen.insert(port)
}

#[test]
fn retire_with_the_default_grace_waits_for_a_last_packet_that_was_lost() {
    let mut seen = HashSet::new();
    let loses = move |packet: &[u8]| is_last_of_handshake(packet, &mut seen);
    let Some(wire) = or_skip(Wire::losing(NEAR, loses)) else {
        return;
    };
    wire.server.inside(|| {
        let group = Group::bind((SERVER, 0), 2).unwrap();
        let server = group.spawn(|_, connection| _ = connection.send(b"hello"));
        let server = server.unwrap();
        let address = server.local_addr();
        let connect = |_| TcpStream::connect(address).unwrap();
        let clients: Vec<_> = wire.client.inside(|| (0..40).map(connect).collect());

        server.retire(0).unwrap();

        for mut client in clients {
            let mut greeting = String::new();
            client.set_read_timeout(Some(support::BOUND)).unwrap();
            client.read_to_string(&mut greeting).expect("a greeting");
            assert_eq!(greeting, "hello");
        }
    });
}

/// Has connections to port 80 of any address accepted by the listeners on `port`: TPROXY.
fn redirect(port: u16) {
    let run = |program: &str, words: &str| {
        let done = support::finish(support::program(program).args(words.split(' ')));
        assert!(done.status.success(), "{words}: {done:?}");
    };
    run("ip", "rule add fwmark 1 lookup 100");
    run("ip", "route add local 0.0.0.0/0 dev lo table 100");
    run("nft", "add table ip t");
    let chain = "add chain ip t c { type filter hook prerouting priority mangle ; }";
    run("nft", chain);
    let rule = format!("add rule ip t c tcp dport 80 tproxy to :{port} meta mark set 1 accept");
    run("nft", &rule);
}

#[test]
fn handshakes_that_were_redirected_are_waited_for() {
    if !support::tool("nft") || !support::tool("ip") {
        return;
    }
    let Some(wire) = wire(FAR) else {
        return;
    };
    let report = wire.server.inside(|| {
        let options = Group::options().grace(support::BOUND).before_bind(|fd| {
            let (level, value) = (libc::IPPROTO_IP, (&raw const ON).cast());
            // SAFETY: the option takes four bytes, which are readable.
            unsafe { sys::setsockopt(fd.as_raw_fd(), level, libc::IP_TRANSPARENT, value, 4) }?;
            Ok(())
        });
        let group = options.bind((SERVER, 0), 4).unwrap();
        let server = group.spawn(|_, connection| answer(&connection)).unwrap();
        redirect(server.local_addr().port());
        let load = start(&wire, FAR, (SERVER, 80).into(), 64);
        churn(&server, 0, |retired| retired < 20 || load.made() < 500);
        load.stop()
    });

    assert_eq!(wire.lost(), 0, "packets");
    assert_eq!(report.lost(), 0, "{report:?}");
}
