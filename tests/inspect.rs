//! `reuseport inspect` beside `ss`.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, id};

use reuseport::{Group, Listener};
use support::{ServeProcess, finish, program, reuseport, run, text, tool, wait_until};

/// Protocol, address, user and pid of a row; then how many sockets it has, and what is queued on
/// them.
type Rows = BTreeMap<[String; 4], (usize, usize)>;

/// What `inspect` shows, of these ports.
fn inspected(out: &str, ports: &[u16]) -> Rows {
    let mut rows = Rows::new();
    for line in out.lines().skip(1).take_while(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        let [
            protocol,
            address,
            n,
            queued,
            _limit,
            _drops,
            user,
            pid,
            _program,
        ] = words[..]
        else {
            panic!("{line}")
        };
        let (n, queued): (usize, usize) = (n.parse().unwrap(), queued.parse().unwrap());
        let row = [protocol, address, user, pid].map(str::to_owned);
        if ports
            .iter()
            .any(|port| address.ends_with(&format!(":{port}")))
        {
            let sum = rows.entry(row).or_default();
            *sum = (sum.0 + n, sum.1 + queued);
        }
    }
    rows
}

/// What `ss` shows, of these ports.
fn listed(ports: &[u16]) -> Rows {
    let done = finish(
        program("ss")
            .arg("-tulnpeH")
            .stdout(std::process::Stdio::piped()),
    );
    let mut rows = Rows::new();
    for line in text(&done.stdout).lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        // It writes a wildcard that takes both families as a star.
        let address = words[4].replace("*:", "[::]:");
        if !ports
            .iter()
            .any(|port| address.ends_with(&format!(":{port}")))
        {
            continue;
        }
        let after = |what: &str| line.split(what).nth(1)?.split([',', ' ']).next();
        let pid = after("pid=").unwrap_or("-").to_owned();
        // It leaves root's number out.
        let user = name(after("uid:").unwrap_or("0"));
        let row = rows.entry([words[0].to_owned(), address, user, pid]);
        let sum: &mut (usize, usize) = row.or_default();
        *sum = (sum.0 + 1, sum.1 + words[2].parse::<usize>().unwrap());
    }
    rows
}

/// The name of a user, or its number.
fn name(number: &str) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut users = users.lines().map(|line| line.split(':'));
    let found = users.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1) == Some(number)).then_some(name)
    });
    found.unwrap_or(number).to_owned()
}

/// `serve` as another user, if this one is root.
fn as_another_user(directory: &std::path::Path, args: &[&str]) -> Command {
    let copied = directory.join("reuseport");
    support::copy(env!("CARGO_BIN_EXE_reuseport"), &copied);
    let mut command = program(copied);
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(65534).gid(65534);
    }
    command.args(args);
    command
}

/// Servers of six kinds, one of another user, if this one is root.
fn servers(directory: &std::path::Path) -> Vec<ServeProcess> {
    let mut servers = Vec::new();
    for (args, addresses) in [
        (&["--acceptors", "2"][..], &["127.0.0.1:0", "[::1]:0"][..]),
        (&["--join"], &["0.0.0.0:0", "[::]:0"]),
        (&["--shared"], &["127.0.0.1:0"]),
        (&["--only-v6"], &["[::]:0"]),
        (&["--udp"], &["127.0.0.1:0", "[::1]:0"]),
    ] {
        let start = |address: &&str| ServeProcess::start(&[args, &["--addr", address]].concat());
        servers.extend(addresses.iter().map(start));
    }
    let joined = servers[2].address.to_string();
    servers.push(ServeProcess::start(&["--join", "--addr", &joined]));
    let args = ["serve", "--addr", "127.0.0.1:0"];
    let mut other = as_another_user(directory, &args);
    servers.push(ServeProcess::from(&mut other));
    servers
}

