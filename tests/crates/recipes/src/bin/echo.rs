//! Echo, with a buffer and a count for each thread: a handler's state needs no lock.

use std::io::{self, Read, Write};
use std::time::Duration;

use reuseport::{Connection, Group, StopToken};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

fn main() -> io::Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS)?; // Ctrl-C is one of them
    let group = Group::bind(recipes::address(), recipes::members())?;
    println!("listening on {}", group.local_addr());
    let server = group.spawn_with(|member| {
        let (mut buffer, mut total) = (vec![0; 64 * 1024], 0);
        move |connection: Connection, _: &StopToken| {
            match echo(&connection, &mut buffer) {
                Ok(bytes) => total += bytes,
                Err(error) => eprintln!("member {member}: {error}"),
            }
            println!("member {member}: {total} bytes by this thread");
        }
    })?;
    signals.forever().next();
    server.stop(Duration::from_secs(30));
    Ok(())
}

fn echo(mut connection: &Connection, buffer: &mut [u8]) -> io::Result<usize> {
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut bytes = 0;
    loop {
        let length = connection.read(buffer)?;
        if length == 0 {
            return Ok(bytes);
        }
        connection.write_all(&buffer[..length])?;
        bytes += length;
    }
}
