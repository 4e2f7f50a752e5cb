//! Leaving a group.

use core::ffi::c_int;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd};
use std::sync::mpsc;
use std::thread;

use reuseport::{Call, Error, Listener, sys};

use super::tools::{A_WHILE, BOUND, always, any_port, asleep, check, client, clients, fates};
use super::tools::{group, member, queued, room, set, told, who};
use super::{Snag, Tried, seen};

pub(super) fn close_resets_the_queue(counter: bool) -> Tried {
    let mut waited = 0;
    let mut resets = Vec::new();
    for close in [true, false] {
        // Alone, the first gets every client; its sibling comes afterwards.
        let first = member(any_port())?;
        let address = first.local_addr()?;
        waited = room(&first, 10)?;
        let clients = clients(waited, address)?;
        queued(&first, waited)?;
        let sibling = [member(address)?];
        let mut accepted = Vec::new();
        if counter {
            accepted.extend((0..waited).map_while(|_| first.accept().ok()));
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
        let [_, _, reset] = fates(&sibling, &[], &clients)?;
        resets.push(reset);
    }
    let what = format!(
        "of {waited} that waited, {} were reset by close, {} by shutdown",
        resets[0], resets[1]
    );
    seen(resets == [waited; 2], what)
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

/// The duplicate stands for one that a child process has inherited.
pub(super) fn a_duplicate_keeps_the_member(counter: bool) -> Tried {
    let (mut members, address) = group(2)?;
    let first = members.remove(0);
    let duplicate = Listener::from(first.as_fd().try_clone_to_owned()?);
    if counter {
        // SAFETY: the descriptor is the listener's.
        unsafe { sys::shutdown(first.as_raw_fd(), sys::SHUT_RD) }?;
    }
    drop(first);
    members.insert(0, duplicate);
    let counts = who(&members, address, 60)?;
    let what = format!("closed, with a duplicate left, it gets {} of 60", counts[0]);
    seen(counts[0] > 0, what)
}

pub(super) fn connect_to_nothing_ends_a_listener(counter: bool) -> Tried {
    let (members, address) = group(2)?;
    let mut nothing = [0_u8; 16]; // sa_family is AF_UNSPEC, 0
    if counter {
        nothing[0] = 0xFF; // a family that no protocol has
    }
    let fd = members[0].as_raw_fd();
    // SAFETY: `nothing` is readable for the 16 bytes of a `struct sockaddr`.
    let result = check(unsafe { libc::connect(fd, nothing.as_ptr().cast(), 16) });
    let counts = who(&members, address, 60)?;
    let what = format!("connect: {}; it gets {} of 60", told(&result), counts[0]);
    seen(result.is_ok() && counts[0] == 0, what)
}

/// With `TCP_DEFER_ACCEPT` a handshake is not over before the client has sent something.
pub(super) fn adding_loses_no_handshake(counter: bool) -> Tried {
    let defer = |fd: c_int| set(&fd, sys::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5);
    let options = Listener::options().nonblocking(true).before_bind(&defer);
    let first = options.bind(any_port())?;
    let address = first.local_addr()?;
    let under_way = room(&first, 21)? - 1; // more of them would get cookies
    let clients = clients(under_way, address)?;
    let (mut first, mut others) = (vec![first], Vec::new());
    for _ in 0..7 {
        others.push(options.bind(address)?);
    }
    let early = first[0].queue()?.len;
    if counter {
        first.clear();
    }
    clients.iter().for_each(|mut client| _ = client.write(b"x"));
    let [served, elsewhere, reset] = fates(&first, &others, &clients)?;
    let what = format!(
        "of {under_way} under way, {early} were over before; then the first member served \
         {served}, others {elsewhere}; {reset} were reset"
    );
    seen(early == 0 && served == under_way, what)
}

/// The result of a blocked `accept` after a call on its listener, or else after a connection.
fn woken_by(close: bool) -> Result<(bool, Result<(), Error>), Snag> {
    let listener = Listener::bind(any_port())?;
    let address = listener.local_addr()?;
    let fd = listener.into_raw_fd();
    let (say, heard) = mpsc::channel();
    let (name, named) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        // SAFETY: takes nothing.
        _ = name.send(unsafe { libc::gettid() });
        let no_address = core::ptr::null_mut();
        // SAFETY: null stands for "no address wanted".
        let accepted = unsafe { sys::accept(fd, no_address, no_address.cast(), 0) };
        // SAFETY: the kernel has just opened it for us alone.
        _ = say.send(accepted.map(|fd| drop(unsafe { Listener::from_raw_fd(fd) })));
    })?;
    asleep(named.recv_timeout(BOUND)?)?;
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
