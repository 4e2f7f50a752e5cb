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
    all.sort_by_key(|one| one.inode);
    all.sort_by_key(|one| (one.local.port(), one.udp, one.local, one.interface));
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
        "{:35}    n  queued   limit  drops  user       pid        program\n",
        "address"
    );
    let on_a_line = |a: &Socket, b: &Socket| {
        let holders = pids(a, holders) == pids(b, holders);
        !each && same_address(a, b) && (a.user, a.limit) == (b.user, b.limit) && holders
    };
    for members in all.chunk_by(on_a_line) {
        let sum = |of: fn(&Socket) -> u32| members.iter().map(of).map(u64::from).sum::<u64>();
        let (queued, drops) = (sum(|one| one.queued), sum(|one| one.drops));
        let (first, n) = (&members[0], members.len());
        let (address, limit) = (first.to_string(), first.limit);
        let (pid, name) = match pids(first, holders) {
            [] => ("-".to_owned(), "-".to_owned()),
            [pid] => (pid.to_string(), program(*pid)),
            [pid, further @ ..] => (format!("{pid}+{}", further.len()), program(*pid)),
        };
        _ = write!(text, "{address:35} {n:>4} {queued:>7} {limit:>7}");
        _ = writeln!(text, " {drops:>6}  {:10} {pid:10} {name}", user(first.user));
    }
    text
}

/// What is noteworthy, a line each.
fn notes(all: &[Socket], holders: &Holders) -> String {
    let mut text = String::from("\n");
    for members in all.chunk_by(same_address) {
        let (first, n) = (&members[0], members.len());
        let mut note = |note: String| _ = writeln!(text, "{first}: {note}");
        // Of several processes that hold a socket, the first stands for the program.
        let holder = |one| pids(one, holders).first();
        let programs: BTreeSet<_> = members.iter().filter_map(holder).collect();
        if programs.len() > 1 {
            let name = |pid: &&u32| format!("pid {pid} ({})", program(**pid));
            let names: Vec<_> = programs.iter().map(name).collect();
            note(format!("{} programs: {}", names.len(), names.join(", ")));
        }
        let users: BTreeSet<_> = members.iter().map(|member| member.user).collect();
        if users.len() > 1 {
            let names: Vec<_> = users.into_iter().map(user).collect();
            note(format!("different users: {}", names.join(", ")));
        }
        if first.udp && n > 1 {
            note("shared address (the kernel does not tell by which option)".into());
        }
        // Linux queues one connection more than the limit.
        let is_full = |one: &&Socket| one.queued >= one.limit.saturating_add((!one.udp).into());
        let full = members.iter().filter(is_full).count();
        if full > 0 {
            note(format!("{full} of {} full", count(n, "queue")));
        }
        // What the kernel prefers to this address: a more specific one, and one bound to a device.
        for other in all.chunk_by(same_address).map(|members| &members[0]) {
            let same_port = (first.udp, first.local.port()) == (other.udp, other.local.port());
            let (to, device) = (other.local.ip(), first.interface < other.interface);
            if !same_port || !first.takes(to) {
                continue;
            }
            match (first.local == other.local, to.is_unspecified()) {
                (true, _) if device => note(format!("another device has {other}")),
                (true, _) => {}
                (false, true) => note(format!("what is sent to IPv4 goes to {other}")),
                (false, false) => note(format!("what is sent to {to} goes to {other}")),
            }
        }
    }
    let unknown = |one: &&Socket| pids(one, holders).is_empty();
    let unknown = count(all.iter().filter(unknown).count(), "socket");
    if !unknown.starts_with("0 ") {
        let whose = "held by processes that this user may not look into, or by the kernel";
        _ = writeln!(text, "{unknown}: {whose}");
    }
    if text.len() > 1 { text } else { String::new() }
}
