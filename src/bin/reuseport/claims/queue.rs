//! What waits to be accepted.

use core::ffi::c_int;
use core::time::Duration;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Instant;

use reuseport::{Call, Error, Listener, sys};

use super::tools::{BOUND, always, any_port, begin, check, client, clients, group, listen, member};
use super::tools::{queued, set, told, until, who};
use super::{Snag, Tried, seen};

pub(super) fn listen_again_keeps_the_place(counter: bool) -> Tried {
    let (members, address) = group(3)?;
    let shorter = members[0].queue()?.limit / 2;
    if counter {
        // SAFETY: the descriptor is the listener's.
        unsafe { sys::shutdown(members[0].as_raw_fd(), sys::SHUT_RD) }?;
    }
    listen(&members[0], shorter.try_into()?)?;
    members[0].attach_program(&always(0))?;
    let (counts, limit) = (who(&members, address, 20)?, members[0].queue()?.limit);
    seen(
        counts[0] == 20 && limit == shorter,
        format!("index 0: {counts:?}; backlog {limit}"),
    )
}

pub(super) fn a_backlog_of_n_queues_one_more(counter: bool) -> Tried {
    let longest = Listener::bind(any_port())?.queue()?.limit;
    let backlog = longest.saturating_sub(1).min(3); // there is a longer one, up to 0
    let listener = Listener::options().backlog(backlog.try_into()?);
    let listener = listener.bind(any_port())?;
    let address = listener.local_addr()?;
    if counter {
        listen(&listener, 8)?;
    }
    let room = usize::try_from(backlog)? + 1;
    let _waiting = clients(room, address)?;
    queued(&listener, room)?;
    let _next = begin(address)?;
    let dropped = drops_the_next(&listener, room)?;
    let answer = if dropped { "is dropped" } else { "waits, too" };
    let what = format!("backlog {backlog}: {room} waiting; the next SYN {answer}");
    seen(dropped, what)
}

/// Waits until the kernel has dropped a SYN for `listener`, or lets it wait as well as the others.
fn drops_the_next(listener: &Listener, others: usize) -> Result<bool, Snag> {
    let others = u32::try_from(others)?;
    let mut dropped = false;
    until("the next SYN is dropped or answered", || {
        listener.queue().is_ok_and(|queue| {
            dropped = queue.drops > 0;
            dropped || queue.len > others
        })
    })?;
    Ok(dropped)
}

/// Not by the clock alone, for a busy machine is late by itself: the client's kernel says when it
/// sends the SYN again, and how often it did.
pub(super) fn overflow_costs_a_second(counter: bool) -> Tried {
    let options = Listener::options().nonblocking(true);
    let full = options.backlog(if counter { 8 } else { 0 });
    let full = full.bind(any_port())?;
    let address = full.local_addr()?;
    let _first = client(address)?;
    queued(&full, 1)?;
    let empty = member(address)?;
    let begun = Instant::now();
    let (second, pause, dropped) = comes_to(&full, &empty)?;
    full.accept()?;
    until("the second is accepted", || full.accept().is_ok())?;
    let took = begun.elapsed();
    let sent_again = client_info(&second)?.sent_again;
    let beside = empty.queue()?.len;
    let late = dropped && sent_again > 0 && pause == A_SECOND && took > A_SECOND * 9 / 10;
    let what = format!(
        "dropped: {dropped}; retransmissions: {sent_again}, the first due after {pause:?}; \
         accepted after {took:.1?}; its sibling had {beside}"
    );
    seen(late && beside == 0, what)
}

/// Returns a client whose SYN the hash gives to `full`, the time after which it sends the SYN
/// again, and whether that one was dropped.
fn comes_to(full: &Listener, sibling: &Listener) -> Result<(Listener, Duration, bool), Snag> {
    let address = full.local_addr()?;
    for _ in 0..100 {
        let dropped_before = full.queue()?.drops;
        let client = begin(address)?;
        let info = client_info(&client)?;
        let (mut beside, mut dropped) = (false, false);
        until("the SYN is dropped or answered", || {
            beside = sibling.accept().is_ok();
            beside
                || full.queue().is_ok_and(|queue| {
                    dropped = queue.drops > dropped_before;
                    dropped || queue.len > 1
                })
        })?;
        // A machine that stands still may have seen only the next pause.
        if !beside && info.sent_again == 0 {
            return Ok((client, info.pause, dropped));
        }
    }
    Err(Snag::Broken(
        "of 100 clients none came to this listener".into(),
    ))
}

const A_SECOND: Duration = Duration::from_secs(1);

/// A machine that stands still for a second may miss what it waits for: then once more.
pub(super) fn dropped_syns_come_every_second(counter: bool) -> Tried {
    let begun = Instant::now();
    while begun.elapsed() < BOUND {
        if let Some((pause, twice)) = sent_again(counter)? {
            let what = if twice {
                format!("the SYN is sent again, and once more {pause:?} later")
            } else {
                "the SYN is sent again once, and answered".into()
            };
            return seen(twice && pause == A_SECOND, what);
        }
    }
    let why = format!("for {BOUND:?} this machine was too slow to look once a second");
    Err(Snag::Broken(why))
}

