//! One process after the other takes over under load, each as soon as that is permitted. Every
//! second one dies at a random moment; then the old one goes on, also with the connections that
//! are queued for the new one. Those that it had accepted would end with it: so it accepts none
//! before that moment.
//!
//! `REUSEPORT_HAND_OVERS` sets how many there are in each setting; the long form has 200:
//! `REUSEPORT_HAND_OVERS=200 cargo test --release --test restarts -- --nocapture`.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/load.rs"]
mod load;
mod support;
#[path = "support/wire.rs"]
mod wire;

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio, exit};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, fs, thread};

use load::{Load, Report, answer};
use reuseport::{
    Connection, Group, GroupError, HandOverError, Listener, Server, Steering, StopToken,
};
use support::{BOUND, GIVEN, namespace, program, wait_until, wait_until_dead};
use wire::{SERVER, Wire};

const MEMBERS: usize = 4;
const FAR: Duration = Duration::from_millis(40);
/// Where the first process binds.
const ADDRESS: &str = "REUSEPORT_TEST_ADDRESS";
/// How many hand-overs are to come.
const LEFT: &str = "REUSEPORT_TEST_LEFT";
/// A new process is to die: before it is ready, or later.
const DIES: &str = "REUSEPORT_TEST_DIES";
/// An old process ends without leaving.
const EXITS: &str = "REUSEPORT_TEST_EXITS";

/// The first process binds; each hands over until a new one stays.
#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn restarts_again_and_again() {
    let dies = env::var(DIES);
    if dies.as_deref() == Ok("early") {
        exit(3);
    }
    // A silent client is to hold its member up.
    let options = Group::options().grace(BOUND).spare_threads(0);
    let inherited = Group::from_env().unwrap().pop();
    let is_first = inherited.is_none();
    let group = inherited.map(|group| group.with_options(options.clone()));
    let group = group.unwrap_or_else(|| {
        let address: SocketAddr = env::var(ADDRESS).unwrap().parse().unwrap();
        options.bind(address, MEMBERS).unwrap()
    });
    let make = move |member| {
        while dies.is_ok() {
            thread::park();
        }
        move |connection: Connection, _: &StopToken| {
            let port = connection.peer_addr().unwrap().port();
            HANDLED.lock().unwrap().insert(member, port);
            answer(&connection);
            HANDLED.lock().unwrap().remove(&member);
        }
    };
    let server = group.spawn_with(make).unwrap();
    if is_first {
        let probe = Listener::bind(([127, 0, 0, 1], 0)).unwrap();
        println!("\nfilters {}", probe.attach_syn_filter().is_ok());
        println!("\naddress {}", server.local_addr());
        io::stdin().read_exact(&mut [0]).unwrap();
    }
    while env::var_os(DIES).is_some() {
        thread::park();
    }
    if !hand_over(&server, env::var(LEFT).unwrap().parse().unwrap()) {
        println!("\nlast");
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
        server.stop(BOUND);
    }
}

fn random_below(limit: u32) -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.subsec_nanos() / 10 % limit
}

