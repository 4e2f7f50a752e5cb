//! A group that accepts connections: what only [`Tcp`] has.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::boxed::Box;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Instant;

use super::drain::{POLL_INTERVAL, call};
use super::handshakes::{self, Begun};
use super::member::{Member, OtherListeners};
use super::polling::WakePipe;
use super::pool::Pool;
use super::start::polls;
use super::worker::{Outcome, Work, Worker};
use super::{Control, Serve, Server, SpawnError};
use crate::acceptors::{StopToken, Stopped};
use crate::error::{Call, Error};
use crate::group::{Group, GroupConfig, GroupError};
use crate::listener::Connection;
use crate::socket::bpf::DROP_SYNS;
use crate::socket::protocol::Tcp;
use crate::{os, sys};

impl Group {
    /// Starts a thread for each member, which accepts connections and calls `handler` with the
    /// member's number.
    ///
    /// **A handler that blocks** keeps its thread. The connections behind it wait 1 to 2 ms; then
    /// a spare thread accepts in its place. So handlers may wait for their clients, and there may
    /// be more handlers at a time than members. **The limit** is
    /// [`spare_threads`](crate::GroupOptions::spare_threads), 512 by default: as many silent
    /// clients as threads stop the server, so a handler that reads needs a
    /// [read timeout](Connection::set_read_timeout). **[`stop`](Server::stop) cannot interrupt** a
    /// handler that is in `recv`; after the grace period it goes on until it returns.
    ///
    /// A handler that computes for longer than 1 to 2 ms is treated alike: its spare competes for
    /// the CPU, on the same one if workers are [pinned](crate::GroupOptions::pin).
    ///
    /// A handler that panics is counted, its connection is closed, and the thread goes on; with
    /// `panic = "abort"` the process ends. A spare thread has the signal mask and the capabilities
    /// of the thread that called this.
    ///
    /// # Errors
    /// A thread cannot be started, or not [pinned](crate::GroupOptions::pin). The group comes back
    /// with the error, and no connection has been accepted.
    ///
    /// # Examples
    /// ```
    /// use reuseport::Group;
    /// use std::time::Duration;
    ///
    /// let group = Group::bind(([127, 0, 0, 1], 0), 2)?;
    /// let server = group.spawn(|_, connection| {
    ///     // A client that says nothing keeps this thread for 10 s, and no other client.
    ///     _ = connection.set_read_timeout(Some(Duration::from_secs(10)));
    ///     let mut request = [0; 512];
    ///     if let Ok(length) = connection.recv(&mut request) {
    ///         _ = connection.send(&request[..length]);
    ///     }
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spawn<H>(self, handler: H) -> Result<Server, SpawnError>
    where
        H: Fn(usize, Connection) + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        self.spawn_with(move |acceptor| {
            let handler = Arc::clone(&handler);
            move |connection, _: &StopToken| handler(acceptor, connection)
        })
    }

    /// Starts a thread for each member, as [`spawn`](Self::spawn), with a handler of its own.
    ///
    /// `make` is called with the member's number, on the thread that will use the handler: also on
    /// a spare thread, before it accepts for that member. So there may be several handlers with one
    /// number at a time; [`spare_threads(0)`](crate::GroupOptions::spare_threads) rules that out. A
    /// handler's state belongs to one thread, and needs no lock. A `make` that panics is counted as
    /// a handler that does, and called again after 50 ms.
    ///
    /// The handler also learns when its member is to come to an end.
    ///
    /// # Errors
    /// Those of [`spawn`](Self::spawn).
    ///
    /// # Examples
    /// Each thread has a buffer of its own:
    /// ```
    /// use reuseport::{Connection, Group, StopToken};
    ///
    /// let group = Group::bind(([127, 0, 0, 1], 0), 2)?;
    /// let server = group.spawn_with(|_member| {
    ///     let mut buffer = vec![0; 64 * 1024];
    ///     move |connection: Connection, _: &StopToken| {
    ///         if let Ok(length) = connection.recv(&mut buffer) {
    ///             _ = connection.send(&buffer[..length]);
    ///         }
    ///     }
    /// })?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn spawn_with<M, H>(self, make: M) -> Result<Server, SpawnError>
    where
        M: Fn(usize) -> H + Send + Sync + 'static,
        H: FnMut(Connection, &StopToken) + 'static,
    {
        let make = Arc::new(make);
        self.start(Some(Box::new(move || {
            let make = Arc::clone(&make);
            Box::new(Acceptor {
                make,
                handler: None,
            })
        })))
    }
}

/// What an acceptor thread does.
struct Acceptor<M, H> {
    make: Arc<M>,
    /// The handler of the member that it has served last, and its number.
    handler: Option<(usize, H)>,
}

impl<M, H> Work<Tcp> for Acceptor<M, H>
where
    M: Fn(usize) -> H,
    H: FnMut(Connection, &StopToken),
{
    fn prepare(&mut self, member: &Member<Tcp>) -> bool {
        if matches!(self.handler, Some((id, _)) if id == member.id) {
            return true;
        }
        // Where none can be made, the one for another member does not serve this one.
        let (before, make) = (self.handler.take(), &self.make);
        let handler = &mut self.handler;
        member.counters.catch(|| {
            drop(before);
            *handler = Some((member.id, make(member.id)));
        })
    }

    fn serve(
        &mut self,
        pool: &Pool<Tcp>,
        worker: &Arc<Worker<Tcp>>,
        member: &Member<Tcp>,
    ) -> Outcome {
        let Some((_, handler)) = &mut self.handler else {
            return Outcome::Ended;
        };
        loop {
            let connection = match member.accept() {
                Ok(Some(connection)) => connection,
                Ok(None) => continue,
                Err(Stopped) => return Outcome::Ended,
            };
            let entered = worker.mark.enter();
            pool.wake_monitor();
            member.counters.run(|| handler(connection, &member.stop));
            if !worker.mark.leave(entered) {
                return Outcome::Taken;
            }
            if member.has_surplus.load(Relaxed) && pool.release_surplus(worker, member) {
                return Outcome::Surplus;
            }
        }
    }
}

