//! Churn, restart and stop under hardship: no connection is lost wherever the documentation
//! promises it. `.ci/matrix` prints the long form.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/load.rs"]
mod load;
#[path = "support/refuse.rs"]
mod refuse;
mod support;
#[path = "support/wire.rs"]
mod wire;

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;
use std::{env, thread};

use load::{Load, Report, answer};
use reuseport::{Acceptors, Connection, Group, GroupOptions, HandOverError, Listener, Server, sys};
use support::{BOUND, GIVEN, Running, namespace, program, wait_until};
use wire::Wire;

const ACTS: [&str; 3] = ["churn", "restart", "stop"];
const HARDSHIPS: [&str; 11] = [
    "plain",
    "no-privilege",
    "joined",
    "defer-accept",
    "fast-open",
    "syncookies=2",
    "somaxconn=16",
    MIGRATES,
    "no-netlink",
    "emfile",
    "lost-ack",
];
const MIGRATES: &str = "migrate_req=1";
const ACT: &str = "REUSEPORT_TEST_ACT";
const HARDSHIP: &str = "REUSEPORT_TEST_HARDSHIP";
const ADDRESS: &str = "REUSEPORT_TEST_ADDRESS";

/// The load has what it needs.
static ENDED: AtomicBool = AtomicBool::new(false);

fn is(name: &str, value: &str) -> bool {
    env::var(name).as_deref() == Ok(value)
}

fn options() -> GroupOptions {
    // One that stops and binds anew beside another process has to join it.
    let joins = is(ACT, "join") || is(ACT, "stop") && is(HARDSHIP, "joined");
    let options = Group::options().grace(BOUND).join(joins);
    match env::var(HARDSHIP).unwrap().as_str() {
        "defer-accept" => options.defer_accept(Duration::from_secs(30)),
        "fast-open" => options.before_bind(|fd| {
            let (queue, level) = (1024, libc::IPPROTO_TCP);
            let value = (&raw const queue).cast();
            // SAFETY: the option takes four bytes, which are readable.
            unsafe { sys::setsockopt(fd.as_raw_fd(), level, libc::TCP_FASTOPEN, value, 4) }?;
            Ok(())
        }),
        _ => options,
    }
}

fn address() -> SocketAddr {
    env::var(ADDRESS).unwrap().parse().unwrap()
}

/// A server in a process of its own, which acts until its standard input ends.
#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn acts_under_hardship() {
    if is(HARDSHIP, "no-netlink") {
        let netlink = Some(libc::AF_NETLINK);
        refuse::refusing(libc::SYS_socket, netlink, libc::EAFNOSUPPORT, act);
    } else {
        act();
    }
}

fn act() {
    thread::spawn(|| {
        _ = io::stdin().read_to_end(&mut Vec::new());
        ENDED.store(true, Relaxed);
    });
    if is(ACT, "control") {
        return close_without_a_drain();
    }
    let handler = |_, connection: Connection| answer(&connection);
    let inherited = Group::from_env().unwrap().pop();
    let first = inherited.is_none();
    let group = inherited.map(|group| group.with_options(options()));
    let group = group.unwrap_or_else(|| options().bind(address(), 4).unwrap());
    let address = group.local_addr();
    let mut server = group.spawn(handler).unwrap();
    if first {
        println!("\naddress {address}");
    }
    if is(HARDSHIP, "emfile") {
        thread::spawn(run_out_of_descriptors);
    }
    let mut acts = 0;
    while !ENDED.load(Relaxed) {
        match env::var(ACT).unwrap().as_str() {
            "churn" => {
                acts += usize::from(replace(&server));
                if is(HARDSHIP, "joined") {
                    // Otherwise most clients would wait to send their SYN again.
                    thread::sleep(Duration::from_millis(500));
                }
            }
            "restart" if restart(&server) => return println!("\nacted 1"),
            "stop" => {
                server.stop(BOUND);
                let again = || options().bind(address, 4).ok()?.spawn(handler).ok();
                let mut new = None;
                wait_until("it is bound again", || {
                    new = again();
                    new.is_some()
                });
                server = new.unwrap();
                acts += 1;
                thread::sleep(Duration::from_millis(500));
            }
            _ => thread::sleep(Duration::from_millis(1)),
        }
    }
    println!("\nacted {acts}");
    server.stop(BOUND);
}

