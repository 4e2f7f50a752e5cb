//! Listeners that another process has opened: the way of `sd_listen_fds(3)`, in which systemd
//! passes them and one of our servers passes its own to its successor.

use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::io::Write;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::{env, process, string::String, vec::Vec};

use crate::address::{SockAddr, socklen};
use crate::error::{Call, Error, check};
use crate::group::{Group, GroupError};
use crate::listener::{Descriptor, Listener};
use crate::sys::{self, SOCK_STREAM, SOL_SOCKET};

/// The first descriptor passed.
pub(crate) const FIRST: RawFd = 3;
/// What a listener is called that is handed over, and nobody else's any more.
pub(crate) const NAME: &str = "reuseport";
/// What the descriptor is called on which the successor says that it is ready.
pub(crate) const READY: &str = "reuseport-ready";

impl Group {
    /// The groups that this process was started with, one for each address; none if it was not
    /// started so. Works once: a second call finds none.
    ///
    /// Listeners from systemd, or any other that follows `sd_listen_fds(3)`, belong to others as
    /// well: their acceptors poll, they are never shut down, and a group of them neither grows,
    /// nor shrinks, nor is steered. Those that a predecessor has handed over are this process's
    /// alone, as if it had bound them.
    ///
    /// Fails, and owns nothing, if a descriptor is no TCP socket that listens.
    pub fn from_env() -> Result<Vec<Group>, GroupError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let number = |name| {
            env::var(name)
                .ok()
                .and_then(|value| value.parse::<u32>().ok())
        };
        if number("LISTEN_PID") != Some(process::id()) || TAKEN.swap(true, Relaxed) {
            return Ok(Vec::new());
        }
        let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok());
        let count = count.ok_or(GroupError::InvalidListenFds)?;
        let no_listener = |descriptor, error| GroupError::NotAListener { descriptor, error };
        let end = FIRST
            .checked_add(count)
            .ok_or(GroupError::InvalidListenFds)?;
        for fd in FIRST..end {
            // Before anything is made of a number that may be nonsense.
            keep(fd).map_err(|error| no_listener(fd, error))?;
        }
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names: Vec<String> = names.split(':').map(String::from).collect();
        names.resize(count.unsigned_abs() as usize, String::new());
        let given = || (FIRST..end).zip(&names);
        let listeners = given().filter(|(_, name)| *name != READY);
        for (fd, _) in listeners.clone() {
            check_listener(fd).map_err(|error| no_listener(fd, error))?;
        }
        let alone = listeners.clone().all(|(_, name)| name == NAME);
        for (fd, _) in given().filter(|(_, name)| *name == READY) {
            // What a predecessor passes is a UNIX stream.
            let error = Error::new(Call::GetSockOpt, libc::EINVAL);
            if option(fd, libc::SO_TYPE) != Ok(SOCK_STREAM) || is_internet(fd) {
                return Err(no_listener(fd, error));
            }
        }
        let mut ready = given().find(|(_, name)| *name == READY).map(|(fd, _)| {
            // SAFETY: it was passed to this process, which takes it once.
            Ready(unsafe { UnixStream::from_raw_fd(fd) })
        });
        let mut groups: Vec<Group> = Vec::new();
        for (fd, _) in listeners {
            // SAFETY: as above; it is a listener.
            let listener = Listener(unsafe { Descriptor::own(fd) });
            let address = listener.local_addr();
            match groups
                .iter_mut()
                .find(|group| Ok(group.local_addr()) == address)
            {
                Some(group) => group.sockets.push(listener),
                None => groups.push(Group::inherited(listener, alone, ready.take())?),
            }
        }
        Ok(groups)
    }
}

/// How a successor says that it is ready. Dropped unsaid, it says that it is not.
#[derive(Debug)]
pub(crate) struct Ready(UnixStream);

impl Ready {
    pub(crate) fn say(mut self) {
        // If the predecessor is gone there is nobody to hear it.
        _ = self.0.write_all(b"!");
    }
}

/// Whether `fd` is a TCP socket that listens.
fn check_listener(fd: RawFd) -> Result<(), Error> {
    let listens =
        option(fd, libc::SO_TYPE)? == SOCK_STREAM && option(fd, libc::SO_ACCEPTCONN)? == 1;
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

fn option(fd: RawFd, name: c_int) -> Result<c_int, Error> {
    let (mut value, mut len) = (0, socklen::<c_int>());
    let at = (&raw mut value).cast();
    // SAFETY: `value` is writable for the four bytes that `len` states.
    unsafe { sys::getsockopt(fd, SOL_SOCKET, name, at, &raw mut len) }?;
    Ok(value)
}

/// Keeps `fd`, if it is open, from programs that this one starts.
fn keep(fd: RawFd) -> Result<(), Error> {
    // SAFETY: the command takes an integer.
    check(Call::Fcntl, unsafe {
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC)
    })
    .map(drop)
}
