//! What Apple's kernels lack: `accept4`, and the flags of `socket`. Both are made here of the bare
//! call and `fcntl(2)`, with C's results, so that [`sys`](crate::sys) knows nothing of it. Between
//! the two calls a `fork` elsewhere in the process may copy the descriptor: C cannot help that
//! either.

use core::ffi::c_int;

use libc::{F_SETFD, F_SETFL, FD_CLOEXEC, O_NONBLOCK, sockaddr, socklen_t};

/// Close the new descriptor on `execve(2)`.
pub const SOCK_CLOEXEC: c_int = 1 << 28;
/// Calls on the new descriptor do not wait.
pub const SOCK_NONBLOCK: c_int = 1 << 29;

/// # Safety
/// As C's.
pub(crate) unsafe fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    let bare = kind & !(SOCK_CLOEXEC | SOCK_NONBLOCK);
    // SAFETY: takes three integers; any are allowed.
    let fd = unsafe { libc::socket(domain, bare, protocol) };
    // SAFETY: `fd` is -1, or was opened by the line above and is known here alone.
    unsafe { with_flags(fd, kind) }
}

/// # Safety
/// As C's.
pub(crate) unsafe fn accept4(
    fd: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller vouches for both pointers.
    let fd = unsafe { libc::accept(fd, address, length) };
    // SAFETY: `fd` is -1, or was opened by the line above and is known here alone.
    unsafe { with_flags(fd, flags) }
}

/// Gives the new `fd` its flags; takes `O_NONBLOCK` from it otherwise, for an accepted socket
/// inherits that from its listener here. On failure `fd` is closed and `errno(3)` says why.
///
/// # Safety
/// `fd` is -1, or open and known to the caller alone.
unsafe fn with_flags(fd: c_int, flags: c_int) -> c_int {
    if fd == -1 {
        return -1;
    }
    let close_on_exec = if flags & SOCK_CLOEXEC == 0 {
        0
    } else {
        FD_CLOEXEC
    };
    let status = if flags & SOCK_NONBLOCK == 0 {
        0
    } else {
        O_NONBLOCK
    };
    for (command, value) in [(F_SETFD, close_on_exec), (F_SETFL, status)] {
        // SAFETY: both commands take an integer; `fd` is open.
        if unsafe { libc::fcntl(fd, command, value) } == -1 {
            // fcntl fails here for no reason but a bad descriptor, which close reports alike.
            // SAFETY: `fd` is known here alone, and not returned.
            unsafe { libc::close(fd) };
            return -1;
        }
    }
    fd
}
