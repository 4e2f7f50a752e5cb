//! Members that fail by themselves, and what is known of those that are gone: the list of a server
//! is the kernel's, whatever happens to the listeners.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/order.rs"]
mod order;
mod support;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use order::{Copies, listed};
use reuseport::{
    Connection, Group, GroupError, GroupOptions, Listener, MemberState, OtherListeners, Server,
    SockAddr, Stats, Steering,
};
use support::{BOUND, ServeProcess, finish, program, visit, wait_until};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

#[allow(clippy::needless_pass_by_value)] // as a handler
fn say_the_number(member: usize, connection: Connection) {
    _ = connection.send(member.to_string().as_bytes());
}

fn options() -> GroupOptions {
    Group::options().spare_threads(0).grace(BOUND)
}

/// A server that says which member has accepted, and copies of its listeners.
fn serve(members: usize) -> (Server, Copies) {
    let copies = Copies::default();
    let group = copies.taken_by(options()).bind(ANY_PORT, members).unwrap();
    (group.spawn(say_the_number).unwrap(), copies)
}

/// As [`serve`]; but the first handlers, so many, do not end before the gate is dropped.
fn serve_with_a_gate(members: usize, held: usize) -> (Server, Copies, Sender<()>) {
    let copies = Copies::default();
    let group = copies.taken_by(options()).bind(ANY_PORT, members).unwrap();
    let (gate, key) = channel();
    let (key, held) = (Mutex::new(key), AtomicUsize::new(held));
    let server = group.spawn(move |member, connection| {
        let goes_in = |held: usize| held.checked_sub(1);
        if held.fetch_update(SeqCst, SeqCst, goes_in).is_ok() {
            _ = key.lock().unwrap().recv();
        }
        say_the_number(member, connection);
    });
    (server.unwrap(), copies, gate)
}

fn answer(mut client: TcpStream) -> String {
    let mut text = String::new();
    client.set_read_timeout(Some(BOUND)).unwrap();
    client.read_to_string(&mut text).unwrap();
    text
}

#[track_caller]
fn the_list_is_the_kernels(server: &Server, copies: &Copies) {
    let ours = listed(server);
    assert_eq!(copies.order(server.local_addr(), ours.len()), ours);
    // A program of the server's own again.
    server.set_steering(Steering::Hash).unwrap();
    assert_eq!(server.other_listeners(), OtherListeners::None);
}

#[test]
fn member_that_fails_leaves_the_list_as_the_kernels() {
    let (server, copies) = serve(5);

    for (nth, left) in [(1, vec![0, 4, 2, 3]), (0, vec![3, 4, 2]), (2, vec![3, 4])] {
        copies.shut_down(nth);
        let failed = server.wait_failed(BOUND).unwrap();

        assert_eq!(
            (failed.id, failed.error.unwrap().errno()),
            (nth, libc::EINVAL)
        );
        assert_eq!(listed(&server), left);
        the_list_is_the_kernels(&server, &copies);
    }
    assert!(server.wait_failed(Duration::ZERO).is_none(), "each once");
}

/// Retires a member whose handler is held, and has the first one fail while it drains.
/// `then_let_go` ends the handler.
fn retire_while_the_first_fails(
    server: &Server,
    copies: &Copies,
    member: usize,
    then_let_go: impl FnOnce(),
) -> Result<Stats, GroupError> {
    thread::scope(|scope| {
        let retired = scope.spawn(|| server.retire(member));
        wait_until("it drains", || {
            server.members()[member].state == MemberState::Draining
        });
        copies.shut_down(0);
        assert_eq!(server.wait_failed(BOUND).unwrap().id, 0);
        then_let_go();
        retired.join().unwrap()
    })
}

