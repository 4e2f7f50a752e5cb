//! Nothing that a security policy, a remote host or another holder of a socket does makes a worker
//! spin or pause without need.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/refuse.rs"]
mod refuse;
mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

use refuse::refusing;
use reuseport::{Acceptors, Connection, Error, Group, Listener, sys};
use support::{visit, wait_until};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn greet(connection: &Connection) {
    _ = connection.send(b"hello");
}

/// The CPU time that this process uses while it does nothing for half a second, in milliseconds.
fn idle_cpu() -> u128 {
    let used = || {
        // SAFETY: made of integers, for which zeros are a value.
        let mut time: libc::timespec = unsafe { std::mem::zeroed() };
        // SAFETY: `time` is writable.
        unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
        let seconds = Duration::from_secs(time.tv_sec.try_into().unwrap());
        seconds + Duration::from_nanos(time.tv_nsec.try_into().unwrap())
    };
    let before = used();
    thread::sleep(Duration::from_millis(500));
    used().saturating_sub(before).as_millis()
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn is_not_allowed_to_accept() {
    refusing(libc::SYS_accept4, None, libc::EPERM, || {
        let server = Group::bind(ANY_PORT, 1).unwrap().spawn(|_, _| {}).unwrap();
        let acceptors = vec![Listener::bind(ANY_PORT).unwrap()];
        let acceptors = Acceptors::spawn(acceptors, |_, _| {}).unwrap();

        let used = idle_cpu();

        // A spinning thread uses 500 ms, or what the machine has left for it.
        assert!(used < 40, "{used} ms of CPU time");
        for stats in [server.stats()[0], acceptors.stats()[0]] {
            assert!(
                stats.backoffs > 0 && stats.transient_errors == 0,
                "{stats:?}"
            );
        }
        // Nothing would end a blocked `accept`, so no destructor may wait for one.
        std::mem::forget(acceptors);
    });
}

#[test]
fn accept_refused_by_a_policy_does_not_spin() {
    support::play(&mut support::role("is_not_allowed_to_accept"));
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn is_not_allowed_to_receive() {
    for (call, batch) in [(libc::SYS_recvmsg, false), (libc::SYS_recvmmsg, true)] {
        // Also what ICMP can cause, and then passes at once.
        refusing(call, None, libc::EACCES, || {
            let group = Group::udp_options().batch(batch).bind(ANY_PORT, 1);
            let server = group.unwrap().spawn(|_, _| {}).unwrap();

            let used = idle_cpu();

            assert!(used < 40, "{used} ms of CPU time");
            assert!(server.stats()[0].transient_errors > 64);
            // Its receiver cannot learn of an end.
            std::mem::forget(server);
        });
    }
}

#[test]
fn receiving_refused_by_a_policy_does_not_spin() {
    support::play(&mut support::role("is_not_allowed_to_receive"));
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn is_set_not_to_block_by_another_holder() {
    let group = Group::bind(ANY_PORT, 2).unwrap();
    let copy = |one: &Listener| one.as_fd().try_clone_to_owned().unwrap();
    let others: Vec<TcpListener> = group.sockets().iter().map(|one| copy(one).into()).collect();
    let server = group.spawn(|_, connection| greet(&connection)).unwrap();
    let alone = Listener::bind(ANY_PORT).unwrap();
    let (other, address) = (TcpListener::from(copy(&alone)), alone.local_addr().unwrap());
    let acceptors = Acceptors::spawn(vec![alone], |_, connection| greet(&connection)).unwrap();
    for socket in others.iter().chain([&other]) {
        socket.set_nonblocking(true).unwrap();
    }
    // Each worker leaves the `accept` in which it has begun to block.
    (0..50).for_each(|_| assert_eq!(visit(server.local_addr()), "hello"));
    assert_eq!(visit(address), "hello");

    let used = idle_cpu();

    assert!(used < 40, "{used} ms of CPU time");
    // They can still be woken.
    assert!(!server.retire(0).unwrap().running);
    assert_eq!(visit(server.local_addr()), "hello");
    assert!(
        server
            .stop(support::BOUND)
            .iter()
            .all(|stats| !stats.running)
    );
    assert_eq!(acceptors.stop()[0].accepted, 1);
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn has_handlers_that_set_their_socket_not_to_block() {
    for batch in [false, true] {
        let options = Group::udp_options().batch(batch);
        let server = options.bind(ANY_PORT, 2).unwrap().spawn(|_, datagram| {
            _ = datagram.socket().set_nonblocking(true);
        });
        let server = server.unwrap();
        wait_until("both have handled one", || {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.send_to(b"x", server.local_addr()).unwrap();
            server.stats().iter().all(|stats| stats.accepted > 0)
        });

        let stats = server.retire(0).unwrap();
        let used = idle_cpu();

        assert!(!stats.running, "{stats:?}");
        assert!(used < 40, "{used} ms of CPU time");
        let left = server.stop(support::BOUND);
        assert!(left.iter().all(|stats| !stats.running), "{left:?}");
    }
}

#[test]
fn receiver_whose_handler_has_it_not_block_ends() {
    support::play(&mut support::role(
        "has_handlers_that_set_their_socket_not_to_block",
    ));
}

#[test]
fn a_listener_that_another_holder_set_not_to_block_is_waited_for() {
    support::play(&mut support::role("is_set_not_to_block_by_another_holder"));
}

fn option(fd: i32, name: i32, value: i32) -> Result<(), Error> {
    // SAFETY: the option takes four bytes, which are readable.
    unsafe { sys::setsockopt(fd, libc::IPPROTO_IP, name, (&raw const value).cast(), 4) }
}

/// Tells `server` by ICMP that a datagram to `client` could not be delivered, as any host that
/// knows both ports can.
fn send_icmp(raw: i32, code: u8, server: SocketAddr, client: SocketAddr) {
    let mut packet = vec![3, code, 0, 0, 0, 0, 5, 0]; // the next hop's MTU is 1280
    packet.extend([
        0x45, 0, 5, 0xdc, 0, 1, 0x40, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1,
    ]);
    packet.extend(server.port().to_be_bytes());
    packet.extend(client.port().to_be_bytes());
    packet.extend([5, 0xc8, 0, 0]);
    let words = packet
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    // SAFETY: made of integers, for which zeros are a value.
    let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    to.sin_family = libc::AF_INET.try_into().unwrap();
    to.sin_addr.s_addr = Ipv4Addr::LOCALHOST.to_bits().to_be();
    let (data, to) = (packet.as_ptr().cast(), (&raw const to).cast());
    // SAFETY: the packet and the address are readable for the lengths stated.
    let sent = unsafe { libc::sendto(raw, data, packet.len(), 0, to, 16) };
    assert!(sent > 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn icmp_errors_do_not_make_a_receiver_pause() {
    // SAFETY: takes three integers.
    let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP) };
    if raw < 0 {
        return support::skip("raw ICMP is root's");
    }
    let group = Group::udp_options().before_bind(|fd| {
        option(fd.as_raw_fd(), libc::IP_RECVERR, 1)?;
        let probe = libc::IP_PMTUDISC_PROBE;
        Ok(option(fd.as_raw_fd(), libc::IP_MTU_DISCOVER, probe)?)
    });
    let group = group.bind(ANY_PORT, 1).unwrap();
    let address = group.local_addr();
    let server = group.spawn(|_, datagram| datagram.reply(1)).unwrap();
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.connect(address).unwrap();
    client.set_read_timeout(Some(support::BOUND)).unwrap();

    // Port unreachable, fragmentation needed, source route failed.
    for code in [3, 4, 5] {
        for _ in 0..10 {
            send_icmp(raw, code, address, client.local_addr().unwrap());
            client.send(b"x").unwrap();
            client.recv(&mut [0]).unwrap();
        }
    }

    wait_until("the errors were met", || {
        server.stats()[0].transient_errors > 10
    });
    assert_eq!(server.stats()[0].backoffs, 0);
    // SAFETY: the descriptor is this test's.
    unsafe { libc::close(raw) };
}
