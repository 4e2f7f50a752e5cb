//! The unit with few rights in the recipes allows what `serve` and its restart need, also where it
//! is enforced.
//!
//! No systemd runs here. These tests read the unit, and give a process what systemd would: another
//! user, no capability, no new privileges, and the seccomp filters. Left out are
//! `RestrictSUIDSGID=` and what concerns mounts: the read-only file system and the private
//! directories.
#![cfg(all(
    feature = "std",
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]

#[path = "support/load.rs"]
mod load;
#[path = "support/sandbox.rs"]
mod sandbox;
mod support;

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Instant;
use std::{fs, thread};

use load::Load;
use reuseport::{Connection, Group};
use sandbox::{USER, allowed, harden, is_root};
use support::{BOUND, Directory, LONG, ServeProcess, child_of, finish, program, tool, visit};

const REUSEPORT: &str = env!("CARGO_BIN_EXE_reuseport");
const SERVE: [&str; 3] = ["serve", "--addr", "127.0.0.1:0"];

fn signal(pid: i32, signal: i32) {
    // SAFETY: takes two integers.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// The tools by which the filter is made.
fn tools() -> bool {
    ["systemd-analyze", "cc"].iter().all(|name| tool(name))
}

/// The unit of the recipes for a service with few rights.
fn hardened_unit() -> String {
    let path = "tests/crates/recipes/hardened.service";
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn hardened_unit_is_valid() {
    if !tool("systemd-analyze") {
        return;
    }
    let unit = support::scratch("unit").join("hardened.service");
    let text = hardened_unit().replace("/usr/local/bin/reuseport", REUSEPORT);
    fs::write(&unit, text).unwrap();

    let done = finish(program("systemd-analyze").arg("verify").arg(&unit));

    let said = support::text(&done.stderr);
    let of_it: Vec<_> = said
        .lines()
        .filter(|line| line.contains("hardened"))
        .collect();
    assert!(done.status.success() && of_it.is_empty(), "{said}");
}

/// The names of the calls in what `strace -f` has written.
fn calls(trace: &str) -> BTreeSet<&str> {
    let lines = trace.lines().filter_map(|line| line.split_once(' '));
    let names = lines.filter_map(|(_pid, call)| Some(call.trim_start().split_once('(')?.0));
    let is_name = |name: &&str| name.chars().all(|c| c.is_alphanumeric() || c == '_');
    names.filter(is_name).collect()
}

#[test]
fn hardened_unit_allows_every_call_of_serve_and_its_restart() {
    if !tool("systemd-analyze") || !tool("strace") || !tool("cc") {
        return;
    }
    let directory = support::scratch("hardened");
    let (refuse, trace) = (
        support::compile("tests/support/refuse.c", &directory),
        directory.join("trace"),
    );
    let mut strace = program("strace");
    strace.args(["-f", "-qq", "-o"]).arg(&trace).arg(refuse);
    strace
        .args(["netlink", "--", REUSEPORT])
        .args(SERVE)
        .arg("--quiet");
    let mut server = ServeProcess::from(&mut strace);
    visit(server.address);

    let new = server.hand_over(child_of(server.pid()));
    visit(server.address);
    signal(new, libc::SIGTERM);
    let (_, _, said) = server.end();

    assert!(
        said.contains("1 connection; all that were queued are served"),
        "{said}"
    );
    let unit = hardened_unit();
    let allowed = allowed(&unit);
    let trace = fs::read_to_string(trace).unwrap();
    let calls = calls(&trace);
    let refused: Vec<_> = calls
        .iter()
        .filter(|call| !allowed.contains(**call))
        .collect();
    assert!(
        calls.contains("accept4") && refused.is_empty(),
        "{refused:?}"
    );
    assert!(
        trace.contains("socket(AF_NETLINK"),
        "the unit refuses it for nothing"
    );
}

/// A copy of `serve` that the unit's user can execute; it is removed with this value.
fn installed(name: &str) -> (Directory, Command) {
    let directory = Directory::for_everybody(name);
    let copy = directory.0.join("reuseport");
    support::copy(REUSEPORT, &copy);
    let mut command = program(copy);
    command.args(SERVE).arg("--quiet").stdout(Stdio::null());
    (directory, command)
}

/// Asserts that a process has the rights of the unit.
#[track_caller]
fn assert_hardened(pid: i32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let has = |line: &str| assert!(status.contains(line), "{line:?}: {status}");
    has("\nNoNewPrivs:\t1\n");
    has("\nSeccomp:\t2\n");
    has("\nCapEff:\t0000000000000000\n");
    if is_root() {
        has("\nCapBnd:\t0000000000000000\n");
        has(&format!("\nUid:\t{USER}\t{USER}\t{USER}\t{USER}\n"));
    }
}

#[test]
fn hardened_server_restarts_and_stops_under_load_without_a_loss() {
    if !tools() {
        return;
    }
    let (_installed, mut serve) = installed("hardened");
    let mut server = ServeProcess::from(harden(&mut serve, &hardened_unit()));
    let (address, mut pid) = (server.address, server.pid());
    let (stopping, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let begun = Instant::now();
    let load = || {
        while begun.elapsed() < LONG {
            let mut client = match TcpStream::connect(address) {
                Ok(client) => client,
                Err(_) if stopping.load(SeqCst) => return,
                Err(error) => panic!("refused: {error}"),
            };
            client.set_read_timeout(Some(BOUND)).unwrap();
            assert_eq!(client.read(&mut [0]).unwrap(), 0, "served to its end");
            served.fetch_add(1, SeqCst);
        }
        panic!("it does not stop");
    };

    thread::scope(|scope| {
        let clients = [(); 4].map(|()| scope.spawn(load));
        assert_hardened(pid);
        for _ in 0..3 {
            let before = served.load(SeqCst);
            pid = server.hand_over(pid);
            assert_hardened(pid);
            support::wait_until("the new process serves", || {
                served.load(SeqCst) > before + 100
            });
        }
        stopping.store(true, SeqCst);
        signal(pid, libc::SIGTERM);
        let clients = clients.into_iter().map(thread::ScopedJoinHandle::join);
        clients.for_each(|client| client.expect("every client is served"));
    });

    let (_, _, said) = server.end();
    let line = said
        .lines()
        .find(|line| line.contains(&format!("pid {pid}")));
    let served_all = line.is_some_and(|line| line.ends_with("all that were queued are served"));
    assert!(served_all, "{said}");
}

/// Plays a role of this file, with the rights of the unit.
fn play_hardened(role: &str) -> String {
    if is_root() {
        support::play_as(USER, role, |role| {
            _ = harden(role.uid(0).gid(0), &hardened_unit());
        })
    } else {
        support::play(harden(&mut support::role(role), &hardened_unit()))
    }
}

#[test]
fn hardened_members_leave_under_load_without_a_loss() {
    if tools() {
        play_hardened("replaces_members");
    }
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn replaces_members() {
    assert_eq!(attempt("netlink"), libc::EAFNOSUPPORT);
    let group = Group::bind((Ipv4Addr::LOCALHOST, 0), 3).unwrap();
    let server = group
        .spawn(|_, connection: Connection| load::answer(&connection))
        .unwrap();
    let load = Load::start(server.local_addr(), 4);
    for oldest in 0..3 {
        let before = load.made();
        server.add().unwrap();
        server.retire(oldest).unwrap();
        support::wait_until("clients are served", || load.made() > before + 100);
    }

    let report = load.stop();

    assert_eq!(report.lost(), 0, "{report:?}");
    let reset: usize = server.stop(BOUND).iter().map(|stats| stats.reset).sum();
    assert_eq!(reset, 0);
}

/// What the unit refuses: the errno with its rights, and without the unit.
const REFUSED: [(&str, i32, i32); 6] = [
    ("ptrace", libc::EPERM, libc::ESRCH),
    ("setns", libc::EPERM, libc::EBADF),
    ("realtime", libc::EPERM, libc::ESRCH),
    ("netlink", libc::EAFNOSUPPORT, 0),
    ("writable code", libc::EPERM, 0),
    ("code made executable", libc::EPERM, 0),
];

/// Returns the errno of a call, or 0.
fn attempt(what: &str) -> i32 {
    let (write, execute) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_EXEC);
    let map = |protection| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, which nothing uses.
        unsafe { libc::mmap(null_mut(), 4096, protection, flags, -1, 0) }
    };
    // SAFETY: takes nothing.
    let own = unsafe { libc::getpid() };
    let priority = libc::sched_param { sched_priority: 1 };
    let result = match what {
        // SAFETY: takes integers. No process is traced by this one.
        "ptrace" => unsafe { libc::ptrace(libc::PTRACE_CONT, own, 0, 0) },
        // SAFETY: takes integers; no descriptor has this number.
        "setns" => unsafe { libc::setns(-1, libc::CLONE_NEWNET) }.into(),
        "realtime" => {
            // SAFETY: `priority` is readable; no process has this number.
            unsafe { libc::sched_setscheduler(i32::MAX, libc::SCHED_FIFO, &raw const priority) }
                .into()
        }
        // SAFETY: takes three integers. The descriptor stays open until this process ends.
        "netlink" => unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0) }.into(),
        "writable code" => i64::from(map(write | execute) != libc::MAP_FAILED) - 1,
        // SAFETY: a new mapping, which nothing uses.
        _ => unsafe { libc::mprotect(map(write), 4096, libc::PROT_READ | execute) }.into(),
    };
    match result {
        -1 => io::Error::last_os_error().raw_os_error().unwrap(),
        _ => 0,
    }
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn attempts_what_is_refused() {
    for (what, ..) in REFUSED {
        println!("{what}: {}", attempt(what));
    }
}

#[test]
fn hardened_process_is_refused_what_the_unit_refuses() {
    if !tools() {
        return;
    }

    let hardened = play_hardened("attempts_what_is_refused");
    let free = support::play(&mut support::role("attempts_what_is_refused"));

    for (what, with, without) in REFUSED {
        assert!(
            hardened.contains(&format!("{what}: {with}\n")),
            "{hardened}"
        );
        assert!(free.contains(&format!("{what}: {without}\n")), "{free}");
    }
}

#[test]
fn server_that_is_refused_a_call_it_needs_says_so() {
    if !tools() {
        return;
    }
    let unit = hardened_unit() + "SystemCallFilter=~listen\n";
    let (_installed, mut serve) = installed("refused");

    let done = finish(harden(&mut serve, &unit));

    let said = support::text(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("listen 127.0.0.1:0: EPERM: "), "{said}");
}
