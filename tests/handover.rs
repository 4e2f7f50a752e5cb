//! One process takes the place of another, and no client notices.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, io, thread};

use reuseport::{Group, GroupError, HandOverError, Listener, MemberState, Server, Steering};
use support::{
    BOUND, ServeProcess, finish, program, reuseport, run, start, text, visit, wait_until,
    wait_until_dead,
};

/// Ends a server that is not a child of this process, but of one that has ended.
fn end(pid: i32) {
    // SAFETY: takes two integers; the process lives, for nothing has ended it.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn hands_over_ten_times() {
    let alone = support::own_namespace();
    if !alone {
        support::skip("on the host's network others send SYNs again too");
    }
    let sent_again = || alone.then(support::syns_sent_again);
    support::ten_hand_overs(ServeProcess::start(&["--quiet"]), finish, sent_again);
}

#[test]
fn ten_hand_overs_under_load_lose_nobody() {
    // In a further namespace: the kernel counts for all processes of one.
    support::play(support::role("hands_over_ten_times").env_remove(support::GIVEN));
}

#[test]
fn sigterm_during_a_hand_over_ends_the_successor_too() {
    let mut server = ServeProcess::start(&["--quiet"]);
    let address = server.address;
    // Until it has stopped, it may still take the first that comes.
    server.signal(libc::SIGSTOP);
    let stat = format!("/proc/{}/stat", server.pid());
    wait_until("it has stopped", || {
        std::fs::read_to_string(&stat).unwrap().contains(") T ")
    });
    // Of two that wait the kernel delivers the lower first: SIGHUP. The other waits meanwhile.
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGCONT] {
        server.signal(signal);
    }

    let said = server.read_stderr_until("handed over to pid ");
    wait_until("the successor has ended too", || {
        TcpStream::connect(address).is_err()
    });

    let (code, _, told) = server.end();
    let told = said + &told;
    assert_eq!(code, Some(0), "{told}");
    // Both leave in good order, with a tally: the one of what it did, the other of nothing.
    assert_eq!(told.matches("acceptor 2 ").count(), 2, "{told}");
}

