//! What the programs do whose runtime accepts: on SIGUSR1 the oldest member is replaced, on SIGHUP
//! a new process takes over, on SIGTERM or Ctrl-C all end. No connection is lost. If a replacement
//! or a restart fails, the server goes on. If a member cannot be served any more, it stops with the
//! error.

use std::panic::catch_unwind;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::{env, io, net};

use reuseport::Group;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::unbounded_channel;

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
pub fn run(serve: fn(usize, net::TcpListener) -> io::Result<()>) -> io::Result<()> {
    let program = env::current_exe()?; // a new release may take this path later
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
    let (failed, mut has_failed) = unbounded_channel();
    let start = |id| -> io::Result<JoinHandle<io::Result<()>>> {
        let failed = failed.clone();
        let listener = server.listener(id).inspect_err(|_| _ = failed.send(()))?;
        Ok(thread::spawn(move || {
            let served = catch_unwind(|| serve(id, listener.into()));
            let served = served.unwrap_or_else(|_| Err(io::Error::other("a member has panicked")));
            served.inspect_err(|_| _ = failed.send(()))
        }))
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
                _ = has_failed.recv() => Request::Stop,
            }
        });
        match request {
            Request::Replace => {
                let replaced = server.add().map_err(io::Error::from).and_then(|id| {
                    threads.push(start(id)?);
                    Ok(server.retire(server.members()[0].stats.id)?)
                });
                match replaced {
                    Ok(_) => println!("a worker has left"),
                    Err(error) => println!("not replaced: {error}"),
                }
            }
            Request::Restart => {
                let mut command = Command::new(&program);
                command.args(env::args_os().skip(1));
                let new = server.hand_over(command, PATIENCE);
                match new.and_then(|new| new.leave(PATIENCE)) {
                    Err(error) => println!("not handed over: {error}"),
                    Ok(child) => {
                        println!("handed over to pid {}", child.id());
                        break;
                    }
                }
            }
            Request::Stop => {
                server.stop(PATIENCE);
                break;
            }
        }
    }
    // A panic was caught, and is an error already.
    let mut ends = threads.into_iter().map(JoinHandle::join);
    ends.try_for_each(|end| end.unwrap_or(Ok(())))
}
