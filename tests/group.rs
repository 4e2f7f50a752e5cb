//! A group is this program's alone, whole or not there, and in the kernel's order.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, RwLock};
use std::thread;

use reuseport::{Call, Error, Group, GroupError, Listener, Steering};
use support::{connect_from, drain, leftovers, visit, wait_until};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn in_use(error: &GroupError) -> bool {
    matches!(error.error(), Some(error) if error.errno() == libc::EADDRINUSE)
}

#[test]
fn port_0_is_resolved_once_and_a_second_group_is_refused() {
    let group = Group::bind(ANY_PORT, 5).unwrap();
    let address = group.local_addr();

    assert_eq!(group.sockets().len(), 5);
    assert!(
        group
            .sockets()
            .iter()
            .all(|member| member.local_addr() == Ok(address))
    );

    let refused = Group::bind(address, 3).unwrap_err();
    assert!(in_use(&refused), "{refused}");
    assert!(
        refused
            .to_string()
            .starts_with(&format!("bind {address}: EADDRINUSE: ")),
        "{refused}"
    );

    drop(group);
    drop(Group::bind(address, 3).unwrap());
}

/// Runs `act` in a thread to which the kernel denies what Linux before 5.3 did not know.
fn where_no_program_is_detached<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    let step = |code: u32, skipped, k| libc::sock_filter {
        code: code.try_into().unwrap(),
        jt: 0,
        jf: skipped,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let (end, little) = (libc::BPF_RET | libc::BPF_K, cfg!(target_endian = "little"));
    let number = |n: i32| u32::try_from(n).unwrap();
    let denied = libc::SECCOMP_RET_ERRNO | number(libc::ENOPROTOOPT);
    // struct seccomp_data: the call's number, and the low half of its third argument.
    let mut rules = [
        step(load, 0, 0),
        step(equal, 3, libc::SYS_setsockopt.try_into().unwrap()),
        step(load, 0, 16 + 2 * 8 + if little { 0 } else { 4 }),
        step(equal, 1, number(libc::SO_DETACH_REUSEPORT_BPF)),
        step(end, 0, denied),
        step(end, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: rules.len().try_into().unwrap(),
        filter: rules.as_mut_ptr(),
    };
    let filter = &raw const filter as usize;
    let in_a_thread = move || {
        // SAFETY: takes integers.
        let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        assert_eq!(done, 0);
        // SAFETY: the filter and its rules are readable until this thread is joined.
        let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, 2, filter) };
        assert_eq!(done, 0);
        act()
    };
    thread::scope(|scope| scope.spawn(in_a_thread).join().unwrap())
}

#[test]
fn kernel_without_detach_still_binds_groups() {
    for members in [1, 3] {
        let group = || Group::bind(ANY_PORT, members);

        let group = where_no_program_is_detached(group).unwrap();

        let refused = Group::bind(group.local_addr(), members).unwrap_err();
        assert!(in_use(&refused), "{refused}");

        let server = group.spawn(|_, _| {}).unwrap();
        for _ in 0..100 * (members - 1) {
            visit(server.local_addr());
        }

        // One of three has none of 200 with a chance of 3 * (2/3)^200 < 1e-34.
        let counts = server.stats();
        assert!(members == 1 || counts.iter().all(|count| count.accepted > 0));
        let datagrams = || Group::bind_udp(ANY_PORT, members);
        drop(where_no_program_is_detached(datagrams).unwrap());
    }
}

