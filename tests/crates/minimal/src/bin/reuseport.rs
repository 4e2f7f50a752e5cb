//! The C program's job on the safe `Listener`, without `std`.
#![no_std]
#![no_main]

mod program;

use core::ffi::{c_char, c_int, c_void};
use core::net::Ipv4Addr;

use reuseport::{Error, Listener};

fn check<T>(result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => program::fail(error.call().name(), error.errno()),
    }
}

extern "C" fn acceptor(number: *mut c_void) -> *mut c_void {
    let server = check(Listener::bind((Ipv4Addr::LOCALHOST, program::port())));
    loop {
        let _client = check(server.accept());
        program::say(number);
    }
}

#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: they are what the C library passes to `main`.
    unsafe { program::set_port(argc, argv) };
    program::run(acceptor);
    0
}
