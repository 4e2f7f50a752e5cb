//! What the kernel's choice of a UDP member costs: the hash, and programs with a row a member.

use core::time::Duration;
use std::net::UdpSocket as StdUdpSocket;
use std::time::Instant;

use reuseport::steering::{self, Instruction};
use reuseport::{Group, Udp};

const ROUNDS: usize = 300;
const CLIENTS: u32 = 64;
pub(crate) const MEMBERS: [u32; 3] = [4, 64, 255];
pub(crate) const WAYS: [&str; 4] = ["hash", "byte", "Quic", "flow"];

/// A short header of QUIC with an id of 4 bytes, of which the first names the member.
fn packet(member: u32) -> [u8; 40] {
    let mut packet = [0x40; 40];
    packet[1] = u8::try_from(member).unwrap();
    packet
}

fn program(way: &str, members: u32) -> Vec<Instruction> {
    let indexes: Vec<u32> = (0..members).collect();
    let rows = |index: &u32| (u8::try_from(*index).unwrap(), *index);
    let rows: Vec<_> = indexes.iter().map(rows).collect();
    let mut space = vec![Instruction::default(); 4 * rows.len() + 60];
    let program = match way {
        "byte" => steering::by_payload_byte(1, &rows, &mut space),
        "Quic" => steering::by_connection_id(4, 0, &rows, &indexes, &mut space),
        "flow" => steering::any_of_by_flow(&indexes, &mut space),
        _ => Some(&[][..]),
    };
    program.unwrap().to_vec()
}

/// Sends a datagram from each client, and returns how long one takes. Afterwards all are received.
fn send(group: &Group<Udp>, clients: &[StdUdpSocket], round: usize) -> Duration {
    let members = u32::try_from(group.sockets().len()).unwrap();
    let numbers = (0_u32..).map(|n| (u32::try_from(round).unwrap() + n * 61) % members);
    let packets: Vec<_> = numbers.map(packet).take(clients.len()).collect();
    let begun = Instant::now();
    for (client, packet) in clients.iter().zip(&packets) {
        client.send(packet).unwrap();
    }
    let spent = begun.elapsed() / CLIENTS;
    for socket in group.sockets() {
        while socket.recv_from(&mut [0; 40]).is_ok() {}
    }
    spent
}

/// Returns how long it takes to send a datagram over loopback to one of so many members: the
/// medians of many rounds, in turn, for each of [`WAYS`].
pub(crate) fn of_members(members: u32) -> [Duration; 4] {
    let ways = WAYS.map(|way| {
        let group = Group::bind_udp(([127, 0, 0, 1], 0), members as usize).unwrap();
        let sockets = group.sockets();
        let nonblocking = sockets.iter().map(|socket| socket.set_nonblocking(true));
        nonblocking.for_each(Result::unwrap);
        if way != "hash" {
            sockets[0].attach_program(&program(way, members)).unwrap();
        }
        let client = |_| {
            let client = StdUdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(group.local_addr()).unwrap();
            client
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        (group, clients)
    });
    let mut times = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        for ((group, clients), times) in ways.iter().zip(&mut times) {
            times.push(send(group, clients, round));
        }
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    })
}
