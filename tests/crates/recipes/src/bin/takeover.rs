//! Hand-over: on SIGHUP a new process, of the file that is at this path by then, takes the port
//! over. Ctrl-C ends it. No connection is lost.

use std::{env, io, process::Command, time::Duration};

use reuseport::Group;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> io::Result<()> {
    let program = env::current_exe()?;
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let group = match Group::from_env()?.pop() {
        Some(group) => group, // of the process before this one
        None => Group::bind(recipes::address(), recipes::members())?,
    };
    println!("listening on {}", group.local_addr());
    let server = group.spawn(|member, connection| _ = recipes::reply(member, connection))?;
    for signal in signals.forever() {
        if signal != SIGHUP {
            break;
        }
        let mut command = Command::new(&program);
        command.args(env::args_os().skip(1));
        let new = server.hand_over(command, PATIENCE);
        match new.and_then(|new| new.leave(PATIENCE)) {
            Err(error) => eprintln!("not handed over: {error}"), // and this one goes on
            Ok(child) => {
                println!("handed over to pid {}", child.id());
                return Ok(());
            }
        }
    }
    server.stop(PATIENCE);
    Ok(())
}
