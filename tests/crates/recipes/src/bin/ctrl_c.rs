//! The README's server: it ends on Ctrl-C or `kill`, and serves what is queued before that.

use reuseport::Group;
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut signals = Signals::new(TERM_SIGNALS)?; // Ctrl-C is one of them
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".into());
    let group = Group::bind(address.parse::<std::net::SocketAddr>()?, 3)?;
    println!("listening on {}", group.local_addr());

    let server = group.spawn(|acceptor, connection| {
        _ = connection.send(format!("acceptor {acceptor}\n").as_bytes());
    })?;

    signals.forever().next();
    for stats in server.stop(Duration::from_secs(3)) {
        println!("acceptor {} accepted {}", stats.id, stats.accepted);
    }
    Ok(())
}
