//! `explain --isolated`: a network namespace of this process's own, with the kernel's defaults.

use std::fs;
use std::os::fd::AsRawFd;

use reuseport::Listener;

use super::look::LO;
use super::sockets::{any_port, open};
use super::tools::{check, give_up_capabilities};

/// Moves this process, which has one thread, into a network namespace whose lo is up. An ordinary
/// user takes a user namespace for that, in which it is the same user, and has no more rights
/// afterwards than before.
pub(crate) fn isolate() -> Result<(), String> {
    // SAFETY: takes an integer.
    let as_root = check(unsafe { libc::unshare(libc::CLONE_NEWNET) });
    match as_root {
        Ok(_) => lo_up(),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => as_ordinary_user(),
        Err(error) => Err(format!("unshare(CLONE_NEWNET): {error}")),
    }
}

fn as_ordinary_user() -> Result<(), String> {
    // SAFETY: takes nothing.
    let user = unsafe { libc::geteuid() };
    // SAFETY: takes nothing.
    let group = unsafe { libc::getegid() };
    // SAFETY: takes an integer.
    let both = check(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) });
    both.map_err(|error| format!("unshare(CLONE_NEWUSER | CLONE_NEWNET): {error}"))?;
    let maps = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{user} {user} 1")),
        ("/proc/self/gid_map", format!("{group} {group} 1")),
    ];
    for (path, line) in maps {
        fs::write(path, line).map_err(|error| format!("{path}: {error}"))?;
    }
    lo_up()?;
    give_up_capabilities().map_err(|error| format!("capset: {error}"))
}

/// Sets the flags of lo: `SIOCSIFFLAGS`.
fn lo_up() -> Result<(), String> {
    let mut lo = LO;
    lo.flags = i16::try_from(libc::IFF_UP).unwrap_or(1);
    let socket: Result<Listener, _> = open(libc::SOCK_DGRAM, any_port().ip());
    let socket = socket.map_err(|error| error.to_string())?;
    // SAFETY: `lo` is readable as the kernel's `struct ifreq`.
    let up = check(unsafe { libc::ioctl(socket.as_raw_fd(), 0x8914, &raw const lo) });
    up.map_err(|error| format!("SIOCSIFFLAGS for lo: {error}"))?;
    Ok(())
}
