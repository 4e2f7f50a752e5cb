//! A group that receives datagrams: what only [`Udp`] has.
//!
//! A datagram that arrives while its socket is being closed is lost, and a UDP socket that is shut
//! down stays in its group. So a member leaves in this order:
//!
//! 1. On a wildcard address, the group is steered around it by a hash of the flow.
//! 2. It is connected to an address of its machine, which takes it out of the group (since Linux
//!    6.13), also if a handler has duplicated its descriptor. It keeps what is queued, and its
//!    handler can still answer.
//! 3. A lookup that began before may still choose it; all such have ended when `membarrier(2)`
//!    returns. Then it is shut down, which wakes its thread; the thread reads on until the queue is
//!    empty. The socket is closed when its last handler has returned.
//!
//! On a wildcard address it connects late, when nothing is steered to it any more: a datagram that
//! comes to a connected socket's port finds it no more. On an address of its own to connect is
//! enough. Where all members leave there is none to steer to, so they connect at once; a client
//! then learns that the port is closed.
//!
//! On an address of its own, the kernel would put a new member into one group with a member that
//! has left and is still open, if that was bound last: two groups, and a program of the second may
//! choose the socket that closes. `os::leave_port` prevents it. In a joined group it would have
//! other programs' `bind` fail; there the member is closed before `retire` returns, unless a
//! handler still runs or has a copy.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use core::time::Duration;
use std::boxed::Box;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Instant;

use super::drain::{POLL_INTERVAL, call};
use super::member::Member;
use super::polling::WakePipe;
use super::receive::Receiver;
use super::start::polls;
use super::{Control, Serve, Server, SpawnError};
use crate::acceptors::StopToken;
use crate::error::{Call, Error};
use crate::group::{Group, GroupConfig, GroupError};
use crate::socket::bpf::DROP_ALL;
use crate::socket::datagram::Datagram;
use crate::socket::protocol::Udp;
use crate::{os, sys};

impl Group<Udp> {
    /// Starts a thread for each member, which receives datagrams and calls `handler` with the
    /// member's number.
    ///
    /// A member has one thread, so that the datagrams of a flow are handled in order: while a
    /// handler runs, what comes to its member waits, and is dropped when the buffer is full
    /// ([`ReceiveBuffer::drops`](crate::ReceiveBuffer::drops)). Panics and failures are as for
    /// [`Group::spawn`](Group::spawn); a reply that cannot be sent counts as a
    /// [transient error](crate::Stats::transient_errors).
    ///
    /// # Errors
    /// A thread cannot be started, or not [pinned](crate::GroupOptions::pin). The group comes back
    /// with the error.
    ///
    /// # Examples
    /// ```
    /// use reuseport::Group;
    ///
    /// let group = Group::bind_udp(([127, 0, 0, 1], 0), 2)?;
    /// let server = group.spawn(|_, datagram| {
    ///     let len = datagram.payload().len();
    ///     datagram.reply(len); // an echo
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spawn<H>(self, handler: H) -> Result<Server<Udp>, SpawnError<Udp>>
    where
        H: Fn(usize, Datagram<'_>) + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        self.spawn_with(move |receiver| {
            let handler = Arc::clone(&handler);
            move |datagram: Datagram<'_>, _: &StopToken| handler(receiver, datagram)
        })
    }

    /// Starts a thread for each member, as [`spawn`](Self::spawn), with a handler of its own.
    ///
    /// `make` is called with the member's number, on the thread that will use the handler. The
    /// handler also learns when its member is to come to an end.
    ///
    /// # Errors
    /// Those of [`spawn`](Self::spawn).
    pub fn spawn_with<M, H>(self, make: M) -> Result<Server<Udp>, SpawnError<Udp>>
    where
        M: Fn(usize) -> H + Send + Sync + 'static,
        H: FnMut(Datagram<'_>, &StopToken) + 'static,
    {
        let make = Arc::new(make);
        self.start(Some(Box::new(move || {
            let make = Arc::clone(&make);
            Box::new(Receiver {
                make,
                handler: None,
            })
        })))
    }
}

/// How the thread of one socket receives. Without a pipe it blocks in `recvmsg`; a shutdown wakes
/// it.
#[derive(Debug)]
pub struct Source {
    pub(super) max_datagram_size: usize,
    pub(super) batch: bool,
    pub(super) single_copy: bool,
    join: bool,
    pub(super) pipe: Option<WakePipe>,
    /// The thread no longer uses the socket.
    pub(super) ended: AtomicBool,
    /// One for all members: had in time, for later there may be no descriptor left.
    placeholder: Arc<os::Placeholder>,
}

impl Serve for Udp {
    const THREAD_NAME: &'static str = "receiver";
    type Source = Source;

