//! What is done to sockets behind the library's back.

use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// Closes with a reset.
#[track_caller]
pub fn reset(client: TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let size = size_of::<libc::linger>()
        .try_into()
        .expect("a short struct");
    let (value, name) = ((&raw const linger).cast(), libc::SO_LINGER);
    // SAFETY: `linger` is readable for its own size, and the option takes that struct.
    let set = unsafe { libc::setsockopt(client.as_raw_fd(), libc::SOL_SOCKET, name, value, size) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    drop(client);
}

/// Has every client of a socket's group go to this index: a program that returns it. It takes the
/// place of the group's own.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn steer_to_index(of_the_group: &impl AsRawFd, index: u32) {
    let mut program = libc::sock_filter {
        code: 0x06, // BPF_RET | BPF_K
        jt: 0,
        jf: 0,
        k: index,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut program,
    };
    let (at, len) = ((&raw const program).cast(), size_of_val(&program));
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF);
    let (fd, len) = (
        of_the_group.as_raw_fd(),
        len.try_into().expect("a short struct"),
    );
    // SAFETY: the option takes a `sock_fprog`, which is readable, and so is its one instruction.
    let set = unsafe { libc::setsockopt(fd, level, name, at, len) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}
