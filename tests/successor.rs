//! What becomes of the old process when its successor stops, or cannot be steered to, and how a
//! successor tells apart what it was given.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::process::{self, Command, Stdio};
use std::{env, fs, os::unix::net::UnixStream, sync::mpsc};

use reuseport::{Datagram, Group, GroupError, HandOverError, Inherited, Listener, MemberState};
use reuseport::{Serve, Server, SockAddr, UdpSocket, sys};
use support::{BOUND, play, role, visit, wait_until, wait_until_dead};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn old_process() -> Server {
    let group = Group::bind(ANY_PORT, 2).unwrap();
    let server = group.spawn(|_, connection| _ = connection.send(b"old"));
    server.unwrap()
}

/// A role as a successor, which ends when what is written to `input` does.
fn successor(role: &str, input: UnixStream) -> Command {
    let mut command = support::role(role);
    command.stdin(OwnedFd::from(input)).stdout(Stdio::null());
    command
}

/// Hands over to a process that then stops, before the old one has left.
fn assert_its_end_is_noticed<P: Serve>(server: &Server<P>, role: &str) {
    let (reader, input) = UnixStream::pair().unwrap();
    let hand_over = server.hand_over(successor(role, reader), BOUND).unwrap();
    drop(input);
    wait_until_dead(hand_over.pid());

    let failed = hand_over.leave(BOUND).unwrap_err();

    assert!(matches!(failed, HandOverError::ChildExited), "{failed}");
}

fn assert_it_goes_on(server: &Server) {
    assert_eq!(server.members().len(), 2);
    for member in server.members() {
        assert_eq!(member.state, MemberState::Serving);
    }
    (0..50).for_each(|_| assert_eq!(visit(server.local_addr()), "old"));
    server.add().unwrap();
}

