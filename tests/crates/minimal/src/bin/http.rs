//! Answers every HTTP request with the same page. One client at a time: start as many copies as
//! there should be acceptors; that they share the port is what the option is for.
#![no_std]
#![no_main]

use core::ffi::c_int;
use core::net::Ipv4Addr;

use minimal::check;
use reuseport::{AcceptAction, Connection, Error, Listener, sys};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\
    Connection: close\r\n\r\nhello\n";

/// A client may be silent for two seconds, and no request comes in more than a hundred pieces.
static SILENCE: libc::timeval = libc::timeval {
    tv_sec: 2,
    tv_usec: 0,
};
const PIECES: usize = 100;

/// Connections inherit both limits from the listener (Linux).
fn limit(fd: c_int) -> Result<(), Error> {
    #[allow(clippy::cast_possible_truncation)] // sixteen bytes
    let (value, length) = ((&raw const SILENCE).cast(), size_of_val(&SILENCE) as u32);
    for name in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        // SAFETY: the value is readable for its length, and both options take a timeval.
        unsafe { sys::setsockopt(fd, sys::SOL_SOCKET, name, value, length) }?;
    }
    Ok(())
}

/// Reads to the empty line, whatever comes before it: a close with unread bytes would be a reset.
fn request(client: &Connection) -> Result<bool, Error> {
    let (mut buffer, mut last_four) = ([0; 512], 0_u32);
    for _ in 0..PIECES {
        let length = client.recv(&mut buffer)?;
        for byte in buffer.get(..length).unwrap_or(&[]) {
            last_four = last_four << 8 | u32::from(*byte);
        }
        if last_four == u32::from_be_bytes(*b"\r\n\r\n") {
            return Ok(true);
        }
        if length == 0 {
            break;
        }
    }
    Ok(false)
}

fn answer(client: &Connection) -> Result<(), Error> {
    let mut rest = ANSWER;
    while !rest.is_empty() {
        let sent = client.send(rest)?;
        rest = rest.get(sent..).unwrap_or(&[]);
    }
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const u8) -> c_int {
    // SAFETY: they are what the C library passes to `main`.
    unsafe { minimal::set_port(argc, argv) };
    let address = (Ipv4Addr::LOCALHOST, minimal::port());
    let server = check(Listener::options().before_bind(&limit).bind(address));
    loop {
        match server.accept() {
            // A client that went away or was too slow is its own loss.
            Ok(client) => {
                if request(&client) == Ok(true) {
                    _ = answer(&client);
                }
            }
            Err(error) => match error.accept_action() {
                AcceptAction::Retry | AcceptAction::WouldBlock => {}
                // SAFETY: takes an integer.
                AcceptAction::BackOff => _ = unsafe { libc::usleep(10_000) },
                AcceptAction::Closed | AcceptAction::Fatal => check(Err(error)),
            },
        }
    }
}
