//! Receivers in trouble: what comes while they leave, what is done to their sockets by others, and
//! what cannot be had.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::time::Duration;
use std::net::{IpAddr, SocketAddr, UdpSocket as StdUdpSocket};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use reuseport::{Call, Datagram, Group, GroupOptions, Listener, Server, Steering, Udp, UdpSocket};
use support::{BOUND, descriptors, wait_until};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn options() -> GroupOptions<Udp> {
    Group::udp_options().grace(BOUND)
}

/// A client of the group at `to`, which may be a wildcard.
fn client(to: SocketAddr) -> StdUdpSocket {
    let ip = match to.ip() {
        IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(_) => "::1".parse().unwrap(),
    };
    let socket = StdUdpSocket::bind((ip, 0)).unwrap();
    socket.connect((ip, to.port())).unwrap();
    socket.set_read_timeout(Some(BOUND)).unwrap();
    socket
}

/// Sends back the number of the receiver in place of the first byte.
fn echo(receiver: usize, mut message: Datagram<'_>) {
    let len = message.payload().len();
    message.buffer_mut()[0] = u8::try_from(receiver % 256).unwrap();
    message.reply(len);
}

/// Which receiver, modulo 256, answers one that begins with `byte`.
fn ask(server: &Server<Udp>, byte: u8) -> u8 {
    let client = client(server.local_addr());
    client.send(&[byte]).unwrap();
    let mut answer = [0];
    assert_eq!(client.recv(&mut answer).unwrap(), 1);
    answer[0]
}

/// A group whose receiver 0 is in a handler that returns when the sender is dropped.
fn with_one_stuck(
    options: &GroupOptions<Udp>,
    ip: [u8; 4],
    members: usize,
) -> (Server<Udp>, Sender<()>) {
    let (gate, key) = channel::<()>();
    let key = Mutex::new(key);
    let options = options.clone().steering(Steering::Byte(0));
    let group = options.bind((ip, 0), members).unwrap();
    let server = group.spawn(move |receiver, message| {
        if receiver == 0 {
            _ = key.lock().unwrap().recv();
        }
        echo(receiver, message);
    });
    let server = server.unwrap();
    client(server.local_addr()).send(&[0]).unwrap();
    wait_until("its handler runs", || server.stats()[0].accepted == 1);
    (server, gate)
}

#[test]
fn payload_byte_while_members_drain_finds_its_member() {
    let _none = support::no_process_starts();
    for leavers in [&[0][..], &[1, 0]] {
        let (server, gate) = with_one_stuck(&options(), ANY_PORT.0, 5);

        thread::scope(|scope| {
            let retired = scope.spawn(|| server.retire_all(leavers));
            let port = server.local_addr().port();
            let connected = format!(":{port:04X} 0100007F:{port:04X} ");
            wait_until("they take no more", || {
                let sockets = std::fs::read_to_string("/proc/net/udp").unwrap();
                sockets.matches(&connected).count() > 0
            });
            // For a moment the kernel's places have changed and its program has not.
            let found = |byte: u8| ask(&server, byte) == byte;
            wait_until("all are found", || {
                [2, 3, 4].repeat(20).into_iter().all(found)
            });
            drop(gate);
            let counts = retired.join().unwrap().unwrap();
            assert!(counts.iter().all(|count| !count.running));
        });

        for byte in [2, 3, 4] {
            assert_eq!(ask(&server, byte), byte);
        }
    }
}

