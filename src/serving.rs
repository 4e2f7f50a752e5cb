//! [`Serving`]: a group with its acceptors at work.

use core::fmt;
use core::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{boxed::Box, io, vec::Vec};

use crate::acceptors::{Acceptor, Blocking, Count, Stop};
use crate::group::{Group, Site};
use crate::listener::{Connection, Listener};
use crate::queue::Queue;

impl Group {
    /// Gives each member a thread: [`Acceptors::spawn`](crate::Acceptors::spawn) for a group.
    ///
    /// Fails if a thread cannot be started, or not [pinned](crate::GroupOptions::pin); then no
    /// acceptor is left running.
    pub fn spawn<H>(self, handler: H) -> io::Result<Serving>
    where
        H: Fn(usize, Connection) + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        self.spawn_with(move |acceptor| {
            let handler = Arc::clone(&handler);
            move |connection, _: &Stop| handler(acceptor, connection)
        })
    }

    /// As [`spawn`](Self::spawn), with a handler of its own for each acceptor, which also learns
    /// when it is to come to an end. `make` is kept: it makes the handlers of later members too.
    pub fn spawn_with<M, H>(self, mut make: M) -> io::Result<Serving>
    where
        M: FnMut(usize) -> H + Send + 'static,
        H: FnMut(Connection, &Stop) + Send + 'static,
    {
        let launch = Box::new(move |id, listener: Listener| {
            listener.set_nonblocking(false)?;
            Acceptor::start(id, listener, Blocking, make(id))
        });
        let mut crew = Crew {
            launch,
            acceptors: Vec::new(),
        };
        for listener in self.listeners {
            crew.start(listener, &self.site)?;
        }
        Ok(Serving {
            site: self.site,
            crew: Mutex::new(crew),
        })
    }
}

/// A group with its acceptors at work. Dropping it stops them.
pub struct Serving {
    site: Site,
    crew: Mutex<Crew>,
}

/// The acceptors, in index order, and what starts one more.
struct Crew {
    launch: Box<Launch>,
    acceptors: Vec<Acceptor>,
}

type Launch = dyn FnMut(usize, Listener) -> io::Result<Acceptor> + Send;

impl Crew {
    fn start(&mut self, listener: Listener, site: &Site) -> io::Result<()> {
        let id = self.acceptors.len();
        let start = || (self.launch)(id, listener);
        #[cfg(linux_kernel)]
        let acceptor = match site.cpu_of(id)? {
            Some(cpu) => crate::cpus::on(cpu, start)??,
            None => start()?,
        };
        #[cfg(not(linux_kernel))]
        let acceptor = { (_ = site, start()?).1 };
        self.acceptors.push(acceptor);
        Ok(())
    }
}

impl Serving {
    /// The address of every member.
    pub fn local_addr(&self) -> SocketAddr {
        self.site.address
    }

    /// What each acceptor has done so far, and what waits for it now, in index order.
    pub fn members(&self) -> Vec<Member> {
        self.crew().acceptors.iter().map(Member::of).collect()
    }

    /// Waits until every acceptor has left of itself: for ever, unless their listeners fail.
    pub fn join(self) -> Vec<Count> {
        let mut crew = self
            .crew
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        crew.acceptors.iter_mut().for_each(Acceptor::join);
        crew.acceptors
            .iter()
            .map(|acceptor| acceptor.seat.count())
            .collect()
    }

    /// Stops at once, and waits for the handlers that run. What waits to be accepted is reset.
    pub fn stop(self) -> Vec<Count> {
        self.crew()
            .acceptors
            .iter()
            .for_each(|acceptor| acceptor.seat.leave());
        self.join()
    }

    fn crew(&self) -> MutexGuard<'_, Crew> {
        // Nothing that could panic half way is done while it is locked.
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving")
            .field("site", &self.site)
            .finish_non_exhaustive()
    }
}

/// One member of a group at work.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Member {
    /// What its acceptor has done.
    pub count: Count,
    /// What waits to be accepted; `None` where the kernel does not say.
    pub queue: Option<Queue>,
}

impl Member {
    fn of(acceptor: &Acceptor) -> Member {
        #[cfg(linux_kernel)]
        let queue = acceptor.seat.listener.queue().ok();
        #[cfg(not(linux_kernel))]
        let queue = None;
        Member {
            count: acceptor.seat.count(),
            queue,
        }
    }
}
