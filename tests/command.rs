//! The command, as a person uses it.
#![cfg(feature = "std")]

mod support;

use std::fs;
use std::io::{BufRead, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;

use support::{
    ServeProcess, counts, descriptors, finish, program, reuseport, run, scratch, start, text, tool,
    visit, wait_until,
};

#[test]
fn demo_prints_an_acceptor_a_connection_and_the_counts() {
    let (code, out, err) = run(&["demo", "--addr", "127.0.0.1:0"]);

    assert_eq!((code, err.as_str()), (0, ""));

    let (lines, table) = out.split_once("\n\n").unwrap();
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(lines.len(), 10, "{out}");
    let counts = lines
        .iter()
        .map(|line| line.strip_prefix("acceptor ").unwrap());
    assert!(
        counts.into_iter().all(|n| n.parse::<usize>().unwrap() < 3),
        "{out}"
    );
    let missed = (0..3).any(|n| !lines.contains(&format!("acceptor {n}").as_str()));
    assert_eq!(table.contains("had none"), missed, "{out}");
    if missed {
        assert!(table.contains("in 5.2 % of runs"), "{out}");
    }
}

#[test]
fn demo_of_1000_connections_reaches_every_acceptor() {
    let (code, out, _) = run(&["--addr", "127.0.0.1:0", "--connections", "1000"]);

    assert_eq!(code, 0);

    let (lines, table) = out.split_once("\n\n").unwrap();
    let mut sum = 0;
    for (n, row) in table.lines().enumerate() {
        let mut words = row.split_whitespace();
        assert_eq!(
            (words.next(), words.next()),
            (Some("acceptor"), Some(n.to_string().as_str()))
        );
        let count: usize = words.next().unwrap().parse().unwrap();
        // One of three has none of a thousand with a chance below 1e-175.
        assert!(count > 0, "{table}");
        assert_eq!(
            lines
                .lines()
                .filter(|line| **line == *format!("acceptor {n}"))
                .count(),
            count
        );
        assert!(row.contains(" %  #"), "{row}");
        sum += count;
    }
    assert_eq!(sum, 1000);
}

#[test]
fn serve_with_a_python_client_prints_ten_lines() {
    if !tool("python3") {
        return;
    }
    let mut server = ServeProcess::start(&["--addr", "localhost:0"]);
    let client = format!(
        "import socket\nfor _ in range(10):\n  \
         with socket.create_connection(('localhost', {})) as s: s.recv(1)\n",
        server.address.port()
    );

    let python = finish(program("python3").args(["-c", &client]));
    assert!(python.status.success(), "{python:?}");

    server.signal(libc::SIGTERM);
    server.read_stderr_until("acceptor 2");
    let (code, out, _) = server.end();

    assert_eq!((code, out.lines().count()), (Some(0), 10), "{out}");
    assert!(
        out.lines().all(|line| line.starts_with("acceptor ")),
        "{out}"
    );
}

#[test]
fn serve_on_a_signal_ends_with_the_stats() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let server = ServeProcess::start(&["--acceptors", "2", "--quiet"]);
        (0..5).for_each(|_| _ = visit(server.address));

        server.signal(signal);
        let (code, out, err) = server.end();

        assert_eq!((code, out.as_str()), (Some(0), ""));
        let counts = counts(&err);
        let sum = counts.iter().sum::<usize>();
        assert_eq!((counts.len(), sum), (2, 5), "{err}");
    }
}

#[test]
fn serve_whose_reader_leaves_ends_quietly() {
    let mut server = ServeProcess::start(&[]);
    let mut stdout = server.process.stdout();

    let mut line = String::new();
    visit(server.address);
    stdout.read_line(&mut line).unwrap();

    assert!(line.starts_with("acceptor "), "{line}");
    drop(stdout);

    // The next line finds nobody; the client that caused it may see a reset.
    _ = TcpStream::connect(server.address).map(|mut client| client.read(&mut [0]));

    let (code, _, err) = server.end();
    assert_eq!((code, err.as_str()), (Some(0), ""));
}

#[test]
fn demo_on_a_full_disk_fails() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut demo = reuseport(&["demo", "--addr", "127.0.0.1:0"]);
    let done = start(demo.stdout(full)).into_output();

    assert_eq!(done.status.code(), Some(1));
    assert!(
        text(&done.stderr).starts_with("reuseport: stdout: No space left"),
        "{done:?}"
    );
}

