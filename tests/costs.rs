//! What a connection costs, and what a member costs: counted where it can be, so that a fast
//! machine says the same as a slow one. `cargo test --release --test costs -- --nocapture` prints
//! all of it.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "costs/destination.rs"]
mod destination;
#[path = "costs/hand_off.rs"]
mod hand_off;
#[path = "costs/lookup.rs"]
mod lookup;
mod support;

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::alloc::System;
use std::collections::BTreeMap;
use std::fs;
use std::io::BufRead;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use hand_off::{
    MOST_WAKES, calls_when_idle, monitor_at_saturation, tell_when_idle, wakes_at_saturation,
};
use reuseport::{Acceptors, Connection, Group};
use support::{
    BOUND, ServeProcess, finish, program, scratch, skip, start, text, tool, visit, wait_until,
};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

#[test]
fn costs_are_at_most_what_the_readme_says() {
    let mut table = Table::default();
    // It has nothing to do for 15 s, and disturbs no other.
    let idle = std::thread::spawn(calls_when_idle);
    let calls = calls(&mut table);
    let wakes = wakes_at_saturation(&mut table);
    let looks = monitor_at_saturation(&mut table);
    let of_datagrams = calls_of_datagrams(&mut table);
    let instructions = instructions(&mut table);
    time(&mut table);
    let when_idle = idle.join().expect("measured");
    tell_when_idle(&mut table, when_idle.as_ref());
    let allocations = allocations(&mut table);
    memory(&mut table);
    table.print();

    if let Some([group, mut handoff]) = calls {
        let two: BTreeMap<_, _> = [("accept4", 1.0), ("close", 1.0)].map(named).into();
        assert_eq!(group, two);
        // The monitor's looks, and what wakes it: as many as the time that strace takes.
        handoff.remove("futex");
        assert_eq!(handoff, two);
    }
    if let Some(wakes) = wakes {
        assert!(wakes <= MOST_WAKES, "{wakes}");
    }
    // It sleeps for a millisecond; a lock that is held may send it to sleep once more.
    assert!(looks <= 2.0, "{looks}");
    for lines in when_idle.into_iter().flatten() {
        assert_eq!(lines, Vec::<String>::new());
    }
    if let Some([one_by_one, batched]) = of_datagrams {
        assert!((one_by_one - 2.0).abs() < 0.05, "{one_by_one}");
        assert!(one_by_one / batched >= 1.5, "{one_by_one} {batched}");
    }
    if let Some([c, group, acceptors, handoff]) = instructions {
        assert!(
            group <= c + 30.0 && acceptors <= c + 20.0 && handoff <= c + MOST_MORE_THAN_C,
            "{group} {acceptors} {handoff}, C: {c}"
        );
    }
    assert_eq!(allocations, [0; 3]);
}

fn named((name, count): (&str, f64)) -> (String, f64) {
    (name.to_owned(), count)
}

/// What is printed at the end.
#[derive(Default)]
struct Table(Vec<[String; 2]>);

impl Table {
    fn row(&mut self, what: impl Into<String>, costs: impl Into<String>) {
        self.0.push([what.into(), costs.into()]);
    }

    fn print(&self) {
        let width = self.0.iter().map(|[what, _]| what.len()).max().unwrap_or(0);
        let rows = self
            .0
            .iter()
            .map(|[what, costs]| format!("{what:width$}  {costs}\n"));
        println!("\n{}", rows.collect::<String>());
    }
}

// The programs that are measured.

/// tests/demo/accepts.rs, built as its users build: a debug build's instructions mean nothing.
fn accepts() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("costs");
    let mut cargo = program(env!("CARGO"));
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--locked",
        "--offline",
        "--example",
        "accepts",
    ]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    let done = finish(cargo.arg("--target-dir").arg(&target));
    assert!(done.status.success(), "{}", text(&done.stderr));
    target.join("release/examples/accepts")
}

