//! A group keeps its promises while another runtime accepts: here threads with std's listeners.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/load.rs"]
mod load;
mod support;

use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use load::{Load, answer};
use reuseport::{Connection, Group, GroupError, GroupOptions, HandOverError, MemberState, Server};
use support::{BOUND, wait_until, wait_until_dead};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// A busy machine may take long.
fn patient() -> GroupOptions {
    Group::options().grace(BOUND)
}

/// An accept loop of another runtime. It returns what has ended it.
fn accept_on(server: &Server, member: usize) -> JoinHandle<io::Error> {
    let listener = TcpListener::from(server.listener(member).unwrap());
    listener.set_nonblocking(false).unwrap();
    thread::spawn(move || {
        loop {
            match listener.accept() {
                Ok((client, _)) => answer(&Connection::from(client)),
                Err(error) => return error,
            }
        }
    })
}

#[track_caller]
fn assert_closed(accepting: JoinHandle<io::Error>) {
    let error = accepting.join().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn members_replaced_under_load_lose_no_connection_and_end_their_accept_loops() {
    let server = patient().bind(ANY_PORT, 3).unwrap().into_server().unwrap();
    let mut loops: Vec<_> = (0..3).map(|id| accept_on(&server, id)).collect();
    let load = Load::start(server.local_addr(), 8);

    for id in 0..20 {
        let before = load.made();
        wait_until("some were served", || load.made() > before + 100);
        let new = server.add().unwrap();
        loops.push(accept_on(&server, new));
        let left = server.retire(id).unwrap();
        assert!(!left.running && left.reset == 0, "{left:?}");
        assert_closed(loops.remove(0));
    }
    let report = load.stop();
    let stats = server.stop(BOUND);

    assert_eq!(report.lost(), 0, "{report:?}");
    assert!(stats.iter().all(|stats| stats.reset == 0), "{stats:?}");
    loops.into_iter().for_each(assert_closed);
}

#[test]
fn connections_that_wait_when_the_server_stops_are_left_to_the_runtime() {
    let server = patient().bind(ANY_PORT, 2).unwrap().into_server().unwrap();
    let address = server.local_addr();
    let waiting: Vec<_> = (0..50).map(|_| TcpStream::connect(address)).collect();
    let loops = [0, 1].map(|id| accept_on(&server, id));

    drop(waiting);
    let stats = server.stop(BOUND);

    assert!(stats.iter().all(|stats| stats.reset == 0), "{stats:?}");
    loops.into_iter().for_each(assert_closed);
}

#[test]
fn member_whose_listener_was_dropped_keeps_its_queue_until_it_is_taken_again() {
    let options = Group::options().grace(Duration::from_millis(200));
    let server = options.bind(ANY_PORT, 2).unwrap().into_server().unwrap();
    drop(server.listener(0).unwrap());
    let address = server.local_addr();
    // None of 40 goes to member 0 with a chance of (1/2)^40 < 1e-12.
    let load = Load::start(address, 40);
    let other = accept_on(&server, 1);
    let queued = || server.members()[0].queue.unwrap().len;
    wait_until("some wait", || queued() > 0);

    let refused = server.retire(0).unwrap_err();

    let GroupError::StillQueued { id: 0, queued } = refused else {
        panic!("{refused}")
    };
    assert!(queued > 0);
    assert_eq!(server.members()[0].state, MemberState::Draining);
    let again = accept_on(&server, 0);
    wait_until("it can be retired", || server.retire(0).is_ok());
    let report = load.stop();
    server.stop(BOUND);
    assert_eq!(report.lost(), 0, "{report:?}");
    [again, other].into_iter().for_each(assert_closed);
}

#[test]
fn listener_is_refused_for_members_that_left_and_where_threads_accept() {
    let server = patient().bind(ANY_PORT, 2).unwrap().into_server().unwrap();
    let with_threads = Group::bind(ANY_PORT, 1).unwrap().spawn(|_, _| {}).unwrap();
    server.retire(0).unwrap();

    let left = server.listener(0).unwrap_err();
    let served = with_threads.listener(0).unwrap_err();

    assert_eq!(left, GroupError::NoSuchMember { member: 0 });
    assert_eq!(served, GroupError::HasThreads);
}

#[test]
fn server_without_threads_starts_none_and_counts_its_members_as_running() {
    let group = Group::bind(ANY_PORT, 3).unwrap();

    let server = group.into_server().unwrap();

    assert_eq!(server.spare_threads().most, 0);
    assert!(server.stats().iter().all(|stats| stats.running));
    assert!(server.stop(BOUND).iter().all(|stats| !stats.running));
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn takes_over() {
    let group = Group::from_env().unwrap().remove(0);
    let server = group.into_server().unwrap();
    let loops = [0, 1].map(|id| accept_on(&server, id));
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    server.stop(BOUND);
    loops.into_iter().for_each(assert_closed);
}

fn successor() -> Command {
    let mut command = support::role("takes_over");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    command
}

#[test]
fn hand_over_from_another_runtime_loses_no_connection() {
    let server = patient().bind(ANY_PORT, 2).unwrap().into_server().unwrap();
    let loops = [0, 1].map(|id| accept_on(&server, id));
    let address = server.local_addr();
    let load = Load::start(address, 4);
    wait_until("clients are served", || load.made() > 100);

    let hand_over = server.hand_over(successor(), BOUND);
    let mut child = hand_over.unwrap().leave(BOUND).unwrap();

    let made = load.made();
    wait_until("more are served", || load.made() > made + 100);
    let report = load.stop();
    assert_eq!(report.lost(), 0, "{report:?}");
    loops.into_iter().for_each(assert_closed);
    assert_eq!(server.add().unwrap_err(), GroupError::HandedOver);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn members_of_a_new_process_that_died_are_served_by_the_runtime() {
    let server = patient().bind(ANY_PORT, 2).unwrap().into_server().unwrap();
    let loops = [0, 1].map(|id| accept_on(&server, id));
    let early = server.hand_over(Command::new("true"), BOUND).unwrap_err();
    assert!(matches!(early, HandOverError::ChildExited), "{early}");
    let hand_over = server.hand_over(successor(), BOUND);
    let hand_over = hand_over.unwrap();
    // SAFETY: takes two integers; the child has not been waited for.
    unsafe { libc::kill(hand_over.pid().try_into().unwrap(), libc::SIGKILL) };
    wait_until_dead(hand_over.pid());

    let failed = hand_over.leave(BOUND).unwrap_err();

    assert!(matches!(failed, HandOverError::ChildExited), "{failed}");
    loops.into_iter().for_each(assert_closed);
    let members = server.members();
    let loops: Vec<_> = members
        .iter()
        .map(|member| accept_on(&server, member.stats.id))
        .collect();
    assert_eq!(loops.len(), 2);
    let load = Load::start(server.local_addr(), 4);
    wait_until("clients are served", || load.made() > 100);
    assert_eq!(load.stop().lost(), 0);
    server.stop(BOUND);
    loops.into_iter().for_each(assert_closed);
}
