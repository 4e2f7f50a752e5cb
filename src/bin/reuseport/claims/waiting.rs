//! One slow thread, and which thread accepts instead.

use core::ffi::c_int;
use core::time::Duration;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use reuseport::{Call, Error, Group, GroupOptions, Listener};

use super::tools::{A_WHILE, BOUND, always, any_port, asleep, client, until};
use super::{Snag, Tried, seen};

/// Serves with two acceptors. The kernel chooses the first for all connections, and its handler
/// waits for its client. Returns whether a second client is served meanwhile. If it `should` be, it
/// has the time of a busy machine.
fn served_meanwhile(options: &GroupOptions, should: bool) -> Result<(bool, String), Snag> {
    let wait = if should { BOUND } else { A_WHILE };
    let group = options.clone().bind(any_port(), 2)?;
    let address = group.local_addr();
    // A shared listener has no group, and cannot be steered.
    _ = group.sockets()[0].attach_program(&always(0));
    let server = group.spawn(|_, connection| {
        _ = connection.recv(&mut [0]);
        _ = connection.send(b"y");
    })?;
    let silent = client(address)?;
    let busy = || {
        server
            .stats()
            .iter()
            .map(|count| count.accepted)
            .sum::<usize>()
            == 1
    };
    until("one acceptor is busy", busy)?;
    let mut second = client(address)?;
    second.write_all(b"x")?;
    second.set_read_timeout(Some(wait))?;
    let served = second.read(&mut [0]).is_ok();
    drop((silent, second));
    // No client is left to wait for. Where the kernel does not list handshakes, a stop with a grace
    // would wait for all of it.
    server.stop(Duration::ZERO);
    let word = if served { "served" } else { "not served" };
    Ok((
        served,
        format!("beside an idle acceptor, {word} within {wait:?}"),
    ))
}

pub(super) fn a_slow_thread_keeps_its_share_waiting(counter: bool) -> Tried {
    let spares = if counter { 512 } else { 0 };
    let options = Group::options().spare_threads(spares);
    let (served, what) = served_meanwhile(&options, counter)?;
    seen(!served, what)
}

pub(super) fn a_shared_listener_feeds_the_idle(counter: bool) -> Tried {
    let options = Group::options().shared(!counter).spare_threads(0);
    let (served, what) = served_meanwhile(&options, !counter)?;
    seen(served, what)
}

pub(super) fn hand_off_serves_what_waits(counter: bool) -> Tried {
    let spares = if counter { 0 } else { 512 };
    let options = Group::options().spare_threads(spares);
    let (served, what) = served_meanwhile(&options, !counter)?;
    seen(served, what)
}

fn check(call: Call, result: c_int) -> Result<c_int, Error> {
    if result < 0 {
        Err(Error::last(call))
    } else {
        Ok(result)
    }
}

/// Has two threads sleep, each in an epoll set of its own, with the listener registered in both,
/// and counts which of them one connection wakes. Both orders of registration are measured.
pub(super) fn the_first_registered_epoll_wakes(counter: bool) -> Tried {
    let exclusive = if counter { 0 } else { libc::EPOLLEXCLUSIVE };
    let (mut woken, all) = (Vec::new(), Instant::now());
    while let Some(order) = [[0, 1], [1, 0]].get(woken.len()) {
        let listener = Listener::bind(any_port())?;
        let mut epolls = Vec::new();
        for _ in 0..2 {
            // SAFETY: takes an integer.
            let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
            let fd = check(Call::EpollCreate, fd)?;
            // SAFETY: the kernel has just opened it for us alone.
            epolls.push(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        #[allow(clippy::cast_sign_loss)] // bits
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | exclusive) as u32,
            u64: 0,
        };
        for epoll in order.map(|at| epolls[at].as_raw_fd()) {
            let (add, fd) = (libc::EPOLL_CTL_ADD, listener.as_raw_fd());
            // SAFETY: `event` is readable; both descriptors are open.
            let added = unsafe { libc::epoll_ctl(epoll, add, fd, &raw mut event) };
            check(Call::EpollCtl, added)?;
        }
        let ((say, heard), begun) = (mpsc::channel(), Instant::now());
        thread::scope(|scope| {
            let wait = |epoll: &OwnedFd| {
                let mut event = libc::epoll_event { events: 0, u64: 0 };
                // SAFETY: `event` is writable and the only one asked for.
                unsafe { libc::epoll_wait(epoll.as_raw_fd(), &raw mut event, 1, 500) }
            };
            let sleepers = epolls.iter().map(|epoll| {
                let say = say.clone();
                scope.spawn(move || {
                    // SAFETY: takes nothing.
                    _ = say.send(unsafe { libc::gettid() });
                    wait(epoll)
                })
            });
            let sleepers: Vec<_> = sleepers.collect();
            for _ in 0..2 {
                asleep(heard.recv()?)?;
            }
            let _client = client(listener.local_addr()?)?;
            // Later than that, a sleeper may have given up before: once more.
            let in_time = begun.elapsed() < Duration::from_millis(400) || all.elapsed() > BOUND;
            let counts = sleepers
                .into_iter()
                .map(|sleeper| sleeper.join().unwrap_or(-1));
            let counts: Vec<_> = counts.collect();
            woken.extend(in_time.then(|| order.map(|at| counts[at])));
            Ok::<_, Snag>(())
        })?;
    }
    seen(
        woken == [[1, 0]; 2],
        format!("woken, in the order of registration: {woken:?}"),
    )
}
