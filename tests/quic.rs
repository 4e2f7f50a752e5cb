//! Steering by QUIC's connection ids: the program, interpreted and run by the kernel, and the
//! routing bytes that members have over restarts. The datagrams have QUIC's headers and no more.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/interpreter.rs"]
mod interpreter;
mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket as StdUdpSocket};
use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use interpreter::{Packet, interpret};
use reuseport::steering::{self, Instruction};
use reuseport::{
    Group, GroupError, GroupOptions, HandOverError, Inherited, Server, Steering, Udp, UdpSocket,
};
use support::{BOUND, a_fair_lottery, role, wait_until};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// Routing bytes, and the indexes of their members.
const ROWS: [(u8, u32); 6] = [(0, 3), (9, 5), (200, 1), (254, 2), (255, 4), (7, 0)];
/// The members that take new connections. The first of all, 0, and that of the last row do not.
const NEW: [u32; 3] = [5, 1, 4];

/// A datagram that begins with a long header: 0xc0 is an Initial, 0xd0 a 0-RTT packet.
fn long(kind: u8, id: &[u8], len: usize) -> Vec<u8> {
    let id_len = u8::try_from(id.len()).unwrap();
    let mut datagram = vec![kind, 0, 0, 0, 1, id_len];
    datagram.extend(id);
    datagram.resize(len, 0x55);
    datagram
}

fn short(id: &[u8], len: usize) -> Vec<u8> {
    let mut datagram = vec![0x40];
    datagram.extend(id);
    datagram.resize(len, 0x55);
    datagram
}

/// An id of the server's, with the routing byte at its offset.
fn server_id(id_len: u8, at: u8, routing_byte: u8) -> Vec<u8> {
    let mut id: Vec<u8> = (100..100 + id_len).collect();
    id[usize::from(at)] = routing_byte;
    id
}

/// The index that RFC 9000's headers name; `None` for whatever is not an id in [`ROWS`].
fn named(datagram: &[u8], id_len: u8, byte: u8) -> Option<u32> {
    let first = *datagram.first().filter(|_| datagram.len() >= 21)?;
    let id = match first & 0x80 {
        0 => 1,
        _ if datagram[5] == id_len => 6,
        _ => return None,
    };
    let byte = datagram[id + usize::from(byte)];
    let row = ROWS.iter().find(|(of, _)| *of == byte);
    row.map(|(_, index)| *index)
}

/// Datagrams of every length and of both forms: with ids of each member, of no member, and of
/// other lengths; one packet each, or two.
fn datagrams(id_len: u8, byte: u8) -> Vec<Vec<u8>> {
    let routing_bytes = ROWS.iter().map(|(byte, _)| *byte).chain([1, 100]);
    let own = routing_bytes.map(|routing| server_id(id_len, byte, routing));
    let foreign = [0, 1, 3, 6, 8, 20]
        .into_iter()
        .filter(|len| *len != usize::from(id_len));
    let ids = own.chain(foreign.map(|len| vec![9; len]));
    let mut all = Vec::new();
    for id in ids {
        for len in 0..=40 {
            all.extend([long(0xc0, &id, len), short(&id, len)]);
        }
        all.push([long(0xc0, &id, 40), long(0xe0, &id, 40)].concat());
        all.push([long(0xe0, &id, 40), short(&id, 40)].concat());
    }
    all
}

fn program(id_len: u8, byte: u8) -> Vec<Instruction> {
    let mut space = [Instruction::default(); 2 * (ROWS.len() + NEW.len()) + 17];
    let program = steering::by_connection_id(id_len, byte, &ROWS, &NEW, &mut space);
    program.unwrap().to_vec()
}

#[test]
fn program_by_connection_id_names_the_member_or_one_that_takes_new_connections() {
    for id_len in 1..=7 {
        for byte in 0..id_len {
            let program = program(id_len, byte);
            for datagram in datagrams(id_len, byte) {
                for [from, to] in [["10.0.0.1:1", "10.0.0.2:2"], ["[fd00::1]:1", "[fd00::2]:2"]] {
                    let [from, to] = [from, to].map(|address| address.parse().unwrap());
                    let packet = Packet::datagram(from, to, &[], &datagram);
                    let index = interpret(&program, &packet).expect("no load fails");
                    match named(&datagram, id_len, byte) {
                        Some(named) => assert_eq!(index, named, "{datagram:?}"),
                        None => assert!(NEW.contains(&index), "{index}: {datagram:?}"),
                    }
                }
            }
        }
    }
}

