//! The same program on bare libc calls. What it has less than `reuseport` is what the safe types
//! cost.
#![no_std]
#![no_main]

use core::ffi::{c_int, c_void};
use core::mem::zeroed;
use core::ptr::null_mut;

/// The C program's `check`.
fn check(call: &str, result: c_int) -> c_int {
    if result == -1 {
        // SAFETY: takes nothing; returns the address of this thread's own errno.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: readable for as long as the thread lives.
        let errno = unsafe { *errno };
        minimal::fail(call, errno);
    }
    result
}

extern "C" fn acceptor(number: *mut c_void) -> *mut c_void {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: takes three integers.
    let server = check("socket", unsafe { libc::socket(libc::AF_INET, kind, 0) });
    let on: c_int = 1;
    let (level, name, value) = (libc::SOL_SOCKET, libc::SO_REUSEPORT, (&raw const on).cast());
    // SAFETY: `on` is readable for its four bytes, and the option takes an int.
    let done = unsafe { libc::setsockopt(server, level, name, value, 4) };
    check("setsockopt", done);

    // SAFETY: made of integers, for which zeros are a value.
    let mut addr: libc::sockaddr_in = unsafe { zeroed() };
    #[allow(clippy::cast_possible_truncation)] // it is 2
    {
        addr.sin_family = libc::AF_INET as _;
    }
    addr.sin_addr.s_addr = libc::INADDR_LOOPBACK.to_be();
    addr.sin_port = minimal::port().to_be();

    // SAFETY: `addr` is readable for its sixteen bytes.
    check("bind", unsafe {
        libc::bind(server, (&raw const addr).cast(), 16)
    });
    // SAFETY: takes two integers.
    check("listen", unsafe { libc::listen(server, c_int::MAX) });
    let line = minimal::line(number);
    loop {
        // SAFETY: null stands for "no address wanted".
        let client = unsafe { libc::accept4(server, null_mut(), null_mut(), libc::SOCK_CLOEXEC) };
        check("accept", client);
        minimal::write(1, &line);
        // Unchecked, as the safe type's: it has closed all the same.
        // SAFETY: the client is this loop's own.
        unsafe { libc::close(client) };
    }
}

#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const u8) -> c_int {
    // SAFETY: they are what the C library passes to `main`.
    unsafe { minimal::set_port(argc, argv) };
    minimal::run(acceptor);
    0
}
