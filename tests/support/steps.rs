//! The steps in whose midst a call fails, and what must hold afterwards.
#![allow(clippy::needless_pass_by_value)] // they are called from a table

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket as StdUdpSocket};
use std::thread;
use std::time::Duration;

use reuseport::{
    AcceptAction, Acceptors, Batch, Call, Connection, Datagram, Error, Group, GroupError,
    GroupOptions, Listener, MemberState, Protocol, Server, Stats, Steering, Udp, UdpSocket,
};

use super::support::{self, listeners, wait_until};
use super::{ANY_PORT, Fault, Outcome};

/// Answers with one byte.
pub(crate) fn answer(_: usize, connection: Connection) {
    _ = connection.send(b"!");
}

/// Connects and reads the answer, to the end.
#[track_caller]
pub(crate) fn served(address: SocketAddr) {
    let mut client = TcpStream::connect_timeout(&address, support::BOUND).expect("a connection");
    client
        .set_read_timeout(Some(support::BOUND))
        .expect("a timeout");
    let mut answer = String::new();
    client
        .read_to_string(&mut answer)
        .expect("an answer, and the end");
    assert_eq!(answer, "!");
}

/// Connects so many times, in a thread of its own: its calls count for itself.
#[track_caller]
pub(crate) fn times_served(times: usize, address: SocketAddr) {
    let connect = || (0..times).for_each(|_| served(address));
    thread::scope(|scope| scope.spawn(connect).join()).unwrap();
}

/// Has a group of `members` serve, each of them: one of five has none of 300 with a chance of
/// (4/5)^300 < 1e-28.
#[track_caller]
pub(crate) fn whole(server: &Server, members: usize) {
    let accepted = || -> Vec<usize> {
        let counts = server.stats().into_iter().filter(|count| count.running);
        counts.map(|count| count.accepted).collect()
    };
    let before = accepted();
    assert_eq!((before.len(), server.members().len()), (members, members));
    // Who shares one socket is served by whoever is there first.
    let shared = server.retire_all(&[]).unwrap_err() == GroupError::SharedSocket;
    let served_all = (0..100).any(|_| {
        times_served(3, server.local_addr());
        shared || accepted().iter().zip(&before).all(|(now, then)| now > then)
    });
    assert!(served_all, "{server:?}");
}

pub(crate) fn cause(error: GroupError) -> Error {
    error
        .error()
        .unwrap_or_else(|| panic!("no call has failed: {error}"))
}

pub(crate) fn binds_a_listener(fault: &Fault) {
    _ = fault.strike(|| Listener::bind(ANY_PORT).map(drop));
}

pub(crate) fn binds_with_options(fault: &Fault) {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    _ = fault.strike(|| {
        let options = Listener::options().reuse_address(true).only_v6(true);
        options.incoming_cpu(0).bind(any)
    });
}

pub(crate) fn asks_where(fault: &Fault) {
    let listener = Listener::bind(ANY_PORT).unwrap();
    _ = fault.strike(|| listener.local_addr());
}

pub(crate) fn asks_how_many_wait(fault: &Fault) {
    let listener = Listener::bind(ANY_PORT).unwrap();
    _ = fault.strike(|| listener.queue());
    assert_eq!(listener.queue().unwrap().len, 0);
}

pub(crate) fn sets_nonblocking(fault: &Fault) {
    let listener = Listener::bind(ANY_PORT).unwrap();
    _ = fault.strike(|| listener.set_nonblocking(true));
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().errno(), libc::EAGAIN);
}

pub(crate) fn talks(fault: &Fault) {
    let listener = Listener::bind(ANY_PORT).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let connection = listener.accept().unwrap();
    client.write_all(b"ab").unwrap();
    let mut heard = [0];
    _ = fault.strike(|| {
        connection.send(b"1")?;
        connection.recv(&mut heard)?;
        connection.recv(&mut heard)
    });
    // What failed took nothing.
    let (expected, sent) = if fault.call == Call::Send {
        (b'a', 0)
    } else {
        (b'b', 1)
    };
    assert_eq!(connection.recv(&mut heard), Ok(1));
    assert_eq!(heard, [expected]);
    drop((connection, listener));
    let mut all = Vec::new();
    let left = client.read_to_end(&mut all).unwrap_or(all.len());
    assert_eq!(left, sent);
}

