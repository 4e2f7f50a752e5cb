//! Which listener gets the SYN.

use core::ffi::c_int;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process;

use reuseport::{Call, Error, Listener, steering, sys};

use super::tools::{any_port, begin, client_from, drain, group, instruction, member, room};
use super::tools::{set, until, who};
use super::{Snag, Tried, seen};

/// Each connection comes from an address of its own: ports come back too soon, and the same
/// four-tuple would be counted twice.
pub(super) fn the_hash_spreads_evenly(counter: bool) -> Tried {
    let (members, address) = group(if counter { 5 } else { 4 })?;
    let mut counts = [0_u32; 4];
    for (member, count) in who(&members, address, 4000)?.into_iter().enumerate() {
        counts[member.min(3)] += u32::try_from(count)?;
    }
    let square = |count: &u32| (f64::from(*count) - 1000.0).powi(2) / 1000.0;
    let chi: f64 = counts.iter().map(square).sum();
    // The chance that a uniform random choice exceeds it: 3 degrees of freedom.
    seen(
        chi < 30.66,
        format!("{counts:?}: chi-square {chi:.1}; by chance above 30.66 once in 10^6"),
    )
}

/// At random, all 20 go to one of eight with a chance of 8^-19 < 1e-17.
pub(super) fn same_four_tuple_same_listener(counter: bool) -> Tried {
    let (members, address) = group(8)?;
    if counter {
        members[0].attach_program(&steering::random(8))?;
    }
    let mut from = any_port(); // the kernel picks a port, and that is kept
    let mut chosen = Vec::new();
    for _ in 0..20 {
        let client = client_from(from, address)?;
        from = client.local_addr()?;
        chosen.extend(drain(&members, 1)?.iter().position(|count| *count == 1));
    }
    seen(
        chosen.iter().all(|member| *member == chosen[0]),
        format!("{from}, 20 times: {chosen:?}"),
    )
}

/// The first listener on a wildcard. Where clients in `TIME_WAIT` hold every port that port 0 may
/// become, there are others; but the port of another program must not be joined.
fn wildcard(ip: IpAddr) -> Result<Listener, Snag> {
    let mut alone = Listener::options().nonblocking(true).reuse_port(false);
    if ip.is_ipv6() {
        alone = alone.only_v6(false);
    }
    let others = (0..100).map(|n| 10_000 + (process::id() + 199 * n) % 20_000);
    let mut bound = alone.bind((ip, 0));
    for port in others {
        if bound.is_err() {
            bound = alone.bind((ip, u16::try_from(port)?));
        }
    }
    let none = |error| Snag::NotHere(format!("no port on {ip}: {error}"));
    let first = bound.map_err(none)?;
    first.set_reuse_port()?;
    Ok(first)
}

/// Counts the connections that each of two listeners gets on an address of this process's own; the
/// second listens on `ip`.
fn split(first: Listener, ip: IpAddr) -> Tried {
    let (port, own) = (first.local_addr()?.port(), any_port().ip());
    let mut options = Listener::options().nonblocking(true);
    if ip.is_ipv6() {
        options = options.only_v6(false);
    }
    let counts = who(&[first, options.bind((ip, port))?], (own, port).into(), 60)?;
    seen(
        counts == [0, 60],
        format!("of 60: {} and {}", counts[0], counts[1]),
    )
}

pub(super) fn a_specific_address_beats_the_wildcard(counter: bool) -> Tried {
    let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    split(wildcard(any)?, if counter { any } else { any_port().ip() })
}

pub(super) fn ipv4_wildcard_beats_dual_stack(counter: bool) -> Tried {
    let (v4, v6) = (
        IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::from(Ipv6Addr::UNSPECIFIED),
    );
    split(wildcard(v6)?, if counter { v6 } else { v4 })
}

/// Both orders are measured: the group of the newest listener gets all.
pub(super) fn a_bound_device_is_another_group(counter: bool) -> Tried {
    let name = if counter { [0; 4] } else { *b"lo\0\0" }; // no name is no device
    let to_lo = |fd: c_int| set(&fd, sys::SOL_SOCKET, libc::SO_BINDTODEVICE, name);
    let bound = Listener::options().nonblocking(true).before_bind(&to_lo);
    let free = Listener::options().nonblocking(true);
    let mut got = Vec::new();
    for (first, last) in [(free, bound), (bound, free)] {
        let first = first.bind(any_port()).map_err(no_device)?;
        let address = first.local_addr()?;
        let last = last.bind(address).map_err(no_device)?;
        got.push(who(&[first, last], address, 60)?[1]);
    }
    let what = format!(
        "of 60 the last one got {}, bound to lo, and {}, beside one that is",
        got[0], got[1]
    );
    seen(got == [60; 2], what)
}

/// Not every user may bind to a device before Linux 5.7.
fn no_device(error: Error) -> Snag {
    match error.call() {
        Call::SetSockOpt => Snag::NotHere(format!("SO_BINDTODEVICE: {error}")),
        _ => error.into(),
    }
}

/// The program chooses the first member for a SYN and the second for every other segment. A
/// handshake that the kernel remembers finds the first without it. `TCP_DEFER_ACCEPT` leaves the
/// first client's handshake unfinished; with a backlog of 1 the kernel then sends cookies.
pub(super) fn a_cookie_chooses_at_the_ack(counter: bool) -> Tried {
    let defer = |fd: c_int| set(&fd, sys::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 30);
    let options = Listener::options().nonblocking(true).before_bind(&defer);
    let first = options
        .backlog(if counter { 64 } else { 1 })
        .bind(any_port())?;
    let address = first.local_addr()?;
    let second = member(address)?;
    // BPF_LD | BPF_B | BPF_ABS at SKF_NET_OFF: the flags, behind an IPv4 header without options.
    let flags = instruction(0x30, 0xFFF0_0000 + 20 + 13);
    let mut is_syn = instruction(0x15, 0x02); // BPF_JMP | BPF_JEQ | BPF_K
    is_syn.if_false = 1;
    let program = [flags, is_syn, instruction(0x06, 0), instruction(0x06, 1)];
    first.attach_program(&program)?;
    let count = if counter { room(&first, 4)? - 1 } else { 4 };
    let clients: Vec<_> = (0..count)
        .map(|_| begin(address))
        .collect::<Result<_, _>>()?;
    let connected = |client: &Listener| super::queue::is_connected(client);
    until("the clients are connected", || {
        clients.iter().all(connected)
    })?;
    let elsewhere = core::iter::from_fn(|| second.accept().ok()).count();
    let what = format!("of {count} clients whose SYN the first got, {elsewhere} are the second's");
    seen(elsewhere > 0, what)
}
