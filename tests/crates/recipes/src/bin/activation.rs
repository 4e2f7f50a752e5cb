//! systemd opens the port, and starts this program with it when the first client comes. Started by
//! hand, the program opens the port itself.
//!
//! ```ini
//! [Socket]
//! ListenStream=127.0.0.1:3000
//!
//! [Install]
//! WantedBy=sockets.target
//! ```
//!
//! With `ReusePort=true` and the same `ListenStream=` several times, systemd passes several
//! listeners: they come as one group, and each gets an acceptor.

use std::error::Error;

use reuseport::Group;

fn main() -> Result<(), Box<dyn Error>> {
    let mut given = Group::from_env()?;
    let group = match given.pop() {
        None => Group::bind(recipes::address(), recipes::members())?,
        Some(_) if !given.is_empty() => return Err("one address, not several".into()),
        // All acceptors wait on a single listener. Of several, each gets one of its own.
        Some(group) if group.sockets().len() == 1 => group.share_among(recipes::members())?,
        Some(group) => group,
    };
    let from = if group.is_inherited() {
        "systemd"
    } else {
        "nobody"
    };
    let members = group.sockets().len();
    println!(
        "listening on {}, from {from}, acceptors: {members}",
        group.local_addr()
    );
    // At the end these are not shut down: systemd holds them too, and starts this program again.
    let server = group.spawn(|member, connection| _ = recipes::reply(member, connection))?;
    server.join();
    Ok(())
}