#[test]
fn receiver_shut_down_from_outside_gets_nothing_more() {
    let _none = support::no_process_starts();
    for batch in [false, true] {
        let opened = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&opened);
        let options = options().batch(batch).before_bind(move |fd| {
            seen.lock().unwrap().push(fd.as_raw_fd());
            Ok(())
        });

        let server = options.bind(ANY_PORT, 3).unwrap().spawn(echo).unwrap();
        let second = opened.lock().unwrap()[1];
        // SAFETY: takes two integers; the receiver has that descriptor open.
        unsafe { libc::shutdown(second, libc::SHUT_RD) };
        wait_until("it has left", || !server.stats()[1].running);

        let call = if batch { Call::RecvMmsg } else { Call::RecvMsg };
        let failed = server.stats()[1].error.unwrap();
        assert_eq!((failed.call(), failed.errno()), (call, libc::EINVAL));
        // It would have none of 60 with a chance of (2/3)^60 < 1e-10.
        assert!((0..60).all(|_| ask(&server, 0) != 1));

        assert_eq!(server.add(), Ok(3));
        assert_eq!(server.members().len(), 3);
        server.set_steering(Steering::Byte(0)).unwrap();
        assert_eq!([0, 2, 3].map(|byte| ask(&server, byte)), [0, 2, 3]);
    }
}

#[test]
fn max_datagram_size_of_0_or_more_than_any_works() {
    let _none = support::no_process_starts();
    for (room, batch) in [0, usize::MAX]
        .map(|room| [(room, false), (room, true)])
        .concat()
    {
        let options = options().max_datagram_size(room).batch(batch);
        let server = options.bind(ANY_PORT, 1).unwrap();
        let server = server
            .spawn(|_, message| message.reply(usize::MAX))
            .unwrap();

        let client = client(server.local_addr());
        client.send(b"long").unwrap();

        if room == 0 {
            assert_eq!(client.recv(&mut [0; 9]).unwrap(), 1);
        } else {
            wait_until("no datagram is as long", || {
                server.stats()[0].transient_errors == 1
            });
        }
    }
}

#[test]
fn reply_that_cannot_be_sent_is_counted() {
    let _none = support::no_process_starts();
    for batch in [false, true] {
        let group = options().batch(batch).bind(ANY_PORT, 1).unwrap();
        let client = client(group.local_addr());

        // No datagram is as long.
        let lengths = [65_535, 1, 65_535, 65_535, 1];
        for byte in 0..lengths.len() {
            client.send(&[u8::try_from(byte).unwrap()]).unwrap();
        }
        let answer = move |_, message: Datagram<'_>| {
            let len = lengths[usize::from(message.payload()[0])];
            message.reply(len);
        };

        let counts = group.spawn(answer).unwrap().stop(BOUND);

        assert_eq!(
            (counts[0].accepted, counts[0].transient_errors),
            (5, 3),
            "{batch}"
        );
        assert!((0..2).all(|_| client.recv(&mut [0; 9]).unwrap() == 1));
    }
}

#[test]
fn member_that_cannot_be_connected_to_leaves() {
    let _none = support::no_process_starts();
    // A broadcast address.
    let group = options().bind(([127, 255, 255, 255], 0), 3).unwrap();
    let server = group.spawn(|_, _| {}).unwrap();

    assert_eq!(server.retire_all(&[1, 0]).unwrap().len(), 2);
    assert_eq!(server.stop(BOUND).len(), 1);
    assert_eq!(server.totals().members, 3);
}

#[test]
fn stop_with_a_grace_of_zero_does_not_wait_for_handlers() {
    let _none = support::no_process_starts();
    let begun = Instant::now();
    let (server, gate) = with_one_stuck(&options(), ANY_PORT.0, 2);

    assert!(server.stop(Duration::ZERO)[0].running);
    drop(gate);

    let (gate, key) = channel::<()>();
    let key = Mutex::new(key);
    let group = Group::options().grace(BOUND).bind(ANY_PORT, 1).unwrap();
    let address = group.local_addr();
    let server = group.spawn(move |_, _| _ = key.lock().unwrap().recv());
    let server = server.unwrap();
    let _client = std::net::TcpStream::connect(address).unwrap();
    wait_until("its handler runs", || server.stats()[0].accepted == 1);

    assert!(server.stop(Duration::ZERO)[0].running);
    drop(gate);

    assert!(
        begun.elapsed() < BOUND,
        "it has waited for the group's grace"
    );
}

