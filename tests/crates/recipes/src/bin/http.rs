//! HTTP: reads a request, answers it and closes. Ctrl-C ends it, and no connection is lost.

use std::io::{self, BufRead, BufReader};
use std::time::Duration;

use reuseport::{Connection, Group};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

fn main() -> io::Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS)?; // Ctrl-C is one of them
    let group = Group::bind(recipes::address(), recipes::members())?;
    println!("listening on {}", group.local_addr());
    let server = group.spawn(|member, connection| {
        if let Err(error) = answer(member, &connection) {
            eprintln!("member {member}: {error}");
        }
    })?;
    signals.forever().next();
    server.stop(Duration::from_secs(30));
    Ok(())
}

fn answer(member: usize, connection: &Connection) -> io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    for line in BufReader::new(connection).lines() {
        if line?.is_empty() {
            connection.send(recipes::answer(member).as_bytes())?;
            break;
        }
    }
    Ok(())
}