pub(crate) fn spawns_acceptors(fault: &Fault) {
    let (listeners, address) = listeners(3);
    let spawn = || {
        Acceptors::spawn(listeners, answer)
            .map(drop)
            .map_err(|error| Error::new(fault.call, error.raw_os_error().expect("an errno")))
    };
    _ = fault.strike(spawn);
    drop(Group::bind(address, 1).expect("none is left running"));
}

pub(crate) fn binds_a_group<P: Protocol>(fault: &Fault, options: GroupOptions<P>) {
    _ = fault.strike(|| options.bind(ANY_PORT, 3).map_err(cause));
}

pub(crate) fn claims_a_free_port(fault: &Fault) {
    let address = listeners(1).1;
    if let Some(group) = fault.strike(|| Group::bind(address, 1).map_err(cause)) {
        Listener::options()
            .reuse_port(false)
            .bind(address)
            .expect_err("it is held");
        drop(group);
    }
    drop(Group::bind(address, 1).expect("it is free again"));
}

pub(crate) fn claims_over_leftovers(fault: &Fault, ip: impl Into<IpAddr>) {
    let address = support::leftovers((ip.into(), 0).into());
    let claim = || Group::bind(address, 1).map_err(cause);
    drop(fault.strike(claim));
    drop(claim().expect("the port is nobody's"));
}

pub(crate) fn adds_to_a_group(fault: &Fault, options: GroupOptions) {
    let mut group = options.bind(ANY_PORT, 2).unwrap();
    _ = fault.strike(|| group.add().map_err(cause));
    assert_eq!(group.sockets().len(), 2);
    group.add().unwrap();
    whole(&group.spawn(answer).unwrap(), 3);
}

/// Sees that 60 connections all pass by member 0, as they are steered.
#[track_caller]
pub(crate) fn all_pass_by(server: &Server) {
    (0..6).for_each(|_| times_served(10, server.local_addr()));
    assert_eq!(server.members()[0].stats.accepted, 0, "{server:?}");
}

pub(crate) fn steers_a_group(fault: &Fault, to: Steering) {
    let mut group = Group::options()
        .steering(Steering::Except(0))
        .bind(ANY_PORT, 3)
        .unwrap();
    _ = fault.strike(|| group.set_steering(to).map_err(cause));
    all_pass_by(&group.spawn(answer).unwrap());
}

pub(crate) fn steers(fault: &Fault, to: Steering) {
    let group = Group::options()
        .steering(Steering::Except(0))
        .bind(ANY_PORT, 3)
        .unwrap();
    let server = group.spawn(answer).unwrap();
    _ = fault.strike(|| server.set_steering(to).map_err(cause));
    all_pass_by(&server);
    server.add().unwrap();
    all_pass_by(&server);
    server.set_steering(Steering::Random).unwrap();
    whole(&server, 4);
}

pub(crate) fn spawns(fault: &Fault, options: GroupOptions) {
    let group = options.bind(ANY_PORT, 3).unwrap();
    let mut back = None;
    _ = fault.strike(|| {
        group.spawn(answer).map(drop).map_err(|failure| {
            let error = failure.error();
            back = Some(failure.into_group());
            error
        })
    });
    whole(&back.expect("the group").spawn(answer).unwrap(), 3);
}

pub(crate) fn adds(fault: &Fault, options: GroupOptions) {
    let group = options.grace(grace(fault)).bind(ANY_PORT, 2).unwrap();
    let server = group.spawn(answer).unwrap();
    _ = fault.strike(|| server.add().map_err(cause));
    whole(&server, 2);
    server.add().unwrap();
    whole(&server, 3);
}

/// Without the kernel's list of handshakes the whole grace is waited; otherwise it must not end
/// before its time, however busy the machine.
fn grace(fault: &Fault) -> Duration {
    match fault.call {
        Call::Socket | Call::Send | Call::Recv => Duration::from_millis(100),
        _ => support::BOUND,
    }
}

