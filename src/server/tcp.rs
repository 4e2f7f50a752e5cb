//! A group that accepts connections: what only [`Tcp`] has.

use core::net::SocketAddr;
#[cfg(linux_kernel)]
use core::{panic::AssertUnwindSafe, sync::atomic::Ordering::Relaxed};
use std::sync::Arc;
use std::time::Instant;
#[cfg(linux_kernel)]
use std::{panic::catch_unwind, thread::sleep, vec::Vec};

use crate::acceptors::{Seat, StopToken};
use crate::error::Error;
use crate::group::{Group, GroupOptions, SpawnError};
use crate::listener::{Connection, Descriptor, Listener};
#[cfg(linux_kernel)]
use crate::server::drain::BEAT;
use crate::server::polling::Polling;
use crate::server::worker::{Exit, Post, Way, launch, line};
use crate::server::{Plans, Server};
use crate::socket::exclusive::claim;
use crate::socket::protocol::{First, Protocol, Tcp};
use crate::socket::queue::Queue;
#[cfg(linux_kernel)]
use crate::{
    os::linux::sock_diag as diag,
    server::blocking::{Alone, Flags, nothing_waits},
    server::stealing::{Epoll, Place, Stealing},
};

impl Group {
    /// Gives each member a thread: [`Acceptors::spawn`](crate::Acceptors::spawn) for a group.
    ///
    /// Fails if a thread cannot be started, or not [pinned](crate::GroupOptions::pin). The group
    /// comes back with the error, and nothing has been accepted; unless its acceptors
    /// [steal](crate::GroupOptions::steal), and one of them has while others could not be let in.
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

    /// As [`spawn`](Self::spawn), with a handler of its own for each acceptor, which also learns
    /// when it is to come to an end. `make` is kept: it makes the handlers of later members too,
    /// and a second one for an acceptor that is to leave while its first does not return.
    pub fn spawn_with<M, H>(self, mut make: M) -> Result<Server, SpawnError>
    where
        M: FnMut(usize) -> H + Send + 'static,
        H: FnMut(Connection, &StopToken) + Send + 'static,
    {
        self.start(launch::<Tcp, _, _>(move |acceptor| {
            let handler = make(acceptor);
            move |seat: &Seat, source: Source| match source {
                #[cfg(linux_kernel)]
                Source::Alone(source) => seat.work(source, handler),
                #[cfg(linux_kernel)]
                Source::Stealing(source) => seat.work(source, handler),
                Source::Polling(source) => seat.work(source, handler),
            }
        }))
    }
}

/// Where connections come from.
#[allow(missing_debug_implementations, private_interfaces)] // nobody outside can name it
pub enum Source {
    #[cfg(linux_kernel)]
    Alone(Alone),
    #[cfg(linux_kernel)]
    Stealing(Stealing),
    Polling(Polling),
}

#[allow(private_interfaces)]
impl Protocol for Tcp {
    type Socket = Listener;
    type Source = Source;
    const WHO: &'static str = "acceptor";
    const HAS_BYTES: bool = false;

    fn open(
        options: &GroupOptions<Tcp>,
        how: First,
        address: SocketAddr,
    ) -> Result<Listener, Error> {
        let options = options.of_a_listener();
        match how {
            First::Claims => claim(&options, address),
            First::Joins => options.bind(address),
            First::Alone => options.reuse_port(false).bind(address),
        }
    }

    fn descriptor(listener: &Listener) -> &Descriptor {
        &listener.0
    }

    fn queue(listener: &Listener) -> Option<Queue> {
        #[cfg(linux_kernel)]
        return listener.queue().ok();
        #[cfg(not(linux_kernel))]
        return (_ = listener, None).1;
    }

    fn way(plans: &mut Plans<Tcp>) -> Result<Way<Tcp>, Error> {
        #[cfg(linux_kernel)]
        if plans.steals() {
            let (ring, flags) = (Arc::clone(&plans.ring), Arc::default());
            let epoll = Arc::new(Epoll::new()?);
            let exit = Exit::Dismiss(Arc::clone(&ring), Arc::clone(&flags), Arc::clone(&epoll));
            let source = Source::Stealing(Stealing { ring, flags, epoll });
            return Ok(Way { source, exit });
        }
        #[cfg(linux_kernel)]
        if !plans.site.inherited {
            return Ok(alone());
        }
        let (near, far) = line()?;
        Ok(Way {
            source: Source::Polling(Polling::new(far, plans.site.inherited)),
            exit: Exit::HangUp(near),
        })
    }

    /// Into the ring of those who steal; they get nothing before.
    #[cfg(linux_kernel)]
    fn enter(plans: &Plans<Tcp>, newcomers: Vec<&Post<Tcp>>) -> Result<(), Error> {
        let place = |post: &Post<Tcp>| {
            let Exit::Dismiss(_, flags, epoll) = &post.exit else {
                return None;
            };
            Some(Place {
                seat: Arc::clone(&post.acceptor.seat),
                flags: Arc::clone(flags),
                epoll: Arc::clone(epoll),
            })
        };
        let places = newcomers.into_iter().filter_map(place);
        plans.ring.enter(places.collect())
    }