/// Arguments that are wrong, and what the message says.
const WRONG: &[(&[&str], &str)] = &[
    (
        &["serve", "--acceptors", "0"],
        "--acceptors needs a whole number from 1 to 1024",
    ),
    (
        &["serve", "--acceptors"],
        "--acceptors needs a whole number from 1 to 1024 after it",
    ),
    (&["serve", "--acceptors=x"], "not \"x\""),
    (&["serve", "--backlog", "-1"], "--backlog needs"),
    (
        &["serve", "--addr", "3000"],
        "--addr needs an address such as",
    ),
    (
        &["serve", "--addr", "::1:3000"],
        "--addr needs an address such as",
    ),
    (
        &["serve", "--addr", "127.0.0.1:99999"],
        "--addr needs an address such as",
    ),
    (
        &["serve", "--addr", "unix:/run/reuseport.sock"],
        "a UNIX socket, such as unix:/run/reuseport.sock, has no port to share",
    ),
    (
        &["connect", "--addr", "127.0.0.1:1", "--addr", "127.0.0.1:2"],
        "unexpected argument \"--addr\": it was given before",
    ),
    (&["serve", "--colour"], "unexpected argument \"--colour\""),
    (&["serve", "twice"], "unexpected argument \"twice\""),
    (
        &["serve", "--quiet", "--quiet"],
        "unexpected argument \"--quiet\": it was given before",
    ),
    (&["connect", "--connections", "-5"], "--connections needs"),
    (&["connect", "--hold", "long"], "--hold needs"),
    (
        &["connect", "--hold=1", "--hold=2"],
        "unexpected argument \"--hold=2\": it was given before",
    ),
    (
        &["demo", "--backlog", "1"],
        "unexpected argument \"--backlog\"",
    ),
    (&["explain", "--claim", "none"], "--claim needs the name"),
    (
        &["serve", "--acceptors=2", "--acceptors", "3"],
        "unexpected argument \"--acceptors\": it was given before",
    ),
    (
        &["--acceptors", "2", "serve"],
        "unexpected argument \"serve\": a command stands before its options",
    ),
    (&["dance"], "there is no command \"dance\""),
    (&["dance"], "(see: reuseport --help)"),
    (&["serve", "--dance"], "(see: reuseport serve --help)"),
    (&["--dance"], "unexpected argument \"--dance\""),
];

#[test]
fn wrong_usage_is_one_line_that_names_the_argument() {
    for (args, named) in WRONG {
        let (code, out, err) = run(args);
        assert_eq!(
            (code, out.as_str(), err.lines().count()),
            (2, "", 1),
            "{args:?}: {err}"
        );
        assert!(
            err.starts_with("reuseport: ") && err.contains(named),
            "{args:?}: {err}"
        );
        assert!(err.contains("--help"), "{err}");
    }
}