#[test]
fn every_member_gets_connections() {
    let group = Group::bind(ANY_PORT, 4).unwrap();

    group
        .sockets()
        .iter()
        .for_each(|member| member.set_nonblocking(true).unwrap());
    let address = group.local_addr();

    let _clients: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();

    let counts = drain(group.sockets(), 200);
    // One of four has none of 200 with a chance of 4 * (3/4)^200 < 1e-24.
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn group_of_one_is_exclusive_and_the_c_program_may_follow() {
    let group = Group::bind(ANY_PORT, 1).unwrap();
    let address = group.local_addr();

    assert!(in_use(&Group::bind(address, 1).unwrap_err()));

    let client = TcpStream::connect(address).unwrap();
    drop(group.sockets()[0].accept().unwrap());
    drop((group, client));

    Listener::bind(address).expect("what it leaves behind had the option on");
}

#[test]
fn group_over_time_wait_of_the_c_program_binds() {
    let address = leftovers(SocketAddr::from(ANY_PORT));

    let group = Group::bind(address, 3).unwrap();

    assert_eq!(group.local_addr(), address);
    assert!(in_use(&Group::bind(address, 3).unwrap_err()));
}

#[test]
fn group_beside_a_live_server_over_time_wait_is_refused() {
    let address = leftovers(SocketAddr::from(ANY_PORT));
    for live in [
        address,
        (std::net::Ipv4Addr::UNSPECIFIED, address.port()).into(),
    ] {
        let live = Listener::bind(live).unwrap();
        assert!(
            in_use(&Group::bind(address, 3).unwrap_err()),
            "beside {live:?}"
        );
    }

    // A wildcard of the other family that takes IPv4 as well.
    let both = (std::net::Ipv6Addr::UNSPECIFIED, address.port());
    let live = Listener::options().only_v6(false).bind(both).unwrap();
    assert!(in_use(&Group::bind(address, 3).unwrap_err()));
    drop(live);

    let _v6_alone = Listener::options().only_v6(true).bind(both).unwrap();
    drop(Group::bind(address, 3).expect("the other family alone does not meet it"));
}

#[test]
fn one_of_two_groups_bound_at_once_succeeds() {
    let fresh = Group::bind(ANY_PORT, 1).unwrap().local_addr();

    let both = |address| {
        let (start, end, claimed) = (Barrier::new(2), Barrier::new(2), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    start.wait();
                    let group = Group::bind(address, 2);
                    claimed.fetch_add(group.is_ok().into(), SeqCst);
                    end.wait();
                });
            }
        });
        claimed.into_inner()
    };

    support::of_two_at_once_one(fresh, both);
}

#[test]
fn exclusive_port_can_be_joined_on_purpose() {
    let group = Group::bind(ANY_PORT, 2).unwrap();
    let address = group.local_addr();

    assert!(in_use(&Group::bind(address, 2).unwrap_err()));

    let joined = Group::options().join(true).bind(address, 2);
    drop(joined.expect("the members have the option, and the kernel asks nobody"));
    Listener::bind(address).expect("nor the C program");
}

#[test]
fn joined_group_shares_and_cannot_be_steered() {
    let one = Group::options().join(true).bind(ANY_PORT, 2).unwrap();
    let address = one.local_addr();
    let other = Group::options().join(true).bind(address, 2).unwrap();

    let all: Vec<_> = one
        .into_sockets()
        .into_iter()
        .chain(other.into_sockets())
        .collect();
    all.iter()
        .for_each(|member| member.set_nonblocking(true).unwrap());

    let _clients: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    // As above.
    assert!(drain(&all, 200).iter().all(|count| *count > 0));

    for steering in [Steering::Cpu, Steering::Random, Steering::Except(0)] {
        let refused = Group::options()
            .join(true)
            .steering(steering)
            .bind(ANY_PORT, 3);
        assert_eq!(refused.unwrap_err(), GroupError::JoinedGroup);
    }
}

#[test]
fn shared_group_is_one_socket() {
    let group = Group::options().shared(true).bind(ANY_PORT, 3).unwrap();
    let address = group.local_addr();

    assert!(in_use(&Group::bind(address, 1).unwrap_err()));
    Listener::bind(address).expect_err("the option is not set");

    let server = group
        .spawn(|_, connection| _ = connection.send(b"x"))
        .unwrap();
    (0..20).for_each(|_| assert_eq!(visit(address), "x"));

    let counts = server.stop(support::BOUND);
    assert_eq!(counts.len(), 3);
    assert_eq!(counts.iter().map(|count| count.accepted).sum::<usize>(), 20);

    let steered = Group::options()
        .shared(true)
        .steering(Steering::Random)
        .bind(ANY_PORT, 3);
    assert_eq!(steered.unwrap_err(), GroupError::SharedSocket);
}