    fn new_source(config: &GroupConfig<Udp>, sibling: Option<&Source>) -> Result<Source, Error> {
        let placeholder = match sibling {
            Some(sibling) => Arc::clone(&sibling.placeholder),
            None => Arc::new(os::Placeholder::new()?),
        };
        Ok(Source {
            max_datagram_size: config.options.max_datagram_size,
            batch: config.options.batch,
            // Of one socket there is one copy.
            single_copy: config.options.single_copy && !config.options.shared,
            join: config.options.join,
            pipe: polls(config).then(WakePipe::new).transpose()?,
            ended: AtomicBool::new(false),
            placeholder,
        })
    }

    /// What is queued at the end of the grace period is lost: a datagram is no connection.
    fn queued(_: &Member<Udp>) -> Result<u32, Error> {
        Ok(0)
    }

    /// Steers around the members, on a wildcard address. Where none stays they leave the group at
    /// once, or, where a socket cannot be connected, drop what is new.
    fn turn_away(
        server: &Server<Udp>,
        control: &Control<Udp>,
        ids: &[usize],
        last: bool,
    ) -> Result<(), GroupError> {
        if control.config.inherited || !os::STEERS {
            return Ok(());
        }
        if !last {
            // On an address of its own to connect is enough, if that takes a member out.
            let own = !control.config.address.ip().to_canonical().is_unspecified();
            let leaves = |member: &Arc<Member<Udp>>| member.source.placeholder.is_needless();
            if own && server.members_of(ids).iter().all(leaves) {
                return Ok(());
            }
            return server.steer(control);
        }
        for member in server.members_of(ids) {
            if member.connect_away().is_err() && !control.config.options.join {
                let dropped = os::attach_filter(&member.socket.0, &DROP_ALL);
                dropped.map_err(|error| call(server, error))?;
            }
        }
        Ok(())
    }

    fn drain(server: &Server<Udp>, members: &[Arc<Member<Udp>>], deadline: Instant) {
        let leaves_open = |member: &Arc<Member<Udp>>| member.source.placeholder.is_needless();
        if server.pool.work.is_none() || members.iter().all(leaves_open) {
            return;
        }
        let has_ended = |member: &Arc<Member<Udp>>| member.source.ended.load(Relaxed);
        // Again and again, for a call may fail.
        while !members.iter().all(has_ended) && Instant::now() < deadline {
            members.iter().for_each(|member| member.wake());
            sleep(POLL_INTERVAL);
        }
    }

    /// Whether it is connected: by a handler, or by a new process that has ended in good order.
    fn has_left(member: &Member<Udp>) -> bool {
        os::STEERS
            && member.source.placeholder.is_needless()
            && os::peer_name(&member.socket.0).is_ok()
    }

    fn leave_group(member: &Member<Udp>) -> Result<(), Error> {
        let source = &member.source;
        if source.pipe.is_some() {
            return Ok(());
        }
        match member.connect_away() {
            connected if source.placeholder.is_needless() => connected,
            _ if source.ended.load(Relaxed) => source.placeholder.replace(&member.socket.0),
            // A handler may still use the descriptor.
            _ => Err(Error::new(Call::Dup, libc::EBUSY)),
        }
    }

    fn release(server: &Server<Udp>, members: &[Arc<Member<Udp>>]) {
        os::wait_for_lookups(Duration::MAX);
        if server.pool.work.is_none() {
            return; // a runtime would take the shutdown for a socket that is ready for ever
        }
        // Twice, for a call may fail.
        let again = members.iter().chain(members);
        again.for_each(|member| member.wake());
    }
}

impl Member<Udp> {
    /// Takes the socket out of its group, and closes its port to all senders. What is queued stays.
    fn connect_away(&self) -> Result<(), Error> {
        // A link-local address has no way to the loopback device.
        let to_itself = |_| self.socket.connect(self.socket.local_addr()?);
        self.socket.connect_to_loopback().or_else(to_itself)?;
        if !self.source.join {
            // It has left, whether or not this fails.
            _ = os::leave_port(&self.socket.0);
        }
        Ok(())
    }

    /// Wakes the thread, which ends when the queue is empty.
    fn wake(&self) {
        if let Some(pipe) = &self.source.pipe {
            return pipe.wake();
        }
        // A socket that a handler has set not to block would have its thread spin: it is always
        // readable once it is shut down, and says `EAGAIN` in place of the end.
        _ = self.socket.set_nonblocking(false);
        // The kernel says `ENOTCONN`, and wakes the thread all the same.
        // SAFETY: the descriptor is the member's.
        _ = unsafe { sys::shutdown(self.raw(), sys::SHUT_RD) };
    }
}
