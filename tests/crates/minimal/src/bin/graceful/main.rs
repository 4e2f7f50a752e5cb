//! Three threads, three listeners, one port, without `std`. Each client is sent the line of its
//! acceptor. Ctrl-C ends the program, and no client is lost that has connected before.
#![no_std]
#![no_main]

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;

use stop::{Server, Signals};

mod stop;

extern "C" fn acceptor(server: *mut c_void) -> *mut c_void {
    // SAFETY: `run_until` passes a server, and keeps it until this function has returned.
    let server = unsafe { &*server.cast::<Server>() };
    while let Some(client) = server.accept() {
        // A client that went away is its own loss.
        _ = client.send(&server.line);
    }
    null_mut()
}

#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const u8) -> c_int {
    let signals = Signals::block();
    // SAFETY: they are what the C library passes to `main`.
    unsafe { minimal::set_port(argc, argv) };
    stop::run_until(&signals, acceptor);
    0
}
