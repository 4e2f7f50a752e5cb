//! What the programs share: the port, the threads, how a program ends when a call has failed, and
//! what a panic is.
#![no_std]

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::panic::PanicInfo;
use core::ptr;
use core::sync::atomic::{AtomicU16, Ordering::Relaxed};

use reuseport::Error;

static PORT: AtomicU16 = AtomicU16::new(3000);

/// Port 3000, or the one that was given as the first argument.
#[must_use]
pub fn port() -> u16 {
    PORT.load(Relaxed)
}

/// Reads the first argument, if there is one: digits. This is shorter than to import `atoi`.
///
/// # Safety
/// `argv` are the `argc` strings that `main` was given.
pub unsafe fn set_port(argc: c_int, argv: *const *const u8) {
    if argc < 2 {
        return;
    }
    // SAFETY: there are at least two strings.
    let first = unsafe { argv.add(1) };
    // SAFETY: it points to one.
    let mut next = unsafe { *first };
    let mut port = 0_u16;
    loop {
        // SAFETY: the string ends with a zero, and nothing behind that is read.
        let digit = unsafe { *next }.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        port = port.wrapping_mul(10).wrapping_add(digit.into());
        // SAFETY: behind a digit there is at least the zero.
        next = unsafe { next.add(1) };
    }
    PORT.store(port, Relaxed);
}

const THREADS: usize = 3;

/// Runs `acceptor` on three threads, which are numbered 0, 1, 2, for ever. The number travels in
/// the pointer itself: nothing has to outlive anything.
pub fn run(acceptor: extern "C" fn(*mut c_void) -> *mut c_void) {
    let mut threads = [const { MaybeUninit::<libc::pthread_t>::uninit() }; THREADS];
    let mut number = 0;
    // `for` with `enumerate` would bring core's own panic tables with it.
    while number < THREADS {
        let thread = threads[number].as_mut_ptr();
        let argument = ptr::without_provenance_mut(number);
        // SAFETY: `thread` is writable, and the acceptor's type is the one that is asked for.
        let code = unsafe { libc::pthread_create(thread, ptr::null(), acceptor, argument) };
        if code != 0 {
            fail("pthread_create", code);
        }
        number += 1;
    }
    for thread in &threads {
        // SAFETY: every one was created.
        let thread = unsafe { thread.assume_init() };
        // SAFETY: it is joined once; null stands for "no result wanted".
        unsafe { libc::pthread_join(thread, ptr::null_mut()) };
    }
}

/// `acceptor N`, as the C program prints it.
#[must_use]
pub fn line(number: *mut c_void) -> [u8; 11] {
    let mut line = *b"acceptor 0\n";
    #[allow(clippy::cast_possible_truncation)] // one of three
    {
        line[9] += number.addr() as u8;
    }
    line
}

/// `write(2)`, all in one call. Like C's `printf` here, it is not asked whether it worked.
pub fn write(to: c_int, text: &[u8]) {
    // SAFETY: a slice is readable for its length.
    unsafe { libc::write(to, text.as_ptr().cast(), text.len()) };
}

/// The value, or the end of the program: the C program's `check`.
pub fn check<T>(result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => fail(error.call().name(), error.errno()),
    }
}

/// Prints `bind: errno  98` in one write, and ends the program. `core::fmt` is larger than the
/// whole of it.
#[cold]
pub fn fail(call: &str, errno: c_int) -> ! {
    #[cfg(feature = "controls")]
    controls(errno);
    let mut line = *b"                 : errno    \n";
    #[allow(clippy::cast_sign_loss)] // no errno is negative, and Linux has none above 133
    let mut rest = errno as u32;
    for place in line[25..28].iter_mut().rev() {
        if rest > 0 {
            *place = b'0' + (rest % 10) as u8;
        }
        rest /= 10;
    }
    // The name goes before the colon, from its end. An index that cannot fail leaves no panic.
    let mut start = 17_usize;
    for byte in call.as_bytes().iter().rev() {
        start = start.wrapping_sub(1);
        if let Some(place) = line.get_mut(start) {
            *place = *byte;
        }
    }
    if let Some(line) = line.get(start..) {
        write(2, line);
    }
    // SAFETY: takes an integer.
    unsafe { libc::exit(1) }
}

/// What the programs must not contain, so that the tests can see it found.
#[cfg(feature = "controls")]
fn controls(number: c_int) {
    struct Out;
    impl core::fmt::Write for Out {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            write(2, text.as_bytes());
            Ok(())
        }
    }
    let at = usize::try_from(number).unwrap();
    // SAFETY: takes an integer.
    let room = unsafe { libc::malloc(at) };
    _ = core::fmt::Write::write_fmt(&mut Out, format_args!("{room:?} {}", b"abc"[at]));
}

#[cfg(not(feature = "link-error"))]
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    // SAFETY: takes nothing.
    unsafe { libc::abort() }
}

/// Nobody defines this function: a program in which a panic can be reached does not link.
#[cfg(feature = "link-error")]
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    unsafe extern "C" {
        fn a_panic_can_be_reached() -> !;
    }
    // SAFETY: never run, for it does not link.
    unsafe { a_panic_can_be_reached() }
}
