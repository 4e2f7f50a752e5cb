//! What waits to be accepted.

use core::time::Duration;
use std::io::{self, ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Instant;
use std::{fs, thread};

use reuseport::{Call, Error, Listener, sys};

use super::tools::{A_WHILE, BOUND, always, any_port, client, clients, connect, group, listen};
use super::tools::{member, open, queued, set, told, until, who};
use super::{Snag, Tried, seen};

pub(super) fn listen_again_keeps_the_place(counter: bool) -> Tried {
    let (members, address) = group(3)?;
    if counter {
        // SAFETY: the descriptor is the listener's.
        unsafe { sys::shutdown(members[0].as_raw_fd(), sys::SHUT_RD) }?;
    }
    listen(&members[0], 30)?;
    members[0].attach_program(&always(0))?;
    let (counts, limit) = (who(&members, address, 20)?, members[0].queue()?.limit);
    seen(
        counts[0] == 20 && limit == 30,
        format!("index 0: {counts:?}; backlog {limit}"),
    )
}

pub(super) fn a_backlog_of_n_queues_one_more(counter: bool) -> Tried {
    let listener = Listener::options().backlog(3).bind(any_port())?;
    let address = listener.local_addr()?;
    if counter {
        listen(&listener, 8)?;
    }
    let _four = clients(4, address)?;
    queued(&listener, 4)?;
    let wait = if counter { BOUND } else { A_WHILE };
    let fifth = TcpStream::connect_timeout(&address, wait);
    let silence = fifth
        .as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::TimedOut);
    seen(
        silence,
        format!("backlog 3: four wait; the fifth: {}", told(&fifth)),
    )
}

pub(super) fn overflow_costs_a_second(counter: bool) -> Tried {
    let options = Listener::options().nonblocking(true);
    let full = options
        .backlog(if counter { 8 } else { 0 })
        .bind(any_port())?;
    let address = full.local_addr()?;
    let empty = member(address)?;
    full.attach_program(&always(0))?;
    let _first = client(address)?;
    queued(&full, 1)?;
    let begun = Instant::now();
    let second: Listener = open(sys::SOCK_STREAM | sys::SOCK_NONBLOCK, address.ip())?;
    _ = connect(&second, address); // EINPROGRESS
    thread::sleep(Duration::from_millis(100)); // for so long there is no room
    full.accept()?;
    until("the second is accepted", || full.accept().is_ok())?;
    let took = begun.elapsed();
    // Also a machine that stands still makes it late; but then it has not come again.
    let late = (Duration::from_millis(900)..Duration::from_millis(2900)).contains(&took)
        && retransmits(&second)? > 0;
    let beside = empty.queue()?.len;
    seen(
        late && beside == 0,
        format!("accepted after {took:.1?}; its sibling had {beside}"),
    )
}

/// Two seconds and a little, in which a client gets no answer.
pub(super) fn dropped_syns_come_every_second(counter: bool) -> Tried {
    let linear = fs::read_to_string("/proc/sys/net/ipv4/tcp_syn_linear_timeouts");
    if !linear.is_ok_and(|text| text.trim() != "0") {
        let why = "no net.ipv4.tcp_syn_linear_timeouts: it came with Linux 6.5";
        return Err(Snag::NotHere(why.into()));
    }
    let full = Listener::options()
        .nonblocking(true)
        .backlog(0)
        .bind(any_port())?;
    let address = full.local_addr()?;
    let _first = client(address)?;
    queued(&full, 1)?;
    let dropped: Listener = open(sys::SOCK_STREAM | sys::SOCK_NONBLOCK, address.ip())?;
    let begun = Instant::now();
    _ = connect(&dropped, address); // EINPROGRESS
    let mut retries = Vec::new();
    while retries.len() < 2 && begun.elapsed() < Duration::from_millis(2900) {
        thread::sleep(Duration::from_millis(1));
        if retransmits(&dropped)? > retries.len() {
            retries.push(begun.elapsed());
        }
        if counter && begun.elapsed() > A_WHILE {
            _ = full.accept();
        }
    }
    seen(
        retries.len() == 2,
        format!("sent again after {retries:.1?}"),
    )
}

/// How often the SYN was sent again: the 26th word of `struct tcp_info`, `tcpi_total_retrans`.
fn retransmits(socket: &Listener) -> Result<usize, Snag> {
    let (mut info, mut len, fd) = ([0_u32; 26], 104, socket.as_raw_fd());
    let at = info.as_mut_ptr().cast();
    // SAFETY: `info` is writable for the 104 bytes that `len` states; the kernel writes no more.
    unsafe { sys::getsockopt(fd, sys::IPPROTO_TCP, libc::TCP_INFO, at, &raw mut len) }?;
    Ok(info[25].try_into()?)
}

pub(super) fn a_reset_client_is_still_accepted(counter: bool) -> Tried {
    let listener = Listener::bind(any_port())?;
    let client = client(listener.local_addr()?)?;
    queued(&listener, 1)?;
    if counter {
        client.shutdown(Shutdown::Write)?;
    } else {
        drop(client); // by a reset
    }
    let mut connection = TcpStream::from(match listener.accept() {
        Ok(connection) => connection,
        Err(error) => return seen(false, error.to_string()),
    });
    connection.set_read_timeout(Some(BOUND))?;
    let heard = connection.read(&mut [0]);
    let reset = |error: &io::Error| error.kind() == ErrorKind::ConnectionReset;
    let holds = heard.as_ref().is_err_and(reset);
    let heard = heard.map_or_else(|error| error.to_string(), |read| format!("{read} bytes"));
    seen(holds, format!("accept succeeds; recv: {heard}"))
}

/// Accepts while no descriptor is to be had; in the counter-case there are some.
fn accept_without_descriptors(listener: &Listener, counter: bool) -> Result<(), Error> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let none = libc::rlimit {
        rlim_cur: 0,
        ..limit
    };
    if !counter {
        // SAFETY: `none` is readable. What is open stays open.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) };
    }
    let accepted = listener.accept().map(drop);
    // SAFETY: `limit` is readable, and what it was before.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    accepted
}

const NONE_LEFT: Error = Error::new(Call::Accept, libc::EMFILE);

pub(super) fn without_descriptors_it_stays_queued(counter: bool) -> Tried {
    let listener = member(any_port())?;
    let _client = client(listener.local_addr()?)?;
    queued(&listener, 1)?;
    let accepted = accept_without_descriptors(&listener, counter);
    let waiting = listener.queue()?.len;
    let later = listener.accept();
    let what = format!(
        "{}; {waiting} waits; later: {}",
        told(&accepted),
        told(&later)
    );
    seen(
        accepted == Err(NONE_LEFT) && waiting == 1 && later.is_ok(),
        what,
    )
}

/// With a timeout, for where there are descriptors it would wait for ever.
pub(super) fn without_descriptors_accept_never_waits(counter: bool) -> Tried {
    let listener = Listener::bind(any_port())?;
    let timeout = libc::timeval {
        tv_sec: 0,
        tv_usec: 300_000,
    };
    set(&listener, sys::SOL_SOCKET, libc::SO_RCVTIMEO, timeout)?;
    let begun = Instant::now();
    let accepted = accept_without_descriptors(&listener, counter);
    let took = begun.elapsed();
    seen(
        accepted == Err(NONE_LEFT),
        format!("after {took:.1?}: {}", told(&accepted)),
    )
}