#[test]
fn member_that_fails_while_another_is_retired_leaves_the_list_as_the_kernels() {
    let (server, copies, gate) = serve_with_a_gate(4, 1);
    let address = server.local_addr();
    copies.steer_to(1);
    let clients = [(); 2].map(|()| TcpStream::connect(address).unwrap());
    wait_until("one is held", || server.members()[1].stats.accepted == 1);

    let retired = retire_while_the_first_fails(&server, &copies, 1, || drop(gate));

    assert_eq!(retired.unwrap().accepted, 2);
    clients
        .into_iter()
        .for_each(|client| assert_eq!(answer(client), "1"));
    assert_eq!(listed(&server), [3, 2]);
    the_list_is_the_kernels(&server, &copies);
}

/// Whether a client is served at once, and not sent away or queued behind a handler.
fn is_served_at_once(address: SocketAddr) -> bool {
    let soon = Duration::from_millis(500);
    let Ok(mut client) = TcpStream::connect_timeout(&address, soon) else {
        return false;
    };
    client.set_read_timeout(Some(soon)).unwrap();
    client.read_to_end(&mut Vec::new()).is_ok()
}

#[test]
fn member_that_drains_is_steered_around_when_a_failure_moves_its_index() {
    let (server, copies, gate) = serve_with_a_gate(4, 1);
    let address = server.local_addr();
    copies.steer_to(3);
    let clients = [(); 2].map(|()| TcpStream::connect(address).unwrap());
    wait_until("one is held", || server.members()[3].stats.accepted == 1);

    let retired = retire_while_the_first_fails(&server, &copies, 3, || {
        // It has the index of the first now, and would be chosen for one in three: none of 60 with
        // a chance of 3e-11.
        wait_until("no client comes to it", || {
            (0..60).all(|_| is_served_at_once(address))
        });
        drop(gate);
    });

    assert!(retired.unwrap().accepted >= 2);
    clients
        .into_iter()
        .for_each(|client| assert_eq!(answer(client), "3"));
    the_list_is_the_kernels(&server, &copies);
}

#[test]
fn member_that_drains_serves_again_when_all_others_fail() {
    let (server, copies, gate) = serve_with_a_gate(2, 1);
    let address = server.local_addr();
    copies.steer_to(1);
    let clients = [(); 2].map(|()| TcpStream::connect(address).unwrap());
    wait_until("one is held", || server.members()[1].stats.accepted == 1);

    let retired = thread::scope(|scope| {
        let retired = scope.spawn(|| server.retire(1));
        wait_until("it drains", || {
            server.members()[1].state == MemberState::Draining
        });
        copies.shut_down(0);
        retired.join().unwrap()
    });

    assert_eq!(retired.unwrap_err(), GroupError::LastMember);
    assert_eq!(server.members()[0].state, MemberState::Serving);
    drop(gate);
    clients
        .into_iter()
        .for_each(|client| assert_eq!(answer(client), "1"));
    assert_eq!(visit(address), "1");
    assert_eq!(server.add(), Ok(2));
    the_list_is_the_kernels(&server, &copies);
}

#[test]
fn members_that_fail_at_the_same_moment_have_the_group_rely_on_no_index() {
    let (server, copies, gate) = serve_with_a_gate(4, 2);
    let clients = [0, 1].map(|index| {
        copies.steer_to(index);
        let client = TcpStream::connect(server.local_addr()).unwrap();
        wait_until("it is held", || server.members()[index].stats.accepted == 1);
        client
    });
    server.set_steering(Steering::Hash).unwrap();
    // Their workers are in handlers, and learn of it later.
    (0..2).for_each(|nth| copies.shut_down(nth));

    let refused = server.set_steering(Steering::Random).unwrap_err();

    assert_eq!(refused, GroupError::JoinedGroup);
    assert_eq!(server.other_listeners(), OtherListeners::Some);
    (0..50).for_each(|_| _ = visit(server.local_addr()));
    drop(gate);
    clients.into_iter().for_each(|client| _ = answer(client));
    // With one member the order is known again.
    copies.shut_down(2);
    let mut failed = [(); 3].map(|()| server.wait_failed(BOUND).unwrap().id);
    failed.sort_unstable();
    assert_eq!(failed, [0, 1, 2]);
    assert_eq!((server.add(), server.add()), (Ok(4), Ok(5)));
    the_list_is_the_kernels(&server, &copies);
}