#[test]
fn group_whose_third_member_fails_leaves_nothing() {
    assert_eq!(Group::bind(ANY_PORT, 0).unwrap_err(), GroupError::NoMembers);

    let calls = AtomicUsize::new(0);
    let address = Group::bind(ANY_PORT, 1).unwrap().local_addr();
    let fails_at_the_third = move |_: BorrowedFd| match calls.fetch_add(1, SeqCst) {
        2 => Err(std::io::Error::from_raw_os_error(libc::EPERM)),
        _ => Ok(()),
    };

    let refused = Group::options()
        .before_bind(fails_at_the_third)
        .bind(address, 5)
        .unwrap_err();
    let error = Error::new(Call::BeforeBind, libc::EPERM);
    assert_eq!(
        refused,
        GroupError::Call {
            error,
            address,
            member: 2
        }
    );
    assert!(
        refused.to_string().ends_with("for member 2 of the group"),
        "{refused}"
    );

    let plain = Listener::options().reuse_port(false).bind(address);
    plain.expect("none is left behind");
}

#[test]
fn listeners_taken_out_and_put_back_are_a_group() {
    let group = Group::bind(ANY_PORT, 3).unwrap();
    let address = group.local_addr();
    let elsewhere: Vec<TcpListener> = group
        .into_sockets()
        .into_iter()
        .map(TcpListener::from)
        .collect();

    let back = elsewhere.into_iter().map(Listener::from).collect();
    let mut group = Group::from_listeners(back).unwrap();
    assert_eq!(group.local_addr(), address);

    group.set_steering(Steering::Random).unwrap();
    group.add().unwrap();
    assert_eq!(group.sockets().len(), 4);

    assert_eq!(
        Group::from_listeners(Vec::new()).unwrap_err(),
        GroupError::NoMembers
    );
    let stranger = Listener::bind(ANY_PORT).unwrap();
    let mixed = group.into_sockets().into_iter().chain([stranger]).collect();
    assert_eq!(
        Group::from_listeners(mixed).unwrap_err(),
        GroupError::AddressMismatch { member: 4 }
    );
}

#[test]
fn members_are_counted_and_their_queues_measured_while_they_run() {
    let options = Group::options().backlog(77).spare_threads(0);
    let group = options.bind(ANY_PORT, 2).unwrap();
    let address = group.local_addr();
    let gate = Arc::new(RwLock::new(()));
    let passed = Arc::clone(&gate);
    let server = group.spawn(move |_, _| drop(passed.read())).unwrap();
    let closed = gate.write().unwrap(); // given up before `server` if this test fails
    let mut clients = Vec::new();

    // Until both are busy, and something waits for each.
    wait_until("both are busy and have a queue", || {
        clients.push(TcpStream::connect(address).unwrap());
        let members = server.members();
        members
            .iter()
            .all(|member| member.stats.accepted == 1 && member.queue.unwrap().len > 0)
    });

    // The last that has connected may still be on its way into a queue.
    wait_until("each is handled or waits", || {
        let members = server.members();
        let held: usize = members.iter().map(|member| member.stats.accepted).sum();
        let queues = members.iter().map(|member| member.queue.unwrap());
        assert!(queues.clone().all(|queue| queue.limit == 77));
        let waiting: u32 = queues.map(|queue| queue.len).sum();
        (held, held + waiting as usize) == (2, clients.len())
    });

    drop(closed);
    let accepted = || {
        server
            .members()
            .iter()
            .map(|member| member.stats.accepted)
            .sum::<usize>()
    };

    wait_until("all are served", || accepted() == clients.len());
    drop(server);
}

#[test]
fn connections_spread_evenly_by_chi_square() {
    // Four groups: a false alarm has a chance below one in a million.
    let mut number = 0;
    for members in [3, 7, 16, 64] {
        let group = Group::bind(ANY_PORT, members).unwrap();
        let address = group.local_addr();
        group
            .sockets()
            .iter()
            .for_each(|member| member.set_nonblocking(true).unwrap());
        let mut counts = vec![0; members];
        for _ in 0..50 {
            let clients: Vec<_> = (number..number + 200)
                .map(|n| connect_from(n, address))
                .collect();
            number += 200;
            let drained = drain(group.sockets(), clients.len());
            counts
                .iter_mut()
                .zip(drained)
                .for_each(|(sum, n)| *sum += n);
        }

        support::a_fair_lottery(&counts);
    }
}