/// Adds a member and retires the oldest. Returns false if there was no descriptor for it.
fn replace(server: &Server) -> bool {
    let ids = server.members().into_iter().map(|member| member.stats.id);
    let oldest = ids.min().unwrap();
    server.add().is_ok() && {
        wait_until("it can leave", || server.retire(oldest).is_ok());
        true
    }
}

/// Returns whether a new process has taken over.
fn restart(server: &Server) -> bool {
    let mut next = support::role("acts_under_hardship");
    next.stdin(Stdio::inherit()).stdout(Stdio::inherit());
    let left = server
        .hand_over(next, BOUND)
        .and_then(|ready| ready.leave(BOUND));
    match left {
        Ok(_) => true,
        Err(HandOverError::ChildExited) => {
            wait_until("this one ends too", || ENDED.load(Relaxed));
            false
        }
        // Too early, or without a descriptor.
        Err(_) => {
            thread::sleep(Duration::from_millis(1));
            false
        }
    }
}

/// Again and again, for some milliseconds, this process can open no descriptor.
fn run_out_of_descriptors() {
    while !ENDED.load(Relaxed) {
        let usual = support::limit_softly(libc::RLIMIT_NOFILE, 3).unwrap();
        thread::sleep(Duration::from_millis(5));
        support::limit_softly(libc::RLIMIT_NOFILE, usual).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
}

/// The control: the oldest listener is closed, and that is all.
fn close_without_a_drain() {
    let first = Listener::bind(address()).unwrap();
    let address = first.local_addr().unwrap();
    println!("\naddress {address}");
    let serve = |listener| Acceptors::spawn(vec![listener], |_, c| answer(&c)).unwrap();
    let coming = || serve(Listener::bind(address).unwrap());
    let mut members = VecDeque::from([serve(first)]);
    if !is(HARDSHIP, MIGRATES) {
        members.extend((1..4).map(|_| coming()));
    }
    let mut acts = 0;
    while !ENDED.load(Relaxed) {
        if is(HARDSHIP, MIGRATES) {
            // The kernel moves its connections to another member: there is none.
            members.pop_front().unwrap().stop();
            members.push_back(coming());
            thread::sleep(Duration::from_millis(500));
        } else {
            members.push_back(coming());
            thread::sleep(Duration::from_millis(20));
            members.pop_front().unwrap().stop();
        }
        acts += 1;
    }
    println!("\nacted {acts}");
}

/// One cell of the matrix.
#[derive(Clone, Copy)]
struct Cell {
    act: &'static str,
    hardship: &'static str,
    is_v6: bool,
    round_trip: Duration,
}

fn run(program_and_words: &str) {
    let mut words = program_and_words.split(' ');
    let mut command = program(words.next().unwrap());
    let done = support::finish(command.args(words));
    assert!(done.status.success(), "{program_and_words}: {done:?}");
}

/// Loses the last packet of every 50th handshake, and the client's first bytes.
fn last_acks() -> impl FnMut(&[u8]) -> bool + Send {
    let (mut connections, mut to_lose) = (0, std::collections::BTreeMap::new());
    move |packet: &[u8]| {
        let (at, protocol) = if packet[0] >> 4 == 6 {
            (40, packet[6])
        } else {
            (20, packet[9])
        };
        if i32::from(protocol) != libc::IPPROTO_TCP {
            return false;
        }
        let (port, flags) = ([packet[at], packet[at + 1]], packet[at + 13]);
        if flags & 0x12 == 0x02 {
            connections += 1;
            if connections % 50 == 0 {
                to_lose.insert(port, 2);
            }
            return false;
        }
        let Some(left) = to_lose.get_mut(&port) else {
            return false;
        };
        *left -= 1;
        if *left == 0 {
            to_lose.remove(&port);
        }
        true
    }
}

impl Cell {
    fn wire(self) -> io::Result<Wire> {
        let wire = if self.hardship == "lost-ack" {
            Wire::losing(self.round_trip, last_acks())
        } else {
            Wire::new(self.round_trip)
        }?;
        for (end, ip) in [(&wire.server, "fd77::1/64"), (&wire.client, "fd77::2/64")] {
            end.inside(|| {
                run(&format!("ip -6 address add {ip} dev wire nodad"));
            });
            end.set("net/ipv4/tcp_max_tw_buckets", "200000");
            end.set("net/ipv4/tcp_tw_reuse", "1");
            end.set("net/ipv4/ip_local_port_range", "1100 65000");
        }
        let (sysctl, value) = match self.hardship {
            "syncookies=2" => ("net/ipv4/tcp_syncookies", "2"),
            "somaxconn=16" => ("net/core/somaxconn", "16"),
            MIGRATES => ("net/ipv4/tcp_migrate_req", "1"),
            // On both ends, and without cookies: 0x207.
            "fast-open" => ("net/ipv4/tcp_fastopen", "519"),
            _ => return Ok(wire),
        };
        for end in [&wire.server, &wire.client] {
            end.set(sysctl, value);
        }
        Ok(wire)
    }

    /// Starts a role in the calling thread's namespace; returns it and its address.
    fn start(self, act: &str, at: SocketAddr) -> Running {
        let role = support::role("acts_under_hardship");
        let mut command = if self.hardship == "no-privilege" {
            let mut setpriv = program("setpriv");
            setpriv.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
            setpriv.arg(role.get_program()).args(role.get_args());
            setpriv
        } else {
            role
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        set(&mut command, self.hardship, act, at);
        support::start(&mut command)
    }

    /// What came of `connections` clients, and how many acts there were.
    fn play(self, act: &str, wire: &Wire, connections: usize) -> (Report, usize) {
        let ip: IpAddr = if self.is_v6 {
            "fd77::1".parse().unwrap()
        } else {
            wire::SERVER.into()
        };
        wire.server.inside(|| {
            let mut server = self.start(act, (ip, 0).into());
            let mut lines = server.stdout();
            let said = support::read_until(&mut lines, "address ");
            let address = support::word_after(&said, "address ").parse().unwrap();
            let mut other = (self.hardship == "joined" && act != "control").then(|| {
                let mut other = self.start("join", address);
                support::read_until(&mut other.stdout(), "address ");
                other
            });
            let load = self.load(wire, address);
            let bound = Duration::from_secs(120 + connections as u64 / 20);
            support::wait_until_within(bound, "the load is served", || {
                load.made() >= connections && (act != "control" || load.lost() > 0)
            });
            // While its servers still act.
            let report = load.stop();
            drop(server.stdin());
            let mut acts = 0;
            let mut line = String::new();
            while lines.read_line(&mut line).unwrap() > 0 {
                let acted = line.strip_prefix("acted ").map(str::trim_end);
                acts += acted.map_or(0, |acts| acts.parse().unwrap());
                line.clear();
            }
            drop(other.as_mut().map(Running::stdin));
            (report, acts)
        })
    }

    fn load(self, wire: &Wire, address: SocketAddr) -> Load {
        load::FAST_OPEN.store(self.hardship == "fast-open", Relaxed);
        let far = !self.round_trip.is_zero() || self.hardship == "lost-ack";
        let clients = if far { 128 } else { 16 };
        let (client, begun) = (wire.client.clone(), Arc::new(AtomicU32::new(0)));
        let round_trip = self.round_trip;
        Load::start_in(address, clients, move || {
            if far {
                client.enter();
                thread::sleep(2 * round_trip * begun.fetch_add(1, Relaxed) / 128);
            }
        })
    }
}

fn set(command: &mut Command, hardship: &str, act: &str, at: SocketAddr) {
    command
        .env(HARDSHIP, hardship)
        .env(ACT, act)
        .env(ADDRESS, at.to_string())
        .env(GIVEN, namespace().to_string());
}

/// Lost ones; if `may_refuse`, without those that were refused while no server was there.
fn lost(may_refuse: bool, report: &Report) -> usize {
    let counts = |what: &str| !(may_refuse && load::is_refused(what));
    let others = report.lost.iter().filter(|(what, _)| counts(what));
    others.map(|(_, times)| times).sum()
}

/// Plays a cell and its control, prints its row, and returns how many were lost.
fn row(cell: Cell, connections: usize, with_control: bool) -> io::Result<usize> {
    let (report, acts) = cell.play(cell.act, &cell.wire()?, connections);
    let control = with_control.then(|| cell.wire().map(|wire| cell.play("control", &wire, 1000)));
    let control = control.transpose()?;
    let control = control.map(|(report, _)| lost(cell.hardship == MIGRATES, &report));
    let lost = lost(cell.act == "stop", &report);
    println!(
        "| {} | {} | {} | {} ms | {} | {acts} | {lost} | {} | {} |",
        cell.act,
        cell.hardship,
        if cell.is_v6 { "IPv6" } else { "IPv4" },
        cell.round_trip.as_millis(),
        report.made,
        report.late,
        control.map_or("-".to_owned(), |lost| lost.to_string()),
    );
    if lost > 0 {
        println!("{report:?}");
    }
    Ok(lost)
}

/// A joined group cannot be handed over.
fn exists(cell: &Cell) -> bool {
    (cell.act, cell.hardship) != ("restart", "joined")
}

fn tools() -> bool {
    // SAFETY: takes nothing.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        support::skip("the network devices are root's");
    }
    root && ["ip", "setpriv"].into_iter().all(support::tool)
}

#[test]
fn churn_under_each_hardship_loses_no_connection() {
    if !tools() {
        return;
    }
    for hardship in HARDSHIPS {
        let cell = Cell {
            act: "churn",
            hardship,
            is_v6: false,
            round_trip: Duration::ZERO,
        };
        match row(cell, 1000, false) {
            Err(error) => return support::skip(&format!("no TUN devices: {error}")),
            Ok(lost) => assert_eq!(lost, 0, "{hardship}"),
        }
    }
}

#[test]
#[ignore = "the long form: .ci/matrix"]
fn matrix() {
    let connections = env::var("REUSEPORT_CONNECTIONS").map_or(20_000, |n| n.parse().unwrap());
    let words = env::var("REUSEPORT_CELLS").unwrap_or_default();
    let words: Vec<_> = words.split_whitespace().collect();
    let chosen = |all: &[&str], it: &str| {
        let ours: Vec<_> = words.iter().filter(|word| all.contains(word)).collect();
        ours.is_empty() || ours.contains(&&it)
    };
    println!("| act | hardship | family | round trip | served | acts | lost | late | control |");
    println!("|---|---|---|--:|--:|--:|--:|--:|--:|");
    let mut bad = 0;
    for act in ACTS.into_iter().filter(|it| chosen(&ACTS, it)) {
        for hardship in HARDSHIPS.into_iter().filter(|it| chosen(&HARDSHIPS, it)) {
            for family in ["4", "6"].into_iter().filter(|it| chosen(&["4", "6"], it)) {
                let trips = [("0", 0), ("20", 20), ("80", 80)].into_iter();
                for (_, ms) in trips.filter(|it| chosen(&["0", "20", "80"], it.0)) {
                    let cell = Cell {
                        act,
                        hardship,
                        is_v6: family == "6",
                        round_trip: Duration::from_millis(ms),
                    };
                    if exists(&cell) {
                        bad += row(cell, connections, true).unwrap();
                    }
                }
            }
        }
    }
    assert_eq!(bad, 0, "connections were lost");
}
