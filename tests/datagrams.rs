//! Groups of datagram sockets: who gets what, who comes and who leaves.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::time::Duration;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, RwLock};
use std::thread;

use reuseport::{Call, Error, Group, GroupError, Server, Steering, Udp, UdpSocket};
use support::{BOUND, cpus, run_on, wait_until};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn in_use(member: usize, address: SocketAddr) -> GroupError {
    let error = Error::new(Call::Bind, libc::EADDRINUSE);
    GroupError::Call {
        error,
        address,
        member,
    }
}

/// A client with an address of its own for each number.
fn client(number: u32, to: SocketAddr) -> StdUdpSocket {
    let socket = StdUdpSocket::bind((Ipv4Addr::from(0x7F01_0000 + number), 0)).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(BOUND)).unwrap();
    socket
}

/// Receives whatever waits: for each socket, the first four bytes of each datagram as a number.
fn receive(sockets: &[UdpSocket], total: usize) -> Vec<Vec<u32>> {
    let mut all = vec![Vec::new(); sockets.len()];
    let mut seen = 0;
    wait_until("all datagrams are received", || {
        for (socket, numbers) in sockets.iter().zip(&mut all) {
            socket.set_nonblocking(true).unwrap();
            let mut buffer = [0; 4];
            while socket.recv_from(&mut buffer).is_ok() {
                numbers.push(u32::from_ne_bytes(buffer));
                seen += 1;
            }
        }
        seen == total
    });
    all
}

#[test]
fn group_of_udp_sockets_is_exclusive_unless_joined() {
    let group = Group::bind_udp(ANY_PORT, 3).unwrap();
    let address = group.local_addr();
    assert_ne!(address.port(), 0);
    let addresses: Vec<_> = group.sockets().iter().map(UdpSocket::local_addr).collect();
    assert_eq!(addresses, [Ok(address); 3]);

    assert_eq!(Group::bind_udp(address, 1).unwrap_err(), in_use(0, address));
    let join = || Group::udp_options().join(true);
    let joined = join().bind(address, 2).unwrap();
    assert_eq!(
        join()
            .steering(Steering::Random)
            .bind(address, 2)
            .unwrap_err(),
        GroupError::JoinedGroup
    );

    drop((group, joined));
    drop(Group::bind_udp(address, 2).unwrap());
}

#[test]
fn bind_that_fails_for_one_member_leaves_none() {
    let opened = Arc::new(AtomicUsize::new(0));
    let third_fails = {
        let opened = Arc::clone(&opened);
        move |_: BorrowedFd| match opened.fetch_add(1, SeqCst) {
            2 => Err(std::io::Error::from_raw_os_error(libc::EPERM)),
            _ => Ok(()),
        }
    };

    let free = Group::bind_udp(ANY_PORT, 1).unwrap().local_addr();
    let failed = Group::udp_options().before_bind(third_fails).bind(free, 5);
    let error = Error::new(Call::BeforeBind, libc::EPERM);
    let wanted = GroupError::Call {
        error,
        address: free,
        member: 2,
    };

    assert_eq!(failed.unwrap_err(), wanted);
    drop(Group::bind_udp(free, 1).unwrap());
    assert_eq!(Group::bind_udp(free, 0).unwrap_err(), GroupError::NoMembers);
}

#[test]
fn flows_spread_evenly_by_chi_square() {
    // Exceeded by a fair lottery with a chance of 1e-9 (the chi-square distribution with 2, 6 and
    // 15 degrees of freedom).
    for (members, limit) in [(3_u32, 41.4), (7, 53.3), (16, 73.6)] {
        let group = Group::bind_udp(ANY_PORT, members as usize).unwrap();
        let flows = 20_000;
        let mut counts = vec![0.0; members as usize];
        for begin in (0..flows).step_by(200) {
            for number in begin..begin + 200 {
                client(number, group.local_addr())
                    .send(&number.to_ne_bytes())
                    .unwrap();
            }
            for (count, numbers) in counts.iter_mut().zip(receive(group.sockets(), 200)) {
                *count += f64::from(u32::try_from(numbers.len()).unwrap());
            }
        }

        let expected = f64::from(flows) / f64::from(members);
        let squares = counts.iter().map(|n| (n - expected).powi(2) / expected);
        let chi_square: f64 = squares.sum();
        assert!(chi_square < limit, "{members}: {chi_square}, {counts:?}");
    }
}

