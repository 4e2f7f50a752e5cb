//! The command with datagrams.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::net::UdpSocket;

use support::{ServeProcess, run, wait_until};

#[test]
fn serve_udp_replies_to_each_and_connect_counts() {
    for more in [
        &[][..],
        &["--batch", "--pin"],
        &["--steer", "cpu"],
        &["--shared"],
    ] {
        let mut args = vec!["--udp", "--echo"];
        args.extend(more);
        let server = ServeProcess::start(&args);
        let address = server.address.to_string();
        let connect = ["connect", "--udp", "--addr", &address];
        let many = [
            &connect[..],
            &["--connections", "300", "--concurrency", "4"],
        ]
        .concat();
        let (code, out, err) = run(&many);
        assert_eq!(code, 0, "{err}");
        assert!(out.starts_with("300 answers in "), "{out}");

        server.signal(libc::SIGTERM);
        let (code, out, err) = server.end();
        assert_eq!(code, Some(0));

        let numbers = ["receiver 0", "receiver 1", "receiver 2"];
        assert!(out.lines().all(|line| numbers.contains(&line)), "{out}");
        assert_eq!(out.lines().count(), 300);
        assert_eq!(
            err.lines()
                .filter(|line| line.starts_with("receiver "))
                .count(),
            3,
            "{err}"
        );
    }
}

#[test]
fn connect_udp_without_an_answer_says_so() {
    let mut server = ServeProcess::start(&["--udp", "--quiet", "--acceptors", "1"]);
    let address = server.address.to_string();

    let (code, out, err) = run(&["connect", "--udp", "--addr", &address, "--timeout", "50"]);
    assert_eq!(code, 1);
    assert!(
        out.contains("10 failed: recv: no answer within 50ms"),
        "{out}"
    );
    assert!(err.contains("10 of 10 answers failed"), "{err}");
    assert!(err.contains("`reuseport serve --udp --echo`"), "{err}");

    wait_until("it has counted them", || {
        server.signal(libc::SIGUSR1);
        server
            .read_stderr_until("receiver 0")
            .contains("receiver 0   10  ")
    });
    drop(server);

    // The port is closed now, and the kernel says so.
    let (code, out, _) = run(&["connect", "--udp", "--addr", &address]);
    assert_eq!(code, 1);
    assert!(out.contains("10 failed: recv: ECONNREFUSED"), "{out}");
}

#[test]
fn datagrams_dropped_by_the_queue_are_reported() {
    let mut server =
        ServeProcess::start(&["--udp", "--quiet", "--acceptors", "1", "--slow", "100:200"]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();

    // How many find room is the machine's choice (net.core.rmem_default).
    wait_until("the kernel has dropped some", || {
        for _ in 0..2000 {
            client.send_to(&[0; 1000], server.address).unwrap();
        }
        server.signal(libc::SIGUSR1);
        let said = server.read_stderr_until("receiver 0");
        assert!(said.contains(" bytes wait"), "{said}");
        said.contains(" dropped")
    });
}

#[test]
fn serve_udp_port_is_exclusive_unless_joined() {
    let first = ServeProcess::start(&["--udp"]);
    let address = first.address.to_string();

    let (code, _, err) = run(&["serve", "--udp", "--addr", &address]);
    assert_eq!(code, 1);
    assert!(err.contains("bind") && err.contains("EADDRINUSE"), "{err}");

    let joined = ServeProcess::start(&["--udp", "--join"]);
    let address = joined.address.to_string();
    ServeProcess::start(&["--udp", "--join", "--addr", &address]);
}

#[test]
fn payload_byte_steers_to_the_receiver_of_that_number() {
    let server = ServeProcess::start(&["--udp", "--steer", "byte:1", "--acceptors", "4"]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();

    for receiver in [3, 1, 1, 2] {
        client.send_to(&[9, receiver], server.address).unwrap();
    }

    server.signal(libc::SIGTERM);
    let (_, out, _) = server.end();

    let mut numbers: Vec<_> = out.lines().collect();
    numbers.sort_unstable();
    assert_eq!(
        numbers,
        ["receiver 1", "receiver 1", "receiver 2", "receiver 3"]
    );
}

#[test]
fn options_of_connections_are_refused_with_udp() {
    for (args, wanted) in [
        (
            &["serve", "--udp", "--spare-threads", "1"][..],
            "unexpected argument \"--spare-threads\": it does not go with --udp",
        ),
        (
            &["serve", "--udp", "--backlog", "1"],
            "unexpected argument \"--backlog\"",
        ),
        (
            &["serve", "--echo"],
            "unexpected argument \"--echo\": it goes with --udp",
        ),
        (
            &["connect", "--udp", "--hold", "1"],
            "unexpected argument \"--hold\"",
        ),
        (&["compare", "--udp", "--clients", "21"], "from 1 to 20"),
        (&["serve", "--steer", "byte:70000", "--udp"], "byte:K"),
    ] {
        let (code, _, err) = run(args);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(wanted) && err.lines().count() == 1, "{err}");
    }

    let (code, _, err) = run(&["serve", "--steer", "byte:0", "--addr", "127.0.0.1:0"]);
    assert_eq!(code, 1);
    assert!(
        err.contains("only datagrams can be steered by a byte: byte:K goes with --udp"),
        "{err}"
    );
}

#[test]
fn demo_udp_prints_each_receiver() {
    let (code, out, err) = run(&[
        "demo",
        "--udp",
        "--addr",
        "127.0.0.1:0",
        "--connections",
        "100",
    ]);

    assert_eq!(code, 0, "{err}");
    let told = out
        .lines()
        .filter(|line| line.starts_with("receiver "))
        .count();
    assert_eq!(told, 103, "{out}");
}
