//! As many members as the CPU time that this program may use is worth, in a container too.
//!
//! `available_parallelism` counts the CPUs that the scheduler allows, and on Linux divides the
//! quota of the cgroup by its period, rounded down, but at least 1. The CPUs in `/proc/cpuinfo` are
//! the host's: members for all of those could use the quota up early in each period, and would then
//! all wait for the next.

use std::{error::Error, thread};

use reuseport::Group;

fn main() -> Result<(), Box<dyn Error>> {
    // Where it cannot be told, one member serves too.
    let members = thread::available_parallelism().map_or(1, usize::from);
    // Not pinned, nor steered to the receiving CPU: a quota is of time, and the threads run on any
    // of the host's CPUs, most of which have no member. With `--cpuset-cpus` both make sense.
    let group = Group::bind(recipes::address(), members)?;
    println!("listening on {}, members: {members}", group.local_addr());
    let server = group.spawn(|member, connection| _ = recipes::reply(member, connection))?;
    server.join();
    Ok(())
}
