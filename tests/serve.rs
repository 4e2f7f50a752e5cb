//! Servers beside servers: who may share a port, who is refused, and what can be asked of them.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::io::{BufRead, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::ChildStdout;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Instant;

use support::{
    BOUND, Lines, Running, ServeProcess, counts, reuseport, run, start, visit, wait_until,
};

#[test]
fn second_copy_is_refused_unless_it_joins() {
    let mut first = ServeProcess::start(&["--quiet"]);
    let address = first.address.to_string();

    let (code, out, err) = run(&["serve", "--addr", &address]);

    assert_eq!(
        (code, out.as_str(), err.lines().count()),
        (1, "", 1),
        "{err}"
    );
    assert!(
        err.starts_with(&format!("reuseport: bind {address}: EADDRINUSE: ")),
        "{err}"
    );
    assert!(err.contains("--join"), "{err}");

    let second = ServeProcess::start(&["--join", "--quiet", "--addr", &address]);

    (0..200).for_each(|_| _ = visit(first.address));
    second.signal(libc::SIGTERM);
    let of_second = second.end().2;
    first.signal(libc::SIGTERM);

    let of_first = first.read_stderr_until("acceptor 2");
    let [one, other]: [usize; 2] = [&of_first, &of_second].map(|table| counts(table).iter().sum());
    // One of two equal groups has none of 200 with a chance of 2 * (1/2)^200.
    assert!(one > 0 && other > 0, "{of_first}{of_second}");
    assert_eq!(one + other, 200);
}

#[test]
fn killed_server_can_be_started_again_at_once() {
    let mut address = "127.0.0.1:0".to_owned();
    for _ in 0..3 {
        let mut server = ServeProcess::start(&["--quiet", "--addr", &address]);
        address = server.address.to_string();
        // The server closes first: its side of each lingers in TIME_WAIT.
        (0..1000).for_each(|_| _ = visit(server.address));

        server.signal(libc::SIGKILL);
        server.process.wait();
    }
}

/// Whether `serve` came up: it says so on stderr, or ends.
fn came_up(child: &mut Running) -> bool {
    let mut line = String::new();
    child.stderr().read_line(&mut line).unwrap();

    assert!(
        line.contains("listening on") || line.contains("EADDRINUSE"),
        "{line}"
    );
    line.contains("listening on")
}

#[test]
fn one_of_two_copies_started_at_once_comes_up() {
    let fresh = ServeProcess::start(&["--quiet"]).address;
    let copy = |address: SocketAddr| {
        let serve = ["serve", "--quiet", "--addr", &address.to_string()];
        start(&mut reuseport(&serve))
    };

    let both = |address| {
        let mut copies = [copy(address), copy(address)];
        copies.iter_mut().map(came_up).filter(|up| *up).count()
    };

    support::of_two_at_once_one(fresh, both);
}

#[test]
fn sigusr1_reports_each_member_and_its_queue() {
    let mut server = ServeProcess::start(&["--quiet", "--acceptors", "2", "--backlog", "50"]);
    (0..7).for_each(|_| _ = visit(server.address));
    for _ in 0..2 {
        server.signal(libc::SIGUSR1);
        let report = server.read_stderr_until("acceptor 1");
        let heading = format!(
            "reuseport: {}, pid {}, running for ",
            server.address,
            server.pid()
        );
        assert!(report.starts_with(&heading), "{report}");
        assert!(report.contains(" s: 7 connections so far\n"), "{report}");
        assert_eq!(report.matches("  0 of 50 wait\n").count(), 2, "{report}");
        assert_eq!(counts(&report).iter().sum::<usize>(), 7, "{report}");
    }
}

