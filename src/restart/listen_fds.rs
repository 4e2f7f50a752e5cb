//! Listeners that another process has opened, passed as `sd_listen_fds(3)` describes: by systemd,
//! or by an old process that this one replaces.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::{env, process, string::String, vec::Vec};

use crate::address::SockAddr;
use crate::error::{Call, Error, check};
use crate::group::{Group, GroupError, OldProcess};
use crate::listener::{Descriptor, Listener};
use crate::os;
use crate::sys::{self, SOCK_STREAM};

/// The first descriptor that is passed: systemd's `SD_LISTEN_FDS_START`.
pub(super) const LISTEN_FDS_START: RawFd = 3;
/// The name of a listener that an old process passes.
#[cfg(linux_kernel)]
pub(super) const FD_NAME: &str = "reuseport";
/// The name of the socket between the old process and the new one.
pub(super) const SOCKET_NAME: &str = "reuseport-socket";
/// The variable that holds the inode of that socket: the proof of which process has passed the
/// descriptors.
pub(super) const SOCKET_VARIABLE: &str = "REUSEPORT_SOCKET";
/// The variables that describe passed descriptors, and are not passed on.
#[cfg(linux_kernel)]
pub(super) const LISTEN_VARIABLES: [&str; 4] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
];

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
    /// [`GroupError::InvalidListenFds`] and [`GroupError::NotAListener`]; nothing is taken then.
    pub fn from_env() -> Result<Vec<Group>, GroupError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let socket = old_process_socket();
        let is_for_us = number("LISTEN_PID") == Some(u64::from(process::id()));
        if (socket.is_none() && !is_for_us) || TAKEN.swap(true, Relaxed) {
            return Ok(Vec::new());
        }
        let end = listen_fds_end().ok_or(GroupError::InvalidListenFds)?;
        let no_listener = |descriptor, error| GroupError::NotAListener { descriptor, error };
        for fd in LISTEN_FDS_START..end {
            // First for all of them: the number may be wrong.
            set_cloexec(fd).map_err(|error| no_listener(fd, error))?;
        }
        let listeners = (LISTEN_FDS_START..end).filter(|fd| Some(*fd) != socket);
        for fd in listeners.clone() {
            check_listener(fd).map_err(|error| no_listener(fd, error))?;
        }
        let mut old_process = socket.map(|fd| {
            // SAFETY: it was passed to this process, which takes it once.
            OldProcess::new(unsafe { UnixStream::from_raw_fd(fd) })
        });
        let mut groups: Vec<Group> = Vec::new();
        for fd in listeners {
            // SAFETY: as above; it is a listener.
            let listener = Listener(unsafe { Descriptor::own(fd) });
            let address = listener.local_addr();
            let same = |group: &&mut Group| Ok(group.local_addr()) == address;
            if let Some(group) = groups.iter_mut().find(same) {
                group.sockets.push(listener);
            } else {
                let old_process = old_process.take();
                groups.push(Group::inherited(listener, socket.is_some(), old_process)?);
            }
        }
        Ok(groups)
    }
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// The number behind the last descriptor that is passed.
fn listen_fds_end() -> Option<RawFd> {
    let count = RawFd::try_from(number("LISTEN_FDS")?).ok()?;
    LISTEN_FDS_START.checked_add(count)
}

/// The descriptor of the socket to the old process, if one has passed the descriptors. Its name
/// alone proves nothing: a service manager takes any name. Its inode is known to the old process
/// alone.
fn old_process_socket() -> Option<RawFd> {
    let inode = number(SOCKET_VARIABLE)?;
    let names = env::var("LISTEN_FDNAMES").ok()?;
    let names: Vec<String> = names.split(':').map(String::from).collect();
    let mut given = (LISTEN_FDS_START..listen_fds_end()?).zip(&names);
    let is_it = |fd: RawFd, name: &str| name == SOCKET_NAME && os::inode(fd) == Ok(inode);
    given.find(|(fd, name)| is_it(*fd, name)).map(|(fd, _)| fd)
}

/// Checks that `fd` is a TCP socket that listens.
fn check_listener(fd: RawFd) -> Result<(), Error> {
    let listens =
        os::option(fd, libc::SO_TYPE)? == SOCK_STREAM && os::option(fd, libc::SO_ACCEPTCONN)? == 1;
    if listens && is_internet(fd) {
        return Ok(());
    }
    Err(Error::new(Call::GetSockOpt, libc::EINVAL))
}

/// Whether `fd` is a socket with an internet address.
fn is_internet(fd: RawFd) -> bool {
    let mut address = SockAddr::empty();
    let (at, len) = (address.as_mut_ptr(), address.len_mut_ptr());
    // SAFETY: both point into `address`, which has room for the length it states.
    let named = unsafe { sys::getsockname(fd, at, len) };
    named.is_ok() && address.get().is_some()
}

/// Keeps `fd`, if it is open, from programs that this one starts.
fn set_cloexec(fd: RawFd) -> Result<(), Error> {
    // SAFETY: the command takes an integer.
    check(Call::Fcntl, unsafe {
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC)
    })
    .map(drop)
}
