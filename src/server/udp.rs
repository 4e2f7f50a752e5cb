//! A group that receives datagrams: what only [`Udp`] has.
//!
//! A UDP socket that is shut down still receives, and a datagram that arrives while it is being
//! closed is lost. So a member leaves in this order:
//!
//! 1. It is connected to its own address: its port is closed to all other senders, and it keeps
//!    what is queued. (A socket on the wildcard address would then answer from another address, so
//!    the group is steered around it instead.)
//! 2. It is shut down, which wakes its thread; the thread reads on until the queue is empty.
//! 3. Its descriptor is replaced by a placeholder, which closes the socket.

use std::boxed::Box;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Instant;

use super::drain::{POLL_INTERVAL, call};
use super::member::{Entry, Member, MemberState};
use super::polling::WakePipe;
use super::pool::Pool;
use super::start::polls;
use super::worker::{Outcome, Work, Worker};
use super::{Control, Serve, Server, SpawnError};
use crate::acceptors::{StopToken, Stopped};
use crate::address::SockAddr;
use crate::error::Error;
use crate::group::{Group, GroupConfig, GroupError};
use crate::socket::bpf::DROP_ALL;
use crate::socket::datagram::Datagram;
use crate::socket::destination::Destination;
use crate::socket::protocol::Udp;
use crate::socket::udp::UdpSocket;
use crate::{os, sys};

/// How many datagrams a batch has at most.
#[cfg(linux_kernel)]
const BATCH_SIZE: usize = 32;

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

/// What a receiver thread does.
struct Receiver<M, H> {
    make: Arc<M>,
    handler: Option<H>,
}

