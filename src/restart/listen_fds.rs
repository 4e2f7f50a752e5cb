//! Sockets that another process has opened, passed as `sd_listen_fds(3)` describes: by systemd,
//! or by an old process that this one replaces.

use core::ffi::c_int;
use core::net::SocketAddr;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::{env, process, string::String, vec::Vec};

use crate::address::SockAddr;
use crate::error::{Call, Error, check};
use crate::group::{Group, GroupError, OldProcess};
use crate::os;
use crate::socket::protocol::{Protocol, Udp};
use crate::sys::{self, SOCK_STREAM};

/// The first descriptor that is passed: systemd's `SD_LISTEN_FDS_START`.
pub(super) const LISTEN_FDS_START: RawFd = 3;
/// The name of a listener that an old process passes.
#[cfg(linux_kernel)]
pub(super) const FD_NAME: &str = "reuseport";
/// The name of the socket between the old process and the new one.
pub(super) const SOCKET_NAME: &str = "reuseport-socket";
/// The variable that holds the inode of that socket, the proof of which process has passed the
/// descriptors; and behind it the routing byte of each member.
pub(super) const SOCKET_VARIABLE: &str = "REUSEPORT_SOCKET";
/// The variables that describe passed descriptors, and are not passed on.
#[cfg(linux_kernel)]
pub(super) const LISTEN_VARIABLES: [&str; 4] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
];

/// What a process was started with: by an old process that it replaces, by systemd, or by any other
/// program that follows `sd_listen_fds(3)`.
///
/// # Examples
/// ```no_run
/// use reuseport::Inherited;
///
/// for (name, inherited) in Inherited::from_env()? {
///     match inherited {
///         Inherited::Tcp(group) => println!("{name}: TCP, {}", group.local_addr()),
///         Inherited::Udp(group) => println!("{name}: UDP, {}", group.local_addr()),
///         _ => println!("{name}: something else"),
///     }
/// }
/// # Ok::<(), reuseport::GroupError>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Inherited {
    /// Listeners on one address.
    Tcp(Group),
    /// UDP sockets on one address.
    Udp(Group<Udp>),
    /// A descriptor of another kind: a UNIX socket, for example.
    Other(OwnedFd),
}

impl Inherited {
    /// Returns all that this process was started with, each with its name in `LISTEN_FDNAMES`. The
    /// listeners of one address are one group, and so are its UDP sockets; those that are bound to
    /// an interface are apart. It works once, and is otherwise as [`Group::from_env`].
    ///
    /// The old process takes this one for ready when all groups are served.
    ///
    /// # Errors
    /// [`GroupError::InvalidListenFds`], and [`GroupError::NotAListener`] for a number that is no
    /// open descriptor.
    pub fn from_env() -> Result<Vec<(String, Inherited)>, GroupError> {
        take(|_| Ok(()))
    }
}

impl Group {
    /// Returns the groups that this process was started with, one for each address; none if it was
    /// not started so. It works once: a second call returns none.
    ///
    /// The listeners of an old process that calls `Server::hand_over` are this process's own, as if
    /// it had bound them. Those from systemd, or any other program that follows `sd_listen_fds(3)`,
    /// are held by that program too: their workers poll, they are never shut down, and a group of
    /// them cannot be changed.
    ///
    /// Call it first in `main`: it takes the descriptors from 3 on, as far as `LISTEN_FDS` counts
    /// them, and marks them close-on-exec.
    ///
    /// # Errors
    /// [`GroupError::InvalidListenFds`], and [`GroupError::NotAListener`] for a descriptor of
    /// another kind, which [`Inherited::from_env`] takes; nothing is taken then.
    ///
    /// # Examples
    /// ```
    /// use reuseport::Group;
    ///
    /// let mut groups = Group::from_env()?; // of an old process, or of systemd
    /// if groups.is_empty() {
    ///     groups.push(Group::bind(([127, 0, 0, 1], 0), 2)?);
    /// }
    /// let mut servers = Vec::new();
    /// for group in groups {
    ///     servers.push(group.spawn(|_, connection| _ = connection.send(b"hello"))?);
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn from_env() -> Result<Vec<Group>, GroupError> {
        let all = take(check_listener)?.into_iter();
        let group = |(_, inherited)| match inherited {
            Inherited::Tcp(group) => Some(group),
            _ => None,
        };
        Ok(all.filter_map(group).collect())
    }
}

