//! UDP.

use core::net::SocketAddr;
use std::net::UdpSocket;

use reuseport::steering::{self, Instruction};
use reuseport::{Error, sys};

use super::tools::{always, any_port, bind, open, set, since, until};
use super::{Snag, Tried, seen};

fn unbound() -> Result<UdpSocket, Snag> {
    let socket: UdpSocket = open(libc::SOCK_DGRAM, any_port().ip())?;
    set(&socket, sys::SOL_SOCKET, sys::SO_REUSEPORT, 1)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn member(address: SocketAddr) -> Result<UdpSocket, Snag> {
    let socket = unbound()?;
    bind(&socket, address)?;
    Ok(socket)
}

/// Members of one port, and clients of it, each a flow.
fn group(members: usize, flows: usize) -> Result<(Vec<UdpSocket>, Vec<UdpSocket>), Snag> {
    let first = member(any_port())?;
    let address = first.local_addr()?;
    let mut all = vec![first];
    for _ in 1..members {
        all.push(member(address)?);
    }
    let flow = |_| {
        let client = UdpSocket::bind(any_port())?;
        client.connect(address)?;
        Ok::<_, Snag>(client)
    };
    Ok((all, (0..flows).map(flow).collect::<Result<_, _>>()?))
}

/// Sends a datagram on each flow: which member received it.
fn homes(members: &[UdpSocket], flows: &[UdpSocket]) -> Result<Vec<usize>, Snag> {
    let mut homes = Vec::new();
    for flow in flows {
        flow.send(b"x")?;
        let mut home = None;
        until("somebody receives it", || {
            home = members
                .iter()
                .position(|member| member.recv(&mut [0]).is_ok());
            home.is_some()
        })?;
        homes.extend(home);
    }
    Ok(homes)
}

fn steer(member: &UdpSocket, program: &[Instruction]) -> Result<(), Error> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_ptr().cast_mut().cast(),
    };
    set(
        member,
        sys::SOL_SOCKET,
        libc::SO_ATTACH_REUSEPORT_CBPF,
        program,
    )
}

/// Of 60 flows the one of two members gets none with a chance of 2^-60 < 1e-18.
pub(super) fn a_udp_socket_joins_at_bind(counter: bool) -> Tried {
    let (mut members, flows) = group(1, 60)?;
    members.push(if counter {
        unbound()?
    } else {
        member(members[0].local_addr()?)?
    });
    let got = homes(&members, &flows)?.iter().sum::<usize>();
    seen(got > 0, format!("it received {got} of 60 flows"))
}

/// At random, 20 flows stay where they are 3 times with a chance of 4^-60 < 1e-36.
pub(super) fn a_udp_flow_stays(counter: bool) -> Tried {
    let (members, flows) = group(4, 20)?;
    if counter {
        steer(&members[0], &steering::random(4))?;
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
    let (mut members, flows) = group(2, 1)?;
    steer(&members[0], &always(0))?;
    flows[0].send(b"x")?;
    until("it waits", || members[0].peek(&mut [0]).is_ok())?;
    let mut read = 0;
    if counter {
        read += members[0].recv(&mut [0])?;
    }
    drop(members.remove(0));
    read += members[0].recv(&mut [0]).unwrap_or(0);
    let error = flows[0].take_error()?;
    seen(
        read == 0 && error.is_none(),
        format!("{read} of 1 was read; the sender has {error:?}"),
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
    since(6, 13)?;
    let (members, flows) = group(3, 20)?;
    steer(&members[0], &always(1))?;
    if !counter {
        members[1].connect(UdpSocket::bind(any_port())?.local_addr()?)?;
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
