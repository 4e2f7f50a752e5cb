//! The job of `reuseport` with an exclusive group, without `std`: a second copy of the program is
//! refused.
#![no_std]
#![no_main]

use core::ffi::{c_int, c_void};
use core::net::Ipv4Addr;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use minimal::check;
use reuseport::Listener;

static FIRST: AtomicPtr<Listener> = AtomicPtr::new(null_mut());

fn address() -> (Ipv4Addr, u16) {
    (Ipv4Addr::LOCALHOST, minimal::port())
}

/// The first acceptor has the exclusive listener, the others have its siblings.
extern "C" fn acceptor(number: *mut c_void) -> *mut c_void {
    let sibling;
    let server = if number.is_null() {
        // SAFETY: `main` has set it before the threads began, and keeps the listener.
        unsafe { &*FIRST.load(Relaxed) }
    } else {
        sibling = check(Listener::bind(address()));
        &sibling
    };
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
    let mut first = check(Listener::options().bind_exclusive(address()));
    FIRST.store(&raw mut first, Relaxed);
    minimal::run(acceptor);
    0
}