#[test]
fn rows_are_those_of_ss() {
    if !tool("ss") {
        return;
    }
    let directory = support::Directory::for_everybody("inspect");
    let servers = servers(&directory.0);
    let queue = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = queue.local_addr().unwrap();
    let _queued: Vec<_> = (0..3).map(|_| TcpStream::connect(to).unwrap()).collect();
    let ports = servers.iter().map(|server| server.address.port());
    let ports: Vec<_> = ports.chain([to.port()]).collect();

    let (code, out, err) = run(&["inspect"]);

    assert_eq!((code, err.as_str()), (0, ""));
    let rows = inspected(&out, &ports);
    assert_eq!(rows, listed(&ports), "{out}");
    assert_eq!((servers.len(), rows.len()), (10, 11), "{out}");
    let users: BTreeSet<_> = rows.keys().map(|[_, _, user, _]| user).collect();
    // SAFETY: takes nothing.
    let root = unsafe { libc::geteuid() } == 0;
    assert_eq!(users.len(), 1 + usize::from(root), "{out}");
    assert!(rows.values().any(|row| *row == (1, 3)), "{out}");
    for port in &ports {
        let (_, out, _) = run(&["inspect", &port.to_string()]);
        assert_eq!(inspected(&out, &[*port]), listed(&[*port]), "{out}");
    }
}

#[test]
fn noteworthy_is_noted() {
    // In this process, one program; the other joins it.
    let group = Group::options()
        .join(true)
        .bind(([127, 0, 0, 1], 0), 2)
        .unwrap();
    let address = group.local_addr();
    let other = ServeProcess::start(&["--join", "--addr", &address.to_string()]);
    let any = Listener::bind(([0, 0, 0, 0], address.port())).unwrap();
    let udp = Group::bind_udp(([127, 0, 0, 1], 0), 2).unwrap();
    let full = Listener::options()
        .backlog(1)
        .bind(([127, 0, 0, 1], 0))
        .unwrap();
    let to = full.local_addr().unwrap();
    let clients: Vec<_> = (0..2).map(|_| TcpStream::connect(to).unwrap()).collect();
    wait_until("both are queued", || full.queue().unwrap().len == 2);

    let (_, out, _) = run(&["inspect"]);

    let programs = format!("tcp {address}: 2 programs: ");
    let line = out
        .lines()
        .find(|line| line.starts_with(&programs))
        .unwrap();
    for pid in [id(), other.pid().try_into().unwrap()] {
        assert!(line.contains(&format!("pid {pid} (")), "{line}");
    }
    for line in [
        format!(
            "tcp 0.0.0.0:{}: what is sent to 127.0.0.1 goes to tcp {address}\n",
            address.port()
        ),
        format!(
            "udp {}: shared address (the kernel does not tell by which",
            udp.local_addr()
        ),
        format!("tcp {to}: 1 of 1 queue full\n"),
    ] {
        assert!(out.contains(&line), "{line} is not in {out}");
    }
    drop((clients, any));
}

#[test]
fn ordinary_user_is_told_what_he_may_not_see() {
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        return support::skip("not root");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let directory = support::Directory::for_everybody("inspect-user");
    let mut inspect = as_another_user(&directory.0, &["inspect", &port]);

    let done = finish(&mut inspect);

    let out = text(&done.stdout);
    assert!(
        out.lines()
            .nth(1)
            .unwrap()
            .ends_with("  root       -          -"),
        "{out}"
    );
    let line = "1 socket: held by processes that this user may not look into, or by the kernel\n";
    assert!(out.ends_with(line), "{out}");
}

#[test]
fn port_that_is_none_is_wrong_usage() {
    for wrong in ["0", "65536", "http"] {
        let (code, _, err) = run(&["inspect", wrong]);
        assert_eq!(code, 2);
        let line = format!("inspect needs a port from 1 to 65535, not {wrong} (see: ");
        assert!(err.contains(&line), "{err}");
    }
    assert_eq!(
        finish(&mut reuseport(&["inspect", "1", "2"])).status.code(),
        Some(2)
    );
}
