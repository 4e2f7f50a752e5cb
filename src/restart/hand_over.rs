//! A new process takes the place of an old one, and no client notices (Linux, Android).
//!
//! The two never share a listener that serves. The old process adds as many new members to the
//! group as it has, and passes those on; they get no connection until the new process says that it
//! is ready. Then the group is steered to them, and the old process's own members leave as any
//! member does. The last of them leaves first, so that the kernel, which moves its last member into
//! each hole, ends with the new ones in their order.
//!
//! The descriptors are passed in the way of `sd_listen_fds(3)`: from 3 on, described by
//! `LISTEN_FDS` and `LISTEN_FDNAMES`. Beside the listeners there is a socket between the two
//! processes. Its inode stands in the variable [`SOCKET_VARIABLE`], which proves that the
//! descriptors are the old process's own: `LISTEN_PID` would have to be known before the new
//! process is started, and a parent's pid changes behind a shell or in a PID namespace. Behind the
//! inode, each after a colon, stand the routing bytes of the members. On that socket the new
//! process writes one byte when it is ready, and the old one when its last member has left: `!` if
//! the new members are in the order in which they were passed. An end of file without the byte
//! means that the other side has ended.

mod error;
mod part;

use core::time::Duration;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::{net::UnixStream, process::CommandExt};
use std::process::{self, Child, Command};
use std::string::ToString;
use std::{format, sync::Arc, time::Instant, vec::Vec};

pub use error::HandOverError;
pub use part::AnyServer;
use part::Split;

use super::listen_fds::{
    FD_NAME, LISTEN_FDS_START, LISTEN_VARIABLES, SOCKET_NAME, SOCKET_VARIABLE,
};
use crate::error::{Call, Error, check};
use crate::group::OldProcess;
use crate::os;
use crate::server::{Serve, Server, deadline_after};

/// How often a new process is looked at while its predecessor's members drain.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

impl<P: Serve> Server<P> {
    /// Starts `command` as a new process that takes over the port, and waits until it is ready.
    /// From then on it gets the new connections; [`HandOver::leave`] ends the old members.
    ///
    /// The new process takes its group by [`Group::from_env`](crate::Group::from_env), with as many
    /// members as this one, and is ready once it has called [`spawn`](crate::Group::spawn), or
    /// [`into_server`](crate::Group::into_server) where another runtime accepts. If it is not ready
    /// within `timeout` it is killed, and all is as it was; also if it ends before.
    ///
    /// The environment of `command` is the caller's: only `LISTEN_FDS`, `LISTEN_PID`,
    /// `LISTEN_PIDFDID` and `LISTEN_FDNAMES` are replaced, and `REUSEPORT_SOCKET` is added. A new
    /// process that looks at `LISTEN_PID` itself does not find it.
    ///
    /// The new process lives as long as its end of a socket between the two is open. So a wrapper,
    /// such as a shell script, has to `exec` the program: one that waits for it holds that socket,
    /// and the death of the program is not noticed.
    ///
    /// Until the [`HandOver`] has ended, other changes of the group fail with
    /// [`GroupError::HandingOver`](crate::GroupError::HandingOver).
    ///
    #[doc = include_str!("hand_over/inherits.md")]
    ///
    /// # Errors
    /// The group is then as it was.
    /// - [`HandOverError::Group`]: a call failed, or the group cannot be handed over:
    ///   [`SharedSocket`](crate::GroupError::SharedSocket),
    ///   [`JoinedGroup`](crate::GroupError::JoinedGroup),
    ///   [`Inherited`](crate::GroupError::Inherited), or a change that excludes this one is under
    ///   way or has been made.
    /// - [`HandOverError::Prepare`]: no descriptor is left to pass the members on.
    /// - [`HandOverError::Spawn`]: `command` could not be started.
    /// - [`HandOverError::ChildExited`]: the new process ended before it was ready.
    /// - [`HandOverError::TimedOut`]: it was not ready within `timeout`, and was killed.
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn hand_over(
        &self,
        command: Command,
        timeout: Duration,
    ) -> Result<HandOver<'_>, HandOverError> {
        hand_over([self as &dyn AnyServer], command, timeout)
    }
}