#[test]
fn help_of_each_command_names_its_options() {
    for (command, option) in [
        ("demo", "--addr"),
        ("serve", "--addr"),
        ("connect", "--addr"),
        ("explain", "--claim"),
    ] {
        let (code, out, err) = run(&[command, "--help"]);

        assert_eq!((code, err.as_str()), (0, ""));
        assert!(
            out.contains("Usage: reuseport ") && out.contains(option),
            "{out}"
        );
        assert_eq!(run(&[command, "-h"]).1, out);
    }

    for (asked, like) in [
        (&["help"][..], "--help"),
        (&["help", "serve"], "serve --help"),
    ] {
        let flag: Vec<_> = like.split(' ').collect();
        assert_eq!(run(asked), run(&flag));
    }
    let (code, out, err) = run(&["help", "dance"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("there is no command \"dance\""), "{err}");
    let out = run(&["--help"]).1;
    assert!(out.contains("serve") && out.contains("explain"), "{out}");
    assert_eq!(
        run(&["--version"]).1,
        format!("reuseport {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn busy_port_is_named_with_call_address_and_errno() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for command in ["demo", "serve"] {
        let (code, out, err) = run(&[command, "--addr", &address]);

        assert_eq!(
            (code, out.as_str(), err.lines().count()),
            (1, "", 1),
            "{err}"
        );
        let expected = format!("reuseport: bind {address}: EADDRINUSE: ");
        assert!(
            err.starts_with(&expected) && err.contains("--addr"),
            "{err}"
        );
    }
}

#[test]
fn address_of_another_machine_is_named_in_the_error() {
    let (code, _, err) = run(&["serve", "--addr", "8.8.8.8:3000"]);
    assert_eq!((code, err.lines().count()), (1, 1));
    assert!(
        err.starts_with("reuseport: bind 8.8.8.8:3000: EADDRNOTAVAIL: "),
        "{err}"
    );
    let (code, _, err) = run(&["serve", "--addr", "no.such.host.invalid:3000"]);
    assert_eq!((code, err.lines().count()), (1, 1));
    assert!(err.contains("no.such.host.invalid:3000"), "{err}");
    let (code, _, err) = run(&["serve", "--addr", "[fe80::1]:0"]);
    assert_eq!((code, err.lines().count()), (1, 1));
    assert!(
        err.contains("needs its interface") || err.contains("EAFNOSUPPORT"),
        "{err}"
    );
}

#[test]
fn privileged_port_is_refused_with_a_hint() {
    use std::os::unix::process::CommandExt;
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        return support::skip("not root");
    }
    let first_free = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first_free.trim() == "0" {
        return support::skip("no port is privileged here");
    }
    // The user of the child must reach the program, wherever it was built.
    let directory = support::Directory::for_everybody("command");
    let copied = directory.0.join("reuseport");
    support::copy(env!("CARGO_BIN_EXE_reuseport"), &copied);
    let mut serve = program(&copied);

    let done = finish(serve.args(["serve", "--addr", "127.0.0.1:80"]).uid(65534));

    let err = text(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{err}");
    assert!(
        err.starts_with("reuseport: bind 127.0.0.1:80: EACCES: "),
        "{err}"
    );
    assert!(
        err.contains("privilege") && err.lines().count() == 1,
        "{err}"
    );
}

#[test]
fn serve_on_each_form_of_address_is_reached() {
    for given in ["127.0.0.1:0", "[::1]:0", "localhost:0"] {
        let server = ServeProcess::start(&["--addr", given]);
        assert!(
            server.address.ip().is_loopback(),
            "{given}: {}",
            server.address
        );

        let to = server.address.to_string();
        let (code, out, err) = run(&["connect", "--addr", &to]);

        assert_eq!((code, err.as_str()), (0, ""), "{given}");
        assert!(out.starts_with("10 connections in "), "{out}");
    }
}

#[test]
fn several_addresses_are_served_each_with_a_table_of_its_own() {
    let args = ["--quiet", "--addr", "127.0.0.1:0", "--addr", "[::1]:0"];
    let mut server = ServeProcess::start(&args);
    let said = server.read_stderr_until("listening on [::1]:");
    let second: SocketAddr = support::word_after(&said, "listening on ").parse().unwrap();

    (0..2).for_each(|_| _ = visit(server.address));
    (0..5).for_each(|_| _ = visit(second));
    server.signal(libc::SIGTERM);
    let (code, _, err) = server.end();

    assert_eq!(code, Some(0), "{err}");
    let counts = counts(&err);
    let [one, other]: [usize; 2] = [&counts[..3], &counts[3..]].map(|half| half.iter().sum());
    assert_eq!((one, other), (2, 5), "{err}");
    assert!(err.contains(&format!("reuseport: {second}, pid ")), "{err}");
}

#[test]
fn only_v6_leaves_ipv4_to_another_server() {
    let v6 = ServeProcess::start(&["--quiet", "--only-v6", "--addr", "[::]:0"]);
    let port = v6.address.port();

    let any = format!("0.0.0.0:{port}");
    let v4 = ServeProcess::start(&["--quiet", "--addr", &any]);

    visit(SocketAddr::from(([127, 0, 0, 1], port)));
    v4.signal(libc::SIGTERM);
    assert_eq!(counts(&v4.end().2).iter().sum::<usize>(), 1);
    let (code, _, err) = run(&["serve", "--only-v6", "--addr", &any]);
    assert_eq!(code, 2);
    assert!(err.contains("--only-v6 needs an IPv6 address"), "{err}");
}

#[test]
fn connect_to_a_closed_port_counts_refusals_and_hints() {
    // Held, or the kernel may choose it for one of the clients, which then connects to itself.
    let (port, _held) = support::reserve();
    let unused = format!("127.0.0.1:{port}");

    let (code, out, err) = run(&["connect", "--addr", &unused, "--connections", "4"]);

    assert_eq!(code, 1);
    assert!(out.contains("4 failed: connect: ECONNREFUSED: "), "{out}");
    // No percentiles of nothing; and what to do.
    assert!(out.starts_with("0 connections in "), "{out}");
    assert!(!out.contains("p50"), "{out}");
    let hint = format!("is there a `reuseport serve` at {unused}?");
    assert_eq!(
        err,
        format!("reuseport: 4 of 4 connections failed; {hint}\n")
    );
}

#[test]
fn connect_that_is_never_accepted_counts_missing_answers() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();

    let (code, out, _) = run(&[
        "connect",
        "--addr",
        &address,
        "--connections=2",
        "--timeout=50",
    ]);

    assert_eq!(code, 1);
    assert!(
        out.contains("2 failed: recv: no answer within 50ms"),
        "{out}"
    );
    drop(silent);
}

#[test]
fn connect_that_is_reset_in_the_queue_counts_resets() {
    let closing = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closing.local_addr().unwrap().to_string();
    let mut connect = reuseport(&["connect", "--addr", &address, "--connections", "3"]);
    let connect = start(connect.args(["--concurrency", "3", "--hold", "1"]));
    wait_until("they wait in the queue", || waiting(&address) == 3);

    drop(closing);

    let done = connect.into_output();
    assert_eq!(done.status.code(), Some(1));
    assert!(
        text(&done.stdout).contains("3 failed: recv: ECONNRESET: "),
        "{done:?}"
    );
}

/// The connections that wait on the one listener of `address`, an IPv4 one.
fn waiting(address: &str) -> usize {
    let address: std::net::SocketAddrV4 = address.parse().unwrap();
    let here = format!(
        "{:08X}:{:04X}",
        u32::from_ne_bytes(address.ip().octets()),
        address.port()
    );
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let rows = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows
        .into_iter()
        .find(|row| row[1] == here && row[3] == "0A");
    // Where other sockets come and go, the kernel may pass over one.
    row.map_or(0, |row| {
        usize::from_str_radix(row[4].split_once(':').unwrap().1, 16).unwrap()
    })
}

/// The resident memory of a process, in kB.
fn resident(pid: i32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn serve_after_100_000_connections_has_not_grown() {
    let server = ServeProcess::start(&["--quiet"]);
    let address = server.address.to_string();
    let open = descriptors(server.pid());
    let connect = |n: &str| {
        let given = [
            "connect",
            "--addr",
            &address,
            "--concurrency",
            "16",
            "--connections",
            n,
        ];
        let (code, out, err) = run(&given);
        assert_eq!(code, 0, "{out}{err}");
    };

    connect("10000");
    let early = resident(server.pid());
    connect("90000");
    let late = resident(server.pid());
    assert!(late <= early + 256, "{early} kB grew to {late} kB");
    wait_until("the last connections are closed", || {
        descriptors(server.pid()) == open
    });

    server.signal(libc::SIGTERM);
    let (_, _, err) = server.end();

    assert_eq!(counts(&err).iter().sum::<usize>(), 100_000);
}

#[test]
fn serve_makes_two_system_calls_a_connection() {
    if !tool("strace") {
        return;
    }
    let directory = scratch("two-calls");
    let mut strace = program("strace");
    strace
        .args(["-ff", "-qq", "-o"])
        .arg(directory.join("thread"));
    strace.arg(env!("CARGO_BIN_EXE_reuseport"));
    // On a busy machine a spare thread accepts too, and its monitor has to be woken.
    strace
        .args([
            "serve",
            "--quiet",
            "--spare-threads=0",
            "--addr",
            "127.0.0.1:0",
        ])
        .stdout(Stdio::null());
    let mut server = ServeProcess::from(&mut strace);

    (0..300).for_each(|_| _ = visit(server.address));
    let traced = support::child_of(server.pid());
    // SAFETY: takes two integers; strace has not reaped its child while it runs.
    unsafe { libc::kill(traced, libc::SIGTERM) };
    server.process.wait();

    let (mut accepted, mut acceptors) = (0, 0);
    for file in fs::read_dir(directory).unwrap() {
        let log = fs::read_to_string(file.unwrap().path()).unwrap();
        let lines = log.lines().skip_while(|line| !line.starts_with("accept4("));
        // At the end one fails, to wake the acceptor; what follows is the thread's own end.
        let lines = lines.take_while(|line| !line.contains(" = -1"));
        let names: Vec<_> = lines.map(|line| line.split('(').next().unwrap()).collect();
        if names.is_empty() {
            continue;
        }
        acceptors += 1;
        assert!(
            names.chunks(2).all(|pair| pair == ["accept4", "close"]),
            "{names:?}"
        );
        accepted += names.len() / 2;
    }

    assert_eq!((acceptors, accepted), (3, 300));
}