/// The C program, but for the two lines that print.
fn silent_c(directory: &Path) -> PathBuf {
    let c = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mirror/reuseport.c");
    let c = fs::read_to_string(c).unwrap();
    let prints = |line: &&str| line.contains("printf(") || line.contains("fflush(");
    assert_eq!(c.lines().filter(prints).count(), 2);
    let silent: Vec<_> = c.lines().filter(|line| !prints(line)).collect();
    let path = directory.join("silent.c");
    // Then the number is nobody's.
    fs::write(&path, silent.join("\n").replace("int n =", "(void)")).unwrap();
    support::compile(path, directory)
}

/// Has `program`, which is run by `tool`, accept so many connections, and ends it. `settle` is
/// called before each, with the pid of what was started.
fn serve(tool: &mut Command, program: &Program, connections: usize, settle: impl Fn(i32)) {
    match program {
        Program::Ours(path, how, members) => {
            let tool = tool.arg(path).args([how, members]);
            let tool = tool.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut running = start(tool);
            let mut line = String::new();
            let mut stdout = running.stdout();
            stdout.read_line(&mut line).unwrap();
            let address = line.trim().parse().expect("an address");
            for _ in 0..connections {
                settle(running.pid());
                visit(address);
            }
            settle(running.pid());
            drop(running.stdin());
            running.wait();
        }
        Program::C(path) => {
            let (port, _reserved) = support::reserve();
            let mut running = start(tool.arg(path).arg(port.to_string()));
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            wait_until("it listens", || TcpStream::connect(address).is_ok());
            (0..connections).for_each(|_| _ = visit(address));
            running.signal(libc::SIGTERM);
            running.wait();
        }
    }
}

enum Program<'a> {
    Ours(&'a Path, &'a str, &'a str),
    C(&'a Path),
}

/// Whether so many acceptors of a process have started, and all sleep.
fn idle(pid: impl std::fmt::Display, acceptors: usize) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stats = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")));
    let stats: Vec<_> = stats.flatten().collect(); // one may have ended meanwhile
    let found = stats.iter().filter(|stat| stat.contains("(acceptor-"));
    let sleeps = |stat: &&String| stat.contains(") S ");
    found.clone().count() == acceptors && found.filter(sleeps).count() == acceptors
}

// The measurements. Those whose start or end would count are the difference between a short run and
// one of twice the length.

/// System calls a connection, by their names: of a group without spare threads, and with them.
fn calls(table: &mut Table) -> Option<[BTreeMap<String, f64>; 2]> {
    const RUN: u32 = 200;
    if !tool("strace") {
        table.row("system calls a connection", "skipped: no strace");
        return None;
    }
    let (accepts, log) = (accepts(), scratch("costs-calls").join("calls"));
    let count = |how, connections: u32| {
        let mut strace = program("strace");
        strace.args(["-f", "-c", "-o"]).arg(&log);
        // All sleep when a client comes, as they do where there is time to spare.
        let settle = |pid| wait_until("all are idle", || idle(support::child_of(pid), 3));
        let ours = Program::Ours(&accepts, how, "3");
        serve(&mut strace, &ours, connections as usize, settle);
        counted(&log)
    };
    let costs = ["group", "handoff"].map(|how| {
        let (once, mut twice) = (count(how, RUN), count(how, 2 * RUN));
        for (name, count) in &mut twice {
            *count = (*count - once.get(name).unwrap_or(&0.0)) / f64::from(RUN);
        }
        // What the start happens to do once more or less is no cost of a connection.
        twice.retain(|_, count| *count > 0.05);
        let names: Vec<_> = twice.keys().map(String::as_str).collect();
        let sum: f64 = twice.values().sum();
        table.row(
            format!("system calls a connection, {how}"),
            format!("{sum:.2}: {}", names.join(", ")),
        );
        twice
    });
    Some(costs)
}

