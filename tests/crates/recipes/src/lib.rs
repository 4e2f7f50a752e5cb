//! What the recipes share, and none is about: where to listen, and an answer.

pub mod control;

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::{env, thread, time::Duration};

use reuseport::Connection;

/// A client that says nothing for so long is given up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The first argument; without one, a free port of the loopback.
///
/// # Panics
///
/// If the argument is no address.
pub fn address() -> SocketAddr {
    let given = env::args().nth(1);
    given.map_or((Ipv4Addr::LOCALHOST, 0).into(), |text| {
        text.parse().expect("an address, such as 127.0.0.1:3000")
    })
}

/// The second argument; without one, as many as there are cores to run on.
///
/// # Panics
///
/// If the argument is no number.
pub fn members() -> usize {
    match env::args().nth(2) {
        Some(text) => text.parse().expect("a number of members"),
        None => thread::available_parallelism().map_or(1, usize::from),
    }
}

/// Says who has answered, in a way that any HTTP client understands.
pub fn answer(member: usize) -> String {
    page(&format!("member {member}\n"))
}

fn page(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// Answers on a connection that blocks. Its acceptor waits for as long as the client says nothing.
///
/// # Errors
///
/// Of the connection.
pub fn reply(member: usize, connection: Connection) -> io::Result<()> {
    respond(connection, &format!("member {member}\n"))
}

/// The same with another page.
///
/// # Errors
///
/// Of the connection.
pub fn respond(mut connection: Connection, body: &str) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    // Read first: a socket that is closed with bytes unread resets, and the answer may be lost.
    // With a time limit, `recv` fails with `EINTR` after a signal, also after SIGSTOP (signal(7)).
    while let Err(error) = connection.read(&mut [0; 4096]) {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // A fresh socket has room for this much, so the send neither waits nor stops half way.
    connection.send(page(body).as_bytes())?;
    Ok(())
}
