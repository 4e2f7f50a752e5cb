//! A new process takes the place of an old one, and no client notices (Linux, Android).
//!
//! No listener is ever shared between the two. The old process adds as many fresh members to the
//! group as it has, and passes only those on; they get no connection until the successor says that
//! it is ready. Then the group is steered to them, and the old process's own members leave as any
//! member does. The last of them leaves first, so that the kernel, which moves its last member into
//! each hole, ends with the fresh ones in their order.
//!
//! They are passed in the way of `sd_listen_fds(3)`: descriptors from 3 on, told in `LISTEN_FDS`,
//! `LISTEN_PID` and `LISTEN_FDNAMES`. The successor takes them by
//! [`Group::from_env`](crate::Group::from_env).

use core::ffi::{c_char, c_int};
use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;
use std::ffi::CString;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::{ffi::OsStringExt, net::UnixStream, process::CommandExt};
use std::process::{Child, Command};
use std::{env, format, string::String, time::Instant, vec::Vec};

use crate::error::{Call, Error, check};
use crate::group::{GroupError, Row};
use crate::listener::Listener;
use crate::restart::listen_fds::{FIRST, NAME, READY};
use crate::server::drain::after;
use crate::server::{Plans, Server};
use crate::socket::protocol::{Protocol, Tcp};
use crate::{server::worker as crew, steering};

impl Server {
    /// Starts `command` as the successor, gives it the port, and has every connection that has
    /// come by then handled here. Afterwards this has no members: [`stop`](Self::stop) has only
    /// the tally left to tell, and handlers that still run.
    ///
    /// The successor takes its group by [`Group::from_env`](crate::Group::from_env), with as many
    /// members as here, and is ready once it has spawned its acceptors. If it is not within
    /// `patience` it is killed, and all is as it was. That is also so if it ends before.
    ///
    /// The environment of `command` must be untouched: the successor has this process's own.
    /// Linux and Android alone.
    pub fn hand_over(&self, command: Command, patience: Duration) -> Result<Child, HandOverError> {
        let mut plans = self.plans();
        self.tidy(&plans);
        if plans.site.inherited {
            return Err(GroupError::Inherited.into());
        }
        if plans.site.options.shared {
            return Err(GroupError::SharedSocket.into());
        }
        if plans.site.options.join {
            return Err(GroupError::JoinedGroup.into());
        }
        let members = self.crew().posts.len();
        let mut fresh = Vec::new();
        match self.start_successor(&plans, command, patience, members, &mut fresh) {
            Ok(child) => {
                self.give_way(&mut plans, &fresh);
                Ok(child)
            }
            Err(error) => {
                self.retire_fresh(&mut plans, fresh);
                Err(error)
            }
        }
    }

    /// Opens the `fresh` members, to which nothing is steered, and waits for the successor that
    /// gets them.
    fn start_successor(
        &self,
        plans: &Plans,
        command: Command,
        patience: Duration,
        members: usize,
        fresh: &mut Vec<Listener>,
    ) -> Result<Child, HandOverError> {
        // Only its debug form tells of a cleared environment.
        let cleared = format!("{command:?}").starts_with("env -i ");
        if cleared || command.get_envs().next().is_some() {
            return Err(HandOverError::Environment);
        }
        self.steer_to(None, 0, members)?;
        while fresh.len() < members {
            fresh.push(plans.site.open(members + fresh.len())?);
        }
        let (near, far) = UnixStream::pair().map_err(HandOverError::Spawn)?;
        let mut child = spawn(plans.site.address, command, fresh, &far)?;
        drop(far);
        let ready = wait_for(near, patience);
        if ready.is_err() {
            _ = child.kill();
            _ = child.wait();
        }
        ready.map(|()| child)
    }