/// Hands over until a new process stays. Returns false if no more is to come.
fn hand_over(server: &Server, mut left: u64) -> bool {
    while left > 0 {
        let mut next = support::role("restarts_again_and_again");
        next.stdin(Stdio::inherit()).stdout(Stdio::inherit());
        next.env(LEFT, (left - 1).to_string()).env_remove(DIES);
        let dies = left % 2 == 0;
        if dies {
            let when = ["early", "late", "late", "late"][random_below(4) as usize];
            next.env(DIES, when);
        }
        if server.set_steering(Steering::Hash) == Err(GroupError::PredecessorLeaving) {
            thread::sleep(Duration::from_millis(1));
            continue;
        }
        let held = dies.then(|| hold_up(server));
        let ready = server.hand_over(next, BOUND);
        if ready.is_ok() && env::var_os(EXITS).is_some() {
            exit(3);
        }
        let left_to = ready.and_then(|hand_over| {
            let pid = hand_over.pid();
            let killer = held.map(|held| thread::spawn(move || kill(pid, held)));
            let child = hand_over.leave(BOUND);
            killer.into_iter().for_each(|killer| killer.join().unwrap());
            child
        });
        match left_to {
            Ok(_) => {
                println!("\nleft");
                return true;
            }
            Err(HandOverError::ChildExited) => {
                println!("\ndied");
                left -= 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    false
}

/// The port of the client that each member serves.
static HANDLED: Mutex<BTreeMap<usize, u16>> = Mutex::new(BTreeMap::new());

/// Has a client say nothing. Others are queued behind it, so that its member cannot leave.
fn hold_up(server: &Server) -> TcpStream {
    let silent = TcpStream::connect(server.local_addr()).unwrap();
    let port = silent.local_addr().unwrap().port();
    wait_until("others are queued behind it", || {
        // First where it is: in the queue it would be taken for another one.
        let handled = HANDLED.lock().unwrap().clone();
        let is_held = |id: usize| handled.get(&id) == Some(&port);
        let members = server.members().into_iter();
        let mut held = members.filter(|member| is_held(member.stats.id));
        held.any(|member| member.queue.unwrap().len > 0)
    });
    silent
}

/// Kills a new process at a random moment. Its old process cannot have left before: there would be
/// no server.
fn kill(pid: u32, held: TcpStream) {
    thread::sleep(Duration::from_micros(random_below(50_000).into()));
    // SAFETY: takes two integers; the process is a child of this one, which has not waited for it.
    let killed = unsafe { libc::kill(pid.try_into().unwrap(), libc::SIGKILL) };
    assert_eq!(killed, 0);
    // All its threads: the first may have ended while others still have its descriptors.
    wait_until_dead(pid);
    drop(held);
}

/// How the first process is started: with `CAP_NET_ADMIN` or, in it and in all after it, without.
fn first(filters: bool) -> Command {
    let role = support::role("restarts_again_and_again");
    if filters {
        return role;
    }
    let mut setpriv = program("setpriv");
    setpriv.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
    setpriv.arg(role.get_program()).args(role.get_args());
    setpriv.stdout(Stdio::piped());
    setpriv
}

/// How many sockets listen on a port in the calling thread's namespace.
fn listening(port: u16) -> usize {
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    let listens = |row: &&str| {
        let words: Vec<_> = row.split_whitespace().collect();
        words[1].ends_with(&local) && words[3] == "0A"
    };
    table.lines().skip(1).filter(listens).count()
}

/// What came of the clients, of how many processes one has taken over, and how many have died.
type Outcome = (Report, usize, usize);

/// Has `first` and its successors restart in the calling thread's namespace, under a load.
fn restart(
    mut first: Command,
    ip: Ipv4Addr,
    hand_overs: usize,
    load: impl FnOnce(SocketAddr) -> Load,
) -> Outcome {
    first
        .env(ADDRESS, SocketAddr::from((ip, 0)).to_string())
        .env(LEFT, hand_overs.to_string())
        .env(GIVEN, namespace().to_string());
    let exits = first.get_envs().any(|(name, _)| name == EXITS);
    let filters = first.get_program() != "setpriv";
    // Where one of them panics, it says why.
    let mut first = support::start(first.stdin(Stdio::piped()).stderr(Stdio::inherit()));
    let mut input = first.stdin().unwrap();
    let mut lines = first.stdout();
    let mut word_of = |what: &str| {
        let said = support::read_until(&mut lines, what);
        support::word_after(&said, what).to_owned()
    };
    assert!(word_of("filters ") == "true" || !filters);
    let address: SocketAddr = word_of("address ").parse().unwrap();
    let load = load(address);
    input.write_all(b"!").unwrap();

    let [mut left, mut died, mut last] = [0; 3];
    // The last process may be ready before the one before it says that it has left.
    while last == 0 || left + died < if exits { 0 } else { hand_overs } {
        let mut line = String::new();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "all have ended");
        for (word, count) in [
            ("left\n", &mut left),
            ("died\n", &mut died),
            ("last\n", &mut last),
        ] {
            *count += usize::from(line == word);
        }
    }
    wait_until("one server is left", || {
        listening(address.port()) == MEMBERS
    });
    let made = load.made();
    wait_until("it serves", || load.made() > made);
    let report = load.stop();
    drop(input);
    lines.read_to_end(&mut Vec::new()).unwrap();
    (report, left, died)
}

fn hand_overs() -> usize {
    let wanted = env::var("REUSEPORT_HAND_OVERS");
    wanted.map_or(4, |wanted| wanted.parse().expect("a number"))
}

fn restart_here(first: Command, hand_overs: usize) -> Outcome {
    restart(first, Ipv4Addr::LOCALHOST, hand_overs, |address| {
        let load = Load::start(address, 16);
        wait_until("the load is on", || load.made() > 100);
        load
    })
}

/// Over a wire; `None` if none can be had.
fn restart_far_away(first: Command, hand_overs: usize) -> Option<Outcome> {
    let wire = match Wire::new(FAR) {
        Ok(wire) => wire,
        Err(error) => {
            support::skip(&format!("no namespaces with TUN devices: {error}"));
            return None;
        }
    };
    let (client, begun) = (wire.client.clone(), Arc::new(AtomicU32::new(0)));
    let done = wire.server.inside(|| {
        restart(first, SERVER, hand_overs, |address| {
            let load = Load::start_in(address, 80, move || {
                client.enter();
                // Spread over the time of a visit.
                thread::sleep(2 * FAR * begun.fetch_add(1, Relaxed) / 80);
            });
            wait_until("the load is on", || load.made() > 160);
            load
        })
    });
    assert_eq!(wire.lost(), 0, "packets");
    Some(done)
}

/// Whether this process can start one without a privilege that it has itself.
fn may_drop_a_privilege() -> bool {
    // SAFETY: takes nothing.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        support::skip("root's privileges are to be dropped");
    }
    root && support::tool("setpriv")
}

fn none_is_lost(setting: &str, (report, left, died): &Outcome) {
    println!("{setting}: {left} hand-overs, {died} new processes died, {report:?}");
    assert_eq!(report.lost(), 0, "{setting}: {report:?}");
}

#[test]
fn hand_overs_as_soon_as_permitted_lose_no_client() {
    if !may_drop_a_privilege() {
        return;
    }
    for filters in [true, false] {
        let setting = format!("0 ms, CAP_NET_ADMIN: {filters}");
        none_is_lost(&setting, &restart_here(first(filters), hand_overs()));
    }
}

#[test]
fn hand_overs_as_soon_as_permitted_over_40_ms_lose_no_client() {
    if !may_drop_a_privilege() {
        return;
    }
    for filters in [true, false] {
        let setting = format!("40 ms, CAP_NET_ADMIN: {filters}");
        if let Some(done) = restart_far_away(first(filters), hand_overs()) {
            none_is_lost(&setting, &done);
        }
    }
}

#[test]
fn old_processes_that_end_without_leaving_lose_clients() {
    if !may_drop_a_privilege() {
        return;
    }
    // The control: without it the tests above could not fail.
    for far in [false, true] {
        let (mut lost, mut times) = (0, 0);
        support::wait_until_within(support::LONG, "a client is lost", || {
            let mut exits = first(true);
            exits.env(EXITS, "1");
            let done = if far {
                restart_far_away(exits, 1)
            } else {
                Some(restart_here(exits, 1))
            };
            times += 1;
            lost += done.as_ref().map_or(1, |done| done.0.lost());
            lost > 0
        });
        println!("far: {far}: {lost} lost in {times} restarts");
    }
}