impl<M, H> Work<Udp> for Receiver<M, H>
where
    M: Fn(usize) -> H,
    H: FnMut(Datagram<'_>, &StopToken),
{
    fn prepare(&mut self, member: &Member<Udp>) -> bool {
        let (make, handler) = (&self.make, &mut self.handler);
        member.counters.catch(|| *handler = Some(make(member.id)))
    }

    fn serve(&mut self, pool: &Pool<Udp>, _: &Arc<Worker<Udp>>, member: &Member<Udp>) -> Outcome {
        let Some(handler) = &mut self.handler else {
            return Outcome::Ended;
        };
        let Stopped = if member.source.batch {
            member.receive_batches(pool, handler)
        } else {
            member.receive_one_by_one(pool, handler)
        };
        Outcome::Ended
    }
}

impl Member<Udp> {
    fn receive_one_by_one(
        &self,
        pool: &Pool<Udp>,
        handler: &mut impl FnMut(Datagram<'_>, &StopToken),
    ) -> Stopped {
        let socket = &self.socket;
        let mut buffer = std::vec![0; self.source.max_datagram_size];
        let mut peer = SockAddr::empty();
        loop {
            if let Some(pipe) = &self.source.pipe {
                if let Err(stopped) = pipe.wait(socket.raw(), false) {
                    return stopped;
                }
            }
            let (len, truncated, destination) = match socket.receive(&mut buffer, &mut peer) {
                Ok(received) => received,
                Err(error) => match self.counters.handle_error(self.id, error, &self.stop) {
                    Ok(()) => continue,
                    Err(stopped) => return stopped,
                },
            };
            if self.is_spare_copy(destination, pool) {
                continue;
            }
            let mut reply = None;
            let datagram = Datagram {
                socket,
                buffer: &mut buffer,
                len,
                truncated,
                peer: &peer,
                destination,
                reply: &mut reply,
            };
            self.counters.run(|| handler(datagram, &self.stop));
            let reply = reply.and_then(|len| buffer.get(..len));
            if reply.is_some_and(|bytes| send(socket, bytes, &peer, destination).is_err()) {
                self.counters.count_transient_error();
            }
        }
    }

    #[cfg(linux_kernel)]
    fn receive_batches(
        &self,
        pool: &Pool<Udp>,
        handler: &mut impl FnMut(Datagram<'_>, &StopToken),
    ) -> Stopped {
        let mut buffer = std::vec![0; BATCH_SIZE * self.source.max_datagram_size];
        let mut batch = os::Batch::<BATCH_SIZE>::new(&mut buffer);
        loop {
            if let Err(error) = batch.receive(&self.socket) {
                match self.counters.handle_error(self.id, error, &self.stop) {
                    Ok(()) => continue,
                    Err(stopped) => return stopped,
                }
            }
            for datagram in batch.datagrams(&self.socket) {
                if !self.is_spare_copy(datagram.destination, pool) {
                    self.counters.run(|| handler(datagram, &self.stop));
                }
            }
            let (_, failed, _) = batch.try_replies(&self.socket);
            (0..failed).for_each(|_| self.counters.count_transient_error());
        }
    }

    /// The option is refused here, so this is not reached.
    #[cfg(not(linux_kernel))]
    fn receive_batches(
        &self,
        pool: &Pool<Udp>,
        handler: &mut impl FnMut(Datagram<'_>, &StopToken),
    ) -> Stopped {
        self.receive_one_by_one(pool, handler)
    }

    /// Whether a datagram with this destination is a copy that another member handles: the first of
    /// those that serve, or that a new process has.
    fn is_spare_copy(&self, destination: Option<Destination>, pool: &Pool<Udp>) -> bool {
        if !self.source.single_copy || destination.is_none_or(|to| to.is_unicast()) {
            return false;
        }
        let list = pool.lock();
        let leaves = |entry: &&Entry<Udp>| entry.state == MemberState::Draining;
        let first = list.members.iter().min_by_key(leaves);
        first.is_some_and(|entry| entry.id() != self.id)
    }

    /// Wakes the thread, which ends when the queue is empty.
    fn wake(&self) {
        if let Some(pipe) = &self.source.pipe {
            return pipe.wake();
        }
        // The kernel says `ENOTCONN`, and wakes the thread all the same.
        // SAFETY: the descriptor is the member's.
        _ = unsafe { sys::shutdown(self.raw(), sys::SHUT_RD) };
    }
}

/// How the thread of one socket receives. Without a pipe it blocks in `recvmsg`; a shutdown wakes
/// it.
#[derive(Debug)]
pub struct Source {
    max_datagram_size: usize,
    batch: bool,
    single_copy: bool,
    pipe: Option<WakePipe>,
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
            pipe: polls(config).then(WakePipe::new).transpose()?,
            placeholder,
        })
    }

    /// What is queued at the end of the grace period is lost: a datagram is no connection.
    fn queued(_: &Member<Udp>) -> Result<u32, Error> {
        Ok(0)
    }

    /// Connects the members, each to its own address. The kernel then takes them out of the group
    /// (since 6.13), and the others have new indexes: they are steered to at once.
    ///
    /// On the wildcard address, and on a broadcast address, which cannot be connected to, the group
    /// is steered around them; where no member stays, they drop what is new.
    fn turn_away(
        server: &Server<Udp>,
        control: &Control<Udp>,
        ids: &[usize],
        last: bool,
    ) -> Result<(), GroupError> {
        let config = &control.config;
        if config.inherited || !os::STEERS {
            return Ok(());
        }
        let members = server.members_of(ids);
        let unspecified = config.address.ip().to_canonical().is_unspecified();
        // The last first, in the order in which the list is to have it. And none more after one
        // that cannot be connected, for that one leaves later than those before it.
        let connect = |member: &Arc<Member<Udp>>| member.socket.connect(config.address).is_ok();
        let connected = !unspecified && members.iter().rev().all(connect);
        if connected && last {
            return Ok(());
        }
        if connected {
            // If this fails it fails again when they are gone, and is reported then.
            _ = steer_without(server, control, ids, &members);
            return Ok(());
        }
        if last && !config.options.join {
            let drop_all = |member: &Arc<Member<Udp>>| {
                os::attach_filter(&member.socket.0, &DROP_ALL).map_err(|error| call(server, error))
            };
            return members.iter().try_for_each(drop_all);
        }
        if last {
            return Ok(());
        }
        server.steer(control)
    }

    fn drain(server: &Server<Udp>, members: &[Arc<Member<Udp>>], deadline: Instant) {
        // A datagram that was being looked up when the steering changed has come by now.
        sleep(POLL_INTERVAL);
        let ended = || {
            let mut state = server.pool.lock();
            let running = |member: &Arc<Member<Udp>>| {
                state
                    .entry(member.id)
                    .is_some_and(|entry| entry.is_running())
            };
            !members
                .iter()
                .map(running)
                .fold(false, |any, one| any | one)
        };
        // Again and again, for a call may fail.
        while !ended() && Instant::now() < deadline {
            members.iter().for_each(|member| member.wake());
            sleep(POLL_INTERVAL);
        }
    }

    /// The kernel does not tell: a UDP socket that was shut down stays in its group.
    fn has_left(_: &Member<Udp>) -> bool {
        false
    }

    fn leave_group(member: &Member<Udp>) -> Result<(), Error> {
        member.wake();
        if member.source.pipe.is_some() {
            return Ok(());
        }
        // Closing it would leave it in the group if a handler has kept a copy.
        _ = member.socket.connect_to_loopback();
        member.source.placeholder.replace(&member.socket.0)
    }
}

/// Steers to the members that stay, after these were connected: they have left the kernel's group,
/// or, before Linux 6.13, they are still in it and are steered around.
fn steer_without(
    server: &Server<Udp>,
    control: &Control<Udp>,
    ids: &[usize],
    members: &[Arc<Member<Udp>>],
) -> Result<(), GroupError> {
    let Some(connected) = members.first().filter(|_| control.config.can_steer()) else {
        return Ok(());
    };
    let slots = server.pool.lock().slots(MemberState::Serving);
    // A socket that has no group cannot have a program.
    let steered = control.config.steer(&connected.socket, &slots);
    if steered.map_err(|error| error.error().map(Error::errno)) != Err(Some(libc::EINVAL)) {
        return steered;
    }
    let mut state = server.pool.lock();
    for index in (0..state.members.len()).rev() {
        if ids.contains(&state.members[index].id()) {
            state.depart(index);
        }
    }
    drop(state);
    server.steer(control)
}

/// Sends a reply, in spite of signals.
fn send(
    socket: &UdpSocket,
    bytes: &[u8],
    to: &SockAddr,
    from: Option<Destination>,
) -> Result<(), Error> {
    loop {
        match socket.send_from(bytes, to, from) {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result,
        }
    }
}