    /// Steers to the fresh members, and has the own ones leave.
    fn give_way(&self, plans: &mut Plans, fresh: &[Listener]) {
        let deadline = after(plans.site.options.grace);
        let members = fresh.len();
        let own: Vec<usize> = (0..members).collect();
        // The successor serves already. Where steering fails the hash decides, and the filter
        // makes whoever it sends here a second late.
        _ = self.steer_to(fresh.first(), members, members);
        _ = self.take_no_more(plans, &own, true);
        self.drain(plans, &own, deadline);
        for index in own.into_iter().rev() {
            // The places that fresh members have both before this one leaves and after.
            _ = self.steer_to(fresh.first(), index + 1, members.saturating_sub(1).max(1));
            self.remove(&[index]);
        }
        let rows: Vec<_> = (0..members).map(Row::alike).collect();
        if let Some(first) = fresh.first() {
            _ = plans.site.steer(first, &rows);
        }
        plans.site.inherited = true;
        self.wait_for_threads(deadline, |_| true);
    }

    /// Serves what may have come to the `fresh` members, and retires them.
    fn retire_fresh(&self, plans: &mut Plans, fresh: Vec<Listener>) {
        let deadline = after(plans.site.options.grace);
        let own = self.crew().posts.len();
        for listener in fresh {
            // Without a thread to be had it is closed: nothing has been steered to it.
            let Ok(way) = Tcp::way(plans) else { break };
            let Ok(parked) = plans.next() else { break };
            let slot = self.crew().posts.len();
            // Outside the ring it is emptied as it leaves.
            _ = self.enlist(plans, parked.start(listener, way, slot));
        }
        let added: Vec<_> = (own..self.crew().posts.len()).collect();
        _ = self.take_no_more(plans, &added, false);
        _ = self.see_off(plans, &added, deadline);
    }

    /// Steers to `count` members from `first` on.
    fn steer_to(
        &self,
        through: Option<&Listener>,
        first: usize,
        count: usize,
    ) -> Result<(), GroupError> {
        let number = |index| u32::try_from(index).unwrap_or(u32::MAX);
        let program = steering::any_in_range(number(first), number(count));
        let crew = self.crew();
        let through = through.or_else(|| crew.posts.first().map(crew::Post::socket));
        let steered = through.map_or(Ok(()), |member| member.attach_program(&program));
        steered.map_err(|error| GroupError::call(error, self.local_addr(), 0))
    }
}