pub(crate) fn retires<const N: usize>(fault: &Fault, acceptors: [usize; N]) {
    let group = Group::options()
        .grace(grace(fault))
        .bind(ANY_PORT, 4)
        .unwrap();
    let server = group.spawn(answer).unwrap();
    let retired = fault.strike(|| server.retire_all(&acceptors).map_err(cause));
    if let Some(counts) = &retired {
        let ids: Vec<_> = counts.iter().map(|count| count.id).collect();
        assert_eq!(ids, acceptors);
        // The grace may be over before its thread is.
        wait_until("they have left", || {
            let runs = |id: &usize| support::runs(&server, *id);
            !acceptors.iter().any(runs)
        });
    }
    if fault.outcome == Outcome::FailsDraining {
        let mut members = server.members();
        members.retain(|member| member.state == MemberState::Draining);
        let [stays] = members[..] else {
            panic!("one has failed to leave: {server:?}")
        };
        server.retire(stays.stats.id).unwrap();
    }
    if retired.is_some()
        || matches!(
            fault.outcome,
            Outcome::FailsAfterLeaving | Outcome::FailsDraining
        )
    {
        server.add().unwrap();
        whole(&server, 5 - acceptors.len());
    } else {
        whole(&server, 4);
        server.retire_all(&acceptors).unwrap();
        whole(&server, 4 - acceptors.len());
    }
}

pub(crate) fn stops(fault: &Fault) {
    let server = Group::bind(ANY_PORT, 3).unwrap().spawn(answer).unwrap();
    let address = server.local_addr();
    times_served(10, address);
    let counts = fault.strike(|| Ok(server.stop(grace(fault)))).unwrap();
    assert_eq!(counts.len(), 3);
    assert_eq!(counts.iter().map(|count| count.accepted).sum::<usize>(), 10);
    wait_until("nobody listens any more", || {
        Group::bind(address, 1).is_ok()
    });
}

/// Each thread's second `accept` fails. What it has done about it is counted; and the group goes on
/// serving, or its next member does.
pub(crate) fn accepts(error: Error) {
    let leaves = matches!(
        error.accept_action(),
        AcceptAction::Closed | AcceptAction::Fatal
    );
    // Spare threads would each meet the error too.
    let options = Group::options().spare_threads(0);
    let server = options.bind(ANY_PORT, 2).unwrap().spawn(answer).unwrap();
    if leaves {
        both_are_replaced(&server, error);
    } else {
        both_go_on(&server, error);
    }
    whole(&server, 2);
    // A new thread meets the error too: a member that it ends resets who connects just then.
    if !leaves {
        server.add().unwrap();
        whole(&server, 3);
    }
    // Each member met it at most once.
    for count in server.stop(support::BOUND) {
        assert!(
            count.transient_errors + count.backoffs <= 1 && !count.running,
            "{count:?}"
        );
    }
    acceptors_meet(error, leaves);
}

/// Whoever has accepted once has then failed, and another member takes its place: on the thread of
/// the one that failed, which does not meet the error again.
fn both_are_replaced(server: &Server, error: Error) {
    let failed = |count: &Stats| !count.running && count.error == Some(error);
    let mut replaced = 0;
    let both = (0..200).any(|_| {
        served(server.local_addr());
        wait_until("who has accepted has failed", || {
            let first = server.stats().into_iter().take(2);
            first
                .into_iter()
                .all(|count| count.accepted == 0 || failed(&count))
        });
        if server.stats().iter().filter(|count| failed(count)).count() > replaced {
            wait_until("its thread is free", || server.spare_threads().idle == 1);
            assert_eq!(server.add(), Ok(2 + replaced));
            assert_eq!(server.members().len(), 2);
            replaced += 1;
        }
        replaced == 2
    });
    // The hash chooses one of two none of 200 times with a chance of 2^-200.
    assert!(both, "{server:?}");
}

fn both_go_on(server: &Server, error: Error) {
    served(server.local_addr());
    wait_until("the error has been met", || {
        server.stats().iter().any(|count| {
            assert_eq!(count.panicked, 0);
            match error.accept_action() {
                AcceptAction::Retry => count.transient_errors == 1,
                AcceptAction::BackOff => count.backoffs == 1,
                _ => count.accepted == 1,
            }
        })
    });
}

