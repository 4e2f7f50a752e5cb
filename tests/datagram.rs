//! One UDP socket: what comes, what is too long, what is refused, what is lost.

use reuseport::{Call, Error, UdpSocket};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn two() -> (UdpSocket, UdpSocket) {
    let socket = || UdpSocket::bind(ANY_PORT).unwrap();
    (socket(), socket())
}

#[test]
fn datagram_arrives_whole_with_its_sender() {
    let (server, client) = two();

    for length in [1, 0, 65_507] {
        let bytes: Vec<u8> = (0..length)
            .map(|i| u8::try_from(i % 251).unwrap())
            .collect();
        client
            .send_to(&bytes, server.local_addr().unwrap())
            .unwrap();

        let mut buffer = vec![0; 65_535];
        let received = server.recv_from(&mut buffer).unwrap();

        assert_eq!(received.len, bytes.len());
        assert_eq!(received.from, client.local_addr().unwrap());
        assert!(!received.truncated);
        assert_eq!(&buffer[..received.len], bytes);
    }
}

#[test]
fn datagram_longer_than_the_buffer_is_truncated_and_flagged() {
    let (server, client) = two();
    let address = server.local_addr().unwrap();
    client.send_to(b"too long", address).unwrap();
    client.send_to(b"next", address).unwrap();
    let mut buffer = [0; 4];

    let received = server.recv_from(&mut buffer).unwrap();

    assert_eq!((received.len, received.truncated), (4, true));
    assert_eq!(&buffer, b"too ");

    let received = server.recv_from(&mut buffer).unwrap();
    assert_eq!(
        (received.len, received.truncated),
        (4, false),
        "the rest is not next"
    );
    assert_eq!(&buffer, b"next");

    client.send_to(b"x", address).unwrap();
    let received = server.recv_from(&mut []).unwrap();
    assert_eq!((received.len, received.truncated), (0, true));
}

#[test]
fn send_that_cannot_work_names_call_and_errno() {
    let (server, client) = two();
    let address = server.local_addr().unwrap();
    let refused = |call, errno| Err(Error::new(call, errno));

    let too_long = client.send_to(&vec![0; 65_508], address);
    assert_eq!(too_long, refused(Call::SendTo, libc::EMSGSIZE));
    assert_eq!(client.send(b"x"), refused(Call::Send, libc::EDESTADDRREQ));
    let v6 = client.send_to(b"x", ([0_u16; 8], 9));
    assert!(v6.is_err(), "an IPv4 socket sends nothing over IPv6");
}

#[test]
fn connected_socket_to_a_closed_port_fails_with_econnrefused() {
    let (server, client) = two();
    client.connect(server.local_addr().unwrap()).unwrap();
    drop(server);

    client.send(b"anybody?").unwrap();

    // On the loopback the answer, an ICMP packet, comes before `send` returns.
    let refused = Err(Error::new(Call::Send, libc::ECONNREFUSED));
    assert_eq!(client.send(b"anybody?"), refused);
    client.send(b"anybody?").unwrap();

    let refused = Error::new(Call::RecvMsg, libc::ECONNREFUSED);
    assert_eq!(client.recv_from(&mut [0; 9]), Err(refused));
}

#[test]
fn connected_socket_receives_from_its_peer_alone() {
    let (server, peer) = two();
    let stranger = UdpSocket::bind(ANY_PORT).unwrap();
    let address = server.local_addr().unwrap();
    server.connect(peer.local_addr().unwrap()).unwrap();
    stranger.send_to(b"stranger", address).unwrap();
    peer.send_to(b"peer", address).unwrap();
    server.set_nonblocking(true).unwrap();

    let mut buffer = [0; 9];
    assert_eq!(server.recv_from(&mut buffer).unwrap().len, 4);
    let empty = Error::new(Call::RecvMsg, libc::EAGAIN);
    assert_eq!(server.recv_from(&mut buffer), Err(empty));

    server.send(b"x").unwrap();
    assert_eq!(peer.recv_from(&mut buffer).unwrap().from, address);
}

