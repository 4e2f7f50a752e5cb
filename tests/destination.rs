//! An answer leaves from the address that was asked: on a machine with two interfaces and several
//! addresses on each.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, UdpSocket as StdUdpSocket};
use std::thread;

use reuseport::{Batch, Datagram, Group, GroupOptions, Server, Stats, Steering, Udp, UdpSocket};
use support::{BOUND, finish, program, skip, tool, wait_until};

/// Two interfaces, each with two addresses of each family; the loopback device has all of
/// 127.0.0.0/8. `ip` makes the second one.
const SECOND: &str = "second";
const ADDRESSES: [&str; 5] = [
    "10.88.0.1/24",
    "10.88.0.2/24",
    "fd88::1/64",
    "fd88::2/64",
    "fe80::88/64",
];
const ASKED_V4: [&str; 4] = ["127.0.0.1", "127.0.0.2", "10.88.0.1", "10.88.0.2"];
const ASKED_V6: [&str; 4] = ["::1", "fd88::3", "fd88::1", "fd88::2"];

/// Runs `test` in a network with two interfaces, and returns whether such a network can be had.
fn with_two_interfaces(test: fn()) {
    if !tool("ip") {
        return;
    }
    let inside = move || {
        // SAFETY: takes an integer, and changes no other thread.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return skip("no network namespace can be had");
        }
        ip(&["link", "set", "lo", "up"]);
        ip(&["address", "add", "fd88::3/128", "dev", "lo", "nodad"]);
        ip(&[
            "link", "add", SECOND, "type", "veth", "peer", "name", "other",
        ]);
        ip(&["link", "set", "other", "up"]);
        ip(&["link", "set", SECOND, "up"]);
        for address in ADDRESSES {
            let v6 = address.contains(':');
            let more = if v6 { &["nodad"][..] } else { &["brd", "+"] };
            ip(&[&["address", "add", address, "dev", SECOND], more].concat());
        }
        test();
    };
    thread::spawn(inside).join().unwrap();
}

#[track_caller]
fn ip(args: &[&str]) {
    let output = finish(program("ip").args(args));
    assert!(output.status.success(), "ip {args:?}: {output:?}");
}

fn echo(_: usize, datagram: Datagram<'_>) {
    let len = datagram.payload().len();
    datagram.reply(len);
}

/// Servers on the wildcard address of `family`, which answer in each of the ways that there are.
fn servers(wildcard: IpAddr) -> Vec<(&'static str, Server<Udp>)> {
    let ways: [(_, GroupOptions<Udp>); 3] = [
        ("one by one", Group::udp_options()),
        ("in batches", Group::udp_options().batch(true)),
        ("shared", Group::udp_options().shared(true)),
    ];
    let start = |options: GroupOptions<Udp>| options.bind((wildcard, 0), 4).unwrap().spawn(echo);
    let mut servers: Vec<_> = ways
        .map(|(way, options)| (way, start(options).unwrap()))
        .into();
    let plain = UdpSocket::options()
        .reuse_port(false)
        .bind((wildcard, 0))
        .unwrap();
    let from_outside = Group::from_udp_sockets(vec![plain]).unwrap();
    servers.push(("from a socket", from_outside.spawn(echo).unwrap()));
    servers
}

/// Asks at `to` until an answer comes, and returns where that is from. A new interface may lose the
/// first question.
fn ask(client: &StdUdpSocket, to: SocketAddr) -> SocketAddr {
    client.set_read_timeout(Some(BOUND / 120)).unwrap();
    let mut from = None;
    wait_until(&format!("{to} answers"), || {
        client.send_to(b"question", to).unwrap();
        from = client.recv_from(&mut [0; 100]).ok().map(|(_, from)| from);
        from.is_some()
    });
    from.unwrap()
}

fn client(to: IpAddr) -> StdUdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    StdUdpSocket::bind(any).unwrap()
}

#[test]
fn a_wildcard_group_answers_from_the_address_that_was_asked() {
    with_two_interfaces(|| {
        let (v4, v6) = (ASKED_V4.as_slice(), ASKED_V6.as_slice());
        let both = [v4, v6].concat();
        for (wildcard, asked) in [("0.0.0.0", v4), ("::", &both), ("::ffff:0.0.0.0", v4)] {
            for (way, server) in servers(wildcard.parse().unwrap()) {
                let port = server.local_addr().port();
                for ip in asked.iter().map(|ip| ip.parse::<IpAddr>().unwrap()) {
                    let to = SocketAddr::new(ip, port);
                    for _ in 0..4 {
                        assert_eq!(ask(&client(ip), to), to, "on {wildcard}, {way}");
                    }
                }
            }
        }
    });
}

#[test]
fn a_link_local_address_answers_through_its_interface() {
    with_two_interfaces(|| {
        let interface = interface();
        for (way, server) in servers("::".parse().unwrap()) {
            let port = server.local_addr().port();
            let to = SocketAddrV6::new("fe80::88".parse().unwrap(), port, 0, interface);

            // The client's own address may have no scope.
            for from in ["::", "fd88::1", "fe80::88"] {
                let ip = from.parse().unwrap();
                let scope = if from.starts_with("fe80") {
                    interface
                } else {
                    0
                };
                let client = SocketAddrV6::new(ip, 0, 0, scope);
                let client = StdUdpSocket::bind(client).unwrap();

                assert_eq!(ask(&client, to.into()), to.into(), "from {from}, {way}");
            }
        }
    });
}