/// The same, without a server.
fn acceptors_meet(error: Error, leaves: bool) {
    let (listeners, address) = listeners(1);
    let acceptors = Acceptors::spawn(listeners, answer).unwrap();
    served(address);
    let counts = if leaves {
        acceptors.join()
    } else {
        served(address);
        acceptors.stop()
    };
    let [count] = counts[..] else {
        panic!("{counts:?}")
    };
    let expected = match error.accept_action() {
        AcceptAction::Retry => (2, 1, 0, None),
        AcceptAction::BackOff => (2, 0, 1, None),
        AcceptAction::WouldBlock => (2, 0, 0, None),
        AcceptAction::Closed | AcceptAction::Fatal => (1, 0, 0, Some(error)),
    };
    assert_eq!(
        (
            count.accepted,
            count.transient_errors,
            count.backoffs,
            count.error
        ),
        expected
    );
}

/// Sends a datagram back.
fn send_back(_: usize, message: Datagram<'_>) {
    let len = message.payload().len();
    message.reply(len);
}

fn receivers(members: usize, grace: Duration) -> Server<Udp> {
    let options = Group::udp_options().grace(grace);
    let group = options.bind(ANY_PORT, members).unwrap();
    group.spawn(send_back).unwrap()
}

/// Has up to 300 clients ask a group of `members`, until each of them has answered: see [`whole`].
/// Returns how many.
#[track_caller]
fn all_receive(server: &Server<Udp>, members: usize) -> usize {
    let accepted = || -> Vec<usize> {
        let members = server.members().into_iter();
        members.map(|member| member.stats.accepted).collect()
    };
    let before = accepted();
    assert_eq!(before.len(), members);
    let ask = || {
        for _ in 0..3 {
            let client = StdUdpSocket::bind("127.0.0.1:0").unwrap();
            client.set_read_timeout(Some(support::BOUND)).unwrap();
            client.send_to(b"?", server.local_addr()).unwrap();
            assert_eq!(client.recv(&mut [0]).expect("an answer"), 1);
        }
    };
    let rounds = (1..=100).find(|_| {
        // In a thread of its own: its calls count for itself.
        thread::scope(|scope| scope.spawn(ask).join()).unwrap();
        accepted().iter().zip(&before).all(|(now, then)| now > then)
    });
    3 * rounds.unwrap_or_else(|| panic!("one has received nothing: {server:?}"))
}

pub(crate) fn spawns_receivers(fault: &Fault) {
    let group = Group::bind_udp(ANY_PORT, 3).unwrap();
    let mut back = None;
    _ = fault.strike(|| {
        group.spawn(send_back).map(drop).map_err(|failure| {
            let error = failure.error();
            back = Some(failure.into_group());
            error
        })
    });
    let group = back.expect("the group");
    all_receive(&group.spawn(send_back).unwrap(), 3);
}

pub(crate) fn adds_a_receiver(fault: &Fault) {
    let server = receivers(2, support::BOUND);
    _ = fault.strike(|| server.add().map_err(cause));
    all_receive(&server, 2);
    server.add().unwrap();
    all_receive(&server, 3);
}

pub(crate) fn retires_receivers<const N: usize>(fault: &Fault, numbers: [usize; N]) {
    let server = receivers(4, support::BOUND);
    let retired = fault.strike(|| server.retire_all(&numbers).map_err(cause));
    if retired.is_some() || fault.outcome == Outcome::FailsAfterLeaving {
        assert!(!numbers.iter().any(|id| support::runs(&server, *id)));
        server.add().unwrap();
        all_receive(&server, 5 - N);
    } else {
        all_receive(&server, 4);
        server.retire_all(&numbers).unwrap();
        all_receive(&server, 4 - N);
    }
}

pub(crate) fn stops_receivers(fault: &Fault) {
    let server = receivers(3, support::BOUND);
    let address = server.local_addr();
    let asked = all_receive(&server, 3);
    let counts = fault.strike(|| Ok(server.stop(support::BOUND))).unwrap();
    assert!(counts.iter().all(|count| !count.running));
    let accepted = counts.iter().map(|count| count.accepted);
    assert_eq!(accepted.sum::<usize>(), asked);
    drop(Group::bind_udp(address, 1).unwrap());
}

/// Has a client of its own, in a thread of its own, send a datagram.
fn ask(address: SocketAddr) -> StdUdpSocket {
    let ask = || {
        let client = StdUdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(support::BOUND)).unwrap();
        client.send_to(b"?", address).unwrap();
        client
    };
    thread::scope(|scope| scope.spawn(ask).join()).unwrap()
}

