//! What the programs do whose runtime accepts: on SIGUSR1 the oldest member is replaced, on SIGHUP
//! a new process takes over, on SIGTERM or Ctrl-C all end. No connection is lost.

use std::process::Command;
use std::thread::{self, JoinHandle};
use std::{env, io, net};

use reuseport::Group;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::PATIENCE;

enum Request {
    Replace,
    Restart,
    Stop,
}

/// Runs `serve` on a thread for each member. It accepts on the member's listener until that fails
/// with `EINVAL`, and returns when its clients are served.
///
/// # Errors
///
/// Of the group, and of the threads.
///
/// # Panics
///
/// If a thread does.
pub fn run(serve: fn(usize, net::TcpListener) -> io::Result<()>) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let mut replace = signal(SignalKind::user_defined1())?;
    let mut restart = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    // From the process before this one, if there is one.
    let group = match Group::from_env()?.pop() {
        Some(group) => group,
        None => Group::bind(crate::address(), crate::members())?,
    };
    let server = group.into_server()?;
    let start = |id| -> io::Result<JoinHandle<io::Result<()>>> {
        let listener = server.listener(id)?.into();
        Ok(thread::spawn(move || serve(id, listener)))
    };
    let ids = server.members().into_iter().map(|member| member.stats.id);
    let mut threads = ids.map(start).collect::<io::Result<Vec<_>>>()?;
    println!("listening on {}", server.local_addr());
    loop {
        // The calls below block, and so are not made within `block_on`.
        let request = runtime.block_on(async {
            tokio::select! {
                _ = replace.recv() => Request::Replace,
                _ = restart.recv() => Request::Restart,
                _ = terminate.recv() => Request::Stop,
                _ = interrupt.recv() => Request::Stop,
            }
        });
        match request {
            Request::Replace => {
                threads.push(start(server.add()?)?);
                server.retire(server.members()[0].stats.id)?;
                println!("a worker has left");
            }
            Request::Restart => {
                let mut command = Command::new(env::current_exe()?);
                command.args(env::args_os().skip(1));
                let child = server.hand_over(command, PATIENCE)?.leave(PATIENCE)?;
                println!("handed over to pid {}", child.id());
                break;
            }
            Request::Stop => {
                server.stop(PATIENCE);
                break;
            }
        }
    }
    threads
        .into_iter()
        .try_for_each(|thread| thread.join().expect("no panic"))
}
