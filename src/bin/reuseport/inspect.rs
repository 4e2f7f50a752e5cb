//! `reuseport inspect`: the programs that share a port on this machine.

use core::fmt::Write as _;
use std::collections::{BTreeSet, HashMap};

use crate::Failure;
use crate::args::Args;
use crate::list::{CLOSE, LISTEN, Socket, holders, program, sockets, user};
use crate::output::{count, print};

pub(crate) const HELP: &str = "\
Shows who shares a port on this machine, from the kernel's own list, and what is noteworthy

Usage: reuseport inspect [PORT]

A line for each address and process; with PORT, for each socket on it. Only TCP listeners and
unconnected UDP sockets are shown, of this network namespace. (Linux)

  n                  how many sockets the line stands for
  queued, limit      connections (tcp) or bytes (udp) that wait in all; how many may on each
  drops              what the kernel has dropped, because a queue was full or for another reason
  pid                who holds them; +N: and N further processes; other users' are shown to root

Below stand two programs on one address, different users or devices, full queues, and an address
that takes what a wildcard would get. For a shared UDP address the kernel does not tell whether by
SO_REUSEPORT, which spreads datagrams, or by SO_REUSEADDR, which does not.
";

type Holders = HashMap<u32, Vec<u32>>;

pub(crate) fn run(mut args: Args) -> Result<(), Failure> {
    let wrong = |word| Failure::Usage(format!("inspect needs a port from 1 to 65535, not {word}"));
    let port = args.command().map_or(Ok(0), |word| match word.parse() {
        Ok(port @ 1..) => Ok(port),
        _ => Err(wrong(word)),
    })?;
    args.finish()?;
    let mut all = Vec::new();
    for (udp, state) in [(false, LISTEN), (true, CLOSE)] {
        let failed = |error| Failure::Failed(format!("the kernel's list of sockets: {error}"));
        all.extend(sockets(udp, 1 << state, port).map_err(failed)?);
    }
    all.sort_by_key(|one| {
        (
            one.local.port(),
            one.udp,
            one.local,
            one.interface,
            one.inode,
        )
    });
    let holders = holders();
    print(&(table(&all, &holders, port > 0) + &notes(&all, &holders)));
    Ok(())
}

fn pids<'a>(socket: &Socket, holders: &'a Holders) -> &'a [u32] {
    holders.get(&socket.inode).map_or(&[], Vec::as_slice)
}

fn same_address(a: &Socket, b: &Socket) -> bool {
    (a.udp, a.local, a.interface) == (b.udp, b.local, b.interface)
}

/// A line for each address and its holders, or for `each` socket.
fn table(all: &[Socket], holders: &Holders, each: bool) -> String {
    let mut text = format!(
        "{:35} {:>4} {:>7} {:>7} {:>6}  {:10} {:10} program\n",
        "address", "n", "queued", "limit", "drops", "user", "pid"
    );
    let on_a_line = |a: &Socket, b: &Socket| {
        let holders = pids(a, holders) == pids(b, holders);
        !each && same_address(a, b) && (a.user, a.limit) == (b.user, b.limit) && holders
    };
    for members in all.chunk_by(on_a_line) {
        let sum = |of: fn(&Socket) -> u32| members.iter().map(of).map(u64::from).sum::<u64>();
        let (first, pids) = (&members[0], pids(&members[0], holders));
        let (mut pid, mut name) = ("-".to_owned(), "-".to_owned());
        if let [lowest, further @ ..] = pids {
            let more = format!("+{}", further.len());
            pid = lowest.to_string() + if further.is_empty() { "" } else { &more };
            name = program(*lowest);
        }
        _ = writeln!(
            text,
            "{:35} {:>4} {:>7} {:>7} {:>6}  {:10} {pid:10} {name}",
            first.to_string(),
            members.len(),
            sum(|member| member.queued),
            first.limit,
            sum(|member| member.drops),
            user(first.user),
        );
    }
    text
}

/// What is noteworthy, a line each.
fn notes(all: &[Socket], holders: &Holders) -> String {
    let mut text = String::from("\n");
    let mut note = |what: &dyn core::fmt::Display, note: &str| _ = writeln!(text, "{what}: {note}");
    for members in all.chunk_by(same_address) {
        let (first, n) = (&members[0], members.len());
        let mut programs: Vec<&[u32]> = Vec::new();
        for pids in members.iter().map(|member| pids(member, holders)) {
            let known = |one: &&[u32]| one.iter().any(|pid| pids.contains(pid));
            if !pids.is_empty() && !programs.iter().any(known) {
                programs.push(pids);
            }
        }
        if programs.len() > 1 {
            let name = |pids: &&[u32]| format!("pid {} ({})", pids[0], program(pids[0]));
            let names: Vec<_> = programs.iter().map(name).collect();
            note(
                first,
                &format!("{} programs: {}", names.len(), names.join(", ")),
            );
        }
        let users: BTreeSet<_> = members.iter().map(|member| member.user).collect();
        if users.len() > 1 {
            let names: Vec<_> = users.iter().map(|id| user(*id)).collect();
            note(first, &format!("different users: {}", names.join(", ")));
        }
        if first.udp && n > 1 {
            note(
                first,
                "shared address (the kernel does not tell by which option)",
            );
        }
        // Linux queues one connection more than the limit.
        let is_full = |one: &&Socket| one.queued >= one.limit.saturating_add((!one.udp).into());
        let full = members.iter().filter(is_full).count();
        if full > 0 {
            note(first, &format!("{full} of {} full", count(n, "queue")));
        }
        // What the kernel prefers to this address: a more specific one, and one bound to a device.
        for other in all.chunk_by(same_address).map(|members| &members[0]) {
            let same_port = (first.udp, first.local.port()) == (other.udp, other.local.port());
            if !same_port || same_address(first, other) || !first.takes(other.local.ip()) {
                continue;
            }
            if first.local != other.local {
                let to = other.local.ip();
                let to = if to.is_unspecified() {
                    "IPv4".to_owned()
                } else {
                    to.to_string()
                };
                note(first, &format!("what is sent to {to} goes to {other}"));
            } else if first.interface < other.interface {
                note(first, &format!("another device has {other}"));
            }
        }
    }
    let unknown = all
        .iter()
        .filter(|one| pids(one, holders).is_empty())
        .count();
    if unknown > 0 {
        let whose = "held by processes that this user may not look into, or by the kernel";
        note(&count(unknown, "socket"), whose);
    }
    if text.len() > 1 { text } else { String::new() }
}
