//! [`Server`]: a group with its acceptors at work.

mod away;
#[cfg(linux_kernel)]
pub(crate) mod blocking;
pub(crate) mod drain;
pub(crate) mod polling;
#[cfg(linux_kernel)]
pub(crate) mod stealing;
mod tcp;
mod udp;
pub(crate) mod worker;

use core::net::SocketAddr;
use core::{fmt, mem};
#[cfg(linux_kernel)]
use std::os::fd::OwnedFd;
#[cfg(linux_kernel)]
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{boxed::Box, vec::Vec};

use crate::acceptors::Stats;
use crate::error::Error;
use crate::group::{Group, GroupError, MOST_THAT_STEAL, Site, SpawnError, Steering};
#[cfg(linux_kernel)]
use crate::server::stealing::Ring;
use crate::server::worker::{Crew, Launch, Parked, Post};
use crate::socket::protocol::{Protocol, Tcp};
use crate::socket::queue::Queue;

impl<P: Protocol> Group<P> {
    pub(crate) fn start(self, launch: Box<Launch<P>>) -> Result<Server<P>, SpawnError<P>> {
        let ready = self.ready;
        let mut plans = Plans {
            site: self.site,
            launch,
            next_id: 0,
            #[cfg(linux_kernel)]
            ring: Arc::default(),
            #[cfg(linux_kernel)]
            dead: None,
        };
        let polls = plans.steals() || plans.site.inherited || cfg!(not(linux_kernel));
        let started = self.sockets.iter().enumerate().map(|(slot, socket)| {
            let way = P::way(&mut plans)?;
            P::descriptor(socket).set_nonblocking(polls)?;
            Ok((slot, plans.park(slot, slot)?, way))
        });
        let started = started.collect::<Result<Vec<_>, Error>>();
        let given_back = |error, sockets, site, ready| {
            let group = Box::new(Group {
                sockets,
                site,
                ready,
            });
            Err(SpawnError { error, group })
        };
        let started = match started {
            Ok(started) => started.into_iter().zip(self.sockets),
            Err(error) => return given_back(error, self.sockets, plans.site, ready),
        };
        let posts = started.map(|((slot, parked, way), socket)| parked.start(socket, way, slot));
        let posts: Vec<Post<P>> = posts.collect();
        #[cfg(linux_kernel)]
        if let Err(error) = P::enter(&plans, posts.iter().collect()) {
            let sockets = posts.into_iter().map(Post::disband).collect();
            return given_back(error, sockets, plans.site, ready);
        }
        let crew = Crew {
            posts,
            leaving: Vec::new(),
            gone: Vec::new(),
        };
        plans.next_id = crew.posts.len();
        plans.site.options.nonblocking = polls;
        let address = plans.site.address;
        if let Some(ready) = ready {
            ready.say();
        }
        Ok(Server {
            address,
            plans: Mutex::new(plans),
            crew: Mutex::new(crew),
        })
    }
}

/// A group with its acceptors at work.
///
/// Dropping it is [`stop`](Self::stop) with the group's [`grace`](crate::GroupOptions::grace); a
/// handler that has not returned by then finishes alone.
pub struct Server<P: Protocol = Tcp> {
    address: SocketAddr,
    /// Whoever changes the crew holds this for as long as that takes: one at a time.
    plans: Mutex<Plans<P>>,
    /// Held to look at it, or to put a change into effect: never for long.
    crew: Mutex<Crew<P>>,
}

/// All that it takes to make one more acceptor.
pub(crate) struct Plans<P: Protocol = Tcp> {
    pub(crate) site: Site<P>,
    launch: Box<Launch<P>>,
    next_id: usize,
    /// Where they stand who steal from one another.
    #[cfg(linux_kernel)]
    pub(crate) ring: Arc<Ring>,
    /// What takes the place of a datagram socket that is closed before its owner is gone.
    #[cfg(linux_kernel)]
    pub(crate) dead: Option<Arc<OwnedFd>>,
}

impl<P: Protocol> Plans<P> {
    pub(crate) fn steals(&self) -> bool {
        self.site.options.steal && !self.site.inherited
    }

    /// A thread for the next acceptor, under a number of its own.
    #[cfg(linux_kernel)]
    pub(crate) fn next(&mut self) -> Result<Parked<P>, Error> {
        let parked = self.park(self.next_id, self.next_id)?;
        self.next_id += 1;
        Ok(parked)
    }

    /// Starts a thread, on the CPU of its slot if they are pinned.
    pub(crate) fn park(&mut self, id: usize, slot: usize) -> Result<Parked<P>, Error> {
        #[cfg(linux_kernel)]
        if self.site.options.pin {
            if let Some(cpu) = self.site.cpu_of(slot)? {
                return crate::os::linux::affinity::on(cpu, || (self.launch)(id))?;
            }
        }
        _ = slot;
        (self.launch)(id)
    }
}

impl<P: Protocol> Server<P> {
    /// The address of every member.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What each acceptor at work has done so far, and what waits for it now, in index order.
    pub fn members(&self) -> Vec<Member> {
        self.crew().posts.iter().map(Member::of::<P>).collect()
    }

