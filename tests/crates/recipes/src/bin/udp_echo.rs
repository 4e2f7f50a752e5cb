//! UDP echo in batches: many datagrams are received by one system call, and answered by another.

use std::{io, time::Duration};

use reuseport::Group;
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

fn main() -> io::Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS)?; // Ctrl-C is one of them
    let options = Group::udp_options().batch(true).max_datagram_size(1500);
    let group = options.bind(recipes::address(), recipes::members())?;
    println!("listening on {}", group.local_addr());
    let server = group.spawn(|_member, datagram| {
        let length = datagram.payload().len();
        datagram.reply(length); // the buffer still holds what was received
    })?;
    signals.forever().next();
    for stats in server.stop(Duration::from_secs(30)) {
        println!("receiver {} has answered {}", stats.id, stats.accepted);
    }
    Ok(())
}
