//! A port below 1024: root binds all members, then the program becomes `nobody` for good.
//!
//! The kernel lets a socket join others on a port if one effective user has opened them all, and a
//! port below 1024 is root's in any case. So the members that are to serve must be there before the
//! user changes. Who wants to add some later starts as the user it stays, with the capability
//! `CAP_NET_BIND_SERVICE`.

use std::ffi::c_int;
use std::{error::Error, io, ptr};

use reuseport::Group;

const NOBODY: libc::uid_t = 65534;

fn main() -> Result<(), Box<dyn Error>> {
    let mut group = Group::bind(recipes::address(), recipes::members())?;
    println!("listening on {}", group.local_addr());

    // Before any thread serves. In this order: without the user's rights the groups stay.
    // SAFETY: no group is read from a list of none.
    done(unsafe { libc::setgroups(0, ptr::null()) })?;
    // SAFETY: takes an integer.
    done(unsafe { libc::setgid(NOBODY) })?;
    // SAFETY: takes an integer.
    done(unsafe { libc::setuid(NOBODY) })?;

    // Too late for one more; those that are there go on. The kernel says EACCES below 1024, and
    // EADDRINUSE above: the library says GroupError::UserMismatch of both, with the two users.
    match group.add() {
        Err(refused) => println!("refused: {refused}"),
        Ok(()) => println!("added: the user is the same as before"),
    }

    let server = group.spawn(|member, connection| _ = recipes::reply(member, connection))?;
    server.join();
    Ok(())
}

fn done(result: c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