#[test]
fn steering_by_cpu_after_a_hand_over_reaches_the_right_member() {
    // With the CPU's steering an index that is wrong would be seen: pinned clients would reach
    // another acceptor.
    let cpus = support::cpus();
    let mut server = ServeProcess::start(&["--steer", "cpu", "--acceptors", "2"]);
    let address = server.address;
    let pid = server.pid();
    let pid = server.hand_over(pid);
    let mut stdout = server.process.stdout();
    for (index, cpu) in cpus.into_iter().enumerate().take(2) {
        thread::spawn(move || {
            support::run_on(cpu);
            (0..50).for_each(|_| _ = visit(address));
        })
        .join()
        .unwrap();
        for _ in 0..50 {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
            assert_eq!(line, format!("acceptor {index}\n"), "on CPU {cpu}");
        }
    }

    end(pid);
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn tries_to_hand_over() {
    for members in [1, 3] {
        let group = Group::bind(([127, 0, 0, 1], 0), members).unwrap();
        let address = group.local_addr();
        let server = group
            .spawn(|_, connection| _ = connection.send(b"x"))
            .unwrap();
        let descriptors = || {
            // The sanitizers' own are opened once; those of closed connections go on their own.
            (0..50).for_each(|_| assert_eq!(visit(address), "x"));
            support::descriptors("self")
        };
        let ends = || server.hand_over(Command::new("true"), BOUND).unwrap_err();
        assert!(matches!(ends(), HandOverError::ChildExited));
        let before = descriptors();
        assert!(matches!(ends(), HandOverError::ChildExited));
        let failed = server
            .hand_over(Command::new("/no/such/program"), BOUND)
            .unwrap_err();
        assert!(
            failed
                .to_string()
                .starts_with("starting /no/such/program: "),
            "{failed}"
        );
        let failed = std::io::Error::from(failed);
        assert_eq!(failed.raw_os_error(), Some(libc::ENOENT));
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        let failed = server
            .hand_over(sleep, Duration::from_millis(200))
            .unwrap_err();
        assert!(matches!(failed, HandOverError::TimedOut), "{failed}");
        assert_eq!(server.members().len(), members);
        wait_until("nothing is left open", || descriptors() == before);
        server.stop(BOUND);
    }
}

#[test]
fn successor_that_fails_changes_nothing() {
    support::play(&mut support::role("tries_to_hand_over"));
}

#[test]
fn group_that_cannot_be_handed_over_is_refused() {
    let any = ([127, 0, 0, 1], 0);
    for (options, error) in [
        (Group::options().join(true), GroupError::JoinedGroup),
        (Group::options().shared(true), GroupError::SharedSocket),
    ] {
        let server = options.bind(any, 2).unwrap().spawn(|_, _| {}).unwrap();
        let refused = server.hand_over(Command::new("true"), BOUND).unwrap_err();

        assert!(
            matches!(refused, HandOverError::Group(found) if found == error),
            "{refused}"
        );
    }
}

/// Starts `command` with these descriptors from 3 on, as systemd does.
fn pass(command: &mut Command, given: Vec<RawFd>, names: &str) {
    let count = given.len();
    let arrange = move || {
        // First out of each other's way.
        let mut moved = [0; 8];
        for (to, fd) in moved.iter_mut().zip(&given) {
            // SAFETY: takes integers; the descriptors are open in this process.
            *to = unsafe { libc::fcntl(*fd, libc::F_DUPFD, 100) };
        }
        for (to, fd) in (3..).zip(&moved[..given.len()]) {
            // SAFETY: takes two integers; the new numbers have no CLOEXEC.
            unsafe { libc::dup2(*fd, to) };
            // SAFETY: the copy is this block's.
            unsafe { libc::close(*fd) };
        }
        Ok(())
    };
    // SAFETY: makes system calls alone.
    unsafe { command.pre_exec(arrange) };
    // The pid is known only to the child: a shell says it and becomes the program.
    command
        .env("LISTEN_FDS", count.to_string())
        .env("LISTEN_FDNAMES", names);
}

/// `serve` behind a shell that sets `LISTEN_PID`.
fn activated(args: &str) -> Command {
    let reuseport = env!("CARGO_BIN_EXE_reuseport");
    let mut shell = program("sh");
    shell.args([
        "-c",
        &format!("LISTEN_PID=$$ exec {reuseport} serve {args}"),
    ]);
    shell.stdout(Stdio::piped());
    shell
}

#[test]
fn listener_of_systemd_is_served_and_outlives_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = support::scratch("notify");
    let notify = UnixDatagram::bind(directory.join("socket")).unwrap();
    let mut serve = activated("--acceptors 3");
    pass(&mut serve, vec![listener.as_raw_fd()], "http");
    let server = ServeProcess::from(serve.env("NOTIFY_SOCKET", directory.join("socket")));
    assert_eq!(server.address, listener.local_addr().unwrap());
    let mut state = [0; 64];
    notify.set_read_timeout(Some(BOUND)).unwrap();
    let length = notify.recv(&mut state).unwrap();
    assert_eq!(&state[..length], b"READY=1");

    (0..30).for_each(|_| _ = visit(server.address));
    server.signal(libc::SIGTERM);
    let (code, out, err) = server.end();
    assert_eq!((code, out.lines().count()), (Some(0), 30), "{err}");
    assert_eq!(err.matches("acceptor ").count(), 3, "three share it: {err}");
    // The service has ended; what comes now waits for the next.
    let waiting = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut serve = activated("");
    pass(&mut serve, vec![listener.as_raw_fd()], "http");
    let server = ServeProcess::from(&mut serve);
    waiting.set_read_timeout(Some(BOUND)).unwrap();
    assert_eq!((&waiting).read(&mut [0]).unwrap(), 0, "served to its end");
    drop(server);
}

