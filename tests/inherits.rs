//! What a new process inherits, as the table at `Server::hand_over` has it.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, stdin};
use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::sync::{Arc, OnceLock, mpsc};
use std::{env, ptr};

use reuseport::{Connection, Group, Server, StopToken};
use support::{BOUND, ServeProcess, play, reuseport, role, visit, wait_until};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// What a process, or a thread, has that another may inherit. `of`: below `/proc`.
fn condition(of: &str) -> BTreeMap<String, String> {
    const STATUS: [&str; 13] = [
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "SigBlk",
        "SigIgn",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "NoNewPrivs",
        "Seccomp",
        "Cpus_allowed",
    ];
    let read = |file: &str| fs::read_to_string(format!("/proc/{of}/{file}")).unwrap();
    let mut all = BTreeMap::new();
    for line in read("status").lines() {
        if let Some((name, value)) = line.split_once(':') {
            if STATUS.contains(&name) {
                all.insert(name.into(), value.into());
            }
        }
    }
    let stat = read("stat");
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // proc_pid_stat(5) counts from 1, and the state is the third.
    for (name, field) in [
        ("group", 5),
        ("session", 6),
        ("tty", 7),
        ("nice", 19),
        ("policy", 41),
    ] {
        all.insert(name.into(), fields[field - 3].into());
    }
    for file in ["limits", "oom_score_adj", "cgroup"] {
        all.insert(file.into(), read(file));
    }
    for link in ["cwd", "ns/net", "ns/user", "ns/mnt"] {
        let path = fs::read_link(format!("/proc/{of}/{link}")).unwrap();
        all.insert(link.into(), path.display().to_string());
    }
    all
}

/// The descriptors of a process from 3 on: what each stands for.
fn descriptors(of: &str) -> BTreeMap<i32, String> {
    let all = fs::read_dir(format!("/proc/{of}/fd")).unwrap().flatten();
    // One that is closed meanwhile has no target.
    let all = all.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        Some((number, target.display().to_string()))
    });
    all.filter(|(number, _)| *number >= 3).collect()
}

/// Those of them that an `exec` does not close.
fn left_open(of: &str) -> BTreeMap<i32, String> {
    let mut all = descriptors(of);
    all.retain(|number, _| {
        let info = fs::read_to_string(format!("/proc/{of}/fdinfo/{number}"));
        let info = info.unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = i32::from_str_radix(flags.unwrap_or("0").trim(), 8).unwrap();
        flags & libc::O_CLOEXEC == 0
    });
    all
}

/// The new process has of the old one's descriptors those alone that were left open on purpose.
fn assert_shares(new: &str, before: &BTreeMap<i32, String>, left_open: &BTreeMap<i32, String>) {
    let own: BTreeSet<_> = before.values().filter(|one| *one != "/dev/null").collect();
    let mut its = descriptors(new);
    assert!((3..6).all(|fd| its[&fd].starts_with("socket:")), "{its:?}");
    its.retain(|fd, target| own.contains(target) && !left_open.contains_key(fd));
    assert!(its.is_empty(), "{its:?} of {before:?}");
}

/// HUP, INT, USR1, USR2 and TERM.
const OF_SERVE: &str = "\t0000000000004a03";

/// The C library blocks all signals for a moment in a thread that starts another, and in that one.
fn assert_condition(of: &str, expected: &BTreeMap<String, String>) {
    wait_until("its signal mask is as expected", || {
        condition(of)["SigBlk"] == expected["SigBlk"]
    });
    let its = condition(of);
    for (name, value) in expected.iter().filter(|(name, _)| *name != "SigBlk") {
        assert_eq!(its[name], *value, "{name}");
    }
}

/// One of the threads, none of which but the first waits for signals, and shows none as blocked.
fn worker(pid: &str) -> String {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let last = threads.last().unwrap().file_name();
    format!("{pid}/task/{}", last.to_str().unwrap())
}

