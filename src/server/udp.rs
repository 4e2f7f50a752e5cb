//! A group that receives datagrams: what only [`Udp`] has.
//!
//! A socket that is shut down still receives, and what reaches it while it is being closed is lost.
//! So a member leaves in this order: it is connected to itself, which closes its port to all others
//! at once and leaves it what waits there (on the wildcard address, the group is steered around it
//! instead); it is shut down, which wakes its thread, and lets it read on until nothing waits; the
//! thread has left; its descriptor is replaced by a dead one, and with that the socket is closed.

use core::net::SocketAddr;
#[cfg(linux_kernel)]
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Instant;

use crate::acceptors::{Leave, Seat, StopToken, add_one};
use crate::address::SockAddr;
use crate::error::Error;
use crate::group::{Group, GroupOptions, SpawnError};
use crate::listener::Descriptor;
use crate::server::drain::BEAT;
use crate::server::polling;
use crate::server::worker::{Exit, Post, Way, launch};
use crate::server::{Plans, Server};
use crate::socket::batch::Datagram;
use crate::socket::exclusive::claim_datagrams;
use crate::socket::protocol::{First, Protocol, Udp};
use crate::socket::queue::Queue;
use crate::socket::udp::UdpSocket;
#[cfg(linux_kernel)]
use crate::{
    error::{AcceptAction, Call, check},
    os::linux,
    server::blocking::shut_down,
    server::worker::eventfd,
    socket::batch::Batch,
};

/// How many datagrams a batch has at most.
#[cfg(linux_kernel)]
const BATCH: usize = 32;

impl Group<Udp> {
    /// Gives each member a thread, which hands its number and every datagram to `handler`.
    ///
    /// While a handler runs, what comes to this member waits, and is dropped where there is no more
    /// room: [`Queue::drops`]. Panics and failures are as for [`Group::spawn`](Group::spawn); an
    /// answer that cannot be sent counts as a [transient error](crate::Stats::transient_errors).
    pub fn spawn<H>(self, handler: H) -> Result<Server<Udp>, SpawnError<Udp>>
    where
        H: Fn(usize, Datagram<'_>) + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        self.spawn_with(move |receiver| {
            let handler = Arc::clone(&handler);
            move |message: Datagram<'_>, _: &StopToken| handler(receiver, message)
        })
    }

    /// As [`spawn`](Self::spawn), with a handler of its own for each receiver, which also learns
    /// when it is to come to an end. `make` is kept, for members that are added.
    pub fn spawn_with<M, H>(self, mut make: M) -> Result<Server<Udp>, SpawnError<Udp>>
    where
        M: FnMut(usize) -> H + Send + 'static,
        H: FnMut(Datagram<'_>, &StopToken) + Send + 'static,
    {
        self.start(launch::<Udp, _, _>(move |receiver| {
            let handler = make(receiver);
            move |seat: &Seat<UdpSocket>, source: Source| source.work(seat, handler)
        }))
    }
}

/// How datagrams come.
#[allow(missing_debug_implementations)] // nobody outside can name it
pub struct Source {
    room: usize,
    #[cfg(linux_kernel)]
    batch: bool,
    #[cfg(linux_kernel)]
    dead: Arc<OwnedFd>,
    /// Where a shutdown wakes nobody: what hangs up.
    hung_up: Option<UnixStream>,
}