/// Starts `command` as one new process that takes over several servers, as [`Server::hand_over`]
/// does one: TCP and UDP, IPv4 and IPv6. It is ready when it serves them all; if one cannot be
/// handed over, none is.
///
/// The new process takes them by [`Inherited::from_env`](crate::Inherited::from_env).
///
/// # Errors
/// Those of [`Server::hand_over`]; all groups are then as they were.
///
/// # Platforms
/// Linux and Android alone.
pub fn hand_over<'a>(
    servers: impl IntoIterator<Item = &'a dyn AnyServer>,
    command: Command,
    timeout: Duration,
) -> Result<HandOver<'a>, HandOverError> {
    let mut hand_over = HandOver {
        parts: Vec::new(),
        child: None,
        socket: None,
        process: process::id(),
    };
    let mut sockets = Vec::new();
    for server in servers {
        hand_over.parts.push((server, Split::default()));
        if let Some((server, split)) = hand_over.parts.last_mut() {
            server.begin(split)?;
            sockets.extend(server.descriptors(split));
        }
    }
    let (near, far) = UnixStream::pair().map_err(prepare(Call::SocketPair))?;
    let mut parts = hand_over.parts.iter();
    let cpus = parts.find_map(|(server, _)| server.cpus_of_the_process());
    hand_over.child = Some(spawn(command, sockets, &far, cpus)?);
    drop(far);
    wait_until_ready(hand_over.socket.insert(near), timeout)?;
    if hand_over.has_ended() {
        return Err(HandOverError::ChildExited);
    }
    for (server, split) in &hand_over.parts {
        server.steer_to_new(split)?;
    }
    Ok(hand_over)
}

/// A new process that serves beside the old one, which still has its members: see
/// [`Server::hand_over`].
///
/// Dropping it kills the new process and takes the members back; in a child that is forked without
/// `exec` it does nothing.
///
/// # Examples
/// ```no_run
/// use reuseport::Server;
/// use std::{env, io, process::Command, time::Duration};
///
/// fn restart(server: &Server) -> io::Result<()> {
///     let command = Command::new(env::current_exe()?);
///     let hand_over = server.hand_over(command, Duration::from_secs(30))?;
///     println!("{} serves now", hand_over.pid());
///     hand_over.leave(Duration::from_secs(10))?;
///     Ok(())
/// }
/// ```
///
/// # Platforms
/// Linux and Android alone.
#[derive(Debug)]
#[must_use = "dropping it kills the new process"]
pub struct HandOver<'a> {
    parts: Vec<(&'a dyn AnyServer, Split)>,
    child: Option<Child>,
    socket: Option<UnixStream>,
    /// The pid of the old process.
    process: u32,
}

