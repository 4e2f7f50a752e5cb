//! Socket options: those with a method, one by socket2, and those of each connection.

use std::{io, time::Duration};

use reuseport::{Connection, Group};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};
use socket2::SockRef;

fn main() -> io::Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS)?; // Ctrl-C is one of them
    let options = Group::options()
        .backlog(64)
        .receive_buffer(64 * 1024) // connections inherit both sizes
        .send_buffer(64 * 1024)
        .before_bind(|socket| SockRef::from(&socket).set_tcp_user_timeout(Some(SILENCE)));
    let group = options.bind(recipes::address(), recipes::members())?;
    println!("listening on {}", group.local_addr());
    let server = group.spawn(|member, connection| {
        if let Err(error) = serve(member, connection) {
            eprintln!("member {member}: {error}");
        }
    })?;
    let queue = server.members()[0].queue;
    println!(
        "{} connections may wait on each member",
        queue.map_or(0, |queue| queue.limit)
    );
    signals.forever().next();
    server.stop(SILENCE);
    Ok(())
}

/// How long a client may leave what it was sent unacknowledged.
const SILENCE: Duration = Duration::from_secs(30);

fn serve(member: usize, connection: Connection) -> io::Result<()> {
    connection.set_nodelay(true)?;
    connection.set_keepalive(true)?;
    recipes::reply(member, connection)
}
