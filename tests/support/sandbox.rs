//! What systemd does to a service: the system call filters of a unit, its user, its capabilities.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::offset_of;
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{c_int, seccomp_data, sock_filter, sock_fprog};

use crate::support::{finish, program, text};

/// The first user that `DynamicUser=` takes.
pub const USER: u32 = 61_184;

/// The processor's `AUDIT_ARCH`: its ELF number, 64 bits, little-endian.
const ARCH: u32 = 0xC000_0000
    | if cfg!(target_arch = "x86_64") {
        62
    } else {
        183
    };

const CLONE_NEW: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

pub fn is_root() -> bool {
    // SAFETY: takes nothing.
    unsafe { libc::geteuid() == 0 }
}

/// The values of a unit's lines of this name.
fn values<'a>(unit: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines.filter_map(move |(key, value)| (key == name).then_some(value))
}

fn is_set(unit: &str, name: &str) -> bool {
    values(unit, name).last() == Some("yes")
}

/// The calls that a unit's filter allows: sets to add, and with a tilde, to take away.
pub fn allowed(unit: &str) -> BTreeSet<String> {
    let done = finish(program("systemd-analyze").arg("syscall-filter"));
    let (mut sets, mut name) = (BTreeMap::<&str, Vec<&str>>::new(), "");
    for line in text(&done.stdout).lines() {
        match line.trim() {
            word if word.starts_with('#') || word.is_empty() => {}
            word if line.starts_with('@') => name = word,
            word => sets.entry(name).or_default().push(word),
        }
    }
    let mut allowed = BTreeSet::new();
    for filter in values(unit, "SystemCallFilter") {
        let words = filter.trim_start_matches('~').split_whitespace();
        let mut rest: Vec<_> = words.collect();
        while let Some(word) = rest.pop() {
            match sets.get(word) {
                Some(set) => rest.extend(set),
                None if filter.starts_with('~') => _ = allowed.remove(word),
                None => _ = allowed.insert(word.to_owned()),
            }
        }
    }
    allowed
}

/// The numbers of the system calls, from the C library's header.
fn numbers() -> BTreeMap<String, u32> {
    let mut cc = program("cc");
    let done = finish(cc.args([
        "-E",
        "-dM",
        "-include",
        "sys/syscall.h",
        "-x",
        "c",
        "/dev/null",
    ]));
    let defined = text(&done.stdout).lines();
    let defined = defined.filter_map(|line| line.strip_prefix("#define __NR_"));
    let pairs = defined.filter_map(|line| line.split_once(' '));
    let numbers = pairs.filter_map(|(name, number)| Some((name.to_owned(), number.parse().ok()?)));
    numbers.collect()
}

fn instruction(code: u32, jt: usize, jf: usize, k: u32) -> sock_filter {
    let jump = |by: usize| by.try_into().expect("a short jump");
    sock_filter {
        code: code.try_into().expect("16 bits"),
        jt: jump(jt),
        jf: jump(jf),
        k,
    }
}

fn load(at: usize) -> sock_filter {
    let at = at.try_into().expect("a small offset");
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at)
}

/// The lower half, on a little-endian machine.
fn load_argument(nth: usize) -> sock_filter {
    load(offset_of!(seccomp_data, args) + 8 * nth)
}

fn load_number() -> sock_filter {
    load(offset_of!(seccomp_data, nr))
}

fn equals(value: u32, jt: usize, jf: usize) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, value)
}

fn and(mask: u32) -> sock_filter {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask)
}

fn answer(what: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, what)
}

fn refuse(errno: c_int) -> sock_filter {
    answer(libc::SECCOMP_RET_ERRNO | bits(errno))
}

/// Refuses a call whose argument is none of these.
fn only(nth: usize, values: &[u32], errno: c_int) -> Vec<sock_filter> {
    let jumps = (1..=values.len()).rev().zip(values);
    let jumps = jumps.map(|(jump, value)| equals(*value, jump, 0));
    let mut then = vec![load_argument(nth)];
    then.extend(jumps);
    then.push(refuse(errno));
    then
}

fn bits(value: c_int) -> u32 {
    value.try_into().expect("not negative")
}

/// A filter to which conditions are added. The number of the call is loaded between them.
struct Filter {
    numbers: BTreeMap<String, u32>,
    program: Vec<sock_filter>,
}