/// Twenty more datagrams of each of 2000 flows come to the member that had the first.
#[test]
fn flow_stays_with_the_member_of_its_first_datagram() {
    let group = Group::bind_udp(ANY_PORT, 7).unwrap();
    for begin in (0..2000_u32).step_by(50) {
        let numbers = begin..begin + 50;
        let clients: Vec<_> = numbers
            .map(|n| (n, client(n, group.local_addr())))
            .collect();
        let mut owners = Vec::new();
        for round in 0..21 {
            for (number, client) in &clients {
                client.send(&number.to_ne_bytes()).unwrap();
            }
            let received = receive(group.sockets(), clients.len());
            let mut now: Vec<(u32, usize)> = (0..)
                .zip(received)
                .flat_map(|(member, numbers)| numbers.into_iter().map(move |n| (n, member)))
                .collect();
            now.sort_unstable();
            if round == 0 {
                owners = now;
            } else {
                assert_eq!(now, owners);
            }
        }
    }
}

#[test]
fn payload_byte_chooses_the_member_of_that_number() {
    let group = Group::udp_options()
        .steering(Steering::Byte(4))
        .bind(ANY_PORT, 4)
        .unwrap();
    let told = |member: u8| [1, 0, 0, 0, member, 9];

    for round in 0..250 {
        for member in 0..4 {
            client(round, group.local_addr())
                .send(&told(member))
                .unwrap();
        }
        let received = receive(group.sockets(), 4);
        assert!(
            received.iter().all(|numbers| numbers.len() == 1),
            "{received:?}"
        );
    }

    // Too short for it, or nobody's: by the hash, and so to every member in turn. One of four has
    // none of 200 with a chance of 4 * (3/4)^200 < 1e-24.
    for bytes in [&told(0)[..4], &[], &told(4), &told(255)] {
        for number in 0..200 {
            client(number, group.local_addr()).send(bytes).unwrap();
        }
        let received = receive(group.sockets(), 200);
        assert!(
            received.iter().all(|numbers| !numbers.is_empty()),
            "{bytes:?}"
        );
    }

    let of_connections = Group::options()
        .steering(Steering::Byte(0))
        .bind(ANY_PORT, 2);
    assert_eq!(of_connections.unwrap_err(), GroupError::NoPayload);
}