#[test]
fn joined_group_set_to_hash_keeps_the_program_of_others() {
    let _none = support::no_process_starts();
    let steered = options()
        .steering(Steering::Byte(0))
        .bind(ANY_PORT, 2)
        .unwrap();
    let mut joined = options().join(true).bind(steered.local_addr(), 1).unwrap();
    joined.set_steering(Steering::Hash).unwrap();

    steered.sockets()[0]
        .detach_program()
        .expect("it was steered");

    let server = joined.spawn(echo).unwrap();
    steered.sockets()[0]
        .attach_program(&reuseport::steering::random(2))
        .unwrap();

    server.set_steering(Steering::Hash).unwrap();
    steered.sockets()[0]
        .detach_program()
        .expect("it was steered");
}

/// Flows that ask one after the other while `act` runs. Returns how many were answered and how
/// many were refused; whoever is neither fails.
fn flows_while(to: SocketAddr, connected: bool, act: impl FnOnce(&AtomicUsize)) -> [usize; 2] {
    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let client = client(to);
                let to = client.peer_addr().unwrap();
                let client = if connected {
                    client
                } else {
                    let client = StdUdpSocket::bind((to.ip(), 0)).unwrap();
                    client.set_read_timeout(Some(BOUND)).unwrap();
                    client
                };
                while !done.load(SeqCst) {
                    let sent = if connected {
                        client.send(&[0, 1, 2])
                    } else {
                        client.send_to(&[0, 1, 2], to)
                    };
                    match sent.and_then(|_| client.recv(&mut [0; 9])) {
                        Ok(length) => assert_eq!(length, 3),
                        Err(error) => {
                            assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
                            refused.fetch_add(1, SeqCst);
                            break;
                        }
                    }
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        act(&answered);
        done.store(true, SeqCst);
    });
    [answered.into_inner(), refused.into_inner()]
}

#[test]
fn members_replaced_over_ipv4_and_ipv6_lose_no_datagram() {
    let _none = support::no_process_starts();
    for (address, batch, connected) in [
        ("[::1]:0", false, true),
        ("[::1]:0", true, false),
        ("127.0.0.1:0", false, false),
        ("[::ffff:127.0.0.1]:0", true, true),
    ] {
        let address: SocketAddr = address.parse().unwrap();
        let group = options().batch(batch).bind(address, 4).unwrap();

        let server = group.spawn(echo).unwrap();
        let [answered, refused] = flows_while(server.local_addr(), connected, |answered| {
            // Each parity with each steering; a retirement waits for the kernel's RCU.
            for round in 0..6 {
                let before = answered.load(SeqCst);
                let added = [0; 2].map(|_| server.add().unwrap());
                // The newest, the oldest, and several at once.
                let members = server.members();
                let oldest = members[0].stats.id;
                let leavers = if round % 2 == 0 {
                    added
                } else {
                    [oldest, added[1]]
                };
                let counts = server.retire_all(&leavers).unwrap();
                assert!(counts.iter().all(|count| !count.running));
                let steering = [Steering::Random, Steering::Byte(2), Steering::Hash][round % 3];
                server.set_steering(steering).unwrap();
                let what = format!("the flows to {address} go on after round {round}");
                wait_until(&what, || answered.load(SeqCst) > before + 50);
            }
        });

        server.stop(BOUND);
        assert_eq!(
            (server.totals().accepted, refused),
            (answered, 0),
            "{address}"
        );
    }
}

#[test]
fn group_stopped_under_load_answers_or_refuses_each() {
    let _none = support::no_process_starts();
    for (address, dropped) in [("127.0.0.1:0", false), ("[::1]:0", true)].repeat(3) {
        let address: SocketAddr = address.parse().unwrap();
        let group = options().batch(dropped).bind(address, 3).unwrap();
        let (server, mut counts) = (group.spawn(echo).unwrap(), Vec::new());

        let [answered, refused] = flows_while(server.local_addr(), true, |answered| {
            wait_until("the flows go", || answered.load(SeqCst) > 500);
            if dropped {
                drop(server);
            } else {
                counts = server.stop(BOUND);
            }
        });

        assert!(answered > 500 && refused <= 16);
        if !dropped {
            let accepted = counts.iter().map(|count| count.accepted);
            assert_eq!(accepted.sum::<usize>(), answered);
        }
    }
}