/// Starts the child with the listeners and its end of the pair as descriptors from 3 on.
fn spawn(
    address: SocketAddr,
    mut command: Command,
    fresh: &[Listener],
    ready: &UnixStream,
) -> Result<Child, HandOverError> {
    let given = fresh.iter().map(Listener::raw).chain([ready.as_raw_fd()]);
    let given: Vec<RawFd> = given.collect();
    let last = FIRST + RawFd::try_from(given.len()).unwrap_or(RawFd::MAX - FIRST);
    // Copies from behind the range, so that none is overwritten before it has been moved; and no
    // free number within the range, where the standard library would open a pipe of its own.
    let copy = |fd: RawFd, from: RawFd| -> Result<OwnedFd, Error> {
        // SAFETY: the command takes an integer; `fd` is open.
        let result = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, from) };
        let copy = check(Call::Fcntl, result)?;
        // SAFETY: the kernel has just opened it for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(copy) })
    };
    let here = |error| HandOverError::from(GroupError::call(error, address, 0));
    let copies = given
        .iter()
        .map(|fd| copy(*fd, last))
        .collect::<Result<Vec<_>, _>>();
    let copies = copies.map_err(here)?;
    let mut fillers = Vec::new();
    loop {
        let filler = copy(ready.as_raw_fd(), FIRST).map_err(here)?;
        if filler.as_raw_fd() >= last {
            break;
        }
        fillers.push(filler);
    }
    let numbers: Vec<RawFd> = copies.iter().map(AsRawFd::as_raw_fd).collect();
    let mut environment = Environment::new(fresh.len());
    let arrange = move || {
        for (to, from) in (FIRST..).zip(&numbers) {
            // SAFETY: takes two integers; in this child no number from 3 on is anybody's.
            if unsafe { libc::dup2(*from, to) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        environment.install();
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls and writes to memory that is its own;
    // it allocates nothing and takes no lock.
    unsafe { command.pre_exec(arrange) };
    command.spawn().map_err(HandOverError::Spawn)
}

/// The successor's environment, all but its pid, which only the child itself can tell.
struct Environment {
    /// `LISTEN_PID=`, and room for the number.
    pid: Vec<u8>,
    /// C's `environ`: pointers into `pid` and to strings that live as long as this, and a null.
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

// SAFETY: the pointers go to memory that this value owns and that moves with nobody.
unsafe impl Send for Environment {}
// SAFETY: nothing is changed through a shared reference.
unsafe impl Sync for Environment {}

impl Environment {
    fn new(listeners: usize) -> Environment {
        let kept =
            env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("LISTEN_"));
        let kept = kept.map(|(name, value)| [name.into_vec(), value.into_vec()].join(&b'='));
        let names = format!("{NAME}:").repeat(listeners) + READY;
        let told = [
            format!("LISTEN_FDS={}", listeners + 1),
            format!("LISTEN_FDNAMES={names}"),
        ];
        let all = kept.chain(told.into_iter().map(String::into_bytes));
        let strings: Vec<CString> = all.filter_map(|text| CString::new(text).ok()).collect();
        let mut pid = Vec::from(*b"LISTEN_PID=");
        pid.resize(pid.len() + 11, 0);
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.extend([pid.as_ptr().cast(), core::ptr::null()]);
        Environment {
            pid,
            pointers,
            _strings: strings,
        }
    }

    /// In the child, where there is but one thread.
    fn install(&mut self) {
        unsafe extern "C" {
            static mut environ: *const *const c_char;
        }
        // SAFETY: takes nothing.
        let pid: c_int = unsafe { libc::getpid() };
        _ = write!(self.pid.split_at_mut(11).1, "{pid}");
        // Its pointer was taken before it was written to.
        let at = self.pointers.len().saturating_sub(2);
        if let Some(pointer) = self.pointers.get_mut(at) {
            *pointer = self.pid.as_ptr().cast();
        }
        // SAFETY: no other thread reads it, and what it points to lasts until `execve`.
        unsafe { environ = self.pointers.as_ptr() };
    }
}

/// Waits for the byte by which the successor says that it is ready.
fn wait_for(mut near: UnixStream, patience: Duration) -> Result<(), HandOverError> {
    let deadline = after(patience);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Zero would mean no limit.
        let left = left.max(Duration::from_millis(1));
        near.set_read_timeout(Some(left))
            .map_err(HandOverError::Spawn)?;
        match near.read(&mut [0]) {
            Ok(0) => return Err(HandOverError::ChildExited),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if Instant::now() >= deadline => return Err(HandOverError::TimedOut),
            Err(_) => {}
        }
    }
}

/// Why no successor has taken over (Linux, Android). All is as it was.
#[derive(Debug)]
#[non_exhaustive]
pub enum HandOverError {
    /// The group could not be prepared.
    Group(GroupError),
    /// The command's environment has been changed.
    Environment,
    /// The successor could not be started.
    Spawn(io::Error),
    /// The successor ended, or gave its group up, before it was ready.
    ChildExited,
    /// The successor was not ready in time, and was killed.
    TimedOut,
}

impl From<GroupError> for HandOverError {
    fn from(error: GroupError) -> HandOverError {
        HandOverError::Group(error)
    }
}

impl fmt::Display for HandOverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandOverError::Group(error) => write!(f, "{error}"),
            HandOverError::Environment => {
                f.write_str("the successor's environment must be this process's own")
            }
            HandOverError::Spawn(error) => write!(f, "starting the successor: {error}"),
            HandOverError::ChildExited => f.write_str("the successor ended before it was ready"),
            HandOverError::TimedOut => f.write_str("the successor was not ready in time"),
        }
    }
}

impl core::error::Error for HandOverError {}