#[test]
fn add_after_every_member_has_failed_claims_the_port_anew() {
    let (server, copies) = serve(2);
    (0..2).for_each(|nth| copies.shut_down(nth));
    (0..2).for_each(|_| _ = server.wait_failed(BOUND).unwrap());
    assert!(TcpStream::connect(server.local_addr()).is_err());

    assert_eq!((server.add(), server.add()), (Ok(2), Ok(3)));

    assert!(["2", "3"].contains(&visit(server.local_addr()).as_str()));
    let refused = Group::bind(server.local_addr(), 1).unwrap_err();
    assert_eq!(refused.error().unwrap().errno(), libc::EADDRINUSE);
    the_list_is_the_kernels(&server, &copies);
}

#[test]
fn add_after_every_member_has_failed_takes_the_port_of_no_other() {
    let (server, copies) = serve(2);
    (0..2).for_each(|nth| copies.shut_down(nth));
    (0..2).for_each(|_| _ = server.wait_failed(BOUND).unwrap());
    let other = Listener::bind(server.local_addr()).unwrap();

    let refused = server.add().unwrap_err();

    assert_eq!(refused.error().unwrap().errno(), libc::EADDRINUSE);
    drop(other);
}

#[test]
fn wait_failed_ends_with_the_server() {
    let (server, _) = serve(2);

    let failed = thread::scope(|scope| {
        let failed = scope.spawn(|| server.wait_failed(Duration::MAX));
        server.stop(BOUND);
        failed.join().unwrap()
    });

    assert!(failed.is_none());
}

#[test]
fn totals_count_members_that_are_gone_whose_rows_are_not_kept() {
    let (server, copies) = serve(2);
    for round in 0..20 {
        (0..5).for_each(|_| _ = visit(server.local_addr()));
        assert_eq!(server.add(), Ok(2 + round));
        assert_eq!(server.retire(round).unwrap().id, round);
    }
    copies.shut_down(21);
    assert_eq!(server.wait_failed(BOUND).unwrap().id, 21);

    let (totals, rows) = (server.totals(), server.stats());

    assert_eq!(
        (totals.accepted, totals.members, totals.failed),
        (100, 22, 1)
    );
    assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [20]);
    assert_eq!(server.stop(BOUND).len(), 1);
    assert_eq!(server.totals(), totals);
}

