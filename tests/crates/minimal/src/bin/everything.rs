//! Calls all that the crate has without `std`, so that a build with the feature `link-error` shows
//! that none of it can panic. It is there to be linked, not to be run.
//!
//! One thing is left out: `SockAddr` prints as `SocketAddr` does, and that printing, which is
//! core's, can panic.
#![no_std]
#![no_main]

use core::ffi::c_int;
use core::fmt::{self, Write};
use core::net::{Ipv6Addr, SocketAddr};
use core::ptr::null_mut;
use core::time::Duration;

use minimal::check;
use reuseport::{Connection, Error, Listener, SockAddr, steering, sys};

struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        minimal::write(1, text.as_bytes());
        Ok(())
    }
}

/// Of what is counted here, nothing is known before the program runs.
fn owners(given: u16, bytes: &mut [u8]) -> Result<usize, Error> {
    let (number, on) = (given.into(), given.is_power_of_two());
    let address = if on {
        SocketAddr::from((Ipv6Addr::from_bits(given.into()), given))
    } else {
        SocketAddr::from((u32::from(given).to_ne_bytes(), given))
    };
    let plain = Listener::bind(address)?;
    let hook = |fd| {
        // SAFETY: takes two integers; the descriptor is open while the hook runs.
        unsafe { sys::fionbio(fd, number) }
    };
    let options = Listener::options().backlog(number).reuse_port(on);
    let options = options.reuse_address(on).only_v6(on).nonblocking(on);
    let options = options.incoming_cpu(number).before_bind(&hook);
    let options = options.receive_buffer(number).send_buffer(number);
    let options = options.mark(number.unsigned_abs()).bind_to_device("lo");
    let options = options.defer_accept(Duration::from_millis(given.into()));
    let listener = options.bind(plain.local_addr()?)?;
    listener.set_reuse_port()?;
    listener.set_nonblocking(on)?;
    listener.accept()?.detach_filter();
    let (connection, peer) = listener.accept_from()?;
    let queue = listener.queue()?;
    settings(&connection, number)?;
    _ = write!(Out, "{listener:?} {connection:?} {options:?} {queue:?}");
    let port = SockAddr::from(peer).get().map(|peer| peer.port());
    _ = write!(Out, "{port:?}");
    Ok(connection.recv(bytes)? + connection.send(bytes)?)
}

fn settings(connection: &Connection, number: c_int) -> Result<(), Error> {
    let (on, time) = (
        number > 1,
        Duration::from_millis(number.unsigned_abs().into()),
    );
    let same = connection.peer_addr()? == connection.local_addr()?;
    connection.set_nodelay(same)?;
    connection.set_keepalive(on)?;
    connection.set_linger(Some(time))?;
    connection.set_read_timeout(Some(time))?;
    connection.set_write_timeout(Some(time))?;
    connection.shutdown(number)
}

fn programs(given: u16, listener: &Listener) -> Result<(), Error> {
    let (number, count) = (u32::from(given), usize::from(given));
    let (rows, mut space) = ([(number, 1); 64], [steering::Instruction::default(); 64]);
    let rows = rows.get(..count).unwrap_or(&rows);
    let space = space.get_mut(..count).unwrap_or_default();
    listener.attach_program(steering::by_cpu(rows, space).unwrap_or_default())?;
    listener.attach_program(steering::any_of(&[number; 9], space).unwrap_or_default())?;
    listener.attach_program(&steering::random(number))?;
    listener.attach_program(&steering::all_but(number, number))?;
    listener.attach_program(&steering::any_in_range(number, number))?;
    _ = write!(Out, "{space:?}");
    listener.detach_program()?;
    listener.attach_syn_filter()?;
    listener.detach_filter()
}

/// The calls that the owners above do not make.
fn calls(fd: c_int, number: c_int) -> Result<(), Error> {
    // SAFETY: takes two integers.
    unsafe { sys::shutdown(fd, number) }?;
    let (mut value, mut length) = (0_u32, 4);
    let (at, length) = ((&raw mut value).cast(), &raw mut length);
    // SAFETY: both pointers are good for the four bytes that are stated.
    unsafe { sys::getsockopt(fd, number, number, at, length) }?;
    // SAFETY: null stands for "no address wanted".
    let client = unsafe { sys::accept(fd, null_mut(), null_mut(), number) }?;
    // SAFETY: opened by the line above.
    unsafe { sys::close(client) }
}

fn words(error: Error) {
    let (name, symbol) = (error.call().name(), error.symbol().unwrap_or("?"));
    let (option, advice) = (error.option(), error.accept_action());
    let option = option.unwrap_or("?");
    _ = write!(
        Out,
        "{error} {error:#} {error:?} {name} {symbol} {option} {advice:?}"
    );
}

#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const u8) -> c_int {
    // SAFETY: they are what the C library passes to `main`.
    unsafe { minimal::set_port(argc, argv) };
    let mut bytes = [0; 256];
    let given = minimal::port();
    let bytes = bytes.get_mut(..given.into()).unwrap_or_default();
    if let Err(error) = owners(given, bytes) {
        words(error);
    }
    let listener = check(Listener::bind(([127, 0, 0, 1], 0)));
    if let Err(error) = programs(given, &listener) {
        words(error);
    }
    if let Err(error) = calls(argc, given.into()) {
        words(error);
    }
    0
}
