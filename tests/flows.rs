//! The program that keeps a flow with one receiver: interpreted here, and run by the kernel.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/interpreter.rs"]
mod interpreter;
mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket as StdUdpSocket};

use interpreter::{Packet, interpret};
use reuseport::steering::{self, Instruction};
use reuseport::{Group, UdpSocket};
use support::{a_fair_lottery, wait_until};

/// The members that get something; of eight, the others do not.
const LISTED: [u32; 5] = [6, 1, 3, 4, 7];

fn addresses(from: &str, to: &str) -> [SocketAddr; 2] {
    [from, to].map(|address| address.parse().unwrap())
}

#[test]
fn program_by_flow_names_a_listed_index_for_every_packet() {
    let mut space = [Instruction::default(); 70];
    let program = steering::any_of_by_flow(&LISTED, &mut space).unwrap();
    for [from, to] in [
        addresses("10.0.0.1:1000", "10.0.0.2:443"),
        addresses("[fd00::1]:1000", "[fd00::2]:443"),
    ] {
        let mut found = BTreeSet::new();
        for port in 0..1000 {
            let from = SocketAddr::new(from.ip(), port);
            for options in [&[][..], &[1; 4], &[1; 40]] {
                let packet = Packet::datagram(from, to, options, &[]);
                found.insert(interpret(program, &packet).unwrap());
            }
        }
        assert_eq!(found, BTreeSet::from(LISTED), "from {from}");
    }
}

#[test]
fn program_by_flow_looks_at_both_addresses_and_both_ports_alone() {
    let mut space = vec![Instruction::default(); 2060];
    let many: Vec<u32> = (0..1000).collect();
    let program = steering::any_of_by_flow(&many, &mut space).unwrap();
    let index = |[from, to]: [SocketAddr; 2], options: &[u8], payload: &[u8]| {
        interpret(program, &Packet::datagram(from, to, options, payload)).unwrap()
    };
    for flow in [
        addresses("10.0.0.1:1000", "10.0.0.2:443"),
        addresses("[fd00::1]:1000", "[fd00::2]:443"),
    ] {
        let own = index(flow, &[], &[]);
        // The same flow, with IP options, and with a payload.
        assert_eq!(index(flow, &[1; 8], &[1, 2, 3]), own);

        // That two of the four are alike has a chance of 1 in 1000 each; these are not.
        let mut others = [flow; 4];
        others[0][0].set_port(1001);
        others[1][1].set_port(444);
        others[2][0].set_ip(flow[1].ip());
        others[3][1].set_ip(flow[0].ip());
        for other in others {
            assert_ne!(index(other, &[], &[]), own, "{other:?}");
        }
    }
}

/// Ports that differ by the same number each time, as those of one client often do. Nothing here
/// is left to chance: a hash that mixes badly is red every time.
#[test]
fn program_by_flow_spreads_regular_ports() {
    let mut space = [Instruction::default(); 70];
    let program = steering::any_of_by_flow(&LISTED, &mut space).unwrap();
    for [from, to] in [
        addresses("127.0.1.0:0", "127.0.0.1:0"),
        addresses("[::1]:0", "[::1]:0"),
    ] {
        for (step, port) in (1..=8).flat_map(|step| [443, 40_000, 57_005].map(|port| (step, port)))
        {
            let mut counts = [0; 8];
            for number in 0..2000 {
                let from = SocketAddr::new(from.ip(), 33_000 + step * number);
                let packet = Packet::datagram(from, SocketAddr::new(to.ip(), port), &[], &[]);
                counts[interpret(program, &packet).unwrap() as usize] += 1;
            }
            a_fair_lottery(&LISTED.map(|at| counts[at as usize]));
        }
    }
}

/// A group that is steered by flow, and what each member has received.
struct Steered {
    group: Group<reuseport::Udp>,
    counts: Vec<usize>,
}

impl Steered {
    fn on(ip: &str) -> Steered {
        let ip: IpAddr = ip.parse().unwrap();
        let group = Group::bind_udp((ip, 0), 8).unwrap();
        let mut space = [Instruction::default(); 70];
        let program = steering::any_of_by_flow(&LISTED, &mut space).unwrap();
        group.sockets()[0].attach_program(program).unwrap();
        for socket in group.sockets() {
            socket.set_nonblocking(true).unwrap();
        }
        Steered {
            group,
            counts: vec![0; 8],
        }
    }

    /// Which member receives the next datagram.
    fn receiver(&mut self) -> usize {
        let mut member = None;
        let received = |socket: &UdpSocket| socket.recv_from(&mut [0]).is_ok();
        wait_until("a member receives it", || {
            member = self.group.sockets().iter().position(received);
            member.is_some()
        });
        self.counts[member.unwrap()] += 1;
        member.unwrap()
    }
}

/// Clients that differ in the port, and those that differ in the address: for either family the
/// kernel's own choice of port is as regular as it is.
fn client(to: IpAddr, number: u16) -> StdUdpSocket {
    let ip = match to {
        IpAddr::V4(_) if number % 2 == 0 => IpAddr::from([127, 0, 1, 0]),
        IpAddr::V4(_) => IpAddr::from([127, 1, number.to_be_bytes()[0], number.to_be_bytes()[1]]),
        IpAddr::V6(ip) => ip.into(),
    };
    StdUdpSocket::bind((ip, 0)).unwrap()
}

/// Exceeded by chance once in 10 million runs, for each of the five.
#[test]
fn kernel_spreads_flows_by_the_program_and_keeps_each_with_its_member() {
    for (bound, asked) in [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "127.0.0.1"),
    ] {
        let mut steered = Steered::on(bound);
        let port = steered.group.local_addr().port();
        let asked: IpAddr = asked.parse().unwrap();
        for number in 0..2000 {
            let client = client(asked, number);
            let homes = [0; 3].map(|_| {
                client.send_to(b"x", (asked, port)).unwrap();
                steered.receiver()
            });
            assert_eq!(homes, [homes[0]; 3], "a flow on {bound} moved");
        }
        let (listed, others): (Vec<_>, Vec<_>) = (0..8).partition(|at| LISTED.contains(at));
        let counts = |all: Vec<u32>| all.into_iter().map(|at| steered.counts[at as usize]);
        assert_eq!(counts(others).sum::<usize>(), 0);
        a_fair_lottery(&counts(listed).map(|count| count / 3).collect::<Vec<_>>());
    }
}