#[test]
fn listeners_of_systemd_on_one_port_are_one_group() {
    let first = Listener::bind(([127, 0, 0, 1], 0)).unwrap();
    let address = first.local_addr().unwrap();
    let second = Listener::bind(address).unwrap();
    let mut serve = activated("");
    pass(
        &mut serve,
        vec![first.as_raw_fd(), second.as_raw_fd()],
        "http:http",
    );
    let server = ServeProcess::from(&mut serve);
    assert_eq!(server.address, address);

    (0..200).for_each(|_| _ = visit(address));
    server.signal(libc::SIGHUP); // not theirs to hand over
    server.signal(libc::SIGTERM);

    let (code, out, err) = server.end();
    assert_eq!((code, out.lines().count()), (Some(0), 200), "{err}");
    // One of two has none of 200 with a chance of 2 * (1/2)^200.
    assert!(
        out.contains("acceptor 0\n") && out.contains("acceptor 1\n"),
        "{out}"
    );
}

#[test]
fn inherited_descriptor_that_is_no_listener_is_refused() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (pipe, _other) = UnixStream::pair().unwrap();
    let (connected, _listener) = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        (
            TcpStream::connect(listener.local_addr().unwrap()).unwrap(),
            listener,
        )
    };
    let fds = [
        udp.into_raw_fd(),
        pipe.into_raw_fd(),
        connected.into_raw_fd(),
    ];
    for fd in fds {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut serve = activated("");
        pass(&mut serve, vec![listener.as_raw_fd(), fd], "a:b");

        let done = finish(&mut serve);
        let err = text(&done.stderr);
        assert_eq!(
            (done.status.code(), err.lines().count()),
            (Some(1), 1),
            "{err}"
        );
        assert!(err.contains("descriptor 4 is no TCP listener"), "{err}");
    }
    let mut nonsense = activated("");
    let done = finish(nonsense.env("LISTEN_FDS", "many"));
    assert!(
        text(&done.stderr).contains("LISTEN_FDS is not a number"),
        "{done:?}"
    );
}

/// Runs a `serve` that must end of itself: exit code and what it said.
#[track_caller]
fn ends(serve: &mut Command) -> (Option<i32>, String) {
    let mut running = start(serve.stderr(Stdio::piped()));
    let mut said = String::new();
    running.stderr().read_to_string(&mut said).unwrap();
    (running.wait().code(), said)
}

/// The inode of a descriptor, as the old process states it.
fn inode(fd: RawFd) -> String {
    use std::os::unix::fs::MetadataExt;
    let link = std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap();
    link.ino().to_string()
}

#[test]
fn inherited_socket_that_is_not_of_the_old_process_is_refused() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
    let datagram = UnixDatagram::unbound().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let (stream, other) = UnixStream::pair().unwrap();
    for (fd, well) in [
        (connected.as_raw_fd(), false),
        (datagram.as_raw_fd(), false),
        (file.as_raw_fd(), false),
        (stream.as_raw_fd(), true),
    ] {
        let mine = Listener::bind(([127, 0, 0, 1], 0)).unwrap();
        let mut serve = activated("");
        let given = vec![mine.as_raw_fd(), fd];
        pass(&mut serve, given, "reuseport:reuseport-socket");
        serve.env("REUSEPORT_SOCKET", inode(stream.as_raw_fd()));
        if well {
            let _server = ServeProcess::from(&mut serve);
            other.set_read_timeout(Some(BOUND)).unwrap();
            assert_eq!((&other).read(&mut [0]).unwrap(), 1, "it is ready");
        } else {
            let (code, err) = ends(&mut serve);
            assert_eq!((code, err.lines().count()), (Some(1), 1), "{err}");
            assert!(err.contains("descriptor 4 is no"), "{err}");
        }
    }
}

#[test]
fn options_for_opening_are_refused_with_inherited_listeners() {
    for option in ["--join", "--shared", "--steer random", "--backlog 9"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut serve = activated(option);
        pass(&mut serve, vec![listener.as_raw_fd()], "http");

        let (code, err) = ends(&mut serve);
        assert_eq!((code, err.lines().count()), (Some(2), 1), "{option}: {err}");
        assert!(err.contains("the listeners are inherited"), "{err}");
    }
}

#[test]
fn listen_fds_for_another_pid_are_ignored() {
    let mut serve = reuseport(&["serve", "--addr", "127.0.0.1:0"]);
    let server = ServeProcess::from(serve.env("LISTEN_PID", "1").env("LISTEN_FDS", "1"));
    visit(server.address);
    let (code, _, _) = run(&["demo", "--addr", "127.0.0.1:0"]);
    assert_eq!(code, 0);
    assert!(
        Group::from_env().unwrap().is_empty(),
        "this process was passed none"
    );
    let _: SocketAddr = server.address;
}

