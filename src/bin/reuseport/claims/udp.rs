//! UDP.

use core::net::SocketAddr;
use std::net::UdpSocket as StdUdpSocket;

use reuseport::steering::{self, Instruction};
use reuseport::{UdpSocket, sys};

use super::tools::{A_WHILE, always, any_port, comes, instruction, open, set, source, until};
use super::{Snag, Tried, seen};

fn member(address: SocketAddr) -> Result<UdpSocket, Snag> {
    Ok(UdpSocket::options().nonblocking(true).bind(address)?)
}

/// Members of one port, and clients of it, each a flow.
fn group(members: usize, flows: usize) -> Result<(Vec<UdpSocket>, Vec<StdUdpSocket>), Snag> {
    let first = member(any_port())?;
    let address = first.local_addr()?;
    let mut all = vec![first];
    for _ in 1..members {
        all.push(member(address)?);
    }
    let flow = |_| {
        let client = StdUdpSocket::bind(source())?;
        client.connect(address)?;
        Ok::<_, Snag>(client)
    };
    Ok((all, (0..flows).map(flow).collect::<Result<_, _>>()?))
}

/// Sends a datagram on each flow, which carries a 0, a 1, a 2 and so on in turn: which member
/// received it.
fn homes(members: &[UdpSocket], flows: &[StdUdpSocket]) -> Result<Vec<usize>, Snag> {
    let payloads = [0, 1, 2].into_iter().cycle();
    let pairs = flows.iter().zip(payloads);
    pairs
        .map(|(flow, payload)| home(members, flow, &[payload]))
        .collect()
}

/// Sends a datagram: which member received it.
fn home(members: &[UdpSocket], flow: &StdUdpSocket, datagram: &[u8]) -> Result<usize, Snag> {
    flow.send(datagram)?;
    let mut home = None;
    until("somebody receives it", || {
        home = members.iter().position(received);
        home.is_some()
    })?;
    home.ok_or_else(|| Snag::Broken("no member received it".into()))
}

fn received(member: &UdpSocket) -> bool {
    member.recv_from(&mut [0]).is_ok()
}

/// Of 60 flows the one of two members gets none with a chance of 2^-60 < 1e-18.
pub(super) fn a_udp_socket_joins_at_bind(counter: bool) -> Tried {
    let (mut members, flows) = group(1, 60)?;
    let address = members[0].local_addr()?;
    members.push(if counter {
        let unbound = open(libc::SOCK_DGRAM | sys::SOCK_NONBLOCK, address.ip())?;
        set(&unbound, sys::SOL_SOCKET, sys::SO_REUSEPORT, 1)?;
        unbound
    } else {
        member(address)?
    });
    let got = homes(&members, &flows)?.iter().sum::<usize>();
    seen(got > 0, format!("it received {got} of 60 flows"))
}

/// By the hash, 30 datagrams come to the member that they name with a chance of 3^-30 < 1e-14.
pub(super) fn a_udp_program_sees_the_payload(counter: bool) -> Tried {
    let (members, flows) = group(3, 30)?;
    if !counter {
        // BPF_LD | BPF_B | BPF_ABS, BPF_RET | BPF_A: return the first byte.
        members[0].attach_program(&[instruction(0x30, 0), instruction(0x16, 0)])?;
    }
    let homes = homes(&members, &flows)?;
    let named = homes
        .iter()
        .zip([0, 1, 2].iter().cycle())
        .filter(|(home, byte)| home == byte);
    let named = named.count();
    seen(
        named == 30,
        format!("{named} of 30 came to the member that their first byte names"),
    )
}

/// Attaches the program for ids of 4 bytes, whose first is 10 for the first member, and so on.
fn steer_by_quic_id(members: &[UdpSocket]) -> Result<(), Snag> {
    let rows = [(10, 0), (11, 1), (12, 2), (13, 3)];
    let mut space = [Instruction::default(); 33];
    let program = steering::by_connection_id(4, 0, &rows, &[0, 1, 2, 3], &mut space);
    let program = program.ok_or_else(|| Snag::Broken("the program does not fit".into()))?;
    Ok(members[0].attach_program(program)?)
}

/// By the hash, 40 packets reach the members that they name with a chance of 4^-40 < 1e-24.
pub(super) fn a_quic_id_finds_its_member(counter: bool) -> Tried {
    let (members, flows) = group(4, 40)?;
    if !counter {
        steer_by_quic_id(&members)?;
    }
    let mut found = 0;
    for (flow, member) in flows.iter().zip((0..4).cycle()) {
        let id = [10 + member, 7, 7, 7];
        let long = [&[0xe0, 0, 0, 0, 1, 4], &id[..], &[0; 20]].concat();
        let short = [&[0x40], &id[..], &[0; 20]].concat();
        for packet in [long, short] {
            found += usize::from(home(&members, flow, &packet)? == usize::from(member));
        }
    }
    let what = format!("of 80 packets of 40 clients, {found} came to the member that the id names");
    seen(found == 80, what)
}

/// The ids of the counter-case are always the same, and so are their members.
pub(super) fn one_offset_is_no_quic_id(counter: bool) -> Tried {
    let (members, flows) = group(4, 40)?;
    if counter {
        steer_by_quic_id(&members)?;
    } else {
        let rows = [(0, 0), (1, 1), (2, 2), (3, 3)];
        let mut space = [Instruction::default(); 13];
        let program = steering::by_payload_byte(1, &rows, &mut space);
        let program = program.ok_or_else(|| Snag::Broken("the program does not fit".into()))?;
        members[0].attach_program(program)?;
    }
    let mut first = 0;
    for (flow, number) in flows.iter().zip(1_u64..) {
        let id = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_ne_bytes();
        let initial = [&[0xc0, 0, 0, 0, 1, 8], &id[..], &[0; 20]].concat();
        first += usize::from(home(&members, flow, &initial)? == 0);
    }
    let what = format!("of the first packets of 40 connections, {first} came to the first of four");
    seen(first == 40, what)
}