#[test]
fn last_table_has_totals_and_says_that_all_were_served() {
    let server = ServeProcess::start(&["--quiet", "--acceptors", "2"]);
    let heading = format!(
        "reuseport: {}, pid {}, ended after ",
        server.address,
        server.pid()
    );
    (0..7).for_each(|_| _ = visit(server.address));

    server.signal(libc::SIGTERM);
    let (code, _, table) = server.end();

    assert_eq!((code, table.lines().count()), (Some(0), 4), "{table}");
    assert!(table.starts_with(&heading), "{table}");
    let verdict = " s: 7 connections; all that were queued are served\n";
    assert!(
        table.contains(verdict) && !table.contains("wait"),
        "{table}"
    );
    assert_eq!(counts(&table).iter().sum::<usize>(), 7, "{table}");
    assert!(table.ends_with("\ntotal        7\n"), "{table}");
}

#[test]
fn every_way_of_serving_serves() {
    for args in [
        &["--steer", "hash"][..],
        &["--steer", "cpu", "--pin"],
        &["--steer=random"],
        &["--shared", "--acceptors", "4"],
        &["--join"],
        &["--acceptors", "1"],
    ] {
        let server = ServeProcess::start(args);

        (0..50).for_each(|_| _ = visit(server.address));
        server.signal(libc::SIGINT);
        let (code, out, _) = server.end();

        assert_eq!((code, out.lines().count()), (Some(0), 50), "{args:?}");
    }
}

#[test]
fn options_that_exclude_each_other_are_named() {
    let (code, _, err) = run(&["serve", "--join", "--steer", "cpu", "--addr", "127.0.0.1:0"]);
    assert_eq!((code, err.lines().count()), (1, 1));
    assert!(err.contains("joined group can be neither steered"), "{err}");

    let (code, _, err) = run(&[
        "serve",
        "--shared",
        "--steer",
        "random",
        "--addr",
        "127.0.0.1:0",
    ]);
    assert_eq!((code, err.lines().count()), (1, 1));
    assert!(err.contains("share one socket"), "{err}");

    let (code, _, err) = run(&["serve", "--steer", "left"]);
    assert_eq!((code, err.lines().count()), (2, 1));
    assert!(
        err.contains("--steer needs hash, cpu, random or byte:K"),
        "{err}"
    );

    let mut server = ServeProcess::start(&["--shared"]);
    server.signal(libc::SIGHUP);
    server.read_stderr_until("not handed over: members that share one socket");
}

/// The connections that wait on the listeners of a port.
fn waiting(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let port = format!(":{port:04X} ");
    let rows = table
        .lines()
        .filter(|row| row.contains(&port) && row.contains(" 0A "));
    let queues = rows.map(|row| row.split([' ', ':']).filter(|word| word.len() == 8).nth(3));
    queues
        .map(|queue| usize::from_str_radix(queue.unwrap(), 16).unwrap())
        .sum()
}

/// Nobody reads the server's standard output: makes connections until that pipe is full and as many
/// handlers as there are acceptors are stuck in it.
fn have_handlers_stuck(server: &mut ServeProcess, acceptors: usize) -> Lines<ChildStdout> {
    const LINE: usize = "acceptor 0\n".len();
    let stdout = server.process.stdout();
    let printed = || {
        let mut bytes: libc::c_int = 0;
        let fd = stdout.get_ref().as_fd().as_raw_fd();
        // SAFETY: `bytes` is writable, and the request writes an int.
        let done = unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut bytes) };
        assert_eq!(done, 0);
        usize::try_from(bytes).unwrap() / LINE
    };
    // SAFETY: takes an integer.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let fd = stdout.get_ref().as_fd().as_raw_fd();
    // SAFETY: takes integers; the descriptor is open.
    let size = unsafe { libc::fcntl(fd, libc::F_SETPIPE_SZ, page) };
    assert_eq!(libc::c_long::from(size), page, "a pipe of one page");
    // The kernel adds a line to the page if all of it has room there.
    let full = usize::try_from(page).unwrap() / LINE;
    let (mut made, address) = (0, server.address);
    wait_until("handlers are stuck", || {
        if made < printed() + 100 {
            (0..20).for_each(|_| drop(TcpStream::connect(address).unwrap()));
            made += 20;
        }
        // Who was accepted and has printed nothing is in a handler, which cannot print any more.
        let accepted = made - waiting(address.port());
        printed() == full && accepted >= full + acceptors
    });
    stdout
}

