//! When one leaves.

use core::ffi::c_int;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::sync::mpsc;
use std::{fs, thread};

use reuseport::{Call, Error, Listener, sys};

use super::tools::{A_WHILE, BOUND, always, any_port, asleep, client, clients, fates, group};
use super::tools::{queued, set, told, who};
use super::{Snag, Tried, seen};

pub(super) fn close_resets_the_queue(counter: bool) -> Tried {
    let migrates = fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req");
    if migrates.is_ok_and(|text| text.trim() != "0") {
        let why = "net.ipv4.tcp_migrate_req is on: the queue moves to a sibling";
        return Err(Snag::NotHere(why.into()));
    }
    let mut resets = Vec::new();
    for close in [true, false] {
        let (mut members, address) = group(2)?;
        members[0].attach_program(&always(0))?;
        let clients = clients(10, address)?;
        queued(&members[0], 10)?;
        let first = members.remove(0);
        let mut accepted = Vec::new();
        if counter {
            accepted.extend((0..10).map_while(|_| first.accept().ok()));
        }
        if close {
            drop(first);
        } else {
            // SAFETY: the descriptor is the listener's.
            unsafe { sys::shutdown(first.as_raw_fd(), sys::SHUT_RD) }?;
        }
        accepted
            .iter()
            .for_each(|connection| _ = connection.send(b"y"));
        let [_, _, reset] = fates(&members, &clients)?;
        resets.push(reset);
    }
    let what = format!(
        "of 10 that waited, {} were reset by close, {} by shutdown",
        resets[0], resets[1]
    );
    seen(resets == [10, 10], what)
}

pub(super) fn the_last_moves_into_the_hole(counter: bool) -> Tried {
    let (mut members, address) = group(4)?;
    drop(members.remove(if counter { 2 } else { 1 }));
    members[0].attach_program(&always(1))?;
    let counts = who(&members, address, 20)?;
    seen(
        counts[2] == 20,
        format!("index 1, 20 times, among the three left: {counts:?}"),
    )
}

/// With `TCP_DEFER_ACCEPT` a handshake is not over before the client has sent something.
pub(super) fn adding_loses_no_handshake(counter: bool) -> Tried {
    let defer = |fd: c_int| set(&fd, sys::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5);
    let options = Listener::options().nonblocking(true).before_bind(&defer);
    let first = options.bind(any_port())?;
    let address = first.local_addr()?;
    let clients = clients(20, address)?;
    let mut members = vec![first];
    for _ in 0..7 {
        members.push(options.bind(address)?);
    }
    if counter {
        members.remove(0);
    }
    let early = members[0].queue()?.len;
    clients.iter().for_each(|mut client| _ = client.write(b"x"));
    // Were one of them another's, nobody would serve it here.
    let [served, _, reset] = fates(&members[..1], &clients)?;
    let what = format!("of 20 under way the first member served {served}; {reset} were reset");
    seen(early == 0 && served == 20, what)
}

/// What a blocked accept says to a call on its listener; or else, to the next connection.
fn woken_by(close: bool) -> Result<(bool, Result<(), Error>), Snag> {
    let listener = Listener::bind(any_port())?;
    let address = listener.local_addr()?;
    let fd = listener.into_raw_fd();
    let (say, heard) = mpsc::channel();
    let (name, named) = mpsc::channel();
    thread::spawn(move || {
        // SAFETY: takes nothing.
        _ = name.send(unsafe { libc::gettid() });
        let no_address = core::ptr::null_mut();
        // SAFETY: null stands for "no address wanted".
        let accepted = unsafe { sys::accept(fd, no_address, no_address.cast(), 0) };
        // SAFETY: the kernel has just opened it for us alone.
        _ = say.send(accepted.map(|fd| drop(unsafe { Listener::from_raw_fd(fd) })));
    });
    asleep(named.recv()?)?;
    if close {
        // SAFETY: the descriptor is ours, and this its last use here.
        unsafe { sys::close(fd) }?;
    } else {
        // SAFETY: the descriptor is ours.
        unsafe { sys::shutdown(fd, sys::SHUT_RD) }?;
    }
    let said = heard.recv_timeout(if close { A_WHILE } else { BOUND });
    if !close {
        // SAFETY: the descriptor is ours, and this its last use.
        unsafe { sys::close(fd) }?;
    }
    if let Ok(outcome) = said {
        return Ok((true, outcome));
    }
    let _client = client(address)?;
    Ok((false, heard.recv_timeout(BOUND)?))
}

pub(super) fn shutdown_wakes_accept(counter: bool) -> Tried {
    let (woken, outcome) = woken_by(counter)?;
    let what = format!("woken: {woken}; accept: {}", told(&outcome));
    seen(
        woken && outcome == Err(Error::new(Call::Accept, libc::EINVAL)),
        what,
    )
}

pub(super) fn close_leaves_accept_asleep(counter: bool) -> Tried {
    let (woken, outcome) = woken_by(!counter)?;
    let what = format!(
        "woken: {woken}; then, with the next connection: {}",
        told(&outcome)
    );
    seen(!woken && outcome.is_ok(), what)
}
