//! The same program on bare libc calls: what the safe types cost is what it lacks.
#![no_std]
#![no_main]

mod program;

use core::ffi::{c_char, c_int, c_void};
use core::mem::zeroed;
use core::ptr::null_mut;

/// The C program's `check`.
fn check(call: &str, result: c_int) -> c_int {
    if result == -1 {
        // SAFETY: takes nothing; returns the address of this thread's own errno.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: readable for as long as the thread lives.
        program::fail(call, unsafe { *errno });
    }
    result
}

extern "C" fn acceptor(number: *mut c_void) -> *mut c_void {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: takes three integers.
    let server = check("socket", unsafe { libc::socket(libc::AF_INET, kind, 0) });
    let on: c_int = 1;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_REUSEPORT);
    // SAFETY: `on` is readable for four bytes.
    let result = unsafe { libc::setsockopt(server, level, name, (&raw const on).cast(), 4) };
    check("setsockopt", result);

    // SAFETY: made of integers, for which zeros are a value.
    let mut addr: libc::sockaddr_in = unsafe { zeroed() };
    addr.sin_family = libc::AF_INET as _;
    addr.sin_addr.s_addr = libc::INADDR_LOOPBACK.to_be();
    addr.sin_port = program::port().to_be();
    // SAFETY: `addr` is readable for its size.
    let result = unsafe { libc::bind(server, (&raw const addr).cast(), size_of_val(&addr) as _) };
    check("bind", result);
    // SAFETY: takes two integers.
    check("listen", unsafe { libc::listen(server, c_int::MAX) });
    loop {
        // SAFETY: null stands for "no address wanted".
        let client = unsafe { libc::accept4(server, null_mut(), null_mut(), libc::SOCK_CLOEXEC) };
        let client = check("accept", client);
        program::say(number);
        // SAFETY: the client is this loop's own. Like the owner's, this close goes unchecked.
        unsafe { libc::close(client) };
    }
}

#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: they are what the C library passes to `main`.
    unsafe { program::set_port(argc, argv) };
    program::run(acceptor);
    0
}