#[test]
fn successor_that_stops_in_good_order_old_process_goes_on() {
    let server = old_process();

    assert_its_end_is_noticed(&server, "stops_in_good_order");

    assert_it_goes_on(&server);
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn stops_in_good_order() {
    let group = Group::from_env().unwrap().pop().unwrap();
    let server = group.spawn(|_, connection| _ = connection.send(b"new"));
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    server.unwrap().stop(BOUND);
}

#[test]
fn successor_that_cannot_be_steered_to_is_taken_back() {
    let server = old_process();
    let (reader, _input) = UnixStream::pair().unwrap();

    let failed = server.hand_over(successor("locks_its_sockets", reader), BOUND);

    let Err(HandOverError::Group(GroupError::Call { error, .. })) = failed else {
        panic!("{failed:?}");
    };
    assert_eq!(error.errno(), libc::EPERM, "{error}");
    assert_it_goes_on(&server);
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn locks_its_sockets() {
    let group = Group::from_env().unwrap().pop().unwrap();
    for listener in group.sockets() {
        let on: libc::c_int = 1;
        let at = (&raw const on).cast();
        // SAFETY: `on` is readable for the four bytes stated, and the option takes an int.
        let locked = unsafe {
            sys::setsockopt(
                listener.as_raw_fd(),
                sys::SOL_SOCKET,
                libc::SO_LOCK_FILTER,
                at,
                4,
            )
        };
        locked.unwrap();
    }
    let server = group.spawn(|_, connection| _ = connection.send(b"new"));
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    server.unwrap().stop(BOUND);
}

/// Passes two sockets to this process, which has one thread, as systemd would.
fn pass(first: impl IntoRawFd, second: impl IntoRawFd) {
    for (to, given) in [(13, first.into_raw_fd()), (14, second.into_raw_fd())] {
        // SAFETY: takes two integers.
        assert_eq!(unsafe { libc::dup2(given, to) }, to);
        // SAFETY: the number was this call's.
        unsafe { libc::close(given) };
    }
    for (to, given) in [(3, 13), (4, 14)] {
        // SAFETY: takes two integers; it fails on a number that is not in use.
        let used = unsafe { libc::fcntl(to, libc::F_GETFD) };
        assert_eq!(used, -1, "{to} is free");
        // SAFETY: takes two integers.
        assert_eq!(unsafe { libc::dup2(given, to) }, to);
        // SAFETY: the number was this call's.
        unsafe { libc::close(given) };
    }
    for (name, value) in [("LISTEN_FDS", 2), ("LISTEN_PID", process::id())] {
        // SAFETY: no other thread reads the environment.
        unsafe { env::set_var(name, value.to_string()) };
    }
}

#[test]
fn sockets_of_another_interface_are_a_group_apart() {
    play(&mut role("has_a_group_for_each_interface"));
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn has_a_group_for_each_interface() {
    let free = Listener::options().reuse_port(true);
    let any = free.bind(([0, 0, 0, 0], 0)).unwrap();
    let bound = free.bind_to_device("lo");
    let bound = bound.bind(any.local_addr().unwrap()).unwrap();
    pass(OwnedFd::from(any), OwnedFd::from(bound));

    let groups = Group::from_env().unwrap();

    assert_eq!(groups.len(), 2);
    assert_eq!(groups[0].local_addr(), groups[1].local_addr());
}

#[test]
fn inherited_receivers_stop_and_leave_what_comes() {
    play(&mut role("stops_inherited_receivers"));
}

/// Returns whether this process may.
fn send_with_a_wrong_checksum(to: SocketAddr) -> bool {
    // SAFETY: takes three integers.
    let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_UDP) };
    if raw < 0 {
        return false;
    }
    // SAFETY: the kernel has just opened it for us alone.
    let raw = unsafe { OwnedFd::from_raw_fd(raw) };
    // The kernel checks a short one before it queues it.
    let mut packet = [0; 108];
    packet[0] = 1;
    packet[2..4].copy_from_slice(&to.port().to_be_bytes());
    packet[5] = 108;
    packet[7] = 1;
    let to = SockAddr::from(to);
    let (data, to_len) = (packet.as_ptr().cast(), to.len());
    // SAFETY: the packet and the address are readable for their lengths.
    let sent = unsafe { libc::sendto(raw.as_raw_fd(), data, 108, 0, to.as_ptr().cast(), to_len) };
    assert_eq!(sent, 108, "{}", io::Error::last_os_error());
    true
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn wakes_one_of_sixteen() {
    const VISITS: u32 = 200;
    let (listener, unused) = (
        Listener::bind(ANY_PORT).unwrap(),
        UnixStream::pair().unwrap(),
    );
    pass(OwnedFd::from(listener), OwnedFd::from(unused.0));
    let inherited = Inherited::from_env().unwrap().swap_remove(0).1;
    let Inherited::Tcp(group) = inherited else {
        panic!("{inherited:?}");
    };
    let group = group.share_among(16).unwrap();
    let server = group.spawn(|_, connection| _ = connection.send(b"x"));
    let server = server.unwrap();
    (0..16).for_each(|_| assert_eq!(visit(server.local_addr()), "x"));
    let before = wake_ups();

    (0..VISITS).for_each(|_| assert_eq!(visit(server.local_addr()), "x"));

    // Each wakes one worker; one that comes too late sleeps again.
    let each = (wake_ups() - before) / u64::from(VISITS);
    assert!(each < 5, "{each} wake-ups a connection");
}

/// How often the workers of this process have gone to sleep.
fn wake_ups() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let read = |file: &str, task: &fs::DirEntry| fs::read_to_string(task.path().join(file));
    let workers = tasks.filter(|task| read("comm", task).unwrap().starts_with("acceptor"));
    let count = |task: fs::DirEntry| {
        let status = read("status", &task).unwrap();
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    };
    workers.map(count).sum()
}

#[test]
fn connection_on_an_inherited_listener_wakes_one_of_its_workers() {
    play(&mut role("wakes_one_of_sixteen"));
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn stops_inherited_receivers() {
    let first = UdpSocket::bind(ANY_PORT).unwrap();
    let second = UdpSocket::bind(ANY_PORT).unwrap();
    let copies = [&first, &second].map(|one| one.as_fd().try_clone_to_owned().unwrap());
    let others = copies.map(UdpSocket::from);
    pass(OwnedFd::from(first), OwnedFd::from(second));
    for (batch, (_, inherited)) in [false, true]
        .into_iter()
        .zip(Inherited::from_env().unwrap())
    {
        let Inherited::Udp(group) = inherited else {
            panic!("{inherited:?}");
        };
        let options = Group::udp_options().batch(batch).grace(2 * BOUND);
        let (asked, served) = mpsc::channel();
        let server = group
            .with_options(options)
            .spawn(move |_, _| _ = asked.send(()));
        let server = server.unwrap();
        let other = &others[usize::from(batch)];
        let client = UdpSocket::bind(ANY_PORT).unwrap();
        client.send_to(b"before", server.local_addr()).unwrap();
        served.recv_timeout(BOUND).unwrap();

        // A wake-up with nothing to receive.
        if !send_with_a_wrong_checksum(server.local_addr()) {
            continue;
        }
        wait_until("it was dropped", || {
            server.members()[0].queue.unwrap().drops > 0
        });

        let stats = server.stop(BOUND);
        client
            .send_to(b"after", other.local_addr().unwrap())
            .unwrap();

        assert!(!stats[0].running, "batch {batch}: {stats:?}");
        other.set_nonblocking(false).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(
            other.recv_from(&mut buffer).unwrap().len,
            5,
            "batch {batch}"
        );
        assert_eq!(&buffer[..5], b"after");
    }
}

#[test]
fn udp_successor_that_stops_in_good_order_old_process_goes_on() {
    let echo = |_, datagram: Datagram<'_>| datagram.reply(1);
    let server = Group::bind_udp(ANY_PORT, 2).unwrap().spawn(echo).unwrap();

    assert_its_end_is_noticed(&server, "stops_receivers_in_good_order");

    assert_eq!(server.members().len(), 2);
    for _ in 0..50 {
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(BOUND)).unwrap();
        client.send_to(b"x", server.local_addr()).unwrap();
        assert_eq!(client.recv(&mut [0]).unwrap(), 1);
    }
    server.add().unwrap();
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn stops_receivers_in_good_order() {
    let Some((_, Inherited::Udp(group))) = Inherited::from_env().unwrap().pop() else {
        panic!("no UDP group");
    };
    let server = group.spawn(|_, datagram| datagram.reply(1));
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    server.unwrap().stop(BOUND);
}

#[test]
fn sockets_that_a_group_refuses_can_be_taken_after_that() {
    play(&mut role("takes_what_a_group_refuses"));
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn takes_what_a_group_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = UdpSocket::bind(ANY_PORT).unwrap();
    pass(listener, OwnedFd::from(socket));

    let refused = Group::from_env().unwrap_err();
    let taken = Inherited::from_env().unwrap();
    let again = Inherited::from_env().unwrap();

    assert!(
        matches!(refused, GroupError::NotAListener { descriptor: 4, .. }),
        "{refused}"
    );
    assert!(
        matches!(taken[..], [(_, Inherited::Tcp(_)), (_, Inherited::Udp(_))]),
        "{taken:?}"
    );
    assert!(again.is_empty(), "{again:?}");
}