#[test]
fn program_by_connection_id_keeps_an_initial_and_its_0_rtt_together_and_spreads_them() {
    let program = program(4, 2);
    let mut counts = [0; 6];
    let mut random = 1_u64;
    for _ in 0..3000 {
        // As random as a client's ids are: xorshift.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let id = random.to_ne_bytes();
        let index = |kind, len| {
            let payload = long(kind, &id, len);
            interpret(
                &program,
                &Packet {
                    payload,
                    ..Packet::default()
                },
            )
            .unwrap()
        };
        let first = index(0xc0, 1200);
        assert_eq!([index(0xd0, 300), index(0xc0, 1350)], [first; 2]);
        counts[first as usize] += 1;
    }
    a_fair_lottery(&NEW.map(|index| counts[index as usize]));
}

#[test]
fn program_by_connection_id_out_of_range_or_space_is_none() {
    let mut space = [Instruction::default(); 2 * 2 + 17];
    let mut build = |id_len, byte, indexes: &[u32], less| {
        let space = &mut space[less..];
        steering::by_connection_id(id_len, byte, &ROWS[..1], indexes, space).is_some()
    };
    assert!(build(7, 6, &[0], 0));
    assert!(!build(0, 0, &[0], 0));
    assert!(!build(8, 0, &[0], 0));
    assert!(!build(7, 7, &[0], 0));
    assert!(!build(7, 6, &[], 0));
    assert!(!build(7, 6, &[0], 1));
}

/// Sends a datagram, and returns which member receives it.
fn receiver(group: &Group<Udp>, to: IpAddr, datagram: &[u8]) -> u32 {
    let any: IpAddr = if to.is_ipv4() {
        [127, 0, 0, 1].into()
    } else {
        to
    };
    let client = StdUdpSocket::bind((any, 0)).unwrap();
    client
        .send_to(datagram, (to, group.local_addr().port()))
        .unwrap();
    let received = |socket: &UdpSocket| socket.recv_from(&mut [0; 100]).is_ok();
    let mut member = None;
    wait_until("a member receives it", || {
        member = group.sockets().iter().position(received);
        member.is_some()
    });
    member.unwrap().try_into().unwrap()
}

#[test]
fn kernel_runs_the_program_by_connection_id_as_the_interpreter_does() {
    let (id_len, byte) = (5, 3);
    let program = program(id_len, byte);
    for [bound, asked] in [["127.0.0.1"; 2], ["::1"; 2], ["::", "127.0.0.1"]] {
        let [bound, asked] = [bound, asked].map(|ip| ip.parse::<IpAddr>().unwrap());
        let group = Group::bind_udp((bound, 0), 6).unwrap();
        let sockets = group.sockets();
        sockets
            .iter()
            .for_each(|socket| socket.set_nonblocking(true).unwrap());
        sockets[0].attach_program(&program).unwrap();
        for datagram in datagrams(id_len, byte) {
            let index = receiver(&group, asked, &datagram);
            if datagram.len() < 21 {
                assert!(NEW.contains(&index), "{index}: {datagram:?}");
            } else {
                let payload = datagram.clone();
                let interpreted = interpret(
                    &program,
                    &Packet {
                        payload,
                        ..Packet::default()
                    },
                );
                assert_eq!(Some(index), interpreted, "{datagram:?}");
            }
        }
    }
}

const ID_LEN: u8 = 4;
const BYTE: u8 = 1;

fn options() -> GroupOptions<Udp> {
    let steering = Steering::Quic {
        id_len: ID_LEN,
        byte: BYTE,
    };
    Group::udp_options().steering(steering)
}

#[test]
fn steering_by_connection_id_out_of_range_is_refused() {
    let mut group = Group::bind_udp(ANY_PORT, 2).unwrap();
    for (id_len, byte) in [(0, 0), (8, 0), (7, 7), (1, 1)] {
        let steering = Steering::Quic { id_len, byte };
        let refused = GroupError::InvalidConnectionId { id_len, byte };
        let bound = Group::udp_options().steering(steering).bind(ANY_PORT, 2);
        assert_eq!(bound.unwrap_err(), refused);
        assert_eq!(group.set_steering(steering), Err(refused));
        let said = refused.to_string();
        assert!(
            said.starts_with(&format!("byte {byte} of an id of {id_len} bytes")),
            "{said}"
        );
    }
    let steering = Steering::Quic { id_len: 7, byte: 6 };
    group.set_steering(steering).unwrap();
    let of_connections = Group::options().steering(steering).bind(ANY_PORT, 2);
    assert_eq!(of_connections.unwrap_err(), GroupError::NoPayload);
}