/// How often a measurement is repeated that a busy machine can only make worse.
const TRIES: usize = 5;

/// The calls that strace has counted.
fn counted(log: &Path) -> BTreeMap<String, f64> {
    let log = fs::read_to_string(log).unwrap();
    // % time, seconds, usecs/call, calls, errors if any, syscall
    let rows = log
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows = rows.filter_map(|row| Some((*row.last()?, row.get(3)?.parse::<f64>().ok()?)));
    rows.filter(|row| row.0 != "total").map(named).collect()
}

/// System calls for a datagram that is received and sent back, of a server that is behind: one by
/// one, and in batches. Four flows send eight each while strace is stopped, so that the server gets
/// no further than its next call, and wait until all have come back.
fn calls_of_datagrams(table: &mut Table) -> Option<[f64; 2]> {
    const RUN: u32 = 80;
    if !tool("strace") {
        table.row("system calls a datagram", "skipped: no strace");
        return None;
    }
    let log = scratch("costs-datagrams").join("calls");
    let count = |more: &[&str]| {
        let server = support::reuseport(&["serve", "--udp", "--echo", "--quiet"]);
        let mut strace = program("strace");
        strace.args(["-f", "-c", "-o"]).arg(&log);
        strace.arg(server.get_program()).args(server.get_args());
        strace.args(["--acceptors", "1", "--addr", "127.0.0.1:0"]);
        let server = ServeProcess::from(strace.args(more).stdout(Stdio::null()));
        let tracer = server.pid();
        let stat = format!("/proc/{tracer}/stat");
        let stopped = || fs::read_to_string(&stat).unwrap().contains(") T ");
        let flows = [0; 4].map(|_| {
            let flow = UdpSocket::bind("127.0.0.1:0").unwrap();
            flow.connect(server.address).unwrap();
            flow.set_read_timeout(Some(BOUND)).unwrap();
            flow
        });
        for _ in 0..RUN {
            let eight = flows.iter().flat_map(|flow| [flow; 8]);
            server.signal(libc::SIGSTOP);
            wait_until("strace is stopped", stopped);
            eight.clone().for_each(|flow| _ = flow.send(b"?").unwrap());
            server.signal(libc::SIGCONT);
            eight.for_each(|flow| _ = flow.recv(&mut [0]).unwrap());
        }
        // SAFETY: takes two integers; strace has not waited for its child, which runs.
        unsafe { libc::kill(support::child_of(tracer), libc::SIGTERM) };
        server.end();
        let calls = counted(&log);
        let of = |name| calls.get(name).copied().unwrap_or_default();
        let calls = ["recvmsg", "sendto", "recvmmsg", "sendmmsg"].map(of);
        calls.iter().sum::<f64>()
    };
    let costs = [("one by one", &[][..]), ("in batches", &["--batch"])].map(|(how, more)| {
        let cost = count(more) / f64::from(32 * RUN);
        table.row(
            format!("system calls a datagram that is sent back, {how}"),
            format!("{cost:.2}"),
        );
        cost
    });
    Some(costs)
}

/// User-space instructions a connection that the worker of a group may take beyond the C program's.
const MOST_MORE_THAN_C: f64 = 30.0;

