//! How members leave without losing a connection.
//!
//! Closing a listener resets what waits in its queue *and* every handshake that it has begun, also
//! those whose last packet is still a round-trip time away. So a member leaves in this order:
//!
//! 1. The group is steered away from it, and it drops the SYNs that come all the same (a packet
//!    filter): in the kernel a member on its way out can still be the first that a lookup finds.
//! 2. Its acceptor goes on accepting, until the handshakes that were under way are finished or
//!    given up: the kernel lists them. Until then, at most a grace.
//! 3. Its queue is empty. It is shut down, which wakes the acceptor, and closed.
//! 4. The last member has moved into its place, here as in the kernel. The group is steered as it
//!    was before.
//!
//! Where all leave there is nobody to steer to, and in a joined group the indexes are not ours:
//! there the filter alone turns new clients away. Their SYN is sent again after a second, and then
//! finds another server, or none.

use core::net::SocketAddr;
use core::time::Duration;
use std::time::Instant;
use std::{thread, vec::Vec};

use crate::acceptors::Count;
use crate::crew::{Exit, Post};
use crate::group::GroupError;
use crate::serving::{Plans, Serving};
#[cfg(linux_kernel)]
use crate::{alone, crew, diag, steering};

/// Between two looks at what is waited for.
const BEAT: Duration = Duration::from_millis(1);

impl Serving {
    /// Retires one acceptor: no new connection reaches it, what it has begun is finished, then its
    /// listener is closed. Returns what it did. No connection is lost.
    ///
    /// To replace a member, [`add`](Self::add) first. It takes as long as the slowest handshake
    /// under way, with any member, and at most the group's [`grace`](crate::GroupOptions::grace): a
    /// client that never answers costs the whole grace. A handler that then still runs finishes
    /// alone ([`Count::running`]), and with it what waits behind it.
    ///
    /// On Linux in one of some hundred cases a client connects a second late: if the newest member
    /// of an IPv4 group leaves, or the oldest of an IPv6 group. Elsewhere handshakes under way are
    /// lost.
    pub fn retire(&self, acceptor: usize) -> Result<Count, GroupError> {
        let counts = self.retire_all(&[acceptor])?;
        counts.into_iter().next().ok_or(GroupError::NoSuchMember)
    }

    /// Retires several at once.
    pub fn retire_all(&self, acceptors: &[usize]) -> Result<Vec<Count>, GroupError> {
        let mut plans = self.plans();
        self.tidy(&plans);
        if plans.site.inherited {
            return Err(GroupError::Inherited);
        }
        if plans.site.options.shared {
            return Err(GroupError::OneSocket);
        }
        let indexes = self.indexes_of(acceptors)?;
        let deadline = Instant::now() + plans.site.options.grace;
        self.steer_around(&plans, &indexes)?;
        self.take_no_more(&plans, &indexes)?;
        self.drain(&mut plans, &indexes, deadline);
        self.remove(&indexes);
        self.wait_for_threads(deadline);
        self.steer_all(&plans)?;
        let all = self.crew().counts();
        Ok(all
            .into_iter()
            .filter(|count| acceptors.contains(&count.acceptor))
            .collect())
    }

    /// Takes no new connection, has every established one handled, closes and returns what each
    /// acceptor did, all within `grace`.
    ///
    /// A handler that still runs then is left to finish alone, and told: [`Count::running`].
    /// Inherited listeners are left as they are, with what waits there, to those who hold them on.
    pub fn stop(self, grace: Duration) -> Vec<Count> {
        self.end(grace);
        self.tally()
    }

    fn end(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let mut plans = self.plans();
        let all: Vec<usize> = (0..self.crew().posts.len()).collect();
        if all.is_empty() {
            return;
        }
        // A listener without the filter takes a few more connections than it should, and serves
        // them.
        _ = self.take_no_more(&plans, &all);
        self.drain(&mut plans, &all, deadline);
        self.remove(&all);
        self.wait_for_threads(deadline);
    }

