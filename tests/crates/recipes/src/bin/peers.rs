//! Peer logging: a line for each connection, with the client's address and what became of it.

use std::{io, time::Duration, time::Instant};

use reuseport::{Connection, Group};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

fn main() -> io::Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS)?; // Ctrl-C is one of them
    let group = Group::bind(recipes::address(), recipes::members())?;
    println!("listening on {}", group.local_addr());
    let server = group.spawn(|member, connection| {
        let (begun, peer) = (Instant::now(), peer(&connection));
        let done = recipes::reply(member, connection);
        let end = done.map_or_else(|error| error.to_string(), |()| "answered".to_owned());
        println!("{peer}: {end} by member {member} in {:?}", begun.elapsed());
    })?;
    signals.forever().next();
    server.stop(Duration::from_secs(30));
    Ok(())
}

/// The client's address, also if it has reset the connection since.
fn peer(connection: &Connection) -> String {
    match connection.peer_addr() {
        Ok(address) => address.to_string(),
        Err(error) => error.to_string(),
    }
}