/// The index of the second interface.
fn interface() -> u32 {
    let name = std::ffi::CString::new(SECOND).unwrap();
    // SAFETY: it is a C string.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

#[test]
fn multicast_and_broadcast_are_answered_from_the_interface() {
    with_two_interfaces(|| {
        let (own, group) = (Ipv4Addr::new(10, 88, 0, 1), Ipv4Addr::new(239, 1, 2, 3));
        let member = StdUdpSocket::bind("0.0.0.0:0").unwrap();
        member.join_multicast_v4(&group, &own).unwrap();
        let broadcast = Ipv4Addr::new(10, 88, 0, 255);
        // An IPv6 socket gets no IPv4 multicast that it has not joined itself.
        for (wildcard, asked) in [("0.0.0.0", &[group, broadcast][..]), ("::", &[broadcast])] {
            for (way, server) in servers(wildcard.parse().unwrap()) {
                let port = server.local_addr().port();
                for to in asked {
                    let client = StdUdpSocket::bind((own, 0)).unwrap();
                    client.set_broadcast(true).unwrap();

                    let from = ask(&client, (*to, port).into());

                    assert_eq!(from, (own, port).into(), "{to} on {wildcard}, {way}");
                }
            }
        }
    });
}

#[test]
fn ipv6_multicast_is_answered_from_the_interface() {
    with_two_interfaces(|| {
        let group = "ff02::123".parse().unwrap();
        for (way, server) in servers("::".parse().unwrap()) {
            let client = StdUdpSocket::bind("[::]:0").unwrap();
            client.join_multicast_v6(&group, interface()).unwrap();
            let port = server.local_addr().port();

            let from = ask(
                &client,
                SocketAddrV6::new(group, port, 0, interface()).into(),
            );

            let IpAddr::V6(ip) = from.ip() else {
                panic!("{from}, {way}");
            };
            assert!(ip.is_unicast_link_local(), "{from}, {way}");
        }
    });
}

#[test]
fn a_batch_and_a_single_socket_report_where_a_datagram_was_sent_to() {
    let server = UdpSocket::bind(([0, 0, 0, 0], 0)).unwrap();
    let to = SocketAddr::from(([127, 0, 0, 3], server.local_addr().unwrap().port()));
    let client = StdUdpSocket::bind("127.0.0.1:0").unwrap();
    let (mut buffer, mut parts) = ([0; 100], [0; 400]);
    let mut batch = Batch::<4>::new(&mut parts);

    client.send_to(b"one", to).unwrap();
    let one = server.recv_from(&mut buffer).unwrap();
    client.send_to(b"two", to).unwrap();
    wait_until("it has come", || server.queue().unwrap().bytes > 0);
    batch.receive(&server).unwrap();
    let two = batch.datagrams(&server).next().unwrap().received();

    for received in [one, two] {
        assert_eq!(received.from, client.local_addr().unwrap());
        let destination = received.destination.unwrap();
        assert_eq!(destination.ip(), to.ip());
        assert!(destination.is_unicast());
        server.reply(b"later", &received).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (5, to));
    }
}

#[test]
fn a_socket_on_an_address_of_its_own_reports_no_destination() {
    let server = UdpSocket::bind(([127, 0, 0, 1], 0)).unwrap();
    let client = StdUdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"x", server.local_addr().unwrap()).unwrap();

    let received = server.recv_from(&mut [0; 10]).unwrap();

    assert_eq!(received.destination, None);
}

/// Sends a datagram to `to`, and returns how often it is handled by a group at `bound`, once that
/// is as often as `expected`.
fn handled(options: &GroupOptions<Udp>, [bound, to]: [Ipv4Addr; 2], expected: usize) -> usize {
    let server = options.bind((bound, 0), 3).unwrap().spawn(echo).unwrap();
    let client = StdUdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_broadcast(true).unwrap();
    let count = |stats: Vec<Stats>| stats.iter().map(|stats| stats.accepted).sum::<usize>();

    let port = server.local_addr().port();
    client.send_to(b"x", (to, port)).unwrap();
    wait_until("it is handled", || count(server.stats()) >= expected);
    // While members leave, another one may take a copy.
    let members = || server.members().into_iter();
    let is_read = || members().all(|member| member.queue.is_none_or(|queue| queue.bytes == 0));
    wait_until("all copies are read", is_read);

    count(server.stop(BOUND))
}

#[test]
fn broadcast_is_handled_by_every_member_or_by_one_if_that_is_asked_for() {
    let (one, broadcast) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 255, 255, 255));
    let plain = || Group::udp_options().grace(BOUND);
    for (what, options, copies) in [
        ("each", plain(), 3),
        ("each, in batches", plain().batch(true), 3),
        ("each, steered", plain().steering(Steering::Random), 3),
        ("one", plain().single_copy(true), 1),
        ("one, in batches", plain().single_copy(true).batch(true), 1),
        ("one, shared", plain().single_copy(true).shared(true), 1),
    ] {
        let any = Ipv4Addr::UNSPECIFIED;
        for (addresses, expected) in [
            ([any, one], 1),
            ([any, broadcast], copies),
            ([broadcast, broadcast], copies),
        ] {
            let count = handled(&options, addresses, expected);
            assert_eq!(count, expected, "{what}: {addresses:?}");
        }
    }
}

#[test]
fn after_the_member_that_handles_copies_has_left_another_does() {
    let options = Group::udp_options().grace(BOUND).single_copy(true);
    let server = options
        .bind(([0, 0, 0, 0], 0), 3)
        .unwrap()
        .spawn(echo)
        .unwrap();
    let client = StdUdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_broadcast(true).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    let port = server.local_addr().port();
    for left in [None, Some(0), Some(1)] {
        left.map(|left| server.retire(left).unwrap());

        client.send_to(b"x", ("127.255.255.255", port)).unwrap();

        client.recv_from(&mut [0]).unwrap();
    }
}