#[test]
fn second_signal_ends_it_at_once() {
    let mut server = ServeProcess::start(&["--grace", "600000"]);
    let _unread = have_handlers_stuck(&mut server, 3);

    server.signal(libc::SIGTERM);
    // Then it lets the next one through. While it waits for a signal, none counts as held back.
    let lets_through = || {
        let read =
            |file| std::fs::read_to_string(format!("/proc/{}/{file}", server.pid())).unwrap();
        if read("wchan").contains("sigtimedwait") {
            return false;
        }
        let status = read("status");
        let set = status
            .lines()
            .find_map(|line| line.strip_prefix("SigBlk:"))
            .unwrap();
        u64::from_str_radix(set.trim(), 16).unwrap() & 1 << (libc::SIGTERM - 1) == 0
    };
    wait_until("it has seen the first", lets_through);

    assert!(server.process.ended().is_none(), "it waits for the handler");

    // Again and again: sent before the first was taken, a second would be one with it.
    wait_until("it ends", || {
        server.signal(libc::SIGTERM);
        server.process.ended().is_some()
    });
}

#[test]
fn stuck_handler_is_reported_when_the_grace_ends() {
    let mut server = ServeProcess::start(&["--grace", "300", "--acceptors", "2"]);
    let _unread = have_handlers_stuck(&mut server, 2);

    server.signal(libc::SIGTERM);

    let told = server.read_stderr_until("acceptor 1");
    assert!(told.contains("a handler still runs"), "{told}");
    server.process.wait();
}

#[test]
fn connections_queued_at_sigterm_are_served() {
    // One acceptor that is stopped with its process while 60 connections come.
    let server = ServeProcess::start(&["--quiet"]);
    server.signal(libc::SIGSTOP);
    let mut clients: Vec<_> = (0..60)
        .map(|_| TcpStream::connect(server.address).unwrap())
        .collect();

    server.signal(libc::SIGTERM);
    server.signal(libc::SIGCONT);

    for client in &mut clients {
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "served to its end");
    }

    let (code, _, err) = server.end();
    assert_eq!((code, counts(&err).iter().sum()), (Some(0), 60), "{err}");
    assert!(
        err.contains("60 connections; all that were queued are served\n"),
        "{err}"
    );
}

#[test]
fn joined_server_that_leaves_loses_no_client() {
    const CLIENTS: usize = 8;
    let first = ServeProcess::start(&["--quiet", "--join"]);
    let address = first.address;
    let _second = ServeProcess::start(&["--quiet", "--join", "--addr", &address.to_string()]);
    let (made, late) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (begun, done) = (Instant::now(), AtomicBool::new(false));

    let took = thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !done.load(SeqCst) && begun.elapsed() < 2 * BOUND {
                    let mut client = TcpStream::connect(address).unwrap();
                    client.set_read_timeout(Some(BOUND)).unwrap();
                    client.read_to_end(&mut Vec::new()).expect("not lost");
                    late.fetch_add(support::sent_again(&client).into(), SeqCst);
                    made.fetch_add(1, SeqCst);
                }
            });
        }
        let more = |what| {
            let before = made.load(SeqCst);
            wait_until(what, || made.load(SeqCst) > before + 2000);
        };
        more("the load is on");
        let begun = Instant::now();
        first.signal(libc::SIGTERM);
        assert_eq!(first.end().0, Some(0));
        let took = begun.elapsed();
        more("the second goes on alone");
        done.store(true, SeqCst);
        took
    });

    let (made, late) = (made.into_inner(), late.into_inner());
    println!("{late} of {made} late");
    // A SYN that was dropped comes again after a second: each client is late once, and once more
    // for every second that the leaving takes.
    let most = CLIENTS as u128 * (1 + took.as_millis() / 900);
    assert!(late as u128 <= most, "{late} of {made} late");
}