#[test]
fn member_that_fails_without_a_descriptor_is_reported() {
    support::play(&mut support::role("fails_without_a_descriptor"));
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn fails_without_a_descriptor() {
    let (server, copies) = serve(1);
    let address = SockAddr::from(server.local_addr());
    // SAFETY: takes three integers.
    let client = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    support::limit_softly(libc::RLIMIT_NOFILE, 3).unwrap();
    // The blocked `accept` has its descriptor already; the next one gets none.
    // SAFETY: the address is readable for its length.
    let connected = unsafe { libc::connect(client, address.as_ptr().cast(), address.len()) };
    assert_eq!(connected, 0);
    wait_until("no descriptor is left", || server.stats()[0].backoffs > 0);

    copies.shut_down(0);
    let failed = server.wait_failed(BOUND);

    assert!(
        failed.is_some_and(|stats| stats.error.is_some()),
        "{failed:?}"
    );
    assert!(server.members().is_empty());
}

/// Whether this process may destroy sockets; it says so otherwise.
fn may_destroy() -> bool {
    const CAP_NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:\t"));
    let effective = u64::from_str_radix(effective.unwrap(), 16).unwrap();
    let may = effective & (1 << CAP_NET_ADMIN) != 0;
    if !may {
        support::skip("to destroy a socket takes CAP_NET_ADMIN");
    }
    may
}

/// Destroys listeners on the port, one at least, as `ss` lets root do.
fn destroy(address: SocketAddr) {
    let filter = format!("sport = :{}", address.port());
    let done = finish(program("ss").args(["-K", "-ltH", &filter]));
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn serve_whose_listeners_are_destroyed_replaces_them() {
    if !support::tool("ss") || !may_destroy() {
        return;
    }
    let mut server = ServeProcess::start(&["--quiet"]);

    for new in 3..6 {
        destroy(server.address);
        server.read_stderr_until(&format!("acceptor {new} takes the place"));
    }

    support::wait_until_listening(server.address.port(), 3);
    (0..50).for_each(|_| _ = visit(server.address));
    server.signal(libc::SIGTERM);
    let (code, _, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn serve_that_cannot_replace_its_last_listener_ends_with_an_error() {
    if !support::tool("ss") || !may_destroy() {
        return;
    }
    let mut server = ServeProcess::start(&["--quiet"]);
    let none = libc::rlimit {
        rlim_cur: 3,
        rlim_max: 3,
    };
    let (pid, limit) = (server.pid(), (&raw const none).cast());
    // SAFETY: the limit is readable; null asks for no copy of the old one.
    let set = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, limit, std::ptr::null_mut()) };
    assert_eq!(set, 0);

    support::wait_until_within(support::LONG, "it has ended", || {
        destroy(server.address);
        server.process.ended().is_some()
    });

    let (code, _, said) = server.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.ends_with("reuseport: no acceptor is left\n"), "{said}");
}

/// In a new process: whether the old one has left, and whether its indexes are known.
fn steer_once_permitted(server: &Server) -> Result<(), GroupError> {
    let mut steered = Ok(());
    wait_until("the old process has left", || {
        steered = server.set_steering(Steering::Random);
        steered != Err(GroupError::PredecessorLeaving)
    });
    steered
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn says_whether_it_is_steered() {
    static STEERED: OnceLock<String> = OnceLock::new();
    let group = Group::from_env().unwrap().pop().unwrap();
    let server = group.spawn(|_, connection| {
        let steered = STEERED.get().map_or("not yet", String::as_str);
        _ = connection.send(steered.as_bytes());
    });
    let server = server.unwrap();
    STEERED.get_or_init(|| format!("{:?}", steer_once_permitted(&server)));
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn new_process_relies_on_indexes_unless_a_member_has_failed_meanwhile() {
    for (fails, steered) in [
        (None, Ok(())),
        (Some(0), Err(GroupError::JoinedGroup)),
        (Some(4), Err(GroupError::JoinedGroup)),
    ] {
        let (server, copies) = serve(3);
        let mut role = support::role("says_whether_it_is_steered");
        role.stdin(Stdio::piped()).stdout(Stdio::null());
        let hand_over = server.hand_over(role, BOUND).unwrap();
        // One of the old process, or one of the new.
        if let Some(fails) = fails {
            copies.shut_down(fails);
        }

        let mut child = hand_over.leave(BOUND).unwrap();

        wait_until("it says so", || {
            visit(server.local_addr()) == format!("{steered:?}")
        });
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn ends_once_its_successor_serves() {
    let (server, _) = serve(3);
    let successor = support::role("outlives_the_old_process");
    let hand_over = server.hand_over(into_our_output(successor), BOUND).unwrap();
    std::mem::forget(hand_over);
    std::process::exit(0);
}

fn into_our_output(mut command: Command) -> Command {
    command.stdout(Stdio::inherit());
    command
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn outlives_the_old_process() {
    let group = Group::from_env().unwrap().pop().unwrap();
    let server = group.spawn(say_the_number).unwrap();

    assert_eq!(steer_once_permitted(&server), Err(GroupError::JoinedGroup));

    assert_eq!(server.other_listeners(), OtherListeners::Some);
    (0..50).for_each(|_| _ = visit(server.local_addr()));
    assert_eq!(server.add(), Ok(3));
}

#[test]
fn successor_of_an_old_process_that_died_relies_on_no_index() {
    support::play(&mut support::role("ends_once_its_successor_serves"));
}