    /// The places of these acceptors, in rising order.
    fn indexes_of(&self, acceptors: &[usize]) -> Result<Vec<usize>, GroupError> {
        let crew = self.crew();
        let place = |id: &usize| crew.posts.iter().position(|post| post.id() == *id);
        let found: Option<Vec<_>> = acceptors.iter().map(place).collect();
        let mut indexes = found.ok_or(GroupError::NoSuchMember)?;
        indexes.sort_unstable();
        indexes.dedup();
        match indexes.len() {
            0 => Err(GroupError::NoSuchMember),
            some if some == crew.posts.len() => Err(GroupError::LastMember),
            _ => Ok(indexes),
        }
    }

    /// Waits until nothing more can come to the members at `indexes`, and nothing waits there.
    pub(crate) fn drain(&self, plans: &mut Plans, indexes: &[usize], deadline: Instant) {
        let begun = Instant::now();
        let crew = self.crew();
        for post in indexes.iter().filter_map(|index| crew.posts.get(*index)) {
            post.acceptor.seat.stop.request();
            #[cfg(seeded = "early_close")]
            alone::shut_down(post.listener());
        }
        drop(crew);
        if plans.site.inherited || cfg!(seeded = "no_drain") {
            return;
        }
        #[cfg(linux_kernel)]
        {
            wait_for_handshakes(self.local_addr(), deadline);
            let halfway = begun + deadline.saturating_duration_since(begun) / 2;
            let mut helped = false;
            while Instant::now() < deadline && !self.nothing_waits(indexes) {
                if Instant::now() > halfway && !core::mem::replace(&mut helped, true) {
                    self.help(plans, indexes);
                }
                thread::sleep(BEAT);
            }
        }
        _ = (begun, deadline);
    }

    /// Tells the members at `indexes` to leave, the last first, so that the places of the others
    /// among them do not change.
    pub(crate) fn remove(&self, indexes: &[usize]) {
        let mut crew = self.crew();
        for index in indexes.iter().rev() {
            crew.remove(*index);
        }
        crew.leaving.iter().for_each(Post::dismiss);
    }

    /// Waits for those who leave, until `deadline`.
    pub(crate) fn wait_for_threads(&self, deadline: Instant) {
        loop {
            let mut crew = self.crew();
            crew.reap();
            if crew.leaving.is_empty() || Instant::now() >= deadline {
                return;
            }
            drop(crew);
            thread::sleep(BEAT);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let grace = self.plans().site.options.grace;
        self.end(grace);
    }
}

impl Post {
    /// Tells the acceptor to leave. What still waits behind its handler is taken from the queue,
    /// for the acceptor to handle before it leaves.
    fn dismiss(&self) {
        match &self.exit {
            #[cfg(linux_kernel)]
            Exit::ShutDown(flags) => {
                if self.listener().set_nonblocking(true).is_ok() {
                    let mut waiting = flags.taken();
                    while let Ok(connection) = self.listener().accept() {
                        connection.unfilter();
                        waiting.push_back(connection);
                    }
                }
                alone::shut_down(self.listener());
            }
            Exit::HangUp(near) => _ = near.shutdown(std::net::Shutdown::Both),
        }
    }
}

#[cfg(not(linux_kernel))]
impl Serving {
    fn steer_around(&self, _: &Plans, _: &[usize]) -> Result<(), GroupError> {
        Ok(())
    }

    fn take_no_more(&self, _: &Plans, _: &[usize]) -> Result<(), GroupError> {
        Ok(())
    }
}

#[cfg(linux_kernel)]
impl Serving {
    /// Steers new connections to the members that are not at `indexes`.
    fn steer_around(&self, plans: &Plans, indexes: &[usize]) -> Result<(), GroupError> {
        if plans.site.options.join || cfg!(seeded = "no_steer") {
            return Ok(());
        }
        let crew = self.crew();
        let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        let count = crew.posts.len();
        let mut others = (0..count)
            .filter(|index| !indexes.contains(index))
            .map(number);
        let mut space = Vec::new();
        let through = |post: Option<&Post>, program: &[steering::Instruction]| {
            let post = post.ok_or(GroupError::NoSuchMember)?;
            let call = |error| GroupError::call(error, self.local_addr(), 0);
            post.listener().steer(program).map_err(call)
        };
        if let [index] = indexes {
            let stays = crew.posts.get(usize::from(*index == 0));
            return through(stays, &steering::except(number(count), number(*index)));
        }
        let others: Vec<u32> = others.by_ref().collect();
        space.resize(2 * others.len() + 3, steering::Instruction::default());
        // Too many to be listed: any member then, and the filter turns away whom it must.
        let program = steering::among(&others, &mut space);
        program.map_or(Ok(()), |program| through(crew.posts.first(), program))
    }