impl Member<Tcp> {
    /// Accepts one connection. `None`: there was none, try again.
    #[inline]
    fn accept(&self) -> Result<Option<Connection>, Stopped> {
        if let Some(pipe) = &self.source.pipe {
            pipe.wait(self.socket.raw(), self.source.inherited)?;
        }
        match self.socket.accept() {
            Ok(connection) => {
                if self.source.filtered.load(Relaxed) {
                    // It has inherited the filter of its listener, or not, if it is older.
                    _ = os::detach_filter(&connection.0);
                }
                Ok(Some(connection))
            }
            Err(error) => self.is_refused(error),
        }
    }

    #[cold]
    fn is_refused(&self, error: Error) -> Result<Option<Connection>, Stopped> {
        if error.errno() == libc::EAGAIN && self.source.pipe.is_some() {
            // Another worker, or another process, has taken it: wait again, on the pipe too.
            return Ok(None);
        }
        self.handle_error(error)?;
        // Without a descriptor `accept` fails before it looks at the listener's state.
        if Tcp::has_left(self) {
            // What `accept` would say with one.
            self.handle_error(Error::new(Call::Accept, libc::EINVAL))?;
        }
        Ok(None)
    }
}

/// How the workers of one listener wait. Without a pipe they block in `accept`, two system calls a
/// connection; a shutdown wakes them.
#[derive(Debug)]
pub struct Source {
    pipe: Option<WakePipe>,
    inherited: bool,
    /// The listener has a packet filter, which its connections inherit.
    filtered: AtomicBool,
    pub(super) begun: Begun,
}

impl Serve for Tcp {
    const THREAD_NAME: &'static str = "acceptor";
    type Source = Source;

    fn new_source(config: &GroupConfig<Tcp>, _: Option<&Source>) -> Result<Source, Error> {
        let pipe = polls(config).then(WakePipe::new).transpose()?;
        Ok(Source {
            pipe,
            inherited: config.inherited,
            filtered: AtomicBool::new(false),
            begun: Begun::default(),
        })
    }

    fn queued(member: &Member<Tcp>) -> Result<u32, Error> {
        // What is queued on an inherited listener is left to the processes that hold it.
        if !os::STEERS || member.source.inherited {
            return Ok(0);
        }
        os::accept_queue(&member.socket.0).map(|[queued, _]| queued)
    }

    /// Steers around them, and has them drop every SYN.
    ///
    /// Recent kernels give a TCP socket a filter only with `CAP_NET_ADMIN`. Where the group is
    /// steered around the members, the filter is a second guard, and they leave without it. Where
    /// it is not, they are bound to an interface that does not exist.
    fn turn_away(
        server: &Server,
        control: &Control<Tcp>,
        ids: &[usize],
        last: bool,
    ) -> Result<(), GroupError> {
        if control.config.inherited || !os::STEERS {
            return Ok(());
        }
        let steered = !last && control.config.can_steer();
        if steered {
            server.steer(control)?;
        }
        let joined =
            control.config.options.join || server.other_listeners() == OtherListeners::Some;
        let members = server.members_of(ids);
        for member in &members {
            // The flag first: a connection that inherits the filter is accepted later.
            member.source.filtered.store(true, Relaxed);
            let turned = match os::attach_filter(&member.socket.0, &DROP_SYNS) {
                Err(error) if error.errno() == libc::EPERM && (last || joined) => {
                    os::bind_to_nowhere(&member.socket.0).map_err(|_| error)
                }
                turned => turned,
            };
            match turned {
                Err(error) if error.errno() == libc::EPERM && !joined => {}
                Err(error) => {
                    Tcp::take_new(&members);
                    return Err(call(server, error));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn drain(server: &Server, members: &[Arc<Member<Tcp>>], deadline: Instant) {
        // What is queued on an inherited listener is left to the processes that hold it.
        if !os::STEERS || members.iter().any(|member| member.source.inherited) {
            return;
        }
        for member in members {
            // It fails on no listener; and without it they are awaited for the whole grace period.
            _ = os::accept_silent_clients(&member.socket.0);
        }
        handshakes::wait_for(server, members, deadline);
        let mut interval = POLL_INTERVAL;
        let queued = || members.iter().any(|member| Tcp::queued(member) != Ok(0));
        while queued() && Instant::now() < deadline && !server.is_stale() {
            sleep(interval);
            interval = (2 * interval).min(16 * POLL_INTERVAL);
        }
    }

    fn take_new(members: &[Arc<Member<Tcp>>]) {
        for member in members {
            member.source.detach_filter(member);
        }
    }

    fn has_left(member: &Member<Tcp>) -> bool {
        os::option(member.raw(), sys::SOL_SOCKET, libc::SO_ACCEPTCONN) == Ok(0)
    }

    fn leave_group(member: &Member<Tcp>) -> Result<(), Error> {
        if let Some(pipe) = &member.source.pipe {
            pipe.wake();
            return Ok(());
        }
        // SAFETY: the descriptor is the member's.
        match unsafe { sys::shutdown(member.raw(), sys::SHUT_RD) } {
            // It was shut down before.
            Err(error) if error.errno() == libc::ENOTCONN => Ok(()),
            result => result,
        }
    }
}

impl Source {
    fn detach_filter(&self, member: &Member<Tcp>) {
        // It fails where there is none.
        _ = os::detach_filter(&member.socket.0);
        self.filtered.store(false, Relaxed);
    }
}
