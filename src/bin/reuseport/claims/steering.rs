//! Steering programs.

use core::array;
use core::time::Duration;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use reuseport::steering::{self, Instruction};
use reuseport::{Group, Listener, sys};

use super::tools::{always, any_port, as_nobody, aside, bind, connect, drain, group, instruction};
use super::tools::{listen, member, open, set, source, stay_on_this_cpu, told, who};
use super::{Snag, Tried, seen};

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
fn chosen_by(program: &[Instruction]) -> Result<Vec<usize>, Snag> {
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

/// The client sends its first byte in the SYN, whether or not the server takes it from there.
pub(super) fn a_fast_open_syn_has_a_payload(counter: bool) -> Tried {
    const TCP_FASTOPEN_NO_COOKIE: i32 = 34; // linux/tcp.h, since 4.15
    let (members, address) = group(3)?;
    // BPF_LD | BPF_B | BPF_ABS, BPF_RET | BPF_A: return the first byte.
    members[0].attach_program(&[instruction(0x30, 0), instruction(0x16, 0)])?;
    let mut counts = [0; 3];
    for _ in 0..20 {
        let mut client = open::<TcpStream>(sys::SOCK_STREAM, address.ip())?;
        bind(&client, source())?;
        if !counter {
            for option in [libc::TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE] {
                let no_fast_open = |error| Snag::NotHere(format!("no TCP Fast Open: {error}"));
                set(&client, sys::IPPROTO_TCP, option, 1).map_err(no_fast_open)?;
            }
        }
        connect(&client, address)?;
        client.write_all(&[2])?;
        let came = drain(&members, 1)?;
        counts = array::from_fn(|index| counts[index] + came[index]);
    }
    seen(
        counts == [0, 0, 20],
        format!("20 clients send a 2; the members got {counts:?}"),
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
        let lock = move |fd: BorrowedFd<'_>| {
            Ok(set(
                &fd,
                sys::SOL_SOCKET,
                SO_LOCK_FILTER,
                i32::from(counter),
            )?)
        };
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