/// User-space instructions a connection: of the C program, of a group without spare threads, of
/// `Acceptors`, and of a group with spare threads, by the threads that accept.
fn instructions(table: &mut Table) -> Option<[f64; 4]> {
    const RUN: u32 = 3000;
    for tool in ["valgrind", "cc"] {
        if !support::tool(tool) {
            table.row("instructions a connection", format!("skipped: no {tool}"));
            return None;
        }
    }
    let directory = scratch("costs-instructions");
    let (ours, c) = (accepts(), silent_c(&directory));
    let count = |measured: &Program, connections: u32| {
        let mut valgrind = program("valgrind");
        let name =
            |option: &str, name: &str| format!("--{option}={}", directory.join(name).display());
        let out = directory.join("out");
        _ = fs::remove_dir_all(&out);
        fs::create_dir(&out).unwrap();
        valgrind.args([
            "--tool=callgrind",
            "--separate-threads=yes",
            &name("callgrind-out-file", "out/of"),
            &name("log-file", "log"),
        ]);
        serve(&mut valgrind, measured, connections as usize, |_| {});
        let threads = fs::read_dir(&out).unwrap();
        let threads = threads.map(|of| fs::read_to_string(of.unwrap().path()).unwrap());
        let accepting = threads.filter(|of| {
            of.lines()
                .any(|line| line.ends_with(" accept4") || line.ends_with(" accept"))
        });
        let totals = accepting.map(|of| {
            let mut lines = of.lines();
            let total = lines.find_map(|line| line.strip_prefix("totals: "));
            total.expect("a count").parse::<f64>().unwrap()
        });
        totals.sum::<f64>()
    };
    let mut cost = |what: &str, measured: Program, most: f64| {
        // A worker from which a busy machine takes the CPU in its handler counts as blocked, and
        // what hands its listener on is no cost of a connection: the least of some tries.
        let once = || (count(&measured, 2 * RUN) - count(&measured, RUN)) / f64::from(RUN);
        let mut cost = once();
        for _ in 1..TRIES {
            if cost > most {
                cost = cost.min(once());
            }
        }
        table.row(
            format!("instructions a connection, {what}"),
            format!("{cost:.0}"),
        );
        cost
    };
    let of_c = cost("C", Program::C(&c), f64::INFINITY);
    let mut ours = |what, how, most| cost(what, Program::Ours(&ours, how, "1"), most);
    let group = ours("group", "group", f64::INFINITY);
    let acceptors = ours("Acceptors", "acceptors", f64::INFINITY);
    let most = of_c + MOST_MORE_THAN_C;
    Some([of_c, group, acceptors, ours("hand-off", "handoff", most)])
}