fn one_receiver(call: Call) -> Server<Udp> {
    let batched = matches!(call, Call::RecvMmsg | Call::SendMmsg);
    let options = Group::udp_options().batch(batched);
    options.bind(ANY_PORT, 1).unwrap().spawn(send_back).unwrap()
}

/// The second time that a receiver waits fails. What it has done about it is counted; and it goes
/// on, or the next takes its place.
pub(crate) fn receives(error: Error) {
    let server = one_receiver(error.call());
    let asked = || ask(server.local_addr()).recv(&mut [0]).expect("an answer");
    asked();
    let leaves = matches!(
        error.accept_action(),
        AcceptAction::Closed | AcceptAction::Fatal
    );
    wait_until("the error has been met", || {
        let count = server.stats()[0];
        match error.accept_action() {
            AcceptAction::Retry => count.transient_errors == 1,
            AcceptAction::BackOff => count.backoffs == 1,
            AcceptAction::WouldBlock => true,
            AcceptAction::Closed | AcceptAction::Fatal => {
                !count.running && count.error == Some(error)
            }
        }
    });
    if leaves {
        assert_eq!(server.add(), Ok(1));
    }
    asked();
    let counts = server.stop(support::BOUND);
    let accepted = counts.iter().map(|count| count.accepted);
    assert_eq!(accepted.sum::<usize>(), 2, "{counts:?}");

    let (socket, client) = (bound(), bound());
    let to = socket.local_addr().unwrap();
    b"12"
        .chunks(1)
        .for_each(|text| client.send_to(text, to).unwrap());
    let mut room = [0];
    let mut receive = || {
        if error.call() == Call::RecvMsg {
            return socket.recv_from(&mut room).map(|_| room[0]);
        }
        let mut batch = Batch::<1>::new(&mut room);
        let received = batch.receive(&socket);
        received.map(|_| batch.datagrams(&socket).next().unwrap().payload()[0])
    };
    let three = || [(); 3].map(|()| receive());
    let received = thread::scope(|scope| scope.spawn(three).join()).unwrap();
    assert_eq!(received, [Ok(b'1'), Err(error), Ok(b'2')]);
}

/// The second answer cannot be sent. That is counted, and the third is sent; but who was merely
/// interrupted sends it again.
pub(crate) fn answers(error: Error) {
    let server = one_receiver(error.call());
    let sent_again = error.errno() == libc::EINTR;
    ask(server.local_addr()).recv(&mut [0]).expect("the first");
    let second = ask(server.local_addr());
    if sent_again {
        second.recv(&mut [0]).expect("the second");
    }
    ask(server.local_addr()).recv(&mut [0]).expect("the third");
    let counts = server.stop(support::BOUND);
    let told = [counts[0].accepted, counts[0].transient_errors];
    assert_eq!(told, [3, usize::from(!sent_again)]);
    second.set_nonblocking(true).unwrap();
    assert!(second.recv(&mut [0]).is_err());

    let (server, client) = (bound(), bound());
    let (from, to) = (client.local_addr().unwrap(), server.local_addr().unwrap());
    if error.call() == Call::SendTo {
        let send = || [b"1", b"2", b"3"].map(|text| server.send_to(text, from));
        let sent = thread::scope(|scope| scope.spawn(send).join()).unwrap();
        assert_eq!(sent, [Ok(()), Err(error), Ok(())]);
    } else {
        let mut room = [0; 2];
        let mut batch = Batch::<2>::new(&mut room);
        let mut answer = |texts: &[u8]| {
            for text in texts.chunks(1) {
                client.send_to(text, to).unwrap();
            }
            batch.receive(&server).unwrap();
            batch
                .datagrams(&server)
                .for_each(|message| message.reply(1));
            batch.send_replies(&server)
        };
        let both = || [answer(b"1"), answer(b"23")];
        let sent = thread::scope(|scope| scope.spawn(both).join()).unwrap();
        let rest = if sent_again { Ok(2) } else { Err(error) };
        assert_eq!(sent, [Ok(1), rest]);
    }
    let expected: &[u8] = match error.call() {
        Call::SendMmsg if sent_again => b"123",
        _ => b"13",
    };
    for byte in expected {
        let mut room = [0];
        client.recv_from(&mut room).unwrap();
        assert_eq!(room, [*byte]);
    }
}

fn bound() -> UdpSocket {
    UdpSocket::bind(ANY_PORT).unwrap()
}