    /// Has the members at `indexes` drop every SYN from now on. If one cannot, none does.
    pub(crate) fn take_no_more(&self, plans: &Plans, indexes: &[usize]) -> Result<(), GroupError> {
        use core::sync::atomic::Ordering::Relaxed;
        if plans.site.inherited || cfg!(seeded = "no_steer") {
            return Ok(());
        }
        let crew = self.crew();
        let mut result = Ok(());
        let posts: Vec<&Post> = indexes.iter().filter_map(|i| crew.posts.get(*i)).collect();
        for post in &posts {
            if let Exit::ShutDown(flags) = &post.exit {
                // First the flag: whoever inherits the filter is accepted later.
                flags.filtered.store(true, Relaxed);
                result = result.and_then(|()| post.listener().take_no_more());
            }
        }
        let Err(error) = result else { return Ok(()) };
        posts
            .iter()
            .for_each(|post| _ = post.listener().take_again());
        drop(crew);
        // The first error counts.
        _ = self.steer_all(plans);
        Err(GroupError::call(error, self.local_addr(), 0))
    }

    fn nothing_waits(&self, indexes: &[usize]) -> bool {
        let crew = self.crew();
        let mut posts = indexes.iter().filter_map(|index| crew.posts.get(*index));
        posts.all(|post| {
            post.listener()
                .queue()
                .is_ok_and(|queue| queue.waiting == 0)
        })
    }

    /// Puts a second acceptor, under the same number, on each of the listeners at `indexes` where
    /// something waits: their handlers have not returned for half the grace.
    fn help(&self, plans: &mut Plans, indexes: &[usize]) {
        let mut crew = self.crew();
        for index in indexes {
            let Some(post) = crew.posts.get(*index) else {
                continue;
            };
            if post
                .listener()
                .queue()
                .is_ok_and(|queue| queue.waiting == 0)
            {
                continue;
            }
            let (id, slot) = (post.id(), post.slot);
            // Where it cannot be had, what waits is served when the handler returns.
            let Ok(listener) = plans.site.share(post.listener(), *index) else {
                continue;
            };
            let Ok(way) = crew::Way::new(false) else {
                continue;
            };
            let Ok(parked) = plans.park(id, slot) else {
                continue;
            };
            if let Exit::ShutDown(flags) = &way.exit {
                flags
                    .filtered
                    .store(true, core::sync::atomic::Ordering::Relaxed);
            }
            let helper = parked.start(listener, way, slot);
            helper.acceptor.seat.stop.request();
            crew.leaving.push(helper);
        }
    }
}

/// Waits until the handshakes that are under way on the group's port have ended, at most until
/// `deadline`. The kernel does not tell which member began them, so all are awaited.
#[cfg(linux_kernel)]
fn wait_for_handshakes(local: SocketAddr, deadline: Instant) {
    // A SYN that was being looked up when the steering changed has become a handshake by now.
    thread::sleep(BEAT);
    let Ok(begun) = diag::handshakes(local) else {
        // Nobody tells which there are.
        return thread::sleep(deadline.saturating_duration_since(Instant::now()));
    };
    loop {
        thread::sleep(BEAT);
        let now = diag::handshakes(local);
        let ended = now.is_ok_and(|now| !now.iter().any(|one| begun.contains(one)));
        // Between its handshake's end and the queue a connection is in neither list for a moment:
        // this sleep is behind the look at the one, and before the look at the other.
        if ended || Instant::now() >= deadline {
            return thread::sleep(BEAT);
        }
    }
}
