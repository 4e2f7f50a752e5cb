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
//! Datagrams know no handshake, and no packet filter is needed where the socket has an address of
//! its own: see `receiving.rs`.
//!
//! Where all leave there is nobody to steer to, and in a joined group the indexes are not ours:
//! there the filter alone turns new clients away. Their SYN is sent again after a second, and then
//! finds another server, or none.

use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use std::time::Instant;
use std::{thread, vec::Vec};

use crate::acceptors::Stats;
use crate::group::GroupError;
use crate::server::worker::Post;
use crate::server::{Plans, Server};
use crate::socket::protocol::Protocol;

/// Between two looks at what is waited for.
pub(crate) const BEAT: Duration = Duration::from_millis(1);

/// An acceptor whose handler has returned needs a moment to leave, though the grace be over.
const MOMENT: Duration = Duration::from_millis(50);

impl<P: Protocol> Server<P> {
    /// Retires one acceptor: nothing new reaches it, what it has begun is finished, then its socket
    /// is closed. Returns what it did. No connection is lost.
    ///
    /// To replace a member, [`add`](Self::add) first. It takes as long as the slowest handshake
    /// under way, with any member, and at most the group's [`grace`](crate::GroupOptions::grace): a
    /// client that never answers costs the whole grace. A handler that then still runs finishes
    /// alone ([`Stats::running`]), and with it what waits behind it.
    ///
    /// On Linux in one of some hundred cases a client connects a second late: if the newest member
    /// of an IPv4 group leaves, or the oldest of an IPv6 group. Elsewhere handshakes under way are
    /// lost.
    ///
    /// Of datagrams, all that have reached the member's queue are handled within the grace (what
    /// waits then behind a handler is lost), and on Linux none is lost on its way. A group on the
    /// wildcard address may lose one in the cases above; a joined one on it loses what comes in the
    /// last moment.
    ///
    /// Fails with `EPERM` in a joined group where the kernel wants `CAP_NET_ADMIN` for a packet
    /// filter (6.18 does): there only the filter keeps clients away.
    pub fn retire(&self, acceptor: usize) -> Result<Stats, GroupError> {
        let counts = self.retire_all(&[acceptor])?;
        counts.into_iter().next().ok_or(GroupError::NoSuchMember)
    }

    /// Retires several at once. Fails before any of them leaves, but for one case: if the group
    /// cannot be steered as it was before, that is told although they have left.
    pub fn retire_all(&self, acceptors: &[usize]) -> Result<Vec<Stats>, GroupError> {
        let mut plans = self.plans();
        self.tidy(&plans);
        if plans.site.inherited {
            return Err(GroupError::Inherited);
        }
        if plans.site.options.shared {
            return Err(GroupError::SharedSocket);
        }
        let indexes = self.indexes_of(acceptors)?;
        let deadline = after(plans.site.options.grace);
        self.steer_around(&plans, &indexes)?;
        self.take_no_more(&plans, &indexes, false)?;
        let steered = self.see_off(&mut plans, &indexes, deadline);
        let all = self.crew().counts();
        steered?;
        Ok(all
            .into_iter()
            .filter(|count| acceptors.contains(&count.id))
            .collect())
    }

    /// Takes nothing new, has every established connection or waiting datagram handled, closes and
    /// returns what each acceptor did, all within `grace`.
    ///
    /// Turning new connections away takes `CAP_NET_ADMIN` on recent kernels (6.18). Without it,
    /// those who come in the last moment may be reset.
    ///
    /// A handler that still runs then is left to finish alone, and told: [`Stats::running`].
    /// Inherited listeners are left as they are, with what waits there, to those who hold them on.
    pub fn stop(self, grace: Duration) -> Vec<Stats> {
        self.end(grace);
        let counts = self.stats();
        // They finish alone: dropping this does not wait for them once more.
        self.crew().leaving.clear();
        counts
    }

    fn end(&self, grace: Duration) {
        let deadline = after(grace);
        let mut plans = self.plans();
        let all: Vec<usize> = (0..self.crew().posts.len()).collect();
        if !all.is_empty() {
            // A listener without the filter takes a few more connections than it should, and
            // serves them.
            _ = self.take_no_more(&plans, &all, true);
            self.drain(&mut plans, &all, deadline);
            self.remove(&all);
        }
        // Also for those who left before, and whose handlers still run.
        self.wait_for_threads(deadline, |_| true);
    }

    /// Has the newest member leave again, to which nobody could be steered.
    pub(crate) fn take_back(&self, plans: &mut Plans<P>, index: usize) {
        let deadline = after(plans.site.options.grace);
        // The failure that has led here is the one that is told.
        _ = self.steer_around(plans, &[index]);
        _ = self.take_no_more(plans, &[index], false);
        _ = self.see_off(plans, &[index], deadline);
    }

    /// Has the members at `indexes`, to which nothing new comes, finish and leave; and steers the
    /// others as before.
    pub(crate) fn see_off(
        &self,
        plans: &mut Plans<P>,
        indexes: &[usize],
        deadline: Instant,
    ) -> Result<(), GroupError> {
        self.drain(plans, indexes, deadline);
        let left = self.remove(indexes);
        let steered = self.steer_all(plans);
        self.wait_for_threads(deadline, |id| left.contains(&id));
        steered
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
    pub(crate) fn drain(&self, plans: &mut Plans<P>, indexes: &[usize], deadline: Instant) {
        let crew = self.crew();
        for post in indexes.iter().filter_map(|index| crew.posts.get(*index)) {
            post.acceptor.seat.stop.0.store(true, Relaxed);
            #[cfg(seeded = "early_close")]
            crate::server::blocking::shut_down(P::descriptor(post.socket()));
        }
        drop(crew);
        if !plans.site.inherited && !cfg!(seeded = "no_drain") {
            P::finish(self, plans, indexes, deadline);
        }
    }

    /// Tells the members at `indexes` to leave, and returns their numbers. The last goes first,
    /// here and in the kernel, so that the places of the others among them do not change.
    pub(crate) fn remove(&self, indexes: &[usize]) -> Vec<usize> {
        let mut crew = self.crew();
        let mut left = Vec::new();
        for index in indexes.iter().rev() {
            let Some(id) = crew.posts.get(*index).map(Post::id) else {
                continue;
            };
            crew.remove(*index);
            // Under its number there may be a helper too, on the same listener.
            crew.leaving
                .iter()
                .filter(|post| post.id() == id)
                .for_each(P::dismiss);
            left.push(id);
        }
        left
    }

    /// Waits for those who leave, of the numbers that are `wanted`, until `deadline`, and a moment
    /// in any case.
    pub(crate) fn wait_for_threads(&self, deadline: Instant, wanted: impl Fn(usize) -> bool) {
        let deadline = deadline.max(after(MOMENT));
        loop {
            let mut crew = self.crew();
            crew.reap();
            let mut waited_for = crew
                .leaving
                .iter()
                .filter(|post| wanted(post.id()))
                .peekable();
            if waited_for.peek().is_none() || Instant::now() >= deadline {
                return;
            }
            // Once more, for a call may have failed.
            waited_for.for_each(P::dismiss);
            drop(crew);
            thread::sleep(BEAT);
        }
    }
}

/// The time after `wait`; where that is beyond reckoning, one that nobody lives to see.
pub(crate) fn after(wait: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(wait)
        .unwrap_or_else(|| now + Duration::from_secs(1 << 32))
}

impl<P: Protocol> Drop for Server<P> {
    fn drop(&mut self) {
        let grace = self.plans().site.options.grace;
        self.end(grace);
    }
}
