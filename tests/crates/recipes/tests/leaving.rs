//! Workers leave while clients come.

mod support;
#[path = "../../../support/wire.rs"]
mod wire;

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use support::{BOUND, Server, line, signal_to, skip, tool, wait_until};
use wire::{SERVER, Wire};

const WORKERS: u32 = 5;
/// Bytes, or some more.
const AN_ANSWER: usize = 66;

/// While wrk connects, all workers but one leave. Whoever is reset or refused is an error to wrk.
#[track_caller]
fn leave_under_load(
    mut server: Server,
    round_trip: Duration,
    start: impl Fn(&mut Command) -> Child,
) {
    let mut wrk = Command::new("wrk");
    wrk.args([
        "--threads",
        "1",
        "--connections",
        "32",
        "--duration",
        "60s",
        "--timeout",
        "60s",
    ]);
    wrk.args([
        "--header",
        "Connection: close",
        &format!("http://{}/", server.address),
    ]);
    let wrk = start(wrk.stdout(Stdio::piped()));
    let counters = format!("/proc/{}/io", wrk.id());
    let bytes_read = || -> usize {
        let counters = fs::read_to_string(&counters).expect("/proc");
        let first = counters
            .lines()
            .find_map(|line| line.strip_prefix("rchar: "));
        first.expect("a counter").parse().expect("a number")
    };
    for left in 1..WORKERS {
        let before = bytes_read();
        wait_until("some were served since", || {
            bytes_read() > before + 64 * AN_ANSWER
        });
        // wrk's connections are in step: a visit takes two round trips, and all shake hands at
        // once. Each worker leaves at another time of that.
        thread::sleep(2 * round_trip * left / WORKERS);
        server.signal(libc::SIGUSR1);
        assert_eq!(line(&mut server.stdout), "a worker has left");
    }
    signal_to(&wrk, libc::SIGINT);
    let said = wrk.wait_with_output().expect("wrk").stdout;
    let said = String::from_utf8_lossy(&said);
    println!("{said}");
    assert!(
        said.contains(" requests in ") && !said.contains(" 0 requests in "),
        "{said}"
    );
    assert!(
        !said.contains("Socket errors") && !said.contains("Non-2xx"),
        "{said}"
    );
    server.signal(libc::SIGTERM);
    assert!(server.child.wait().expect("it").success());
}

/// How many SYNs were sent again in the calling thread's namespace.
fn syns_sent_again() -> usize {
    let counters = fs::read_to_string("/proc/thread-self/net/netstat").expect("/proc");
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut both = names.split(' ').zip(values.split(' '));
    let (_, value) = both
        .find(|(name, _)| *name == "TCPSynRetrans")
        .expect("the counter");
    value.parse().expect("a number")
}

/// On the loopback, where many connect; and over a wire with a delay, where it shows whether the
/// handshakes that are under way are waited for, and whether anybody had to try again.
#[track_caller]
fn loses_nobody(name: &str) {
    if !tool("wrk") {
        return;
    }
    leave_under_load(Server::start(name, WORKERS), Duration::ZERO, |wrk| {
        wrk.spawn().expect("wrk")
    });
    let round_trip = Duration::from_millis(80);
    match Wire::new(round_trip) {
        Err(error) => skip(&format!("no namespaces with TUN devices: {error}")),
        Ok(wire) => {
            let at = format!("{SERVER}:0");
            let server = wire.server.inside(|| Server::start_at(name, &at, WORKERS));
            let start = |wrk: &mut Command| wire.client.inside(|| wrk.spawn().expect("wrk"));
            leave_under_load(server, round_trip, start);
            assert_eq!(wire.lost(), 0, "packets");
            let again = wire.client.inside(syns_sent_again);
            println!("{again} SYNs were sent again");
            // If the machine stands still for a second, each may have to. With nobody steered
            // elsewhere, many have to for each worker that leaves.
            assert!(again <= 32, "{again} SYNs were sent again");
        }
    }
}

#[test]
fn axum_loses_nobody() {
    loses_nobody("axum");
}

#[test]
fn handed_loses_nobody() {
    loses_nobody("handed");
}

/// Of 100 clients who ask only after one of the workers has left, how many are served. That worker
/// of 3 has accepted none with a chance of (2/3)^100 < 3e-18.
#[track_caller]
fn slow_to_ask(name: &str) -> usize {
    let mut server = Server::start(name, 3);
    let connect = |_| TcpStream::connect(server.address).expect("connected");
    let clients: Vec<_> = (0..100).map(connect).collect();
    server.signal(libc::SIGUSR1);
    assert_eq!(line(&mut server.stdout), "a worker has left");
    let served = |mut client: &TcpStream| {
        let mut answer = String::new();
        client.set_read_timeout(Some(BOUND)).expect("set");
        let asked = client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        // Whoever was dropped hears of it here, or there.
        asked
            .and_then(|()| client.read_to_string(&mut answer))
            .is_ok_and(|length| length > 0)
    };
    clients.iter().filter(|client| served(client)).count()
}

#[test]
fn clients_that_ask_after_their_member_has_left_are_served() {
    assert_eq!(slow_to_ask("handed"), 100);
    assert_eq!(slow_to_ask("tokio"), 100);
    assert_eq!(slow_to_ask("axum"), 100);
}

#[test]
fn axum_finishes_what_it_has_begun() {
    if !tool("curl") {
        return;
    }
    let mut server = Server::start("axum", 3);
    let mut curl = Command::new("curl");
    curl.args(["-sSv", "--fail", "--max-time", "60", "--upload-file", "-"]);
    curl.args(["-H", "Expect: 100-continue", &server.address.to_string()]);
    let piped = curl
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut curl = piped.spawn().expect("curl");
    let mut heard = BufReader::new(curl.stderr.take().expect("a pipe"));
    while !line(&mut heard).contains("100 Continue") {}
    // The handler waits for the rest now.
    server.signal(libc::SIGTERM);
    wait_until("nobody listens", || {
        TcpStream::connect(server.address).is_err()
    });
    let mut stdin = curl.stdin.take().expect("a pipe");
    stdin.write_all(b"hello").expect("a pipe");
    drop(stdin);
    let done = curl.wait_with_output().expect("curl");
    let answer = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success() && answer.ends_with(": 5 bytes\n"),
        "{answer}"
    );
    assert!(server.child.wait().expect("it").success());
}
