//! Restarts of `serve`: what a service manager is sent, and the new process that takes over.

use core::time::Duration;
use std::env;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
#[cfg(linux_kernel)]
use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{self, Path, PathBuf},
    process::{self, Command},
};

#[cfg(linux_kernel)]
use reuseport::{AnyServer, GroupError, HandOverError};
use reuseport::{Serve, Server};

use crate::output::report;
use crate::signals::Signals;

/// What has become of a request to hand over.
#[derive(PartialEq, Eq)]
#[cfg_attr(not(linux_kernel), allow(dead_code))] // there it is always `No`
pub(crate) enum HandedOver {
    Yes,
    No,
    /// The old process is still leaving: try again.
    NotYet,
}

/// How long a new process may take to start.
#[cfg(linux_kernel)]
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The file that a hand-over starts, found when this process starts: later it may be another one.
pub(crate) struct Program(#[cfg(linux_kernel)] io::Result<PathBuf>);

#[cfg(not(linux_kernel))]
impl Program {
    pub(crate) fn of_this_process() -> Program {
        Program()
    }

    pub(crate) fn hand_over<P: Serve>(
        &self,
        _: &[Server<P>],
        _: Duration,
        _: &Signals,
    ) -> HandedOver {
        refuse("this kernel cannot hand a port over")
    }
}

#[cfg(linux_kernel)]
impl Program {
    /// Returns the path by which this process was called, with its links: one that is moved to the
    /// next release then leads there. If that path is not the running file, returns the latter.
    pub(crate) fn of_this_process() -> Program {
        let id = |file: Metadata| (file.dev(), file.ino());
        // Without /proc any file will do.
        let running = fs::metadata("/proc/self/exe").ok().map(id);
        let is_it = |path: &PathBuf| {
            let found = fs::metadata(path).ok().map(id);
            found.is_some() && (running.is_none() || found == running)
        };
        let called = PathBuf::from(env::args_os().next().unwrap_or_default());
        let mut candidates = Vec::new();
        if called.components().count() > 1 {
            candidates.push(called);
        } else if let Some(directories) = env::var_os("PATH") {
            candidates.extend(env::split_paths(&directories).map(|path| path.join(&called)));
        }
        let mut candidates = candidates
            .iter()
            .filter_map(|path| path::absolute(path).ok());
        Program(candidates.find(is_it).map_or_else(env::current_exe, Ok))
    }

    /// Starts the program again, as this process was called, and leaves the ports to it.
    pub(crate) fn hand_over<P: Serve>(
        &self,
        servers: &[Server<P>],
        grace: Duration,
        signals: &Signals,
    ) -> HandedOver {
        if process::id() == 1 {
            return refuse(
                "this process is PID 1 of its PID namespace (a container): the kernel would end \
                 the new process with it; restart the container",
            );
        }
        let program = match &self.0 {
            Ok(program) => program,
            Err(error) => return refuse(&format!("the file of this program: {error}")),
        };
        let servers = servers.iter().map(|server| server as &dyn AnyServer);
        let hand_over = match reuseport::hand_over(servers, again(program), START_TIMEOUT) {
            Ok(hand_over) => hand_over,
            Err(HandOverError::Group(GroupError::PredecessorLeaving)) => return HandedOver::NotYet,
            Err(error) => return refuse(&error.to_string()),
        };
        notify(&format!("MAINPID={}", hand_over.pid()));
        match hand_over.leave(grace) {
            Ok(child) => {
                report(&format!("handed over to pid {}", child.id()));
                if let Ok(pid) = child.id().try_into() {
                    // They were meant for the process that serves.
                    for signal in signals.take_pending() {
                        // SAFETY: takes two integers; the child has not been waited for.
                        unsafe { libc::kill(pid, signal) };
                    }
                }
                crate::signals::let_the_next_end_it();
                HandedOver::Yes
            }
            Err(error) => {
                notify(&format!("MAINPID={}", process::id()));
                refuse(&error.to_string())
            }
        }
    }
}

/// Reports why a request to hand over is not met.
pub(crate) fn refuse(why: &str) -> HandedOver {
    report(&format!("not handed over: {why}"));
    HandedOver::No
}

#[cfg(linux_kernel)]
fn again(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(env::args_os().skip(1))
        .stdin(process::Stdio::null());
    command
}

/// Notifies systemd, where it listens for it: `sd_notify(3)`.
pub(crate) fn notify(state: &str) {
    let Ok(path) = env::var("NOTIFY_SOCKET") else {
        return;
    };
    let to = match path.strip_prefix('@') {
        #[cfg(target_os = "linux")]
        Some(name) => UnixAddr::from_abstract_name(name),
        _ => UnixAddr::from_pathname(path),
    };
    // It fails if the service manager does not listen.
    _ = to.and_then(|to| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &to));
}
