//! The C program's job (tests/mirror/reuseport.c) on the safe `Listener`, without `std`.
#![no_std]
#![no_main]

use core::ffi::{c_int, c_void};
use core::net::Ipv4Addr;

use minimal::check;
use reuseport::Listener;

extern "C" fn acceptor(number: *mut c_void) -> *mut c_void {
    let server = check(Listener::bind((Ipv4Addr::LOCALHOST, minimal::port())));
    let line = minimal::line(number);
    loop {
        let _client = check(server.accept());
        minimal::write(1, &line);
    }
}

#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const u8) -> c_int {
    // SAFETY: they are what the C library passes to `main`.
    unsafe { minimal::set_port(argc, argv) };
    minimal::run(acceptor);
    0
}