fn signals(which: &[i32]) -> libc::sigset_t {
    // SAFETY: made of integers, for which zeros are the empty set.
    let mut set = unsafe { core::mem::zeroed() };
    for signal in which {
        // SAFETY: `set` is a set, and writable.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    set
}

/// Gives this thread, and this process, what no process of a test begins with.
fn enter_an_odd_condition() {
    let blocked = signals(&[libc::SIGUSR1]);
    // SAFETY: the set is readable, and the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, ptr::null_mut()) };
    // SAFETY: a disposition without a handler.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    // SAFETY: takes an integer.
    unsafe { libc::umask(0o027) };
    // SAFETY: takes three integers; 0 is the calling thread.
    assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 5) }, 0);
    support::limit_softly(libc::RLIMIT_NOFILE, 200).unwrap();
    fs::write("/proc/self/oom_score_adj", "500").unwrap();
    env::set_current_dir("/").unwrap();
    support::run_on(support::cpus()[0]);
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn takes_over() {
    let group = Group::from_env().unwrap().pop().unwrap();
    let server = group.spawn(|_, connection| _ = connection.send(b"new"));
    stdin().read_to_end(&mut Vec::new()).unwrap();
    server.unwrap().stop(BOUND);
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn hands_over_in_an_odd_condition() {
    enter_an_odd_condition();
    let comm = File::open("/proc/self/comm").unwrap();
    // SAFETY: takes two integers; no `exec` closes the copy.
    assert_eq!(unsafe { libc::dup2(comm.as_raw_fd(), 100) }, 100);
    let left_open = left_open("self");
    assert!(left_open.contains_key(&100));
    let group = Group::bind(ANY_PORT, 2).unwrap();
    let server = group.spawn(|_, connection| _ = connection.send(b"old"));
    let server = server.unwrap();
    let own = descriptors("self");
    let mut command = role("takes_over");
    command.stdin(Stdio::piped()).stdout(Stdio::null());

    let hand_over = server.hand_over(command, BOUND).unwrap();

    let new = hand_over.pid().to_string();
    assert_condition(&new, &condition("thread-self"));
    assert_shares(&new, &own, &left_open);
    assert_eq!(descriptors(&new).get(&100), own.get(&100));
}

#[test]
fn new_process_inherits_what_is_documented() {
    play(&mut role("hands_over_in_an_odd_condition"));
}

#[test]
fn new_process_of_a_pinned_worker_has_all_cpus() {
    let usual = support::cpus();
    if usual.len() < 2 {
        return support::skip("one CPU is all there is");
    }
    let this: Arc<OnceLock<Server>> = Arc::default();
    let (its, (told, new)) = (Arc::clone(&this), mpsc::channel());
    let group = Group::options().pin(true).bind(ANY_PORT, 2).unwrap();
    let server = group.spawn_with(move |_| {
        let (its, told) = (Arc::clone(&its), told.clone());
        move |connection: Connection, _: &StopToken| {
            let mut command = role("takes_over");
            command.stdin(Stdio::piped()).stdout(Stdio::null());
            let hand_over = its.get().unwrap().hand_over(command, BOUND).unwrap();
            let all = condition(&hand_over.pid().to_string()).remove("Cpus_allowed");
            told.send((support::cpus(), all.unwrap())).unwrap();
            drop(hand_over);
            _ = connection.send(b"old");
        }
    });
    this.set(server.unwrap()).unwrap();

    let caller = condition("thread-self").remove("Cpus_allowed");
    assert_eq!(visit(this.get().unwrap().local_addr()), "old");

    let (own, child) = new.recv_timeout(BOUND).unwrap();
    assert_eq!(own.len(), 1, "the worker is pinned");
    assert_eq!(Some(child), caller);
    this.get().unwrap().stop(BOUND);
}

#[test]
fn successor_of_serve_inherits_all_of_it() {
    let left_open = left_open("self");
    let mut serve = reuseport(&["serve", "--addr", "127.0.0.1:0", "--quiet"]);
    let mut server = ServeProcess::from(serve.stdin(Stdio::piped()));
    let pid = server.pid();
    let old = pid.to_string();
    let own = descriptors(&old);
    let mut before = condition(&worker(&old));
    before.insert("SigBlk".into(), OF_SERVE.into());
    assert_condition(&worker(&old), &before);

    server.signal(libc::SIGHUP);
    let said = server.read_stderr_until("handed over to pid ");

    let new = support::word_after(&said, "handed over to pid ");
    assert_condition(&worker(new), &before);
    assert_shares(new, &own, &left_open);
    let stdin = fs::read_link(format!("/proc/{new}/fd/0")).unwrap();
    assert_eq!(stdin.to_str(), Some("/dev/null"));
}