    /// What every acceptor has done so far, also those that have left, in the order of their
    /// numbers.
    pub fn stats(&self) -> Vec<Stats> {
        self.crew().counts()
    }

    /// Adds a member with its acceptor, and returns the acceptor's number: one that no other had.
    ///
    /// Connections do not move: those under way stay with the member that the kernel chose.
    /// Fails with `pthread_create: EAGAIN` if no thread can be had, with
    /// [`GroupError::UserMismatch`] after privileges were dropped, and for inherited listeners; the
    /// group is then as it was.
    pub fn add(&self) -> Result<usize, GroupError> {
        let mut plans = self.plans();
        self.tidy(&plans);
        if plans.site.inherited {
            return Err(GroupError::Inherited);
        }
        if plans.steals() && self.crew().posts.len() >= MOST_THAT_STEAL {
            return Err(GroupError::TooMany);
        }
        let crew = self.crew();
        let index = crew.posts.len();
        let taken = |slot: &usize| crew.posts.iter().any(|post| post.slot == *slot);
        let slot = (0..=index).find(|slot| !taken(slot)).unwrap_or_default();
        let only = match crew.posts.first() {
            Some(first) if plans.site.options.shared => {
                Some(plans.site.share(first.socket(), index)?)
            }
            _ => None,
        };
        drop(crew);
        let id = plans.next_id;
        let call = |error| GroupError::call(error, self.address, index);
        let way = P::way(&mut plans).map_err(call)?;
        let parked = plans.park(id, slot).map_err(call)?;
        let socket = only.map_or_else(|| plans.site.open(index), Ok)?;
        plans.next_id += 1;
        let entered = self
            .enlist(&plans, parked.start(socket, way, slot))
            .map_err(call);
        if let Err(error) = entered.and_then(|()| self.steer_all(&plans)) {
            self.take_back(&mut plans, index);
            return Err(error);
        }
        Ok(id)
    }

    /// Takes a post into the crew, at the end; and among those who steal, which may fail.
    pub(crate) fn enlist(&self, plans: &Plans<P>, post: Post<P>) -> Result<(), Error> {
        let entered = P::enter(plans, Vec::from([&post]));
        self.crew().posts.push(post);
        entered
    }

    /// Changes how the kernel chooses a member: [`Group::set_steering`] while they are at work.
    pub fn set_steering(&self, steering: Steering) -> Result<(), GroupError> {
        let mut plans = self.plans();
        self.tidy(&plans);
        if plans.site.inherited {
            return Err(GroupError::Inherited);
        }
        steering.check(self.crew().posts.len())?;
        let before = plans.site.options.set_steering(steering)?;
        let steered = self.steer_all(&plans);
        if steered.is_err() {
            plans.site.options.set_steering(before)?;
        }
        steered
    }

    /// Waits until every acceptor has left of itself: for ever, unless their listeners fail.
    pub fn join(self) -> Vec<Stats> {
        let mut crew = self.crew();
        let posts = mem::take(&mut crew.posts);
        let counts = posts.into_iter().map(|post| post.acceptor.join());
        crew.gone.extend(counts.collect::<Vec<_>>());
        crew.counts()
    }

    /// Brings the kernel's choice into line with the members that there are.
    pub(crate) fn steer_all(&self, plans: &Plans<P>) -> Result<(), GroupError> {
        #[cfg(linux_kernel)]
        if !plans.site.options.join && !plans.site.options.shared {
            let crew = self.crew();
            let rows: Vec<_> = crew.posts.iter().map(Post::row).collect();
            if let Some(first) = crew.posts.first() {
                return plans.site.steer(first.socket(), &rows);
            }
        }
        _ = plans;
        Ok(())
    }

    /// Strikes out those whose thread has ended by itself: their listener has failed, and with it
    /// they have left the kernel's group.
    pub(crate) fn tidy(&self, plans: &Plans<P>) {
        let mut crew = self.crew();
        crew.reap();
        let before = crew.posts.len();
        for index in (0..before).rev() {
            if crew.posts[index].acceptor.thread.is_finished() {
                crew.remove(index);
            }
        }
        crew.reap();
        let changed = crew.posts.len() < before;
        drop(crew);
        if changed {
            // What follows tells of what is wrong with the group, if anything.
            _ = self.steer_all(plans);
        }
    }

    pub(crate) fn plans(&self) -> MutexGuard<'_, Plans<P>> {
        // If a `make` has panicked, no acceptor has come of it: the plans are as they were.
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn crew(&self) -> MutexGuard<'_, Crew<P>> {
        // Nothing that could panic half way is done while it is locked.
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Protocol> fmt::Debug for Server<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("members", &self.members())
            .finish_non_exhaustive()
    }
}

/// One member of a group at work.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Member {
    /// What its acceptor has done.
    pub stats: Stats,
    /// What waits to be accepted; `None` where the kernel does not say.
    pub queue: Option<Queue>,
}

impl Member {
    fn of<P: Protocol>(post: &Post<P>) -> Member {
        Member {
            stats: post.acceptor.count(),
            queue: P::queue(post.socket()),
        }
    }
}