impl Filter {
    /// Does what `then` says at `call`, and loads the number again.
    fn at(&mut self, call: &str, then: &[sock_filter]) {
        // A call that this processor does not have needs no condition.
        if let Some(number) = self.numbers.get(call) {
            self.program.push(equals(*number, 0, then.len() + 1));
            self.program.extend(then);
            self.program.push(load_number());
        }
    }

    /// Refuses `call` if all these bits are set in its argument.
    fn refuse_bits(&mut self, call: &str, nth: usize, mask: c_int) {
        let mask = bits(mask);
        let then = [
            load_argument(nth),
            and(mask),
            equals(mask, 0, 1),
            refuse(libc::EPERM),
        ];
        self.at(call, &then);
    }

    fn of(unit: &str) -> Vec<sock_filter> {
        let mut filter = Filter {
            numbers: numbers(),
            program: vec![load(offset_of!(seccomp_data, arch)), equals(ARCH, 1, 0)],
        };
        filter.program.push(answer(libc::SECCOMP_RET_KILL_PROCESS));
        filter.program.push(load_number());
        if let Some(families) = values(unit, "RestrictAddressFamilies").last() {
            let families: Vec<_> = families.split_whitespace().map(family).collect();
            filter.at("socket", &only(0, &families, libc::EAFNOSUPPORT));
        }
        if is_set(unit, "RestrictNamespaces") {
            // Its flags are in memory, where no filter can read. The C library then calls `clone`.
            filter.at("clone3", &[refuse(libc::ENOSYS)]);
            for call in ["clone", "unshare"] {
                let then = [load_argument(0), and(bits(CLONE_NEW)), equals(0, 1, 0)];
                filter.at(call, &[&then[..], &[refuse(libc::EPERM)]].concat());
            }
            filter.at("setns", &[refuse(libc::EPERM)]);
        }
        if is_set(unit, "MemoryDenyWriteExecute") {
            filter.refuse_bits("mmap", 2, libc::PROT_WRITE | libc::PROT_EXEC);
            filter.refuse_bits("mprotect", 2, libc::PROT_EXEC);
            filter.refuse_bits("pkey_mprotect", 2, libc::PROT_EXEC);
            filter.refuse_bits("shmat", 2, libc::SHM_EXEC);
        }
        if is_set(unit, "LockPersonality") {
            filter.at("personality", &[refuse(libc::EPERM)]);
        }
        if is_set(unit, "RestrictRealtime") {
            let policies = [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE].map(bits);
            filter.at("sched_setscheduler", &only(1, &policies, libc::EPERM));
        }
        for call in allowed(unit) {
            filter.at(&call, &[answer(libc::SECCOMP_RET_ALLOW)]);
        }
        assert_eq!(values(unit, "SystemCallErrorNumber").last(), Some("EPERM"));
        filter.program.push(refuse(libc::EPERM));
        filter.program
    }
}

fn family(name: &str) -> u32 {
    bits(match name {
        "AF_INET" => libc::AF_INET,
        "AF_INET6" => libc::AF_INET6,
        "AF_UNIX" => libc::AF_UNIX,
        _ => panic!("no number is known here of {name}"),
    })
}

fn check(result: c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Drops every capability for good, and becomes the unit's user: root alone can.
fn become_user() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: takes integers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) } == 1 {
            // SAFETY: takes integers.
            check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) })?;
        }
    }
    // SAFETY: null stands for no group.
    check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: takes an integer.
    check(unsafe { libc::setgid(USER) })?;
    // SAFETY: takes an integer.
    check(unsafe { libc::setuid(USER) })
}

/// Gives a command the rights of a unit.
pub fn harden<'a>(command: &'a mut Command, unit: &str) -> &'a mut Command {
    assert!(is_set(unit, "DynamicUser") && is_set(unit, "NoNewPrivileges"));
    assert_eq!(values(unit, "CapabilityBoundingSet").last(), Some(""));
    let (mut program, root) = (Filter::of(unit), is_root());
    let there = move || {
        if root {
            become_user()?;
        }
        // SAFETY: takes integers.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        let len = program.len().try_into().map_err(io::Error::other)?;
        let filter = program.as_mut_ptr();
        let program = sock_fprog { len, filter };
        let (mode, at) = (libc::SECCOMP_MODE_FILTER, &raw const program);
        // SAFETY: `at` points to a program, whose instructions are readable.
        check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, at) })
    };
    // SAFETY: the function makes system calls alone.
    unsafe { command.pre_exec(there) }
}