#[test]
fn port_of_two_sockets_cannot_be_bound_without_the_option() {
    let first = UdpSocket::bind(ANY_PORT).unwrap();
    let address = first.local_addr().unwrap();
    let _second = UdpSocket::bind(address).unwrap();

    let alone = UdpSocket::options().reuse_port(false).bind(address);
    assert_eq!(alone.unwrap_err(), Error::new(Call::Bind, libc::EADDRINUSE));

    // It would, if the first had set that option too.
    let reuse_address = |fd| {
        let on: core::ffi::c_int = 1;
        let value = (&raw const on).cast();
        // SAFETY: `on` is readable for the four bytes stated, and the option takes an int.
        unsafe { reuseport::sys::setsockopt(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, value, 4) }
    };
    let thief = UdpSocket::options()
        .reuse_port(false)
        .before_bind(&reuse_address);
    assert!(thief.bind(address).is_err());
}

#[test]
#[cfg(feature = "std")]
fn conversion_to_std_and_back_keeps_the_socket() {
    let (server, client) = two();
    let address = server.local_addr().unwrap();

    let server: std::net::UdpSocket = server.into();
    client.send_to(b"x", address).unwrap();
    assert_eq!(server.recv_from(&mut [0; 9]).unwrap().0, 1);

    let server = UdpSocket::from(server);
    assert_eq!(server.local_addr().unwrap(), address);
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;
    use reuseport::Batch;

    #[test]
    #[cfg(feature = "std")]
    fn shut_down_socket_gives_what_is_queued_then_einval() {
        let (server, client) = two();
        client.send_to(b"x", server.local_addr().unwrap()).unwrap();

        // SAFETY: takes two integers; the descriptor is open.
        unsafe { libc::shutdown(std::os::fd::AsRawFd::as_raw_fd(&server), libc::SHUT_RD) };

        assert_eq!(server.recv_from(&mut [0; 9]).unwrap().len, 1);
        let ended = Error::new(Call::RecvMsg, libc::EINVAL);
        assert_eq!(server.recv_from(&mut [0; 9]), Err(ended));

        let mut buffer = [0; 64];
        let mut batch = Batch::<4>::new(&mut buffer);
        let ended = Err(Error::new(Call::RecvMmsg, libc::EINVAL));
        assert_eq!(batch.receive(&server), ended);
    }

    #[test]
    fn datagrams_beyond_the_buffer_are_counted_as_drops() {
        let (server, client) = two();
        let address = server.local_addr().unwrap();
        let sent = 2000;
        for _ in 0..sent {
            client.send_to(&[0; 1000], address).unwrap();
        }

        let queue = server.queue().unwrap();
        assert!(queue.bytes > 0 && queue.drops > 0, "{queue:?}");

        server.set_nonblocking(true).unwrap();
        let received = std::iter::from_fn(|| server.recv_from(&mut [0; 1000]).ok()).count();
        assert_eq!(received + queue.drops as usize, sent);
        let queue = server.queue().unwrap();
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn batch_receives_what_is_queued_and_sends_the_replies() {
        let (server, client) = two();
        let address = server.local_addr().unwrap();
        let all: [&[u8]; 6] = [
            b"one",
            b"",
            b"three",
            b"longer than there is room",
            b"five",
            b"no",
        ];
        for bytes in all {
            client.send_to(bytes, address).unwrap();
        }
        let mut buffer = [0; 8 * 10];
        let mut batch = Batch::<8>::new(&mut buffer);

        assert_eq!(batch.receive(&server), Ok(6));
        for (mut message, sent) in batch.datagrams(&server).zip(all) {
            assert_eq!(message.peer_addr(), client.local_addr().unwrap());
            assert_eq!(message.payload(), &sent[..sent.len().min(10)]);
            assert_eq!(message.is_truncated(), sent.len() > 10);
            if sent != b"no" {
                let len = message.payload().len();
                message.buffer_mut().reverse();
                message.buffer_mut().rotate_left(10 - len);
                message.reply(len);
            }
        }

        assert_eq!(batch.send_replies(&server), Ok(5));
        assert_eq!(batch.send_replies(&server), Ok(0), "each is sent once");
        let mut answer = [0; 99];
        for sent in &all[..5] {
            let received = client.recv_from(&mut answer).unwrap();
            let mut wanted = sent[..sent.len().min(10)].to_vec();
            wanted.reverse();
            assert_eq!(&answer[..received.len], wanted);
        }

        client.set_nonblocking(true).unwrap();
        assert!(client.recv_from(&mut answer).is_err(), "nothing else comes");
    }

    #[test]
    fn batch_with_one_queued_does_not_wait_for_a_second() {
        let (server, client) = two();
        let mut buffer = [0; 8 * 10];
        let mut batch = Batch::<8>::new(&mut buffer);
        let address = server.local_addr().unwrap();
        client.send_to(b"alone", address).unwrap();

        assert_eq!(batch.receive(&server), Ok(1));

        assert_eq!(batch.datagrams(&server).count(), 1);
    }

    #[test]
    fn reply_that_cannot_be_sent_holds_up_no_other() {
        let server = UdpSocket::bind(([0, 0, 0, 0], 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        let clients = [0; 3].map(|_| UdpSocket::bind(ANY_PORT).unwrap());
        for client in &clients {
            client.send_to(b"x", ([127, 0, 0, 1], port)).unwrap();
        }
        let mut buffer = vec![0; 3 * 65_535];
        let mut batch = Batch::<3>::new(&mut buffer);

        assert_eq!(batch.receive(&server), Ok(3));
        for (n, message) in batch.datagrams(&server).enumerate() {
            // No datagram is as long.
            message.reply(if n == 1 { 65_535 } else { 1 });
        }

        let too_long = Error::new(Call::SendMmsg, libc::EMSGSIZE);
        assert_eq!(batch.send_replies(&server), Err(too_long));

        for client in [&clients[0], &clients[2]] {
            assert_eq!(client.recv_from(&mut [0; 9]).unwrap().len, 1);
        }
        clients[1].set_nonblocking(true).unwrap();
        assert!(clients[1].recv_from(&mut [0; 9]).is_err());
    }

    /// Two pages, of which the second is not to be touched; and a value that ends with the first.
    #[cfg(feature = "std")]
    fn before_a_cliff<T>(value: T) -> &'static mut T {
        const PAGE: usize = 4096;
        let (how, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
        let (null, kind) = (std::ptr::null_mut(), kind | libc::MAP_ANONYMOUS);
        // SAFETY: takes no memory of ours.
        let pages = unsafe { libc::mmap(null, 2 * PAGE, how, kind, -1, 0) };
        assert_ne!(pages, libc::MAP_FAILED);
        // SAFETY: the second of the two pages mapped above.
        let cliff = unsafe { pages.byte_add(PAGE) };
        // SAFETY: nothing is there yet.
        assert_eq!(unsafe { libc::mprotect(cliff, PAGE, libc::PROT_NONE) }, 0);
        // SAFETY: within the first page, and as aligned as the size of the type is.
        let at = unsafe { cliff.byte_sub(size_of::<T>()) }.cast::<T>();
        // SAFETY: nobody else knows the pages, which are never unmapped.
        unsafe { at.write(value) };
        // SAFETY: written by the line above.
        unsafe { &mut *at }
    }

    #[test]
    #[cfg(feature = "std")]
    fn sender_address_longer_than_its_buffer_is_not_read_beyond_it() {
        use std::os::fd::OwnedFd;
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixDatagram};
        // Any socket may be made a `UdpSocket`: here one whose peers have long names.
        let named = |byte: u8| {
            let name = [[byte; 80].as_slice(), &std::process::id().to_ne_bytes()].concat();
            let address = SocketAddr::from_abstract_name(name).unwrap();
            (UnixDatagram::bind_addr(&address).unwrap(), address)
        };
        let ((server, address), (client, _)) = (named(b's'), named(b'c'));
        client.send_to_addr(b"x", &address).unwrap();

        let server = UdpSocket::from(OwnedFd::from(server));
        let batch = before_a_cliff(Batch::<1>::new(Box::leak(Box::new([0; 16]))));

        assert_eq!(batch.receive(&server), Ok(1));
        batch
            .datagrams(&server)
            .for_each(|message| message.reply(1));

        let nobody = Error::new(Call::SendMmsg, libc::ECONNREFUSED);
        assert_eq!(batch.send_replies(&server), Err(nobody));
    }

    #[test]
    fn batch_without_a_buffer_fails_and_takes_nothing() {
        let (server, client) = two();
        client.send_to(b"x", server.local_addr().unwrap()).unwrap();
        let mut batch = Batch::<4>::new(&mut []);

        let nothing = Err(Error::new(Call::RecvMmsg, libc::EINVAL));
        assert_eq!(batch.receive(&server), nothing);
        assert_eq!(batch.datagrams(&server).count(), 0);

        assert_eq!(
            server.recv_from(&mut [0; 9]).unwrap().len,
            1,
            "nothing was taken"
        );
    }
}
