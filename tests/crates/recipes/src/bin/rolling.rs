//! Rolling replacement: SIGHUP replaces every member, one after the other, as a server does whose
//! threads read their certificates anew. Ctrl-C ends it. No connection is lost.

use std::{io, time::Duration};

use reuseport::Group;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

fn main() -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let group = Group::bind(recipes::address(), recipes::members())?;
    println!("listening on {}", group.local_addr());
    let server = group.spawn(|member, connection| _ = recipes::reply(member, connection))?;
    for signal in signals.forever() {
        if signal != SIGHUP {
            break;
        }
        for member in server.members() {
            // Before the old one leaves.
            let new = server.add();
            match new.and_then(|new| Ok((new, server.retire(member.stats.id)?))) {
                Ok((new, old)) => {
                    println!("{new} in place of {}, accepted {}", old.id, old.accepted);
                }
                Err(error) => eprintln!("{} is not replaced: {error}", member.stats.id),
            }
        }
    }
    server.stop(Duration::from_secs(30));
    Ok(())
}