/// A server that answers with its pid and the routing byte of the member. What is behind byte 40 of
/// a datagram goes to the channel.
fn serve(group: Group<Udp>) -> (Server<Udp>, Receiver<u8>) {
    let (commands, received) = channel();
    let server = group.spawn(move |_, mut datagram| {
        if let Some(command) = datagram.payload().get(40) {
            _ = commands.send(*command);
        }
        let mut answer = std::process::id().to_ne_bytes().to_vec();
        answer.extend(datagram.routing_byte());
        datagram.buffer_mut()[..answer.len()].copy_from_slice(&answer);
        datagram.reply(answer.len());
    });
    (server.unwrap(), received)
}

/// The pid and the routing byte that answer a datagram. It is sent again after a second, as QUIC
/// does: one that comes while a member leaves may be lost.
fn answer(to: SocketAddr, datagram: &[u8]) -> (u32, u8) {
    let client = StdUdpSocket::bind("127.0.0.1:0").unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let mut answer = [0; 5];
    wait_until("it is answered", || {
        client.send_to(datagram, to).unwrap();
        client.recv(&mut answer).is_ok()
    });
    let [pid @ .., byte] = answer;
    (u32::from_ne_bytes(pid), byte)
}

/// What answers new connections, 64 of them: of four members one has none of them with a chance
/// of 4 * (3/4)^64 < 1e-7.
fn new_connections(to: SocketAddr) -> BTreeSet<(u32, u8)> {
    let ids = (0..64_u64).map(|number| number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_ne_bytes());
    ids.map(|id| answer(to, &long(0xc0, &id, 40))).collect()
}

/// What answers the connections of each of these members.
fn old_connections(to: SocketAddr, members: &BTreeSet<(u32, u8)>) -> BTreeSet<(u32, u8)> {
    let ids = members
        .iter()
        .map(|(_, routing)| server_id(ID_LEN, BYTE, *routing));
    let both = ids.flat_map(|id| [short(&id, 40), long(0xe0, &id, 40)]);
    both.map(|datagram| answer(to, &datagram)).collect()
}

#[test]
fn member_is_found_by_its_routing_byte_after_others_have_come_and_gone() {
    for batch in [false, true] {
        let (server, _) = serve(options().batch(batch).bind(ANY_PORT, 4).unwrap());
        let to = server.local_addr();
        let bytes = |members: &[u8]| -> BTreeSet<_> {
            members
                .iter()
                .map(|byte| (std::process::id(), *byte))
                .collect()
        };
        assert_eq!(new_connections(to), bytes(&[0, 1, 2, 3]));

        server.retire(1).unwrap();
        assert_eq!(server.add().unwrap(), 4);
        server.retire_all(&[0, 2]).unwrap();

        // The newest has the byte behind that of the last in the list, which has moved.
        let listed = server.members();
        let has = |id| {
            listed
                .iter()
                .find(|member| member.stats.id == id)
                .unwrap()
                .routing_byte
        };
        assert_eq!([has(3), has(4)], [3, 4]);
        assert_eq!(new_connections(to), bytes(&[3, 4]));
        for byte in [3, 4] {
            assert_eq!(old_connections(to, &bytes(&[byte])), bytes(&[byte]));
        }
    }
}

#[test]
fn more_than_256_members_are_refused() {
    let refused = options().bind(ANY_PORT, 257);
    assert_eq!(refused.unwrap_err(), GroupError::TooManyMembers);

    let (server, _) = serve(options().bind(ANY_PORT, 256).unwrap());
    assert_eq!(server.add(), Err(GroupError::TooManyMembers));
    assert_eq!(server.members().len(), 256);
    server.retire(17).unwrap();
    let id = server.add().unwrap();
    let members = server.members();
    let newest = members.iter().find(|member| member.stats.id == id);
    assert_eq!(newest.unwrap().routing_byte, 17);
}

#[test]
fn old_and_new_members_that_are_more_than_256_are_refused() {
    let _none = support::no_process_starts();
    let (server, _) = serve(options().bind(ANY_PORT, 129).unwrap());

    let refused = server.hand_over(role("serves_until_it_is_replaced"), BOUND);

    let Err(HandOverError::Group(error)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error, GroupError::TooManyMembers);
    assert_eq!(server.members().len(), 129);
    let (pid, _) = answer(server.local_addr(), &long(0xc0, &[1; 8], 40));
    assert_eq!(pid, std::process::id());
    server.add().unwrap();
}

