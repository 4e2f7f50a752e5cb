//! The programs of at most 40 lines: each is started, asked, and ended by Ctrl-C while clients are
//! queued.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::{fs, iter};

use support::{BOUND, Newest, Server, line, wait_until};

const NAMES: [&str; 9] = [
    "http", "echo", "runtime", "udp_echo", "rolling", "takeover", "options", "peers", "metrics",
];
/// So many wait when a program is ended.
const QUEUED: usize = 60;
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    client
}

/// Says all that it has to say.
fn client(address: SocketAddr) -> TcpStream {
    let mut client = connect(address);
    client.write_all(REQUEST.as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    client
}

fn answer(mut client: TcpStream) -> String {
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

/// Ends the program by Ctrl-C while clients are queued; returns what each of them got, and the
/// rest of what the program said.
fn end(mut server: Server) -> (Vec<String>, String) {
    server.signal(libc::SIGSTOP);
    let clients: Vec<_> = iter::repeat_with(|| client(server.address))
        .take(QUEUED)
        .collect();
    server.signal(libc::SIGINT);
    server.signal(libc::SIGCONT);
    let answers = clients.into_iter().map(answer).collect();
    let mut said = String::new();
    server.stdout.read_to_string(&mut said).unwrap();
    assert!(server.child.wait().unwrap().success());
    (answers, said)
}

#[track_caller]
fn all_contain(answers: &[String], wanted: &str) {
    let other = answers.iter().find(|answer| !answer.contains(wanted));
    assert_eq!(other, None);
}

#[test]
fn short_programs_have_at_most_40_lines_and_no_unsafe() {
    for name in NAMES {
        let path = format!("src/bin/{name}.rs");
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        assert!(text.lines().count() <= 40, "{name}");
        assert!(!text.contains("unsafe"), "{name}");
        assert!(text.contains("\nfn main() -> io::Result<()> {\n"), "{name}");
    }
}

#[test]
fn http_ended_by_ctrl_c_answers_queued_clients() {
    let server = Server::start("http", 2);
    let answered = answer(client(server.address));

    let (answers, _) = end(server);

    assert!(answered.starts_with("HTTP/1.1 200 OK\r\n"), "{answered}");
    all_contain(&answers, "\r\n\r\nmember ");
}

#[test]
fn echo_ended_by_ctrl_c_echoes_queued_clients_and_counts_by_thread() {
    let mut server = Server::start("echo", 1);
    for _ in 0..2 {
        assert_eq!(answer(client(server.address)), REQUEST);
    }
    let bytes = REQUEST.len();
    let first = format!("member 0: {bytes} bytes by this thread");
    assert_eq!(line(&mut server.stdout), first);

    let (answers, said) = end(server);

    all_contain(&answers, REQUEST);
    assert_eq!(said.lines().count(), 1 + QUEUED, "{said}");
}

#[test]
fn runtime_ended_by_ctrl_c_greets_queued_clients() {
    let server = Server::start("runtime", 1);
    assert_eq!(answer(client(server.address)), "hello\n");

    let (answers, _) = end(server);

    all_contain(&answers, "hello\n");
}

#[test]
fn udp_echo_ended_by_ctrl_c_answers_queued_datagrams() {
    const DATAGRAMS: u8 = 40;
    let mut server = Server::start("udp_echo", 1);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(server.address).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    server.signal(libc::SIGSTOP);
    (0..DATAGRAMS).for_each(|n| assert_eq!(client.send(&[n]).unwrap(), 1));

    server.signal(libc::SIGINT);
    server.signal(libc::SIGCONT);

    let mut answers = [0; DATAGRAMS as usize];
    for answer in &mut answers {
        client.recv(std::slice::from_mut(answer)).unwrap();
    }
    answers.sort_unstable();
    assert!((0..DATAGRAMS).eq(answers));
    let said = line(&mut server.stdout);
    assert_eq!(said, format!("receiver 0 has answered {DATAGRAMS}"));
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn rolling_replaces_every_member_and_ended_by_ctrl_c_answers_queued_clients() {
    let mut server = Server::start("rolling", 2);
    assert!(answer(client(server.address)).contains("\r\n\r\nmember "));

    server.signal(libc::SIGHUP);

    let lines = [line(&mut server.stdout), line(&mut server.stdout)];
    assert!(
        lines[0].starts_with("2 in place of 0, accepted "),
        "{lines:?}"
    );
    assert!(
        lines[1].starts_with("3 in place of 1, accepted "),
        "{lines:?}"
    );
    let (answers, _) = end(server);
    let new = |answer: &String| answer.ends_with("member 2\n") || answer.ends_with("member 3\n");
    assert!(answers.iter().all(new), "{answers:?}");
}

#[test]
fn takeover_hands_over_and_ended_by_ctrl_c_answers_queued_clients() {
    let mut server = Server::start("takeover", 2);
    server.signal(libc::SIGHUP);
    let lines = [line(&mut server.stdout), line(&mut server.stdout)];
    let new = lines
        .iter()
        .find_map(|line| line.strip_prefix("handed over to pid "));
    let new = Newest(new.unwrap().parse().unwrap());
    assert!(server.child.wait().unwrap().success());

    new.signal(libc::SIGSTOP);
    let address = server.address;
    let clients: Vec<_> = iter::repeat_with(|| client(address)).take(QUEUED).collect();
    new.signal(libc::SIGINT);
    new.signal(libc::SIGCONT);

    let answers: Vec<_> = clients.into_iter().map(answer).collect();
    all_contain(&answers, "\r\n\r\nmember ");
    wait_until("it has ended", || new.has_ended());
}

#[test]
fn options_are_those_that_were_set() {
    let mut server = Server::start("options", 1);
    let said = line(&mut server.stdout);
    assert_eq!(said, "64 connections may wait on each member");

    let (answers, _) = end(server);

    all_contain(&answers, "\r\n\r\nmember ");
}

#[test]
fn peers_are_logged_with_their_addresses() {
    let mut server = Server::start("peers", 2);
    let one = client(server.address);
    let own = one.local_addr().unwrap();
    answer(one);
    let said = line(&mut server.stdout);
    assert!(
        said.starts_with(&format!("{own}: answered by member ")),
        "{said}"
    );

    let (answers, said) = end(server);

    all_contain(&answers, "\r\n\r\nmember ");
    assert_eq!(
        said.matches(": answered by member ").count(),
        QUEUED,
        "{said}"
    );
}

#[test]
fn metrics_show_what_was_accepted() {
    let mut server = Server::start("metrics", 2);
    let said = line(&mut server.stdout);
    let metrics: SocketAddr = said.strip_prefix("metrics on ").unwrap().parse().unwrap();
    (0..5).for_each(|_| _ = answer(client(server.address)));

    let figures = answer(client(metrics));

    for wanted in ["accepted_total 5\n", "queued{member=\"1\"} 0\n"] {
        assert!(figures.contains(wanted), "{figures}");
    }
    let (answers, _) = end(server);
    all_contain(&answers, "\r\n\r\nmember ");
}