/// Has a SYN dropped. Returns what the client's kernel says when it has sent it again: the next
/// pause; and whether it is then sent a second time.
fn sent_again(counter: bool) -> Result<Option<(Duration, bool)>, Snag> {
    let full = Listener::options().nonblocking(true).backlog(0);
    let full = full.bind(any_port())?;
    let address = full.local_addr()?;
    let _first = client(address)?;
    queued(&full, 1)?;
    let dropped = begin(address)?;
    drops_the_next(&full, 1)?;
    if counter {
        full.accept()?;
        if client_info(&dropped)?.sent_again > 0 {
            return Ok(None); // perhaps before there was room
        }
    }
    let reaches = |count| {
        let mut info = client_info(&dropped)?;
        until("the SYN is sent again or answered", || {
            if let Ok(now) = client_info(&dropped) {
                info = now;
            }
            info.connected || info.sent_again >= count
        })?;
        Ok::<_, Snag>(info)
    };
    let first = reaches(1)?;
    let second = reaches(2)?;
    let seen_in_time = first.sent_again == 1;
    Ok(seen_in_time.then_some((first.pause, !second.connected)))
}

/// A client's state in the kernel: `struct tcp_info`.
struct Info {
    connected: bool,
    /// The pause before the SYN is sent again: `tcpi_rto`, the third word.
    pause: Duration,
    /// The number of retransmissions: `tcpi_total_retrans`, the 26th word.
    sent_again: usize,
}

fn client_info(socket: &Listener) -> Result<Info, Snag> {
    let (mut info, mut len, fd) = ([0_u32; 26], 104, socket.as_raw_fd());
    let at = info.as_mut_ptr().cast();
    // SAFETY: `info` is writable for the 104 bytes that `len` states; the kernel writes no more.
    unsafe { sys::getsockopt(fd, sys::IPPROTO_TCP, libc::TCP_INFO, at, &raw mut len) }?;
    Ok(Info {
        connected: info[0].to_ne_bytes()[0] == 1, // tcpi_state, TCP_ESTABLISHED
        pause: Duration::from_micros(info[2].into()),
        sent_again: info[25].try_into()?,
    })
}

pub(super) fn is_connected(socket: &Listener) -> bool {
    client_info(socket).is_ok_and(|info| info.connected)
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
fn accept_without_descriptors(
    listener: &Listener,
    counter: bool,
) -> Result<Result<(), Error>, Snag> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    let none = libc::rlimit {
        rlim_cur: 0,
        ..limit
    };
    if !counter {
        // SAFETY: `none` is readable. What is open stays open.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) })?;
    }
    let accepted = listener.accept().map(drop);
    // SAFETY: `limit` is readable, and what it was before.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(accepted)
}

const NONE_LEFT: Error = Error::new(Call::Accept, libc::EMFILE);

pub(super) fn without_descriptors_it_stays_queued(counter: bool) -> Tried {
    let listener = member(any_port())?;
    let _client = client(listener.local_addr()?)?;
    queued(&listener, 1)?;
    let accepted = accept_without_descriptors(&listener, counter)?;
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
    let accepted = accept_without_descriptors(&listener, counter)?;
    let took = begun.elapsed();
    seen(
        accepted == Err(NONE_LEFT),
        format!("after {took:.1?}: {}", told(&accepted)),
    )
}

pub(super) fn somaxconn_cuts_the_backlog(counter: bool) -> Tried {
    let longest = Listener::bind(any_port())?.queue()?.limit;
    let backlog = if counter {
        longest.try_into()?
    } else {
        c_int::MAX
    };
    let listener = member(any_port())?;
    listen(&listener, backlog)?;
    let limit = listener.queue()?.limit;
    seen(
        limit < u32::try_from(backlog)?,
        format!("listen(fd, {backlog}) succeeds; the backlog is {limit}"),
    )
}

/// `TCP_DEFER_ACCEPT` leaves a handshake unfinished until the client sends something. By then the
/// queue is full, of a client that has sent at once.
pub(super) fn a_full_queue_drops_the_ack_too(counter: bool) -> Tried {
    let defer = |fd: c_int| set(&fd, sys::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 30);
    let options = Listener::options().nonblocking(true).before_bind(&defer);
    let listener = options.bind(any_port())?;
    let (mut early, mut late) = (
        client(listener.local_addr()?)?,
        client(listener.local_addr()?)?,
    );
    early.write_all(b"x")?;
    until("the first is queued", || {
        listener.queue().is_ok_and(|queue| queue.len > 0)
    })?;
    if !counter {
        listen(&listener, 0)?;
    }
    late.write_all(b"x")?;
    let mut queue = listener.queue()?;
    until("the ACK is dropped, or finishes the handshake", || {
        queue = listener.queue().unwrap_or(queue);
        queue.drops > 0 || queue.len == 2
    })?;
    let what = format!("2 clients are connected; the server has {}", queue.len);
    seen(queue.len == 1, what)
}
