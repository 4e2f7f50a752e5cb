//! Steering programs.

use core::time::Duration;
use std::os::fd::AsFd;

use reuseport::steering::{self, Instruction};
use reuseport::{Group, Listener, sys};

use super::tools::{always, any_port, as_nobody, aside, bind, group, instruction, listen, member};
use super::tools::{open, set, stay_on_this_cpu, told, who};
use super::{Tried, seen};

#[cfg(target_os = "android")] // whose libc lacks the name
const SO_LOCK_FILTER: core::ffi::c_int = 44;
#[cfg(not(target_os = "android"))]
use libc::SO_LOCK_FILTER;

/// Bound in one order, listening in the other.
pub(super) fn the_program_returns_an_index(counter: bool) -> Tried {
    let (mut members, address) = group(1)?;
    for _ in 0..3 {
        let late: Listener = open(sys::SOCK_STREAM | sys::SOCK_NONBLOCK, address.ip())?;
        set(&late, sys::SOL_SOCKET, sys::SO_REUSEPORT, 1)?;
        bind(&late, address)?;
        members.insert(1, late);
    }
    members[1..].iter().try_for_each(|late| listen(late, 64))?;
    let mut hits = [0; 4];
    for (index, hits) in (0..).zip(&mut hits) {
        if !counter {
            members[0].attach_program(&always(index))?;
        }
        *hits = who(&members, address, 20)?[index as usize];
    }
    seen(
        hits == [20; 4],
        format!("of 20 for each index, its member got {hits:?}"),
    )
}

/// Counts how many of 60 connections each of three members gets by this program.
fn chosen_by(program: &[Instruction]) -> Result<Vec<usize>, super::Snag> {
    let (members, address) = group(3)?;
    members[0].attach_program(program)?;
    who(&members, address, 60)
}

pub(super) fn a_failing_load_is_index_0(counter: bool) -> Tried {
    let load = instruction(0x30, 0); // BPF_LD | BPF_B | BPF_ABS: the first byte of the payload
    let program = [load, always(2)[0]];
    let counts = chosen_by(&program[usize::from(counter)..])?;
    seen(
        counts == [60, 0, 0],
        format!("load, then return 2: {counts:?}"),
    )
}

pub(super) fn an_index_out_of_range_is_the_hash(counter: bool) -> Tried {
    let index = if counter { 1 } else { 99 };
    let counts = chosen_by(&always(index))?;
    seen(
        counts.iter().all(|count| *count > 0),
        format!("{index} among three: {counts:?}"),
    )
}

pub(super) fn incoming_cpu_is_obeyed(counter: bool) -> Tried {
    aside(move || {
        let cpu = stay_on_this_cpu()?;
        let named = Listener::options().nonblocking(true).incoming_cpu(cpu);
        let first = if counter {
            named.bind(any_port())
        } else {
            member(any_port())
        }?;
        let address = first.local_addr()?;
        let counts = who(&[first, named.bind(address)?], address, 60)?;
        seen(
            counts == [0, 60],
            format!("clients on CPU {cpu}: {counts:?}"),
        )
    })
}

pub(super) fn steering_needs_no_privilege(counter: bool) -> Tried {
    as_nobody(|| {
        let (members, _) = group(2)?;
        let done = if counter {
            set(&members[0], sys::SOL_SOCKET, libc::SO_RCVBUFFORCE, 1 << 20)
        } else {
            members[0].attach_program(&steering::random(2))
        };
        seen(done.is_ok(), format!("without privilege: {}", told(&done)))
    })
}

pub(super) fn leaving_needs_no_privilege(counter: bool) -> Tried {
    as_nobody(|| {
        let lock = move |fd| set(&fd, sys::SOL_SOCKET, SO_LOCK_FILTER, i32::from(counter));
        let group = Group::options()
            .before_bind(lock)
            .grace(Duration::from_millis(100));
        let group = group.bind(any_port(), 2)?;
        let probe = Listener::from(group.sockets()[0].as_fd().try_clone_to_owned()?);
        let filter = probe.attach_syn_filter();
        _ = probe.detach_filter();
        let server = group.spawn(|_, connection| drop(connection))?;
        drop(probe);
        let left = server.retire(1);
        let what = format!(
            "packet filter: {}; retirement: {}",
            told(&filter),
            told(&left)
        );
        seen(left.is_ok(), what)
    })
}
