//! Joining a group.

use core::ffi::c_int;
use core::net::{Ipv4Addr, SocketAddr};
use std::env;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use reuseport::{Call, Error, Listener, Options, sys};

use super::tools::{BOUND, NOBODY, REFUSED, act_as, any_port, aside, bind, check, client, fates};
use super::tools::{group, listen, member, open, set, told, who};
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
    readable(&stderr)?;
    BufReader::new(stderr).read_line(&mut said)?;
    let (first, mut ours, mut theirs) = ([first], 0, 0);
    for _ in 0..60 {
        let [here, there, _] = fates(&first, &[], &[client(address)?])?;
        (ours, theirs) = (ours + here, theirs + there);
    }
    let what = format!(
        "{ours} of 60 here, {theirs} there; it says: {}",
        said.trim()
    );
    seen(
        said.contains("listening on") && ours > 0 && theirs > 0,
        what,
    )
}

/// Waits until there is something to read, or the end.
fn readable(fd: &impl AsRawFd) -> Result<(), Snag> {
    let (fd, events) = (fd.as_raw_fd(), libc::POLLIN);
    let mut wanted = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    let bound = c_int::try_from(BOUND.as_millis())?;
    // SAFETY: `wanted` is readable and writable, and the only one.
    match check(unsafe { libc::poll(&raw mut wanted, 1, bound) })? {
        0 => Err(Snag::Broken(format!(
            "the other program said nothing within {BOUND:?}"
        ))),
        _ => Ok(()),
    }
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
        let ours = act_as(libc::uid_t::MAX)?; // no user has this number
        let became = act_as(if counter { ours } else { NOBODY })?;
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

/// The port is opened by this program's user; the newcomer is another.
pub(super) fn fchown_changes_who_may_join(counter: bool) -> Tried {
    let first = member(any_port())?;
    let address = first.local_addr()?;
    if !counter {
        let group = libc::gid_t::MAX; // stays as it is
        // SAFETY: takes integers; the descriptor is the listener's.
        check(unsafe { libc::fchown(first.as_raw_fd(), NOBODY, group) })?;
    }
    aside(move || {
        act_as(NOBODY)?;
        let joined = member(address).map(drop);
        let what = format!("user {NOBODY} joins: {}", told(&joined));
        seen(joined.is_ok(), what)
    })
}

pub(super) fn with_reuseaddr_listen_refuses(counter: bool) -> Tried {
    let open = |address: SocketAddr| {
        let socket: Listener = open(sys::SOCK_STREAM, address.ip())?;
        set(
            &socket,
            sys::SOL_SOCKET,
            sys::SO_REUSEADDR,
            i32::from(!counter),
        )?;
        bind(&socket, address).map(|()| socket)
    };
    let first = open(any_port())?;
    let (second, bound) = match open(first.local_addr()?) {
        Ok(second) => (Some(second), Ok(())),
        Err(error) => (None, Err(error)),
    };
    listen(&first, 64)?;
    let listens = second.map(|second| listen(&second, 64));
    let what = format!("bind: {}; listen: {listens:?}", told(&bound));
    let refused = Error::new(Call::Listen, libc::EADDRINUSE);
    seen(listens == Some(Err(refused)), what)
}

/// Leaves a connection of a server with these options in `TIME_WAIT`, and returns the address.
fn leftover(options: &Options) -> Result<SocketAddr, Snag> {
    let server = options.bind(any_port())?;
    let address = server.local_addr()?;
    let mut client = TcpStream::connect(address)?;
    drop(server.accept()?);
    client.read_exact(&mut [0]).unwrap_or_default(); // until the server's end, which came first
    drop((client, server));
    if Listener::options().reuse_port(false).bind(address).is_ok() {
        return Err(Snag::NotHere(
            "no room for TIME_WAIT (net.ipv4.tcp_max_tw_buckets)".into(),
        ));
    }
    Ok(address)
}

pub(super) fn leftovers_want_the_same_option(counter: bool) -> Tried {
    let options = Listener::options();
    let address = leftover(&options.reuse_address(counter))?;
    let other = options.reuse_port(false).reuse_address(true);
    let other = other.bind(address).map(drop);
    let same = options.bind(address).map(drop);
    let what = format!(
        "SO_REUSEADDR: {}; SO_REUSEPORT: {}",
        told(&other),
        told(&same)
    );
    seen(other == Err(REFUSED) && same.is_ok(), what)
}

pub(super) fn leftovers_without_options_refuse_all(counter: bool) -> Tried {
    let both = Listener::options().reuse_address(true);
    let address = leftover(&Listener::options().reuse_port(counter))?;
    let bound = both.bind(address).map(drop);
    let what = format!("bind with both options: {}", told(&bound));
    seen(bound == Err(REFUSED), what)
}

/// The client has neither option.
pub(super) fn an_outgoing_connection_takes_its_port(counter: bool) -> Tried {
    let server = Listener::bind(any_port())?;
    let client = TcpStream::connect(server.local_addr()?)?;
    let address = client.local_addr()?;
    if counter {
        set(&client, sys::SOL_SOCKET, libc::SO_LINGER, [1, 0])?; // closes by a reset
        drop(client);
    }
    let both = Listener::options().reuse_address(true);
    let bound = both.bind(address).map(drop);
    let what = format!("bind with both options: {}", told(&bound));
    seen(bound == Err(REFUSED), what)
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

/// Neither socket has an option. The second is opened in a network namespace of its thread's own.
pub(super) fn a_namespace_has_ports_of_its_own(counter: bool) -> Tried {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let first = Listener::options().reuse_port(false).bind(any)?;
    let address = first.local_addr()?;
    aside(move || {
        if !counter {
            // SAFETY: takes an integer.
            let apart = check(unsafe { libc::unshare(libc::CLONE_NEWNET) });
            let refused = |error| format!("it takes root to make a network namespace: {error}");
            apart.map_err(|error| Snag::NotHere(refused(error)))?;
        }
        let second = Listener::options().reuse_port(false).bind(address);
        let what = format!("a second bind of {address}: {}", told(&second));
        seen(second.is_ok(), what)
    })
}

/// 28 sockets take a port among 32. By chance no two have the same once in 10^8 runs.
pub(super) fn port_0_never_collides(counter: bool) -> Tried {
    let kind = if counter {
        libc::SOCK_DGRAM
    } else {
        sys::SOCK_STREAM
    };
    let window = port_window()?;
    let sockets: Vec<_> = (0..28)
        .map(|_| among(kind, window))
        .collect::<Result<_, _>>()?;
    let mut ports = Vec::new();
    for socket in &sockets {
        ports.push(socket.local_addr()?.port());
    }
    ports.sort_unstable();
    ports.dedup();
    let what = format!("28 sockets with the option got {} ports of 32", ports.len());
    seen(ports.len() == sockets.len(), what)
}

/// A socket with the option on port 0, which the kernel chooses among the 32 from `first` on.
fn among(kind: c_int, first: u16) -> Result<Listener, Snag> {
    const IP_LOCAL_PORT_RANGE: c_int = 51; // linux/in.h, since 6.3
    let range = u32::from(first + 31) << 16 | u32::from(first);
    let socket: Listener = open(kind, any_port().ip())?;
    set(&socket, sys::SOL_SOCKET, sys::SO_REUSEPORT, 1)?;
    if let Err(error) = set(&socket, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range) {
        let why = format!("no IP_LOCAL_PORT_RANGE, which came with Linux 6.3: {error}");
        return Err(Snag::NotHere(why));
    }
    bind(&socket, any_port())?;
    Ok(socket)
}

/// The first of 32 ports, free for TCP and UDP, from which the kernel lets a socket choose. It
/// ignores a range that is not within `net.ipv4.ip_local_port_range`.
pub(super) fn port_window() -> Result<u16, Snag> {
    for _ in 0..100 {
        let first = Listener::options().bind(any_port())?.local_addr()?.port();
        if first > u16::MAX - 31 {
            continue;
        }
        let mut taken = Vec::new();
        for kind in [sys::SOCK_STREAM, libc::SOCK_DGRAM] {
            let free = |port| {
                let socket: Listener = open(kind, any_port().ip())?;
                let address = SocketAddr::new(any_port().ip(), port);
                bind(&socket, address).map(|()| socket)
            };
            taken.extend((first..=first + 31).map_while(|port| free(port).ok()));
        }
        let free = taken.len() == 64;
        drop(taken);
        if free && chosen_within(first)? {
            return Ok(first);
        }
    }
    let why = "net.ipv4.ip_local_port_range has no 32 free ports in a row";
    Err(Snag::NotHere(why.into()))
}

/// Whether the kernel lets sockets choose among the 32 ports from `first` on: it has given 8 of
/// them, which by chance it does not do where it ignores the range.
fn chosen_within(first: u16) -> Result<bool, Snag> {
    let mut chosen = Vec::new();
    for _ in 0..8 {
        match among(sys::SOCK_STREAM, first) {
            Ok(socket) => chosen.push(socket),
            Err(Snag::Broken(_)) => return Ok(false), // another range has no port left
            Err(snag) => return Err(snag),
        }
    }
    let mut addresses = chosen.iter().map(Listener::local_addr);
    let within = |at: Result<SocketAddr, _>| at.is_ok_and(|at| at.port().wrapping_sub(first) < 32);
    Ok(addresses.all(within))
}
