//! Handlers that keep a copy of their UDP socket: a member leaves the kernel's group all the same.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use reuseport::{Group, Server, Steering, Udp};
use support::BOUND;

/// A group whose handlers answer with their member's number, and keep a copy of the socket each
/// time.
fn serve(address: SocketAddr, members: usize) -> (Server<Udp>, Arc<Mutex<Vec<OwnedFd>>>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&kept);
    let group = Group::udp_options().grace(BOUND).bind(address, members);
    let server = group.unwrap().spawn(move |member, mut datagram| {
        let copy = datagram.socket().as_fd().try_clone_to_owned();
        keep.lock().unwrap().push(copy.unwrap());
        datagram.buffer_mut()[0] = b'0' + u8::try_from(member).unwrap();
        datagram.reply(1);
    });
    (server.unwrap(), kept)
}

/// Which member answers a client that has not asked before.
fn ask(port: u16, family: SocketAddr) -> usize {
    let loopback = match family {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    };
    let client = UdpSocket::bind(SocketAddr::new(loopback.ip(), 0)).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    client.send_to(b"?", loopback).unwrap();
    let mut answer = [0];
    client.recv(&mut answer).expect("an answer");
    usize::from(answer[0] - b'0')
}

#[track_caller]
fn the_others_answer(address: SocketAddr) {
    let (server, _kept) = serve(address, 3);
    let port = server.local_addr().port();
    // One has none of 60 with a chance of (2/3)^60 < 1e-10.
    let before: Vec<_> = (0..60).map(|_| ask(port, address)).collect();
    assert!(before.contains(&0), "a copy is kept");

    server.retire(0).unwrap();

    let after: Vec<_> = (0..60).map(|_| ask(port, address)).collect();
    assert!(
        after.iter().all(|member| [1, 2].contains(member)),
        "{after:?}"
    );
    // The kernel's list is the server's: 2, 1.
    server.set_steering(Steering::Except(0)).unwrap();
    assert!((0..40).all(|_| ask(port, address) == 1), "{address}");
    assert_eq!(server.add(), Ok(3));
    server.set_steering(Steering::Except(2)).unwrap();
    let last: Vec<_> = (0..40).map(|_| ask(port, address)).collect();
    assert!(
        last.iter().all(|member| [1, 2].contains(member)),
        "{last:?}"
    );
}

#[test]
fn member_whose_socket_was_copied_leaves_an_address_of_its_own() {
    let _none = support::no_process_starts();
    the_others_answer(([127, 0, 0, 1], 0).into());
    the_others_answer((Ipv6Addr::LOCALHOST, 0).into());
}

#[test]
fn member_whose_socket_was_copied_leaves_the_wildcard_address() {
    let _none = support::no_process_starts();
    if support::kernel() < (6, 13) {
        return support::skip("before Linux 6.13 a socket that is connected stays in its group");
    }
    the_others_answer(([0; 4], 0).into());
    the_others_answer((Ipv6Addr::UNSPECIFIED, 0).into());
}

/// The kernel puts a new socket into the group of the one that was bound last, here the one that
/// has left and is still open: into a second group, if it is found.
#[test]
fn member_added_while_the_newest_is_open_that_has_left_shares_its_clients() {
    let _none = support::no_process_starts();
    if support::kernel() < (6, 13) {
        return support::skip("before Linux 6.13 a socket that is connected stays in its group");
    }
    let loopbacks = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for address in loopbacks.map(|ip: std::net::IpAddr| SocketAddr::new(ip, 0)) {
        let (server, _kept) = serve(address, 3);
        let asked = || -> Vec<_> {
            let port = server.local_addr().port();
            (0..60).map(|_| ask(port, address)).collect()
        };
        // One has none of 60 with a chance of (2/3)^60 < 1e-10.
        assert!(asked().contains(&2), "a copy is kept");
        server.retire(2).unwrap();

        assert_eq!(server.add(), Ok(3));

        let all = asked();
        let found = |member: &usize| all.contains(member);
        assert!([0, 1, 3].iter().all(found) && !found(&2), "{all:?}");
        server.set_steering(Steering::Except(2)).unwrap();
        assert!(!asked().contains(&3), "it is at the kernel's index 2");
    }
}
