//! `Listener` and `Connection` on the real kernel.
#![cfg(feature = "std")]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use reuseport::{BALANCES, Call, Connection, Error, Listener};
use support::{BOUND, reset, wait_until};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn pair() -> (Listener, TcpStream, Connection) {
    let listener = Listener::bind(ANY_PORT).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    let connection = listener.accept().unwrap();
    (listener, client, connection)
}

#[test]
fn connection_carries_bytes_both_ways() {
    let (_listener, mut client, connection) = pair();

    assert_eq!(connection.send(b"hello").unwrap(), 5);
    let mut buffer = [0; 5];
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"hello");

    client.write_all(b"hi").unwrap();
    assert_eq!(connection.recv(&mut buffer).unwrap(), 2);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(connection.recv(&mut buffer).unwrap(), 0);

    drop(connection);
    assert_eq!(client.read(&mut buffer).unwrap(), 0);
}

#[test]
fn port_0_becomes_a_port_and_a_second_listener_joins_it() {
    let first = Listener::bind(ANY_PORT).unwrap();
    let address = first.local_addr().unwrap();
    assert_ne!(address.port(), 0);

    let second = Listener::bind(address).unwrap();
    assert_eq!(second.local_addr().unwrap(), address);

    let without = Listener::options().reuse_port(false).bind(address);
    assert_eq!(
        without.unwrap_err(),
        Error::new(Call::Bind, libc::EADDRINUSE)
    );
}

#[test]
fn both_listeners_get_connections() {
    if !BALANCES {
        return;
    }
    let first = Listener::options()
        .nonblocking(true)
        .bind(ANY_PORT)
        .unwrap();
    let address = first.local_addr().unwrap();
    let second = Listener::options().nonblocking(true).bind(address).unwrap();

    let clients: Vec<_> = (0..100)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();

    let count = |listener: &Listener| core::iter::from_fn(|| listener.accept().ok()).count();
    let (mut one, mut other) = (0, 0);
    wait_until("all are accepted", || {
        one += count(&first);
        other += count(&second);
        one + other == clients.len()
    });

    // One of them gets none with a chance of 2 * (1/2)^100 < 1e-29.
    assert!(one > 0 && other > 0, "{one} and {other}");
}

#[test]
fn accept_from_returns_the_peer() {
    for any in [
        SocketAddr::from(ANY_PORT),
        SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
    ] {
        let listener = Listener::bind(any).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();

        let (_connection, peer) = listener.accept_from().unwrap();

        assert_eq!(peer, client.local_addr().unwrap());
    }
}

#[test]
fn accept_from_of_a_reset_connection_returns_the_peer() {
    let listener = Listener::bind(ANY_PORT).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let peer = client.local_addr().unwrap();

    reset(client);
    let (connection, found) = listener.accept_from().unwrap();
    assert_eq!(found, peer);

    let error = connection.recv(&mut [0]).unwrap_err();
    assert_eq!(error, Error::new(Call::Recv, libc::ECONNRESET));
}

#[test]
fn send_to_a_reset_connection_is_an_error_and_no_signal() {
    // Rust's runtime ignores SIGPIPE; with the default disposition a signal would end this process.
    // SAFETY: sets a disposition; no handler runs.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let (_listener, client, connection) = pair();
    reset(client);

    let error = core::iter::repeat_with(|| connection.send(b"x"))
        .find_map(Result::err)
        .unwrap();

    assert!(
        [libc::ECONNRESET, libc::EPIPE].contains(&error.errno()),
        "{error}"
    );
    assert_eq!(
        connection.send(b"x").unwrap_err(),
        Error::new(Call::Send, libc::EPIPE)
    );
}

#[test]
fn failures_name_their_call() {
    let elsewhere = Listener::bind(([8, 8, 8, 8], 0)).unwrap_err();
    assert_eq!(elsewhere, Error::new(Call::Bind, libc::EADDRNOTAVAIL));

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = Listener::bind(taken.local_addr().unwrap()).unwrap_err();
    assert_eq!(busy, Error::new(Call::Bind, libc::EADDRINUSE));

    let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
    let stranger = Listener::from(OwnedFd::from(a));
    let unknown = stranger.local_addr().unwrap_err();
    assert_eq!(unknown, Error::new(Call::GetSockName, libc::EAFNOSUPPORT));
    assert_eq!(stranger.accept().unwrap_err().call(), Call::Accept);
}

#[test]
fn failed_bind_leaves_no_descriptor() {
    let before = support::descriptors("self");

    // Other tests of this process have some hundreds open for a while.
    for _ in 0..2000 {
        Listener::bind(([8, 8, 8, 8], 0)).unwrap_err();
    }

    assert!(support::descriptors("self") < before + 1000);
}

#[test]
fn descriptors_have_close_on_exec() {
    let (listener, _client, connection) = pair();
    let (with_peer, _) = {
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.accept_from().unwrap()
    };

    for fd in [listener.as_fd(), connection.as_fd(), with_peer.as_fd()] {
        // SAFETY: the command takes no argument; `fd` is open.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
}

#[test]
fn local_addr_of_an_ipv6_listener_is_whole() {
    let listener = Listener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();

    assert_eq!(address.ip(), Ipv6Addr::LOCALHOST);
    assert_ne!(address.port(), 0);
}

#[test]
fn nonblocking_listener_without_a_client_fails_with_eagain() {
    let listener = Listener::bind(ANY_PORT).unwrap();
    listener.set_nonblocking(true).unwrap();

    assert_eq!(
        listener.accept().unwrap_err(),
        Error::new(Call::Accept, libc::EAGAIN)
    );

    // Its connections block all the same.
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut accepted = Err(Error::new(Call::Accept, libc::EAGAIN));
    wait_until("the connection waits", || {
        accepted = listener.accept();
        accepted.is_ok()
    });

    let connection = accepted.unwrap();
    // SAFETY: the command takes no argument; the descriptor is open.
    let flags = unsafe { libc::fcntl(connection.as_raw_fd(), libc::F_GETFL) };
    assert_eq!(flags & libc::O_NONBLOCK, 0);
    drop(client);
}

#[test]
fn conversion_to_std_and_back_keeps_the_sockets() {
    let listener = Listener::bind(ANY_PORT).unwrap();
    let address = listener.local_addr().unwrap();
    let listener = TcpListener::from(listener);
    assert_eq!(listener.local_addr().unwrap(), address);
    let fd = Listener::from(listener).into_raw_fd();
    // SAFETY: the line above gave the descriptor away.
    let listener = Listener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    assert_eq!(listener.local_addr().unwrap(), address);

    let mut client = TcpStream::connect(address).unwrap();
    let mut connection = listener.accept().unwrap();
    connection.write_all(b"ping").unwrap();
    connection.flush().unwrap();
    let mut buffer = [0; 4];
    client.read_exact(&mut buffer).unwrap();
    (&connection).write_all(&buffer).unwrap();
    client.read_exact(&mut buffer).unwrap();
    client.write_all(&buffer).unwrap();
    (&connection).read_exact(&mut buffer).unwrap();
    let mut stream = TcpStream::from(connection);
    stream.write_all(&buffer).unwrap();
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");
    drop(OwnedFd::from(Connection::from(stream)));
    assert_eq!(client.read(&mut buffer).unwrap(), 0);
}

#[test]
fn owners_may_cross_threads() {
    fn both<T: Send + Sync>() {}
    both::<Listener>();
    both::<Connection>();
    both::<Error>();
}
