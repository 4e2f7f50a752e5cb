//! Echo, with a count for each thread: a handler's state needs no lock.

use std::{io, time::Duration};

use reuseport::{Connection, Group, StopToken};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

fn main() -> io::Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS)?; // Ctrl-C is one of them
    let group = Group::bind(recipes::address(), recipes::members())?;
    println!("listening on {}", group.local_addr());
    let server = group.spawn_with(|member| {
        let mut total = 0;
        move |connection: Connection, _: &StopToken| {
            match echo(&connection) {
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

fn echo(mut connection: &Connection) -> io::Result<u64> {
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    // It goes on after a signal, which `read` with a time limit does not.
    let mut from = connection;
    io::copy(&mut from, &mut connection)
}