impl Source {
    /// The thread.
    fn work(&self, seat: &Seat<UdpSocket>, handler: impl FnMut(Datagram<'_>, &StopToken)) {
        #[cfg(linux_kernel)]
        let end = if self.batch {
            self.in_batches(seat, handler)
        } else {
            self.one_by_one(seat, handler)
        };
        #[cfg(not(linux_kernel))]
        let end = self.one_by_one(seat, handler);
        let Err(Leave) = end else { return };
        #[cfg(linux_kernel)]
        let failed = seat.counters.failed.get();
        #[cfg(linux_kernel)]
        if failed.is_some_and(|error| error.accept_action() == AcceptAction::Closed) {
            // Somebody has shut it down. While it is open the kernel goes on choosing it, and
            // nobody would receive.
            _ = replace(&seat.socket, &self.dead);
        }
    }

    fn one_by_one(
        &self,
        seat: &Seat<UdpSocket>,
        mut handler: impl FnMut(Datagram<'_>, &StopToken),
    ) -> Result<(), Leave> {
        let socket = &seat.socket;
        let mut room = std::vec![0; self.room];
        let mut from = SockAddr::empty();
        loop {
            self.wait(seat)?;
            let (len, truncated) = match socket.receive(&mut room, &mut from) {
                Ok(received) => received,
                Err(error) => {
                    seat.heed(error)?;
                    continue;
                }
            };
            let mut answer = None;
            let message = Datagram {
                socket,
                buffer: &mut room,
                len,
                truncated,
                from: &from,
                answer: &mut answer,
            };
            seat.handle(|| handler(message, &seat.stop));
            let answer = answer.and_then(|len| room.get(..len));
            if answer.is_some_and(|bytes| send(socket, bytes, &from).is_err()) {
                add_one(&seat.counters.transient_errors);
            }
        }
    }

    #[cfg(linux_kernel)]
    fn in_batches(
        &self,
        seat: &Seat<UdpSocket>,
        mut handler: impl FnMut(Datagram<'_>, &StopToken),
    ) -> Result<(), Leave> {
        let mut buffer = std::vec![0; BATCH * self.room];
        let mut batch = Batch::<BATCH>::new(&mut buffer);
        loop {
            if let Err(error) = batch.receive(&seat.socket) {
                seat.heed(error)?;
                continue;
            }
            for message in batch.messages(&seat.socket) {
                seat.handle(|| handler(message, &seat.stop));
            }
            let (_, failed, _) = batch.try_answers(&seat.socket);
            (0..failed).for_each(|_| add_one(&seat.counters.transient_errors));
        }
    }

    /// Waits here where nothing could wake `recvmsg`.
    fn wait(&self, seat: &Seat<UdpSocket>) -> Result<(), Leave> {
        let Some(hung_up) = &self.hung_up else {
            return Ok(());
        };
        polling::wait(seat.socket.raw(), hung_up, false)
    }
}

#[allow(private_interfaces)]
impl Protocol for Udp {
    type Socket = UdpSocket;
    type Source = Source;
    const WHO: &'static str = "receiver";
    const HAS_BYTES: bool = true;

    fn open(
        options: &GroupOptions<Udp>,
        how: First,
        address: SocketAddr,
    ) -> Result<UdpSocket, Error> {
        let options = options.of_a_member();
        match how {
            First::Claims => claim_datagrams(&options, address),
            First::Joins => options.bind(address),
            First::Alone => options.reuse_port(false).bind(address),
        }
    }

    fn descriptor(socket: &UdpSocket) -> &Descriptor {
        &socket.0
    }

    fn queue(socket: &UdpSocket) -> Option<Queue> {
        #[cfg(linux_kernel)]
        return socket.queue().ok();
        #[cfg(not(linux_kernel))]
        return (_ = socket, None).1;
    }

    fn way(plans: &mut Plans<Udp>) -> Result<Way<Udp>, Error> {
        // Had in time: later there may be no descriptor left.
        #[cfg(linux_kernel)]
        let dead = match &plans.dead {
            Some(dead) => Arc::clone(dead),
            None => Arc::clone(plans.dead.insert(Arc::new(eventfd()?))),
        };
        #[cfg(linux_kernel)]
        let (hung_up, exit) = (None, Exit::Replace(Arc::clone(&dead)));
        #[cfg(not(linux_kernel))]
        let (hung_up, exit) =
            crate::server::worker::line().map(|(near, far)| (Some(far), Exit::HangUp(near)))?;
        let source = Source {
            room: plans.site.options.room,
            #[cfg(linux_kernel)]
            batch: plans.site.options.batch,
            #[cfg(linux_kernel)]
            dead,
            hung_up,
        };
        Ok(Way { source, exit })
    }

    /// Where the socket has an address of its own. Connected, one that is bound to the wildcard
    /// would answer from another address than before.
    #[cfg(linux_kernel)]
    fn leaves_first(plans: &Plans<Udp>) -> bool {
        !plans.site.address.ip().to_canonical().is_unspecified()
    }

    /// Connects them, each to itself: to others their port is closed then, but what waits there
    /// already is theirs. The kernel takes them out of their group (since 6.13), so the others have
    /// new places, and are steered to at once.
    ///
    /// On the wildcard address, and on a broadcast address, which cannot be connected to, they drop
    /// what is new, where none stays who could have it.
    #[cfg(linux_kernel)]
    fn take_no_more(
        server: &Server<Udp>,
        plans: &Plans<Udp>,
        indexes: &[usize],
        all: bool,
    ) -> Result<(), Error> {
        let crew = server.crew();
        // The last first, as the kernel is to have it. And none more after one that cannot be
        // connected, for that would leave later than those before it.
        let leaving = || indexes.iter().rev().filter_map(|i| crew.posts.get(*i));
        let connect = |post: &Post<Udp>| post.socket().connect(server.local_addr()).is_ok();
        let connected = Udp::leaves_first(plans) && leaving().all(connect);
        if !connected && all && !plans.site.options.join {
            return leaving().try_for_each(|post| post.socket().attach_drop_filter());
        }
        drop(crew);
        if connected && !all {
            // Where this fails, it fails again when they are gone, and is told.
            _ = server.steer_without(plans, indexes);
        } else if Udp::leaves_first(plans) && !all {
            // It could not be connected after all, and has not been steered around.
            let steered = server.steer_around_through(None, plans, indexes);
            let unknown = Error::new(Call::SetSockOpt, libc::EINVAL);
            return steered.map_err(|error| error.error().unwrap_or(unknown));
        }
        Ok(())
    }

    fn finish(server: &Server<Udp>, _: &mut Plans<Udp>, indexes: &[usize], deadline: Instant) {
        // A datagram that was being looked up when the steering changed has come by then.
        sleep(BEAT);
        // Again and again, for a call may fail.
        let working = || {
            let crew = server.crew();
            let posts = indexes.iter().filter_map(|index| crew.posts.get(*index));
            let mut working = posts
                .filter(|post| !post.acceptor.thread.is_finished())
                .peekable();
            let any = working.peek().is_some();
            working.for_each(have_leave);
            any
        };
        while working() && Instant::now() < deadline {
            sleep(BEAT);
        }
    }

    fn dismiss(post: &Post<Udp>) {
        have_leave(post);
        #[cfg(linux_kernel)]
        if let Exit::Replace(dead) = &post.exit {
            _ = replace(post.socket(), dead);
        }
    }
}

/// Wakes the thread of a member, which leaves when nothing waits.
fn have_leave(post: &Post<Udp>) {
    match &post.exit {
        Exit::HangUp(near) => _ = near.shutdown(std::net::Shutdown::Both),
        // The kernel says that nobody is connected, but wakes who waits all the same.
        #[cfg(linux_kernel)]
        _ => shut_down(&post.socket().0),
    }
}

/// Sends an answer, in spite of signals.
fn send(socket: &UdpSocket, bytes: &[u8], to: &SockAddr) -> Result<(), Error> {
    loop {
        match socket.send_to_addr(bytes, to) {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result,
        }
    }
}

/// Puts a descriptor that is no socket in the place of this one, and with that closes the socket,
/// although a handler may go on for long which could still use it. No thread waits in it: all that
/// do were woken.
#[cfg(linux_kernel)]
fn replace(socket: &UdpSocket, dead: &OwnedFd) -> Result<(), Error> {
    // SAFETY: takes three integers. The number stays the socket's own, who will close it.
    let fd = unsafe { linux::dup3(dead.as_raw_fd(), socket.raw(), libc::O_CLOEXEC) };
    check(Call::Dup, fd).map(drop)
}