fn old_process() -> Server {
    let group = Group::bind(([127, 0, 0, 1], 0), 2).unwrap();
    group
        .spawn(|_, connection| _ = connection.send(b"old"))
        .unwrap()
}

/// A role as a successor, which ends when its standard input does.
fn successor(role: &str) -> Command {
    let mut command = support::role(role);
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    command
}

fn serve_until_the_input_ends(server: &Server) {
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    server.stop(BOUND);
}

/// The members' numbers, in index order; all of them serve.
fn serving(server: &Server) -> Vec<usize> {
    let members = server.members().into_iter();
    let serving = members.map(|member| {
        assert_eq!(member.state, MemberState::Serving);
        member.stats.id
    });
    serving.collect()
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn takes_over() {
    let group = Group::from_env().unwrap().pop().unwrap();
    let server = group.spawn(|_, connection| _ = connection.send(b"new"));
    serve_until_the_input_ends(&server.unwrap());
}

#[test]
fn old_process_whose_successor_dies_when_ready_goes_on() {
    let server = old_process();
    let address = server.local_addr();
    let hand_over = server.hand_over(successor("takes_over"), BOUND).unwrap();
    let pid = hand_over.pid();
    end(i32::try_from(pid).unwrap());
    wait_until_dead(pid);
    let waiting = [(); 20].map(|()| TcpStream::connect(address).unwrap());

    let failed = hand_over.leave(BOUND).unwrap_err();

    assert!(matches!(failed, HandOverError::ChildExited), "{failed}");
    assert_eq!(serving(&server), [2, 3], "those meant for the successor");
    for mut client in waiting {
        let mut answer = String::new();
        client.set_read_timeout(Some(BOUND)).unwrap();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "old");
    }
    (0..50).for_each(|_| assert_eq!(visit(address), "old"));
    assert_eq!(server.add(), Ok(4), "it can be changed again");
}