#[test]
fn steering_by_cpu_and_at_random_reach_the_right_members() {
    let allowed = cpus();
    let group = Group::udp_options().steering(Steering::Cpu);
    let mut group = group.bind(ANY_PORT, allowed.len()).unwrap();

    thread::scope(|scope| {
        for (member, cpu) in allowed.iter().enumerate() {
            let group = &group;
            let on_one_cpu = move || {
                run_on(*cpu);
                for number in 0..100 {
                    client(number, group.local_addr()).send(&[0; 4]).unwrap();
                }
                assert_eq!(
                    receive(&group.sockets()[member..=member], 100)[0].len(),
                    100
                );
            };
            scope.spawn(on_one_cpu).join().unwrap();
        }
    });

    group.set_steering(Steering::Random).unwrap();
    let one = client(0, group.local_addr());
    let mut counts = vec![0; allowed.len()];
    for _ in 0..allowed.len() {
        for _ in 0..200 {
            one.send(&[0; 4]).unwrap();
        }
        for (count, numbers) in counts.iter_mut().zip(receive(group.sockets(), 200)) {
            *count += numbers.len();
        }
    }

    // One flow, and yet one of n members has none of 200 n with a chance below n / e^200.
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

/// Receivers that send back what they get, with their number in front.
fn echo(options: &reuseport::GroupOptions<Udp>, members: usize) -> Server<Udp> {
    echo_at(ANY_PORT.into(), options, members)
}

fn echo_at(
    address: SocketAddr,
    options: &reuseport::GroupOptions<Udp>,
    members: usize,
) -> Server<Udp> {
    let options = options.clone().grace(BOUND);
    let group = options.bind(address, members).unwrap();
    let server = group.spawn(|receiver, mut message| {
        let len = message.payload().len();
        if let Some(first) = message.buffer_mut().first_mut() {
            *first = u8::try_from(receiver % 256).unwrap();
        }
        message.reply(len);
    });
    server.unwrap()
}

#[test]
fn receivers_with_and_without_batches_reply_to_all() {
    for batch in [false, true] {
        let server = echo(&Group::udp_options().batch(batch).pin(true), 3);

        for number in 0..300_u32 {
            let client = client(number, server.local_addr());
            let sent = vec![7; number as usize * 200];
            client.send(&sent).unwrap();
            let mut answer = vec![0; 65_535];
            let length = client.recv(&mut answer).unwrap();
            assert_eq!(length, sent.len());
            assert!(answer[..length].iter().skip(1).all(|byte| *byte == 7));
        }

        let counts = server.stop(BOUND);
        let accepted: Vec<_> = counts.iter().map(|count| count.accepted).collect();
        assert_eq!(accepted.iter().sum::<usize>(), 300);
        // One of three has none of 300 with a chance below 3 * (2/3)^300 < 1e-52.
        assert!(accepted.iter().all(|count| *count > 0), "{accepted:?}");
        assert!(
            counts
                .iter()
                .all(|count| !count.running && count.error.is_none())
        );
    }
}

#[test]
fn datagram_beyond_the_limit_is_flagged_and_a_panic_is_counted() {
    for batch in [false, true] {
        let (told, heard) = channel();
        let options = Group::udp_options().max_datagram_size(8).batch(batch);
        let server = options.bind(ANY_PORT, 1).unwrap().spawn(move |_, message| {
            assert_eq!(thread::current().name(), Some("receiver-0"));
            told.send((message.payload().to_vec(), message.is_truncated()))
                .unwrap();
            assert!(message.payload() != b"panic");
        });
        let server = server.unwrap();
        let client = client(0, server.local_addr());

        for (sent, seen) in [
            (&b"panic"[..], (&b"panic"[..], false)),
            (b"eight ch", (b"eight ch", false)),
            (b"nine char", (b"nine cha", true)),
            (b"", (b"", false)),
        ] {
            client.send(sent).unwrap();
            let (bytes, truncated) = heard.recv_timeout(BOUND).unwrap();
            assert_eq!((bytes.as_slice(), truncated), seen);
        }

        let counts = server.stop(BOUND);
        assert_eq!((counts[0].accepted, counts[0].panicked), (4, 1));
    }
}

/// Flows that send, wait for the answer, and send again. Returns how many were answered, and how
/// many were not within five seconds.
fn flows_while(server: &Server<Udp>, flows: u32, act: impl FnOnce(&AtomicUsize)) -> (usize, usize) {
    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let lost = AtomicUsize::new(0);
    let mut address = server.local_addr();
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    thread::scope(|scope| {
        for number in 0..flows {
            let (done, answered, lost) = (&done, &answered, &lost);
            scope.spawn(move || {
                let client = client(number, address);
                let limit = Duration::from_secs(5);
                client.set_read_timeout(Some(limit)).unwrap();
                while !done.load(SeqCst) {
                    client.send(&[0, 1, 2, 3]).unwrap();
                    // An answer from elsewhere is not received.
                    match client.recv(&mut [0; 9]) {
                        Ok(len) => assert_eq!(len, 4),
                        Err(_) => _ = lost.fetch_add(1, SeqCst),
                    }
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        act(&answered);
        done.store(true, SeqCst);
    });
    let lost = lost.into_inner();
    (answered.into_inner() - lost, lost)
}

/// How often members are replaced. It waits for the kernel's RCU, which takes its time on a busy
/// machine.
const ROUNDS: usize = 3;

#[test]
fn members_replaced_under_load_lose_no_datagram() {
    let steerings = [Steering::Hash, Steering::Random, Steering::Byte(2)];
    let ways = steerings.map(|steering| [(steering, false), (steering, true)]);
    for (steering, batch) in ways.into_iter().flatten() {
        for address in [ANY_PORT, ([0; 4], 0)] {
            let options = Group::udp_options().batch(batch).steering(steering);
            let server = echo_at(address.into(), &options, 4);

            let (answered, unanswered) = flows_while(&server, 16, |answered| {
                for _ in 0..ROUNDS {
                    let before = answered.load(SeqCst);
                    let newest = server.add().unwrap();
                    let oldest = server.members()[1].stats.id;
                    let odd = newest % 2 == 1;
                    let leaver = if odd { newest } else { oldest };
                    let count = server.retire(leaver).unwrap();
                    assert!(!count.running);
                    wait_until("the flows go on", || answered.load(SeqCst) > before + 50);
                }
            });

            assert_eq!(server.stop(BOUND).len(), 4);
            let totals = server.totals();
            let way = format!("{steering:?}, batches: {batch}, {address:?}");
            assert_eq!((totals.accepted, unanswered), (answered, 0), "{way}");
            assert_eq!(totals.members, 4 + ROUNDS);
        }
    }
}

/// Of a joined group, a member that is still open would draw a new one into a group apart.
#[test]
fn member_of_a_joined_group_is_closed_when_retire_returns() {
    let server = echo(&Group::udp_options().join(true), 3);
    let local = format!("0100007F:{:04X}", server.local_addr().port());
    // By their inodes: where other sockets come and go, a line may be there twice, or be missing.
    let open = || {
        let sockets = std::fs::read_to_string("/proc/thread-self/net/udp").unwrap();
        let lines = sockets.lines().map(|line| line.split_whitespace());
        let ours = lines.filter(|line| line.clone().nth(1) == Some(&local));
        let inodes: BTreeSet<_> = ours.filter_map(|mut line| line.nth(9)).collect();
        inodes.len()
    };
    let mut most = 0;

    let (_, unanswered) = flows_while(&server, 8, |_| {
        for _ in 0..20 {
            let newest = server.add().unwrap();
            _ = server.retire(newest);
            most = most.max(open());
        }
    });

    assert_eq!((most, unanswered), (3, 0));
}

#[test]
fn payload_byte_after_others_left_finds_its_member() {
    let server = echo(&Group::udp_options().steering(Steering::Byte(1)), 5);
    let ask = |byte| {
        let client = client(0, server.local_addr());
        client.send(&[0, byte, 0]).unwrap();
        let mut answer = [0; 3];
        client.recv(&mut answer).unwrap();
        answer[0]
    };

    assert_eq!([0, 1, 2, 3, 4].map(ask), [0, 1, 2, 3, 4]);
    server.retire(1).unwrap();
    server.retire(0).unwrap();
    assert_eq!(server.add().unwrap(), 5);

    assert_eq!([2, 3, 4, 5].map(ask), [2, 3, 4, 5]);
    server.retire_all(&[3, 5]).unwrap();
    assert_eq!([2, 4, 2, 4].map(ask), [2, 4, 2, 4]);
    server.retire(4).unwrap();

    assert_eq!(server.retire(2).unwrap_err(), GroupError::LastMember);
}

#[test]
fn payload_byte_while_others_leave_finds_its_member() {
    let server = echo(&Group::udp_options().steering(Steering::Byte(1)), 3);
    let (answered, strayed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (asked, done) = (AtomicUsize::new(2), AtomicBool::new(false));
    // Odd while a member leaves.
    let (phase, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0));

    thread::scope(|scope| {
        scope.spawn(|| {
            let client = client(0, server.local_addr());
            while !done.load(SeqCst) {
                let before = phase.load(SeqCst);
                let number = u8::try_from(asked.load(SeqCst)).unwrap();
                let mut answer = [0, number, 0];
                client.send(&answer).unwrap();
                client.recv(&mut answer).unwrap();
                let is_wrong = answer[0] != number;
                let nobody_left = before % 2 == 0 && phase.load(SeqCst) == before;
                wrong.fetch_add(usize::from(is_wrong && nobody_left), SeqCst);
                strayed.fetch_add(usize::from(is_wrong), SeqCst);
                answered.fetch_add(1, SeqCst);
            }
        });
        let mut oldest = 1;
        for _ in 0..50 {
            // The one at index 1 leaves, and the newest, which is asked, moves there from the end.
            let newest = server.add().unwrap();
            asked.store(newest, SeqCst);
            phase.fetch_add(1, SeqCst);
            server.retire(oldest).unwrap();
            phase.fetch_add(1, SeqCst);
            let before = answered.load(SeqCst);
            wait_until("the flow goes on", || answered.load(SeqCst) > before + 10);
            oldest = newest;
        }
        done.store(true, SeqCst);
    });

    // Between the kernel's taking a member out and the steering to the new places there are
    // microseconds, or a turn of another thread: what goes astray then is counted, no more. That
    // the others are found before the member is gone is tested in receivers.rs.
    let (answered, strayed) = (answered.into_inner(), strayed.into_inner());
    println!("{strayed} of {answered} went astray");
    assert_eq!(wrong.into_inner(), 0, "astray while nobody left");
}

#[test]
fn handler_that_does_not_return_holds_up_no_other_receiver() {
    let (gate, key) = channel::<()>();
    let gate = Mutex::new(Some(gate));
    let key = Arc::new(Mutex::new(key));
    let options = Group::udp_options()
        .steering(Steering::Byte(0))
        .grace(Duration::ZERO);
    let server = options
        .bind(ANY_PORT, 3)
        .unwrap()
        .spawn(move |receiver, message| {
            if receiver == 0 {
                _ = key.lock().unwrap().recv();
            }
            // By its own socket, which is gone: nothing is sent from anywhere else.
            let sent = message.socket().send_to(b"x", message.peer_addr());
            assert_eq!(sent.is_err(), receiver == 0, "{sent:?}");
        });
    let server = server.unwrap();

    let stuck = client(0, server.local_addr());
    stuck.send(&[0]).unwrap();
    wait_until("its handler runs", || server.stats()[0].accepted == 1);

    let count = server.retire(0).unwrap();
    assert!(count.running);

    // The kernel has two members left, in our order.
    for byte in [1, 2, 1, 2] {
        let client = client(0, server.local_addr());
        client.send(&[byte]).unwrap();
        client.recv(&mut [0; 9]).unwrap();
    }

    drop(gate.lock().unwrap().take());
    wait_until("it has left", || !support::runs(&server, 0));

    let counts = server.stop(BOUND);
    assert_eq!(counts.iter().map(|count| count.panicked).sum::<usize>(), 0);
    assert_eq!([counts[0].accepted, counts[1].accepted], [2, 2]);
}

#[test]
fn group_that_stops_handles_what_is_queued_and_frees_its_port() {
    for join in [false, true] {
        let options = Group::udp_options().join(join).grace(BOUND);
        let group = options.bind(ANY_PORT, 3).unwrap();
        let address = group.local_addr();
        let clients: Vec<_> = (0..200).map(|number| client(number, address)).collect();
        for client in &clients {
            client.send(b"waits").unwrap();
        }

        // Handlers wait until all sockets are told to take no more: then most datagrams still wait.
        let gate = Arc::new(RwLock::new(()));
        let passed = Arc::clone(&gate);
        let closed = gate.write().unwrap();
        let server = group.spawn(move |_, message| {
            drop(passed.read());
            let len = message.payload().len();
            message.reply(len);
        });
        let server = server.unwrap();

        let counts = thread::scope(|scope| {
            let closed = closed; // given up before the scope waits for `stop`, if this test fails
            let stopped = scope.spawn(|| server.stop(BOUND));
            let port = address.port();
            let connected = format!(":{port:04X} 0100007F:{port:04X} ");
            wait_until("all are connected to themselves", || {
                let sockets = std::fs::read_to_string("/proc/thread-self/net/udp").unwrap();
                sockets.matches(&connected).count() == 3
            });
            // A stop that did not wait for the handlers would close the sockets in this time.
            thread::sleep(Duration::from_millis(100));
            drop(closed);
            stopped.join().unwrap()
        });

        assert_eq!(
            counts.iter().map(|count| count.accepted).sum::<usize>(),
            200
        );
        for client in &clients {
            assert_eq!(client.recv(&mut [0; 9]).unwrap(), 5);
        }
        drop(Group::bind_udp(address, 1).unwrap());
    }
}

#[test]
fn shared_socket_counts_each_datagram_once() {
    let server = echo(&Group::udp_options().shared(true), 4);
    let (answered, unanswered) = flows_while(&server, 8, |answered| {
        wait_until("the flows go on", || answered.load(SeqCst) > 500);
    });

    let counts = server.stop(BOUND);

    let handled = counts.iter().map(|count| count.accepted).sum::<usize>();
    assert_eq!((handled, unanswered), (answered, 0));
}

#[test]
fn member_of_a_joined_group_can_leave() {
    let server = echo(&Group::udp_options().join(true), 3);
    let others = Group::udp_options()
        .join(true)
        .bind(server.local_addr(), 1)
        .unwrap();

    assert!(!server.retire(1).unwrap().running);

    assert_eq!(server.members().len(), 2);
    drop(others);
}