/// The system's allocator; while it counts, it counts what all threads ask for but the exempt: the
/// clients', and the first, which is the test harness's and now and then has something to say.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static COUNTED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: each function hands on to the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.load(SeqCst) && !EXEMPT.get() && !is_first_thread() {
            COUNTED.fetch_add(1, SeqCst);
        }
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn is_first_thread() -> bool {
    // SAFETY: takes nothing.
    let (thread, process) = (unsafe { libc::gettid() }, std::process::id());
    u32::try_from(thread) == Ok(process)
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What the threads of this process allocate, but for this one, while it makes 200 connections.
fn allocated(address: SocketAddr, acceptors: usize) -> usize {
    wait_until("the acceptors have started", || idle("self", acceptors));
    COUNTED.store(0, SeqCst);
    EXEMPT.set(true);
    COUNTS.store(true, SeqCst);
    (0..200).for_each(|_| assert_eq!(visit(address), "x"));
    COUNTS.store(false, SeqCst);
    EXEMPT.set(false);
    COUNTED.load(SeqCst)
}

/// Heap allocations in 200 connections, from the first on: of a group without spare threads, of one
/// with them, of `Acceptors`.
fn allocations(table: &mut Table) -> [usize; 3] {
    let once = |spares| {
        let options = Group::options().spare_threads(spares);
        let group = options.bind(ANY_PORT, 2).unwrap();
        let address = group.local_addr();
        let server = group
            .spawn(|_, connection| _ = connection.send(b"x"))
            .unwrap();
        let counted = allocated(address, 2);
        let counts = server.stop(BOUND);
        let accepted: usize = counts.iter().map(|count| count.accepted).sum();
        assert_eq!(accepted, 200);
        counted
    };
    // To hand off allocates: where a busy machine holds a handler up, that is counted again.
    let group = |spares| {
        let mut least = usize::MAX;
        for _ in 0..50 {
            if least > 0 {
                least = least.min(once(spares));
            }
        }
        least
    };
    let (grouped, handing_off) = (group(0), group(512));
    let (listeners, address) = support::listeners(2);
    let send = |_, connection: Connection| _ = connection.send(b"x");
    let acceptors = Acceptors::spawn(listeners, send).unwrap();
    let counts = [grouped, handing_off, allocated(address, 2)];
    drop(acceptors);
    // It does count.
    let (listeners, address) = support::listeners(1);
    let boxes = |_, connection: Connection| {
        _ = connection.send(&std::hint::black_box(Vec::from(*b"x")));
    };
    let acceptors = Acceptors::spawn(listeners, boxes).unwrap();
    assert_eq!(allocated(address, 1), 200, "the allocator counts");
    drop(acceptors);
    for (how, count) in ["group", "hand-off", "Acceptors"].into_iter().zip(counts) {
        table.row(
            format!("heap allocations in 200 connections, {how}"),
            count.to_string(),
        );
    }
    counts
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn takes_memory() {
    // What happens once is over before it is measured.
    drop(Group::bind(ANY_PORT, 1).unwrap().spawn(|_, _| {}).unwrap());
    let listening = |members| {
        let (listeners, _) = support::listeners(members);
        (anonymous(), listeners).0
    };

    let before = listening(1);
    println!("listener {}", (listening(1001) - before) / 1000);

    let working = |members| {
        let server = Group::bind(ANY_PORT, members)
            .unwrap()
            .spawn(|_, _| {})
            .unwrap();
        let address = server.local_addr();
        (0..30 * members).for_each(|_| _ = visit(address));
        wait_until("all are idle", || idle("self", members));
        (anonymous(), server).0
    };
    let before = working(1);
    println!("member {}", (working(101) - before) / 100);
}

/// The memory of this process that no file stands behind, in bytes.
fn anonymous() -> usize {
    let maps = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let row = maps
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"))
        .unwrap();
    1024 * row.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
}

/// Bytes a member in this process; the kernel has its own for each socket and each thread.
fn memory(table: &mut Table) {
    let said = support::play(&mut support::role("takes_memory"));
    for (name, what) in [
        ("listener ", "bytes a listener"),
        ("member ", "bytes a member, with its thread"),
    ] {
        let lines = said.lines();
        table.row(
            what,
            lines
                .filter_map(|line| line.split_once(name))
                .next_back()
                .expect("told")
                .1,
        );
    }
}

/// How long it takes to make groups and to drop them, and to send a datagram back.
fn time(table: &mut Table) {
    let [own, wildcard] = destination::received_and_sent_back();
    table.row(
        "to send a datagram back, on an address of its own and on the wildcard",
        format!("{own:.2?} and {wildcard:.2?}"),
    );
    let most = descriptors();
    for members in lookup::MEMBERS {
        let times = lookup::of_members(members).into_iter().zip(lookup::WAYS);
        let times: Vec<_> = times
            .map(|(time, way)| format!("{way} {time:.2?}"))
            .collect();
        let what = format!("to send a datagram to one of {members} members, by");
        table.row(what, times.join(", "));
    }
    for ip in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ] {
        for members in [1, 100, 1000, 10_000] {
            let what = format!("to bind and to drop {members} on {ip}");
            if members + 100 > most {
                skip("too few descriptors");
                table.row(what, "skipped: too few descriptors");
                continue;
            }
            let begun = Instant::now();
            let group = Group::bind((ip, 0), members).unwrap();
            let (bound, begun) = (begun.elapsed(), Instant::now());
            drop(group);
            let dropped = begun.elapsed();
            table.row(what, format!("{bound:.1?} and {dropped:.1?}"));
        }
    }
}

/// Allows itself as many descriptors as it may.
fn descriptors() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is readable.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    limit.rlim_cur.try_into().unwrap_or(usize::MAX)
}