    /// Has them drop every SYN.
    ///
    /// Recent kernels give a TCP socket a filter only with `CAP_NET_ADMIN`. Where the group has
    /// been steered around a member, the filter is but a second belt, and it leaves without.
    #[cfg(linux_kernel)]
    fn take_no_more(
        server: &Server<Tcp>,
        plans: &Plans<Tcp>,
        indexes: &[usize],
        _all: bool,
    ) -> Result<(), Error> {
        let steered = !plans.site.options.join;
        let crew = server.crew();
        let mut result = Ok(());
        let posts: Vec<_> = indexes.iter().filter_map(|i| crew.posts.get(*i)).collect();
        for post in &posts {
            if let Some(flags) = post.flags() {
                // First the flag: whoever inherits the filter is accepted later.
                flags.filtered.store(true, Relaxed);
                result = result.and_then(|()| match post.socket().attach_syn_filter() {
                    Err(error) if error.errno() == libc::EPERM && steered => Ok(()),
                    result => result,
                });
            }
        }
        if result.is_err() {
            for post in posts {
                _ = post.socket().detach_filter();
                if let Some(flags) = post.flags() {
                    flags.filtered.store(false, Relaxed);
                }
            }
        }
        result
    }

    fn finish(server: &Server<Tcp>, plans: &mut Plans<Tcp>, indexes: &[usize], deadline: Instant) {
        #[cfg(linux_kernel)]
        {
            let begun = Instant::now();
            wait_for_handshakes(server.local_addr(), deadline);
            let halfway = begun + deadline.saturating_duration_since(begun) / 2;
            let mut helped = false;
            while Instant::now() < deadline && !all_are_empty(server, indexes) {
                if Instant::now() > halfway && !core::mem::replace(&mut helped, true) {
                    help(server, plans, indexes);
                }
                sleep(BEAT);
            }
        }
        _ = (server, plans, indexes, deadline);
    }

    /// What still waits behind its handler is taken from the queue, for the acceptor to handle
    /// before it leaves.
    fn dismiss(post: &Post<Tcp>) {
        match &post.exit {
            #[cfg(linux_kernel)]
            Exit::ShutDown(flags) => flags.close(post.socket()),
            #[cfg(linux_kernel)]
            Exit::Dismiss(ring, flags, epoll) => {
                ring.leave(post.id());
                flags.close(post.socket());
                epoll.dismiss();
            }
            #[cfg(linux_kernel)]
            Exit::Replace(_) => {}
            Exit::HangUp(near) => _ = near.shutdown(std::net::Shutdown::Both),
        }
    }
}

/// How an acceptor waits whose listener is this process's alone.
#[cfg(linux_kernel)]
fn alone() -> Way<Tcp> {
    let flags = Arc::new(Flags::default());
    let source = Source::Alone(Alone::new(Arc::clone(&flags)));
    Way {
        source,
        exit: Exit::ShutDown(flags),
    }
}

#[cfg(linux_kernel)]
fn all_are_empty(server: &Server, indexes: &[usize]) -> bool {
    let crew = server.crew();
    let mut posts = indexes.iter().filter_map(|index| crew.posts.get(*index));
    posts.all(|post| nothing_waits(post.socket()))
}

/// Puts a second acceptor, under the same number, on each of the listeners at `indexes` where
/// something waits: their handlers have not returned for half the grace. Where one cannot be had,
/// what waits is served when the handler returns.
#[cfg(linux_kernel)]
fn help(server: &Server, plans: &mut Plans, indexes: &[usize]) {
    let crew = server.crew();
    let mut wanted = Vec::new();
    for (index, post) in indexes
        .iter()
        .filter_map(|i| Some((*i, crew.posts.get(*i)?)))
    {
        // Those who steal help each other.
        let helps_itself = matches!(post.exit, Exit::Dismiss(..));
        if !helps_itself && !nothing_waits(post.socket()) {
            let listener = plans.site.share(post.socket(), index);
            wanted.push((post.id(), post.slot, listener));
        }
    }
    // What makes its handler is the user's: it may panic, and may look at the crew.
    drop(crew);
    for (id, slot, listener) in wanted {
        let Ok(listener) = listener else { continue };
        let Ok(Ok(parked)) = catch_unwind(AssertUnwindSafe(|| plans.park(id, slot))) else {
            continue;
        };
        let way = alone();
        if let Exit::ShutDown(flags) = &way.exit {
            flags.filtered.store(true, Relaxed);
        }
        let helper = parked.start(listener, way, slot);
        helper.acceptor.seat.stop.0.store(true, Relaxed);
        server.crew().leaving.push(helper);
    }
}

/// Waits until the handshakes that are under way on the group's port have ended, at most until
/// `deadline`. The kernel does not tell which member began them, so all are awaited.
#[cfg(linux_kernel)]
fn wait_for_handshakes(local: SocketAddr, deadline: Instant) {
    // A SYN that was being looked up when the steering changed has become a handshake by now.
    sleep(BEAT);
    let Ok(begun) = diag::handshakes(local) else {
        // Nobody tells which there are.
        return sleep(deadline.saturating_duration_since(Instant::now()));
    };
    loop {
        sleep(BEAT);
        let now = diag::handshakes(local);
        let ended = now.is_ok_and(|now| !now.iter().any(|one| begun.contains(one)));
        // Between its handshake's end and the queue a connection is in neither list for a moment:
        // this sleep is behind the look at the one, and before the look at the other.
        if ended || Instant::now() >= deadline {
            return sleep(BEAT);
        }
    }
}