#[test]
fn payload_byte_among_300_members_finds_those_that_stay() {
    let _none = support::no_process_starts();
    let options = options().steering(Steering::Byte(0));

    let server = options.bind(ANY_PORT, 300).unwrap().spawn(echo).unwrap();
    assert_eq!([0, 43, 255].map(|byte| ask(&server, byte)), [0, 43, 255]);

    let leavers: Vec<_> = (0..290).collect();
    server.retire_all(&leavers).unwrap();

    // Numbers 290, 299 and the next, modulo 256.
    assert_eq!(server.add(), Ok(300));
    assert_eq!([34, 43, 44].map(|byte| ask(&server, byte)), [34, 43, 44]);

    assert_eq!(server.stop(BOUND).len(), 11);
    assert_eq!(server.totals().members, 301);
}

#[test]
fn sockets_taken_out_and_put_back_are_steered_as_before() {
    let _none = support::no_process_starts();
    let options = options().steering(Steering::Byte(0)).batch(true);
    let sockets = options.bind(ANY_PORT, 3).unwrap().into_sockets();
    let reuse_address = |socket: &UdpSocket| {
        let (mut on, mut len) = (9, 4);
        let (at, fd) = ((&raw mut on).cast(), socket.as_raw_fd());
        let (level, name) = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
        // SAFETY: both are writable, and the option is an int, of four bytes.
        unsafe { reuseport::sys::getsockopt(fd, level, name, at, &raw mut len) }.unwrap();
        on
    };
    assert!(sockets.iter().all(|socket| reuse_address(socket) == 0));

    let server = Group::from_udp_sockets(sockets)
        .unwrap()
        .with_options(options);
    let server = server.spawn(echo).unwrap();

    assert_eq!([2, 1, 0].map(|byte| ask(&server, byte)), [2, 1, 0]);
    assert_eq!(server.add(), Ok(3));
    assert_eq!([3, 0].map(|byte| ask(&server, byte)), [3, 0]);

    let apart = [0; 2].map(|_| UdpSocket::bind(ANY_PORT).unwrap());
    Group::from_udp_sockets(apart.into()).unwrap_err();
    // A port that TCP has is free for UDP.
    let tcp = Listener::bind(ANY_PORT).unwrap();
    drop(Group::bind_udp(tcp.local_addr().unwrap(), 2).unwrap());
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn retires_without_descriptors() {
    let options = options().grace(Duration::ZERO);
    let (server, gate) = with_one_stuck(&options, [0; 4], 4);
    let clients: Vec<_> = (0..60).map(|_| client(server.local_addr())).collect();
    let few = (descriptors("self") + 20).try_into().unwrap();
    support::limit_softly(libc::RLIMIT_NOFILE, few).unwrap();
    let all: Vec<_> = std::iter::from_fn(|| StdUdpSocket::bind("127.0.0.1:0").ok()).collect();

    assert!(server.retire(0).unwrap().running);

    server.set_steering(Steering::Hash).unwrap();
    // It would have none of 60 with a chance of (3/4)^60 < 1e-7.
    for client in &clients {
        client.send(&[7]).unwrap();
        let mut answer = [0];
        client.recv(&mut answer).unwrap();
        assert_ne!(answer, [0]);
    }

    assert!(server.add().is_err());
    drop((gate, all));
    println!("it could be retired");
}

#[test]
fn retire_without_descriptors_succeeds() {
    let said = support::play(&mut support::role("retires_without_descriptors"));
    assert!(said.contains("it could be retired"), "{said}");
}
