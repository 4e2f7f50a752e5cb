//! What a handler can ask of its connection, and set on it, is what the kernel then reports.
#![cfg(feature = "std")]

mod support;

use core::ffi::c_int;
use core::time::Duration;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc;

use reuseport::{Connection, Group, Listener, sys};
use support::{BOUND, reset};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn pair(any: impl Into<SocketAddr>) -> (TcpStream, Connection) {
    let listener = Listener::bind(any).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    (client, listener.accept().unwrap())
}

fn get<const N: usize>(connection: &Connection, level: c_int, name: c_int) -> [c_int; N] {
    let mut value = [0; N];
    let mut len = size_of_val(&value).try_into().unwrap();
    let (at, fd) = (value.as_mut_ptr().cast(), connection.as_raw_fd());
    // SAFETY: `value` is writable for the bytes stated.
    unsafe { sys::getsockopt(fd, level, name, at, &raw mut len) }.unwrap();
    value
}

#[test]
fn peer_and_own_address_of_a_connection_are_the_clients() {
    for any in [
        SocketAddr::from(ANY_PORT),
        SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
    ] {
        let (client, connection) = pair(any);

        let peer = connection.peer_addr();

        assert_eq!(peer, Ok(client.local_addr().unwrap()));
        assert_eq!(connection.local_addr(), Ok(client.peer_addr().unwrap()));
    }
}

/// `getpeername(2)` fails with `ENOTCONN` here.
#[test]
#[cfg(target_os = "linux")]
fn peer_address_of_a_connection_that_was_reset_is_still_known() {
    for any in [
        SocketAddr::from(ANY_PORT),
        SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
    ] {
        let (client, connection) = pair(any);
        let peer = client.local_addr().unwrap();
        reset(client);
        let gone = connection.recv(&mut [0]).unwrap_err();

        let found = connection.peer_addr();

        assert_eq!(gone.errno(), libc::ECONNRESET);
        assert_eq!(found, Ok(peer));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn handler_learns_the_peer_of_a_client_that_has_reset() {
    let (tell, told) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let (tell, wait) = (std::sync::Mutex::new(tell), std::sync::Mutex::new(wait));
    let server = Group::bind(ANY_PORT, 1).unwrap();
    let server = server.spawn(move |_, connection| {
        wait.lock().unwrap().recv_timeout(BOUND).unwrap();
        let gone = connection.recv(&mut [0]).is_err();
        let peer = connection.peer_addr();
        tell.lock().unwrap().send((gone, peer)).unwrap();
    });
    let server = server.unwrap();
    let client = TcpStream::connect(server.local_addr()).unwrap();
    let peer = client.local_addr().unwrap();

    reset(client);
    go.send(()).unwrap();

    assert_eq!(told.recv_timeout(BOUND), Ok((true, Ok(peer))));
}

#[test]
fn options_of_a_connection_reach_the_kernel() {
    let (_client, connection) = pair(ANY_PORT);
    let (nodelay, keepalive) = (libc::TCP_NODELAY, libc::SO_KEEPALIVE);
    for on in [true, false] {
        connection.set_nodelay(on).unwrap();
        connection.set_keepalive(on).unwrap();

        let set = get::<1>(&connection, sys::IPPROTO_TCP, nodelay)[0] != 0;
        let alive = get::<1>(&connection, sys::SOL_SOCKET, keepalive)[0] != 0;
        assert_eq!((set, alive), (on, on));
    }
    // Rounded up: 0 would have closing reset the connection.
    for wait in [Some(Duration::from_millis(6_001)), None] {
        connection.set_linger(wait).unwrap();

        let [on, seconds] = get(&connection, sys::SOL_SOCKET, libc::SO_LINGER);
        assert_eq!((on != 0, seconds), (wait.is_some(), 7));
    }
}

#[test]
fn shutdown_of_one_direction_leaves_the_other() {
    let (mut client, connection) = pair(ANY_PORT);
    let mut answer = String::new();

    connection.send(b"all").unwrap();
    connection.shutdown(sys::SHUT_WR).unwrap();

    client.read_to_string(&mut answer).unwrap();
    client.write_all(b"?").unwrap();
    assert_eq!((answer.as_str(), connection.recv(&mut [0])), ("all", Ok(1)));
}

/// What the documentation of `Connection` warns of, and its remedy.
#[test]
fn dropping_a_connection_with_unread_bytes_resets_it_and_reading_them_does_not() {
    for read_first in [false, true] {
        let (mut client, connection) = pair(ANY_PORT);
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        support::wait_until("the request is here", || {
            let mut one = [0];
            let (at, peek) = (one.as_mut_ptr().cast(), libc::MSG_PEEK);
            // SAFETY: `one` is writable for its length.
            let waiting = unsafe { sys::recv(connection.as_raw_fd(), at, 1, peek) };
            waiting == Ok(1)
        });
        if read_first {
            connection.recv(&mut [0; 512]).unwrap();
        }

        drop(connection);

        let read = client.read(&mut [0]).map_err(|error| error.kind());
        let expected = if read_first {
            Ok(0)
        } else {
            Err(ErrorKind::ConnectionReset)
        };
        assert_eq!(read, expected);
    }
}