impl HandOver<'_> {
    /// Returns the pid of the new process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Has the old members finish what they have begun, within `grace`, and leave. Returns the new
    /// process; this server then has no members.
    ///
    /// Connections that are still queued at the end of `grace` are reset and counted, as by
    /// [`Server::stop`]; handlers that still run go on until they return.
    ///
    /// # Errors
    /// [`HandOverError::ChildExited`] if the new process has ended. The server then goes on, on the
    /// members that were meant for it, or, if that process has shut them down, on others.
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn leave(mut self, grace: Duration) -> Result<Child, HandOverError> {
        let deadline = deadline_after(grace);
        for (server, split) in &self.parts {
            server.drain_old(split, deadline);
        }
        for (server, split) in &self.parts {
            while !self.has_ended() && server.leave_old(split).is_err() {
                if Instant::now() >= deadline {
                    break;
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        if self.has_ended() {
            for (server, split) in self.parts.drain(..) {
                server.go_on(&split, deadline);
            }
            return Err(HandOverError::ChildExited);
        }
        let mut in_order = true;
        for (server, split) in &self.parts {
            in_order &= server.end(split);
        }
        let byte = if in_order { OldProcess::IN_ORDER } else { b'?' };
        // It fails if the new process has ended.
        if let Some(mut socket) = self.socket.take() {
            _ = socket.write_all(&[byte]);
        }
        for (server, split) in self.parts.drain(..) {
            server.wait_for_old(&split, deadline);
        }
        self.child.take().ok_or(HandOverError::ChildExited)
    }

    /// Returns whether the new process has closed its end of the socket between the two. `Child` is
    /// the program that was started, which may have started the new process and ended.
    fn has_ended(&self) -> bool {
        let Some(mut socket) = self.socket.as_ref() else {
            return true;
        };
        let read = socket
            .set_nonblocking(true)
            .and_then(|()| socket.read(&mut [0]));
        match read {
            // It writes one byte, which was read: what comes now comes from something else.
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    fn end_child(&mut self) {
        if let Some(mut child) = self.child.take() {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

impl Drop for HandOver<'_> {
    fn drop(&mut self) {
        if process::id() != self.process {
            return;
        }
        self.end_child();
        for (server, split) in &self.parts {
            server.take_back(split);
        }
    }
}

/// Starts the child with the listeners and its end of the pair as descriptors from 3 on.
fn spawn(
    mut command: Command,
    listeners: Vec<(RawFd, u8)>,
    socket: &UnixStream,
    cpus: Option<Arc<[u32]>>,
) -> Result<Child, HandOverError> {
    let names = format!("{FD_NAME}:").repeat(listeners.len()) + SOCKET_NAME;
    let inode = os::inode(socket.as_raw_fd()).map_err(HandOverError::Prepare)?;
    for variable in LISTEN_VARIABLES {
        command.env_remove(variable);
    }
    command.env("LISTEN_FDS", (listeners.len() + 1).to_string());
    command.env("LISTEN_FDNAMES", names);
    let (mut given, bytes): (Vec<RawFd>, Vec<u8>) = listeners.into_iter().unzip();
    let numbers = [inode.to_string()].into_iter();
    let numbers: Vec<_> = numbers.chain(bytes.iter().map(u8::to_string)).collect();
    command.env(SOCKET_VARIABLE, numbers.join(":"));

    given.push(socket.as_raw_fd());
    let last = LISTEN_FDS_START + RawFd::try_from(given.len()).unwrap_or(RawFd::MAX / 2);
    // Copies from behind the range, so that none is overwritten before it has been moved; and no
    // free number within the range, where the standard library would open a pipe of its own.
    let copies = given.iter().map(|fd| copy(*fd, last));
    let copies = copies
        .collect::<Result<Vec<_>, _>>()
        .map_err(HandOverError::Prepare)?;
    let mut fillers = Vec::new();
    loop {
        let filler = copy(socket.as_raw_fd(), LISTEN_FDS_START).map_err(HandOverError::Prepare)?;
        if filler.as_raw_fd() >= last {
            break;
        }
        fillers.push(filler);
    }
    let numbers: Vec<RawFd> = copies.iter().map(AsRawFd::as_raw_fd).collect();
    let arrange = move || {
        // If it fails, the CPU that the caller has is what there is.
        _ = cpus.as_deref().map(os::move_to_cpus);
        for (to, from) in (LISTEN_FDS_START..).zip(&numbers) {
            // SAFETY: takes two integers. In this child the number is free, or a filler's.
            if unsafe { libc::dup2(*from, to) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only; it allocates nothing and takes no
    // lock.
    unsafe { command.pre_exec(arrange) };
    command.spawn().map_err(|error| HandOverError::Spawn {
        program: command.get_program().into(),
        error,
    })
}

/// The error of a call that prepares the socket between the two.
fn prepare(call: Call) -> impl Fn(io::Error) -> HandOverError {
    move |error| {
        let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
        HandOverError::Prepare(Error::new(call, errno))
    }
}

/// Duplicates a descriptor to a number from `from` on.
fn copy(fd: RawFd, from: RawFd) -> Result<OwnedFd, Error> {
    // SAFETY: the command takes an integer; `fd` is open.
    let result = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, from) };
    let copy = check(Call::Fcntl, result)?;
    // SAFETY: the kernel has just opened it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Waits for the byte by which the new process says that it is ready.
fn wait_until_ready(mut socket: &UnixStream, timeout: Duration) -> Result<(), HandOverError> {
    let deadline = deadline_after(timeout);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Zero would mean no limit.
        let left = left.max(Duration::from_millis(1));
        socket
            .set_read_timeout(Some(left))
            .map_err(prepare(Call::SetSockOpt))?;
        let mut byte = [0];
        match socket.read(&mut byte) {
            Ok(1) if byte == [OldProcess::READY] => return Ok(()),
            Ok(_) => return Err(HandOverError::ChildExited),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if Instant::now() >= deadline => return Err(HandOverError::TimedOut),
            Err(_) => {}
        }
    }
}
