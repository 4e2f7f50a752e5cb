//! Who may join, and when.

use core::ffi::c_int;
use std::env;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use reuseport::{Listener, sys};

use super::tools::{NOBODY, REFUSED, any_port, aside, bind, clients, fates, group, listen, member};
use super::tools::{open, set, told, who};
use super::{Snag, Tried, seen};

pub(super) fn membership_begins_at_listen(counter: bool) -> Tried {
    let (mut members, address) = group(1)?;
    let late: Listener = open(sys::SOCK_STREAM | sys::SOCK_NONBLOCK, address.ip())?;
    set(&late, sys::SOL_SOCKET, sys::SO_REUSEPORT, 1)?;
    bind(&late, address)?;
    if counter {
        listen(&late, 64)?;
    }
    members.push(late);
    let bound = who(&members, address, 60)?;
    listen(&members[1], 64)?;
    let listening = who(&members, address, 60)?;
    let what = format!("bound alone {} of 60, listening {}", bound[1], listening[1]);
    seen(bound[1] == 0 && listening[1] > 0, what)
}

pub(super) fn a_second_program_joins_in_silence(counter: bool) -> Tried {
    let first = Listener::options()
        .reuse_port(!counter)
        .nonblocking(true)
        .bind(any_port())?;
    let address = first.local_addr()?;
    let mut other = Command::new(env::current_exe()?);
    other.args([
        "serve",
        "--join",
        "--quiet",
        "--acceptors=1",
        "--addr",
        &address.to_string(),
    ]);
    let mut other = Other(other.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?);
    let stderr = other
        .0
        .stderr
        .take()
        .ok_or_else(|| Snag::Broken("no pipe".into()))?;
    let mut said = String::new(); // that it listens, or why it does not
    BufReader::new(stderr).read_line(&mut said)?;
    let [ours, theirs, _] = fates(&[first], &clients(60, address)?)?;
    let what = format!(
        "{ours} of 60 here, {theirs} there; it says: {}",
        said.trim()
    );
    seen(
        said.contains("listening on") && ours > 0 && theirs > 0,
        what,
    )
}

/// A process that ends with this value.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

pub(super) fn another_user_is_refused(counter: bool) -> Tried {
    let (_members, address) = group(1)?;
    aside(move || {
        let user = |id| {
            // SAFETY: takes an integer. It changes this thread alone, which then ends.
            libc::uid_t::try_from(unsafe { libc::setfsuid(id) })
        };
        // It returns who the thread was; nobody has the number -1, so that only asks.
        let ours = user(libc::uid_t::MAX)?;
        user(if counter { ours } else { NOBODY })?;
        let became = user(libc::uid_t::MAX)?;
        if !counter && (ours == NOBODY || became != NOBODY) {
            return Err(Snag::NotHere("it takes root to act as another user".into()));
        }
        let joined = member(address).map(drop);
        seen(
            joined == Err(REFUSED),
            format!("user {became} at {ours}'s port: {}", told(&joined)),
        )
    })
}

pub(super) fn leftovers_want_the_same_option(counter: bool) -> Tried {
    let options = Listener::options();
    let server = options.reuse_address(counter).bind(any_port())?;
    let address = server.local_addr()?;
    let mut client = TcpStream::connect(address)?;
    drop(server.accept()?);
    client.read_exact(&mut [0]).unwrap_or_default(); // until the server's end, which came first
    drop((client, server));
    let alone = options.reuse_port(false);
    if alone.bind(address).is_ok() {
        return Err(Snag::NotHere(
            "no room for TIME_WAIT (net.ipv4.tcp_max_tw_buckets)".into(),
        ));
    }
    let other = alone.reuse_address(true).bind(address).map(drop);
    let same = options.bind(address).map(drop);
    let what = format!(
        "SO_REUSEADDR: {}; SO_REUSEPORT: {}",
        told(&other),
        told(&same)
    );
    seen(other == Err(REFUSED) && same.is_ok(), what)
}

pub(super) fn the_claim_keeps_others_out(counter: bool) -> Tried {
    let claims = Listener::options()
        .reuse_port(counter)
        .reuse_address(true)
        .nonblocking(true);
    let first = claims.bind(any_port())?;
    let address = first.local_addr()?;
    let early = member(address).map(drop);
    first.set_reuse_port()?;
    let counts = who(&[first, member(address)?], address, 60)?;
    let what = format!(
        "before: {}; after: {} and {} of 60",
        told(&early),
        counts[0],
        counts[1]
    );
    seen(
        early == Err(REFUSED) && counts.iter().all(|count| *count > 0),
        what,
    )
}

/// 28 sockets take a port among 32. By chance no two have the same once in 10^8 runs.
pub(super) fn port_0_never_collides(counter: bool) -> Tried {
    const IP_LOCAL_PORT_RANGE: c_int = 51; // linux/in.h, since 6.3
    const RANGE: u32 = 0x9C5F_9C40; // 40000 to 40031
    let kind = if counter {
        libc::SOCK_DGRAM
    } else {
        sys::SOCK_STREAM
    };
    let mut taken = Vec::new();
    for _ in 0..28 {
        let socket: Listener = open(kind, any_port().ip())?;
        set(&socket, sys::SOL_SOCKET, sys::SO_REUSEPORT, 1)?;
        if set(&socket, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, RANGE).is_err() {
            return Err(Snag::NotHere(
                "IP_LOCAL_PORT_RANGE came with Linux 6.3".into(),
            ));
        }
        bind(&socket, any_port())?;
        taken.push((socket.local_addr()?.port(), socket));
    }
    let mut ports: Vec<_> = taken.iter().map(|(port, _)| port).collect();
    ports.sort_unstable();
    ports.dedup();
    let what = format!("28 sockets with the option got {} ports of 32", ports.len());
    seen(ports.len() == taken.len(), what)
}
