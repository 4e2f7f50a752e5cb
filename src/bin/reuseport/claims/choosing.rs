//! Which listener gets the SYN.

use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use reuseport::{Listener, steering};

use super::tools::{ANY_PORT, client_from, drain, group, member, who};
use super::{Snag, Tried, seen};

/// From an address of its own for each connection: ports come back too soon, and the same
/// four-tuple would be counted twice.
pub(super) fn the_hash_spreads_evenly(counter: bool) -> Tried {
    let (members, address) = group(if counter { 5 } else { 4 })?;
    let mut counts = [0_u32; 4];
    for hundred in 0..40 {
        let sources = (0..100).map(|n| Ipv4Addr::from(0x7F01_0000 + 100 * hundred + n));
        let clients = sources.map(|ip| client_from(SocketAddr::from((ip, 0)), address));
        let clients = clients.collect::<Result<Vec<_>, _>>()?;
        for (member, count) in drain(&members, clients.len())?.into_iter().enumerate() {
            counts[member.min(3)] += u32::try_from(count)?;
        }
    }
    let square = |count: &u32| (f64::from(*count) - 1000.0).powi(2) / 1000.0;
    let chi: f64 = counts.iter().map(square).sum();
    // The chance that a fair lottery exceeds it: 3 degrees of freedom.
    seen(
        chi < 30.66,
        format!("{counts:?}: chi-square {chi:.1}; by chance above 30.66 once in 10^6"),
    )
}

/// At random, all 20 go to one of eight with a chance of 8^-19 < 1e-17.
pub(super) fn same_four_tuple_same_listener(counter: bool) -> Tried {
    let (members, address) = group(8)?;
    if counter {
        members[0].steer(&steering::random(8))?;
    }
    let mut from = SocketAddr::from(ANY_PORT); // the kernel picks a port, and that is kept
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

/// Who of two gets what is sent to 127.0.0.1.
fn split(first: Listener, second: Result<Listener, reuseport::Error>) -> Tried {
    let to = (Ipv4Addr::LOCALHOST, first.local_addr()?.port());
    let counts = who(&[first, second?], to.into(), 60)?;
    seen(
        counts == [0, 60],
        format!("of 60: {} and {}", counts[0], counts[1]),
    )
}

pub(super) fn a_specific_address_beats_the_wildcard(counter: bool) -> Tried {
    let wide = if counter {
        Ipv4Addr::LOCALHOST
    } else {
        Ipv4Addr::UNSPECIFIED
    };
    let first = member((wide, 0))?;
    let second = member((Ipv4Addr::LOCALHOST, first.local_addr()?.port()));
    split(first, second)
}

pub(super) fn ipv4_wildcard_beats_dual_stack(counter: bool) -> Tried {
    let dual = Listener::options().nonblocking(true).only_v6(false);
    let no_ipv6 = |error| Snag::NotHere(format!("no IPv6: {error}"));
    let first = dual.bind((Ipv6Addr::UNSPECIFIED, 0)).map_err(no_ipv6)?;
    let port = first.local_addr()?.port();
    let second = if counter {
        dual.bind((Ipv6Addr::UNSPECIFIED, port))
    } else {
        member((Ipv4Addr::UNSPECIFIED, port))
    };
    split(first, second)
}
