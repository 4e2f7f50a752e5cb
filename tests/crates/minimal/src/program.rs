//! What the programs share: the port, the threads, how one ends when a call has failed, and what
//! a panic is.
#![allow(dead_code)] // each program uses its own part of this

use core::ffi::{c_char, c_int, c_void};
use core::panic::PanicInfo;
use core::ptr;
use core::sync::atomic::{AtomicU16, Ordering::Relaxed};

static PORT: AtomicU16 = AtomicU16::new(3000);

/// Port 3000, or the one that was given as the first argument.
pub fn port() -> u16 {
    PORT.load(Relaxed)
}

/// # Safety
/// `argv` are the `argc` strings that `main` was given.
pub unsafe fn set_port(argc: c_int, argv: *const *const c_char) {
    if argc > 1 {
        // SAFETY: there are at least two strings.
        let first = unsafe { *argv.add(1) };
        // SAFETY: it ends with a zero.
        let port = unsafe { libc::atoi(first) };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // as the C program does
        PORT.store(port as u16, Relaxed);
    }
}

const THREADS: usize = 3;

pub type Acceptor = extern "C" fn(*mut c_void) -> *mut c_void;

/// Runs `acceptor` on three threads, which are numbered 0, 1, 2, for ever. The number travels in
/// the pointer itself: nothing has to outlive anything.
pub fn run(acceptor: Acceptor) {
    // SAFETY: an integer on Linux, for which zero is a value.
    let mut threads: [libc::pthread_t; THREADS] = unsafe { core::mem::zeroed() };
    let mut numbers = 0..;
    for thread in &mut threads {
        let number = ptr::without_provenance_mut(numbers.start);
        numbers.start += 1;
        // SAFETY: `thread` is writable; the acceptor has the type that is asked for.
        let code = unsafe { libc::pthread_create(thread, ptr::null(), acceptor, number) };
        if code != 0 {
            fail("pthread_create", code);
        }
    }
    for thread in &threads {
        // SAFETY: each was created, and is joined once.
        unsafe { libc::pthread_join(*thread, ptr::null_mut()) };
    }
}

/// `acceptor N`, in one write.
pub fn say(number: *mut c_void) {
    let mut line = *b"acceptor 0\n";
    #[allow(clippy::cast_possible_truncation)] // one of three
    {
        line[9] += number.addr() as u8;
    }
    // SAFETY: the line is readable for its length.
    unsafe { libc::write(1, line.as_ptr().cast(), line.len()) };
}

/// `bind: errno 98`, in one write, and the end. `core::fmt` would cost more than all else here.
#[cold]
pub fn fail(call: &str, errno: c_int) -> ! {
    let mut line = Line {
        bytes: [0; 40],
        length: 0,
    };
    line.text(call.as_bytes());
    line.text(b": errno ");
    line.number(errno.unsigned_abs());
    line.text(b"\n");
    // SAFETY: the line is readable for its length, which never exceeds the room.
    unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.length) };
    // SAFETY: takes an integer.
    unsafe { libc::exit(1) }
}

struct Line {
    bytes: [u8; 40],
    length: usize,
}

impl Line {
    /// What finds no room is left out: an index that cannot fail leaves no panic behind.
    fn text(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = *byte;
                self.length += 1;
            }
        }
    }

    fn number(&mut self, number: u32) {
        if number > 9 {
            self.number(number / 10);
        }
        #[allow(clippy::cast_possible_truncation)] // one digit
        self.text(&[b'0' + (number % 10) as u8]);
    }
}

#[cfg(not(feature = "link-error"))]
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    // SAFETY: takes nothing.
    unsafe { libc::abort() }
}

/// Nobody defines the function, so a program in which a panic can be reached does not link.
#[cfg(feature = "link-error")]
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    unsafe extern "C" {
        fn a_panic_can_be_reached() -> !;
    }
    // SAFETY: never run; it does not even link.
    unsafe { a_panic_can_be_reached() }
}
