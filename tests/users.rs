//! Who may join, and where the same port means different groups.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

use reuseport::{Call, Error, Group, GroupError, Listener, Steering};
use support::drain;

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);
const NOBODY: u32 = 65534;

fn is_root() -> bool {
    // SAFETY: takes nothing.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        support::skip("not root");
    }
    root
}

#[track_caller]
fn play(role: &str, user: u32, address: SocketAddr) {
    support::play_as(user, role, |role| {
        _ = role.env("ADDRESS", address.to_string());
    });
}

fn given_address() -> SocketAddr {
    std::env::var("ADDRESS").unwrap().parse().unwrap()
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn cannot_join() {
    let refused = Listener::bind(given_address()).unwrap_err();
    assert_eq!(refused, Error::new(Call::Bind, libc::EADDRINUSE));
}

#[test]
fn other_user_cannot_join() {
    if !is_root() {
        return;
    }
    let listener = Listener::bind(ANY_PORT).unwrap();

    let address = listener.local_addr().unwrap();

    play("cannot_join", NOBODY, address);
    Listener::bind(address).expect("the same user can");
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn steers_without_privilege() {
    let mut group = Group::bind(ANY_PORT, 3).unwrap();
    for steering in [
        Steering::Cpu,
        Steering::Random,
        Steering::Except(1),
        Steering::Hash,
    ] {
        group.set_steering(steering).unwrap();
    }

    // Nor does a retirement, although the kernel may refuse the packet filter.
    let server = group.spawn(|_, _| {}).unwrap();
    assert_eq!(server.add(), Ok(3));
    assert_eq!(server.retire(0).unwrap().id, 0);
    assert_eq!(server.stop(support::BOUND).len(), 3);
}

#[test]
fn steering_without_privilege_works() {
    if is_root() {
        play(
            "steers_without_privilege",
            NOBODY,
            SocketAddr::from(ANY_PORT),
        );
    }
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn drops_privileges_and_adds_a_member() {
    let mut group = Group::bind(ANY_PORT, 2).unwrap();
    let mut below_1024 = (600..1024)
        .find_map(|port| Group::bind(([127, 0, 0, 1], port), 2).ok())
        .expect("a free port");
    // SAFETY: takes an integer; this process has no other threads that matter.
    assert_eq!(unsafe { libc::setuid(NOBODY) }, 0);

    for (group, errno) in [
        (&mut group, libc::EADDRINUSE),
        (&mut below_1024, libc::EACCES),
    ] {
        let error = Error::new(Call::Bind, errno);
        let refused = group.add().unwrap_err();
        assert_eq!(
            refused,
            GroupError::UserMismatch {
                error,
                address: group.local_addr(),
                member: 2,
                expected: 0,
                actual: NOBODY
            }
        );
        assert_eq!(refused.error(), Some(error));
        assert!(
            refused
                .to_string()
                .contains("opened by user 0, but this is user 65534"),
            "{refused}"
        );
    }

    group
        .set_steering(Steering::Random)
        .expect("steering is not a matter of users");
}

#[test]
fn add_after_privileges_were_dropped_is_refused_with_the_reason() {
    if is_root() {
        play(
            "drops_privileges_and_adds_a_member",
            0,
            SocketAddr::from(ANY_PORT),
        );
    }
}

/// Binds each address to one port, connects to `target` 60 times: who got how many.
fn split(addresses: [IpAddr; 2], target: IpAddr) -> [usize; 2] {
    let options = Listener::options().nonblocking(true);
    let open = |ip: IpAddr, port| match ip {
        IpAddr::V4(_) => options.bind((ip, port)).unwrap(),
        IpAddr::V6(_) => options.only_v6(false).bind((ip, port)).unwrap(),
    };
    let first = open(addresses[0], 0);
    let port = first.local_addr().unwrap().port();
    let listeners = [first, open(addresses[1], port)];
    let _clients: Vec<_> = (0..60)
        .map(|_| TcpStream::connect((target, port)).unwrap())
        .collect();
    drain(&listeners, 60).try_into().unwrap()
}

#[test]
fn specific_address_takes_all_of_its_own_from_the_wildcard() {
    let (any, here) = (
        IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::from(Ipv4Addr::LOCALHOST),
    );
    let elsewhere = IpAddr::from([127, 0, 0, 2]);

    assert_eq!(split([any, here], here), [0, 60]);
    assert_eq!(split([here, any], here), [60, 0]);
    assert_eq!(split([any, here], elsewhere), [60, 0]);
}

#[test]
fn ipv4_wildcard_takes_ipv4_from_a_dual_stack_one() {
    let (v4, v6) = (
        IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::from(Ipv6Addr::UNSPECIFIED),
    );
    let here = IpAddr::from(Ipv4Addr::LOCALHOST);

    assert_eq!(split([v6, v4], here), [0, 60]);
    assert_eq!(split([v6, v4], IpAddr::from(Ipv6Addr::LOCALHOST)), [60, 0]);
    // Two dual-stack ones are one group: one has none of 60 with a chance of 2 * (1/2)^60 < 2e-18.
    assert!(split([v6, v6], here).iter().all(|count| *count > 0));
}