/// At random, 20 flows stay where they are 3 times with a chance of 4^-60 < 1e-36.
pub(super) fn a_udp_flow_stays(counter: bool) -> Tried {
    let (members, flows) = group(4, 20)?;
    if counter {
        members[0].attach_program(&steering::random(4))?;
    }
    let first = homes(&members, &flows)?;
    let mut moved = 0;
    for _ in 0..3 {
        let again = homes(&members, &flows)?;
        moved += again
            .iter()
            .zip(&first)
            .filter(|(now, then)| now != then)
            .count();
    }
    seen(
        moved == 0,
        format!("of 60 further datagrams on 20 flows, {moved} went elsewhere"),
    )
}

/// A sixth moves from the first member to the second: of 200 none does with a chance of
/// (5/6)^200 < 1e-15.
pub(super) fn adding_a_udp_member_moves_flows(counter: bool) -> Tried {
    let (mut members, flows) = group(2, 200)?;
    let before = homes(&members, &flows)?;
    if !counter {
        members.push(member(members[0].local_addr()?)?);
    }
    let after = homes(&members, &flows)?;
    let moved = before.iter().zip(&after).filter(|(then, now)| then != now);
    let (new, old): (Vec<_>, Vec<_>) = moved.partition(|(_, now)| **now == 2);
    let what = format!(
        "of 200 flows {} to the new one, {} to the other",
        new.len(),
        old.len()
    );
    seen(!old.is_empty(), what)
}

pub(super) fn closing_a_udp_socket_drops_in_silence(counter: bool) -> Tried {
    let (mut members, flows) = group(1, 1)?;
    flows[0].send(b"x")?;
    until("it waits", || {
        members[0].queue().is_ok_and(|queue| queue.bytes > 0)
    })?;
    // The first gets every datagram, as the only member; the second is bound afterwards.
    members.push(member(members[0].local_addr()?)?);
    let mut read = counter && received(&members[0]);
    drop(members.remove(0));
    read |= received(&members[0]);
    let error = flows[0].take_error()?;
    seen(
        !read && error.is_none(),
        format!("somebody read it: {read}; the sender's error: {error:?}"),
    )
}

pub(super) fn a_connected_udp_socket_hears_its_peer(counter: bool) -> Tried {
    let (members, flows) = group(2, 60)?;
    if !counter {
        members[0].connect(flows[0].local_addr()?)?;
    }
    let homes = homes(&members, &flows)?;
    let others = homes[1..].iter().filter(|home| **home == 0).count();
    let what = format!("its peer's: {}; of 59 others': {others}", homes[0] == 0);
    seen(homes[0] == 0 && others == 0, what)
}

pub(super) fn a_connected_udp_socket_leaves_the_group(counter: bool) -> Tried {
    let (members, flows) = group(3, 20)?;
    members[0].attach_program(&always(1))?;
    if !counter {
        members[1].connect(StdUdpSocket::bind(any_port())?.local_addr()?)?;
    }
    let last = homes(&members, &flows)?
        .iter()
        .filter(|home| **home == 2)
        .count();
    seen(
        last == 20,
        format!("index 1 of three, whose second is connected: the third got {last}"),
    )
}

/// The counter-case sends to one address: the program names the member.
pub(super) fn a_broadcast_reaches_every_udp_member(counter: bool) -> Tried {
    let wildcard = SocketAddr::from(([0, 0, 0, 0], 0));
    let first = member(wildcard)?;
    let port = first.local_addr()?.port();
    let others = [
        member(([0, 0, 0, 0], port).into())?,
        member(([0, 0, 0, 0], port).into())?,
    ];
    first.attach_program(&always(1))?;
    let client = StdUdpSocket::bind(source())?;
    client.set_broadcast(true)?;
    let to = if counter {
        [127, 0, 0, 1]
    } else {
        [127, 255, 255, 255]
    };
    client.send_to(b"x", SocketAddr::from((to, port)))?;
    let members = [&first, &others[0], &others[1]];
    let mut got = [false; 3];
    until("a member has it", || {
        got = members.map(received);
        got.contains(&true)
    })?;
    std::thread::sleep(A_WHILE);
    let later = members.map(received);
    let got: Vec<bool> = got
        .iter()
        .zip(later)
        .map(|(got, later)| got | later)
        .collect();
    let what = format!("steered to the second of three; received by {got:?}");
    seen(got == [true; 3], what)
}

/// The socket of the counter-case is not connected, and receives the late datagrams too.
pub(super) fn connected_to_itself_it_keeps_what_waits(counter: bool) -> Tried {
    let (members, flows) = group(1, 20)?;
    let (early, late) = flows.split_at(10);
    early
        .iter()
        .try_for_each(|flow| flow.send(b"x").map(drop))?;
    if !counter {
        members[0].connect(members[0].local_addr()?)?;
    }
    late.iter().try_for_each(|flow| flow.send(b"x").map(drop))?;
    let (mut got, mut refused) = (0, 0);
    comes(|| {
        got += std::iter::from_fn(|| received(&members[0]).then_some(())).count();
        let told = |flow: &&StdUdpSocket| flow.take_error().is_ok_and(|error| error.is_some());
        refused += late.iter().filter(told).count();
        got + refused >= 20
    });
    seen(
        got == 10 && refused == 10,
        format!("10 waited, then 10 came: it received {got}, {refused} were refused"),
    )
}