/// What a process is to do.
const RESTART: u8 = 1;
const END: u8 = 2;

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn serves_until_it_is_replaced() {
    let Some((_, Inherited::Udp(group))) = Inherited::from_env().unwrap().pop() else {
        panic!("nothing is inherited");
    };
    let (server, commands) = serve(group.with_options(options()));
    if commands.recv_timeout(BOUND) == Ok(RESTART) {
        let mut hand_over = None;
        wait_until("the old process has left", || {
            let mut role = role("serves_until_it_is_replaced");
            role.stdout(Stdio::null());
            hand_over = server.hand_over(role, BOUND).ok();
            hand_over.is_some()
        });
        let mut child = hand_over.unwrap().leave(BOUND).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn connections_stay_with_their_process_in_a_restart_and_new_ones_do_not() {
    let _none = support::no_process_starts();
    let (server, _) = serve(options().bind(ANY_PORT, 4).unwrap());
    let to = server.local_addr();
    let old = new_connections(to);
    assert_eq!(old, (0..4).map(|byte| (std::process::id(), byte)).collect());

    let hand_over = server
        .hand_over(role("serves_until_it_is_replaced"), BOUND)
        .unwrap();

    let new: BTreeSet<_> = (4..8).map(|byte| (hand_over.pid(), byte)).collect();
    assert_eq!(new_connections(to), new);
    assert_eq!(old_connections(to, &old), old);
    assert_eq!(old_connections(to, &new), new);
    let mut child = hand_over.leave(BOUND).unwrap();
    assert_eq!(old_connections(to, &new), new);
    assert!(old_connections(to, &old).is_subset(&new));

    // Further processes: none has a byte of the one before it.
    let mut before = new;
    for _ in 0..3 {
        answer(to, &[&long(0xc0, &[1; 8], 40)[..], &[RESTART]].concat());
        let mut now = BTreeSet::new();
        wait_until("a new process serves", || {
            now = new_connections(to);
            now.is_disjoint(&before) && now.len() == 4
        });
        wait_until("its members are found", || old_connections(to, &now) == now);
        assert!(
            now.iter()
                .all(|(_, byte)| !before.iter().any(|(_, other)| other == byte))
        );
        before = now;
    }
    answer(to, &[&long(0xc0, &[1; 8], 40)[..], &[END]].concat());
    assert!(child.wait().unwrap().success());
}

/// What `poll` says of a socket now.
fn events(socket: &UdpSocket) -> i16 {
    let mut ready = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `ready` is one descriptor, as stated; there is no wait.
    let count = unsafe { libc::poll(&raw mut ready, 1, 0) };
    assert!(count >= 0);
    ready.revents
}

#[test]
fn runtime_receives_on_the_members_sockets_and_the_group_stays_under_control() {
    let server = options().bind(ANY_PORT, 3).unwrap().into_server().unwrap();
    let to = server.local_addr();
    let client = StdUdpSocket::bind("127.0.0.1:0").unwrap();
    let send = |byte| {
        client
            .send_to(&short(&server_id(ID_LEN, BYTE, byte), 40), to)
            .unwrap()
    };
    let receive = |socket: &UdpSocket| {
        wait_until("it comes", || socket.recv_from(&mut [0; 100]).is_ok());
    };
    let members = server.members();
    let sockets: Vec<_> = members
        .iter()
        .map(|m| server.socket(m.stats.id).unwrap())
        .collect();
    for (member, socket) in members.iter().zip(&sockets) {
        assert_eq!(usize::from(member.routing_byte), member.stats.id);
        send(member.routing_byte);
        receive(socket);
    }

    send(0);
    server.retire(0).unwrap();
    receive(&sockets[0]); // what is queued can still be read
    assert_eq!(
        server.socket(0).unwrap_err(),
        GroupError::NoSuchMember { member: 0 }
    );
    let newest = server.add().unwrap();
    send(3);
    receive(&server.socket(newest).unwrap());
    [1, 2].into_iter().for_each(|byte| _ = send(byte));
    sockets[1..].iter().for_each(receive);

    server.stop(BOUND);
    assert_eq!(events(&sockets[1]), 0, "a runtime would spin");
}