#[test]
fn hand_over_that_is_dropped_is_taken_back() {
    let server = old_process();
    let hand_over = server.hand_over(successor("takes_over"), BOUND).unwrap();
    let pid = hand_over.pid();
    (0..50).for_each(|_| assert_eq!(visit(server.local_addr()), "new"));
    assert_eq!(server.add(), Err(GroupError::HandingOver));

    drop(hand_over);

    assert!(std::fs::metadata(format!("/proc/{pid}")).is_err(), "killed");
    assert_eq!(serving(&server), [0, 1]);
    (0..50).for_each(|_| assert_eq!(visit(server.local_addr()), "old"));
    assert_eq!(server.add(), Ok(4), "it can be changed again");
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn changes_its_group_early() {
    static DONE: OnceLock<&str> = OnceLock::new();
    let group = Group::from_env().unwrap().pop().unwrap();
    let server = group.spawn(|_, connection| {
        let done = DONE.get().unwrap_or(&"nothing");
        _ = connection.send(done.as_bytes());
    });
    let server = server.unwrap();
    let leaving = GroupError::PredecessorLeaving;
    assert_eq!(server.add(), Err(leaving));
    assert_eq!(server.retire(0).unwrap_err(), leaving);
    assert_eq!(server.set_steering(Steering::Except(0)), Err(leaving));
    let refused = server.hand_over(Command::new("true"), BOUND).unwrap_err();
    assert!(matches!(refused, HandOverError::Group(error) if error == leaving));

    DONE.set("refused").unwrap();
    serve_until_the_input_ends(&server);
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn changes_its_group_once_it_may() {
    let group = Group::from_env().unwrap().pop().unwrap();
    let server = group.spawn(|member, connection| {
        _ = connection.send(format!("new {member}").as_bytes());
    });
    let server = server.unwrap();
    wait_until("the old process has left", || server.add() == Ok(2));
    server.retire(0).unwrap();
    server.set_steering(Steering::Except(0)).unwrap();

    let first = format!("new {}", server.members()[0].stats.id);
    // Were it not so steered, each would pass by the first of two with a chance of 1/2.
    (0..60).for_each(|_| assert_ne!(visit(server.local_addr()), first));
    serve_until_the_input_ends(&server);
}

#[test]
fn successor_that_changes_its_group_early_is_refused() {
    let server = old_process();
    let address = server.local_addr();
    let role = successor("changes_its_group_early");

    let hand_over = server.hand_over(role, BOUND).unwrap();

    wait_until("all four are refused", || visit(address) == "refused");
    let mut child = hand_over.leave(BOUND).unwrap();
    (0..50).for_each(|_| assert_eq!(visit(address), "refused"));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn successor_can_change_its_group_once_the_old_process_left() {
    let server = old_process();
    let address = server.local_addr();
    let role = successor("changes_its_group_once_it_may");
    let hand_over = server.hand_over(role, BOUND).unwrap();

    let mut child = hand_over.leave(BOUND).unwrap();

    (0..200).for_each(|_| assert!(visit(address).starts_with("new ")));
    assert_eq!(server.add(), Err(GroupError::HandedOver));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn tells_its_environment() {
    let all = env::vars().map(|(name, value)| format!("{name}={value}\n"));
    let all: String = all.collect();
    let group = Group::from_env().unwrap().pop().unwrap();
    let server = group.spawn(move |_, connection| _ = connection.send(all.as_bytes()));
    serve_until_the_input_ends(&server.unwrap());
}

#[test]
fn environment_of_a_successor_is_the_callers() {
    let server = old_process();
    let mut role = successor("tells_its_environment");
    role.env_clear();
    for variable in ["LISTEN_ADDR", "LISTEN_PID", "LISTEN_PIDFDID", "SECRET"] {
        role.env(variable, "the caller's");
    }

    let hand_over = server.hand_over(role, BOUND).unwrap();

    let told = visit(server.local_addr());
    let names = told.lines().filter_map(|line| line.split('=').next());
    // The support code of the tests notes its network there.
    let names = names.filter(|name| !name.starts_with("REUSEPORT_TEST"));
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    let ours = ["LISTEN_ADDR", "LISTEN_FDNAMES", "LISTEN_FDS"];
    assert_eq!(names[..3], ours, "{told}");
    assert_eq!(names[3..], ["REUSEPORT_SOCKET", "SECRET"], "{told}");
    assert_eq!(told.matches("=the caller's\n").count(), 2, "{told}");
    drop(hand_over);
}

#[test]
fn listener_of_systemd_with_a_name_of_ours_is_left_open() {
    for name in ["reuseport", "reuseport-socket"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut serve = activated("");
        pass(&mut serve, vec![listener.as_raw_fd()], name);
        let server = ServeProcess::from(&mut serve);
        visit(address);
        server.signal(libc::SIGTERM);
        assert_eq!(server.end().0, Some(0));

        let waiting = TcpStream::connect(address).expect("the listener listens");

        let mut serve = activated("");
        pass(&mut serve, vec![listener.as_raw_fd()], name);
        let _server = ServeProcess::from(&mut serve);
        waiting.set_read_timeout(Some(BOUND)).unwrap();
        assert_eq!((&waiting).read(&mut [0]).unwrap(), 0, "served to its end");
    }
}

#[test]
fn second_request_during_a_hand_over_goes_to_the_successor() {
    let mut server = ServeProcess::start(&["--slow", "100:3000", "--grace", "60000"]);
    let pid = server.pid();
    // Its handler keeps the old process from ending.
    let slow = TcpStream::connect(server.address).unwrap();
    server.signal(libc::SIGHUP);
    server.read_stderr_until("listening on ");

    server.signal(libc::SIGHUP);

    let said = server.read_stderr_until("handed over to pid ");
    let second: i32 = support::word_after(&said, "handed over to pid ")
        .parse()
        .unwrap();
    let said = server.read_stderr_until("handed over to pid ");
    let third: i32 = support::word_after(&said, "handed over to pid ")
        .parse()
        .unwrap();
    assert!(pid != second && second != third, "{pid}, {second}, {third}");
    drop(slow);
    end(third);
}