/// Takes the descriptors that were passed, if `check` accepts each.
fn take(check: fn(RawFd) -> Result<(), Error>) -> Result<Vec<(String, Inherited)>, GroupError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let (socket, bytes) = old_process_socket().unzip();
    let bytes: Vec<u8> = bytes.unwrap_or_default();
    let is_for_us = number("LISTEN_PID") == Some(u64::from(process::id()));
    if (socket.is_none() && !is_for_us) || TAKEN.load(Relaxed) {
        return Ok(Vec::new());
    }
    let end = listen_fds_end().ok_or(GroupError::InvalidListenFds)?;
    let no_listener = |descriptor, error| GroupError::NotAListener { descriptor, error };
    for fd in LISTEN_FDS_START..end {
        // First for all of them: the number may be wrong.
        set_cloexec(fd).map_err(|error| no_listener(fd, error))?;
    }
    let given = (LISTEN_FDS_START..end).filter(|fd| Some(*fd) != socket);
    for fd in given.clone() {
        check(fd).map_err(|error| no_listener(fd, error))?;
    }
    if TAKEN.swap(true, Relaxed) {
        return Ok(Vec::new());
    }
    let names = names();
    let mut found: Vec<(String, Option<Kind>, Vec<Passed>)> = Vec::new();
    for fd in given {
        let kind = kind(fd);
        let at = (fd - LISTEN_FDS_START).unsigned_abs() as usize;
        // SAFETY: it was passed to this process, which takes it once.
        let owned = (unsafe { OwnedFd::from_raw_fd(fd) }, bytes.get(at).copied());
        let same = found.iter_mut().find(|one| kind.is_some() && one.1 == kind);
        if let Some((_, _, sockets)) = same {
            sockets.push(owned);
        } else {
            let name = names.get(at).cloned().unwrap_or_default();
            found.push((name, kind, Vec::from([owned])));
        }
    }
    let groups = found.iter().filter(|(_, kind, _)| kind.is_some()).count();
    let mut old_processes = socket.into_iter().flat_map(|fd| {
        // SAFETY: as above.
        OldProcess::share(unsafe { UnixStream::from_raw_fd(fd) }, groups)
    });
    let mut inherited = Vec::new();
    for (name, kind, sockets) in found {
        let kind = kind.map(|(kind, ..)| kind);
        let old_process = kind.and_then(|_| old_processes.next());
        let one = match kind {
            Some(SOCK_STREAM) => group(sockets, old_process).map(Inherited::Tcp)?,
            Some(_) => group(sockets, old_process).map(Inherited::Udp)?,
            None => match sockets.into_iter().next() {
                Some((fd, _)) => Inherited::Other(fd),
                None => continue,
            },
        };
        inherited.push((name, one));
    }
    Ok(inherited)
}

/// A socket, and the routing byte that an old process has given to it.
type Passed = (OwnedFd, Option<u8>);

fn group<P: Protocol>(
    passed: Vec<Passed>,
    old_process: Option<OldProcess>,
) -> Result<Group<P>, GroupError> {
    let (sockets, bytes): (Vec<_>, Vec<_>) = passed.into_iter().unzip();
    let sockets = sockets.into_iter().map(P::Socket::from).collect();
    let mut group = Group::inherited(sockets, old_process.is_some())?;
    group.routing_bytes = bytes.into_iter().flatten().collect();
    group.old_process = old_process;
    Ok(group)
}

/// The type, the address, the interface and `IPV6_V6ONLY` of a listener or a UDP socket: one group
/// has one.
type Kind = (c_int, SocketAddr, u32, bool);

fn kind(fd: RawFd) -> Option<Kind> {
    let kind = os::option(fd, sys::SOL_SOCKET, libc::SO_TYPE).ok()?;
    let listens =
        kind == SOCK_STREAM && os::option(fd, sys::SOL_SOCKET, libc::SO_ACCEPTCONN) == Ok(1);
    let address = internet_address(fd)?;
    let only_v6 = os::option(fd, sys::IPPROTO_IPV6, sys::IPV6_V6ONLY) == Ok(1);
    let found = (kind, address, os::interface(fd), only_v6);
    (listens || kind == libc::SOCK_DGRAM).then_some(found)
}

fn names() -> Vec<String> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    names.split(':').map(String::from).collect()
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// The number behind the last descriptor that is passed.
fn listen_fds_end() -> Option<RawFd> {
    let count = RawFd::try_from(number("LISTEN_FDS")?).ok()?;
    LISTEN_FDS_START.checked_add(count)
}

/// The descriptor of the socket to the old process, if one has passed the descriptors, and the
/// routing bytes. Its name alone proves nothing: a service manager takes any name. Its inode is
/// known to the old process alone.
fn old_process_socket() -> Option<(RawFd, Vec<u8>)> {
    let variable = env::var(SOCKET_VARIABLE).ok()?;
    let (inode, bytes) = variable.split_once(':').unwrap_or((&variable, ""));
    let inode = inode.parse().ok()?;
    let bytes = bytes.split(':').map_while(|byte| byte.parse().ok());
    let names = names();
    let mut given = (LISTEN_FDS_START..listen_fds_end()?).zip(&names);
    let is_it = |fd: RawFd, name: &str| name == SOCKET_NAME && os::inode(fd) == Ok(inode);
    let (fd, _) = given.find(|(fd, name)| is_it(*fd, name))?;
    Some((fd, bytes.collect()))
}

/// Checks that `fd` is a TCP socket that listens.
fn check_listener(fd: RawFd) -> Result<(), Error> {
    // Its error, if it is no socket.
    os::option(fd, sys::SOL_SOCKET, libc::SO_TYPE)?;
    match kind(fd) {
        Some((SOCK_STREAM, ..)) => Ok(()),
        _ => Err(Error::new(Call::GetSockOpt, libc::EINVAL)),
    }
}

fn internet_address(fd: RawFd) -> Option<SocketAddr> {
    let mut address = SockAddr::empty();
    let (at, len) = (address.as_mut_ptr(), address.len_mut_ptr());
    // SAFETY: both point into `address`, which has room for the length it states.
    unsafe { sys::getsockname(fd, at, len) }.ok()?;
    address.get()
}

/// Keeps `fd`, if it is open, from programs that this one starts.
fn set_cloexec(fd: RawFd) -> Result<(), Error> {
    // SAFETY: the command takes an integer.
    check(Call::Fcntl, unsafe {
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC)
    })
    .map(drop)
}
