//! How members leave without losing a connection.
//!
//! Closing a listener resets the connections in its queue *and* every handshake that it has begun,
//! also those whose last packet is still a round-trip time away. So a member leaves in this order:
//!
//! 1. The group is steered around it, and it drops the SYNs that still come (a packet filter): in
//!    the kernel a lookup may find a member first that is about to leave.
//! 2. Its workers go on accepting until the handshakes that were under way have ended: the kernel
//!    lists them.
//! 3. Its queue is empty. It is shut down, which takes it out of the kernel's group and wakes its
//!    workers.
//! 4. The last member has taken its index, in the list as in the kernel. The group is steered as
//!    before.
//!
//! UDP has no handshakes, and needs no packet filter where the socket has an address of its own:
//! see `udp.rs`.
//!
//! Where all members leave there is none to steer to, and a joined group cannot be steered. There
//! only the filter turns new clients away: they send their SYN again after 1 s, and then find
//! another server, or none. Where the kernel refuses the filter, the members are bound to an
//! interface that does not exist: their group no longer gets the SYNs, or, if it has other members,
//! cannot answer those that come to them.

use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;
use std::vec::Vec;

use super::member::{Member, MemberState, OtherListeners};
use super::{Control, Serve, Server};
use crate::acceptors::Stats;
use crate::error::Error;
use crate::group::GroupError;

/// The shortest time between two looks at what is waited for.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A worker whose handler has returned gets so much time to end, also after the grace period.
pub(super) const MIN_JOIN_TIMEOUT: Duration = Duration::from_millis(50);

impl<P: Serve> Server<P> {
    /// Removes a member: nothing new reaches it, what it has begun is finished, then its socket is
    /// closed. Returns what was done for it. No connection is lost, but for those named below.
    ///
    /// `acceptor` is the member's number, not its index. To replace a member, [`add`](Self::add)
    /// the new one first.
    ///
    /// It takes as long as the slowest handshake under way, with any member, and at most the
    /// group's [`grace`](crate::GroupOptions::grace): a client that never answers costs the whole
    /// grace. A handler that still runs then goes on until it returns ([`Stats::running`]), also
    /// the one that calls this for its own member.
    ///
    /// Handshakes with other listeners on the port, at other addresses, are not waited for. A
    /// client that `TCP_DEFER_ACCEPT` keeps back is accepted before it has sent anything.
    ///
    /// A client is lost whose handshake
    /// - ends after the grace: two lost packets, a longer round trip, or `TCP_DEFER_ACCEPT` with a
    ///   client that has been silent for more than a second;
    /// - was redirected from another address or port by a BPF program (`sk_lookup`): the kernel
    ///   lists it there. (TPROXY is covered: such a listener has `IP_TRANSPARENT`.)
    /// - takes more than 1.2 s where the kernel's list is not available.
    ///
    /// Under load, to remove the newest member of an IPv4 group, or the oldest of an IPv6 group,
    /// delays one connecting client by 1 s in 1 of 460, or of 260, removals (Linux 6.18).
    ///
    /// All datagrams that have reached a UDP member are handled, also after the grace if they are
    /// queued behind a handler that still runs. Before Linux 6.13 such a member stays, draining,
    /// and the error is [`GroupError::Call`] with `EBUSY`.
    ///
    /// # Errors
    /// - [`GroupError::StillQueued`]: connections are queued, and no thread or descriptor could be
    ///   had to serve them. The member stays, draining; a later `retire` goes on.
    /// - [`GroupError::NoSuchMember`], [`GroupError::LastMember`], [`GroupError::SharedSocket`],
    ///   [`GroupError::Inherited`]: it cannot be removed. If all other members fail meanwhile, it
    ///   serves again, and the error is `LastMember`.
    /// - [`GroupError::PredecessorLeaving`], [`GroupError::HandingOver`]: try again later.
    /// - [`GroupError::HandedOver`], [`GroupError::Stopped`]: the server has come to its end.
    /// - [`GroupError::Call`]: the group could not be steered. With `EPERM` in a joined group that
    ///   is bound to a device, where the kernel wants `CAP_NET_ADMIN` for a packet filter (since
    ///   commit 5d39580f68e6 of June 2026, also in stable trees).
    ///
    /// # Platforms
    /// Elsewhere than on Linux and Android, handshakes under way are lost.
    pub fn retire(&self, acceptor: usize) -> Result<Stats, GroupError> {
        let stats = self.retire_all(&[acceptor])?;
        stats
            .into_iter()
            .next()
            .ok_or(GroupError::NoSuchMember { member: acceptor })
    }

    /// Removes several members at once, as [`retire`](Self::retire).
    ///
    /// # Errors
    /// Those of [`retire`](Self::retire). No member has left then, but for two cases: some have
    /// left if others stay, because they are [`StillQueued`](GroupError::StillQueued) or a call
    /// failed, and all have left if the group cannot be steered as before.
    pub fn retire_all(&self, acceptors: &[usize]) -> Result<Vec<Stats>, GroupError> {
        let control = self.change()?;
        if control.config.options.shared {
            return Err(GroupError::SharedSocket);
        }
        let ids = self.removable(acceptors)?;
        let deadline = deadline_after(control.config.options.grace);
        self.turn_away(&control, &ids, false)?;
        self.finish_removal(&control, &ids, deadline)?;
        let mut state = self.pool.lock();
        Ok(ids
            .iter()
            .filter_map(|id| state.tell(|stats| stats.id == *id))
            .collect())
    }

    /// The numbers, each once; at least one other member has to serve.
    fn removable(&self, acceptors: &[usize]) -> Result<Vec<usize>, GroupError> {
        let mut ids = acceptors.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let state = self.pool.lock();
        let is_member = |id: &usize| state.members.iter().any(|entry| entry.id() == *id);
        if ids.is_empty() {
            return Err(GroupError::NoMembers);
        }
        if let Some(member) = ids.iter().copied().find(|id| !is_member(id)) {
            return Err(GroupError::NoSuchMember { member });
        }
        let mut serving = state
            .members
            .iter()
            .filter(|entry| entry.state == MemberState::Serving);
        if serving.all(|entry| ids.contains(&entry.id())) {
            return Err(GroupError::LastMember);
        }
        Ok(ids)
    }

    /// The numbers of all members, without those for a new process.
    pub(crate) fn numbers(&self) -> Vec<usize> {
        let state = self.pool.lock();
        let own = |entry: &&super::member::Entry<P>| entry.state != MemberState::HandedOver;
        state
            .members
            .iter()
            .filter(own)
            .map(|entry| entry.member.id)
            .collect()
    }

    /// The members with these numbers, whether or not their sockets are in the kernel's group.
    pub(crate) fn members_of(&self, ids: &[usize]) -> Vec<Arc<Member<P>>> {
        let state = self.pool.lock();
        let all = state.members.iter().chain(&state.departed);
        let wanted = all.filter(|entry| ids.contains(&entry.id()));
        wanted.map(|entry| Arc::clone(&entry.member)).collect()
    }

    /// Has nothing new reach these members; if that fails, all is as it was.
    pub(crate) fn turn_away(
        &self,
        control: &Control<P>,
        ids: &[usize],
        last: bool,
    ) -> Result<(), GroupError> {
        let mut serving = ids.to_vec();
        serving.retain(|id| self.serving().contains(id));
        self.set_state(ids, MemberState::Draining);
        let turned = P::turn_away(self, control, ids, last);
        if turned.is_err() {
            // One that has been draining before goes on.
            self.set_state(&serving, MemberState::Serving);
            // The first error counts.
            _ = self.steer(control);
        }
        turned
    }

    /// The numbers of the members that get new connections.
    pub(crate) fn serving(&self) -> Vec<usize> {
        let state = self.pool.lock();
        let members = state.members.iter();
        let serving = members.filter(|entry| entry.state == MemberState::Serving);
        serving.map(|entry| entry.member.id).collect()
    }

    pub(crate) fn set_state(&self, ids: &[usize], state: MemberState) {
        let mut list = self.pool.lock();
        let members = list.members.iter_mut();
        let wanted = members.filter(|entry| ids.contains(&entry.member.id));
        wanted.for_each(|entry| entry.state = state);
    }

    /// Removes a member that was just added, because the group could not be steered to it.
    pub(super) fn undo_add(&self, control: &Control<P>, id: usize) {
        let deadline = deadline_after(control.config.options.grace);
        // The failure that has led here is the one that is returned.
        _ = self.turn_away(control, &[id], false);
        self.set_state(&[id], MemberState::Draining);
        _ = self.finish_removal(control, &[id], deadline);
    }

    /// Has the members, which get nothing new, finish and leave; steers the others as before.
    pub(crate) fn finish_removal(
        &self,
        control: &Control<P>,
        ids: &[usize],
        deadline: Instant,
    ) -> Result<(), GroupError> {
        self.drain(ids, deadline, || {
            _ = self.steer(control);
            !self.serving().is_empty()
        });
        let left = self.leave(control, ids, MemberState::Serving, false);
        if left == Err(GroupError::LastMember) {
            self.serve_again(ids);
            _ = self.steer(control);
        }
        self.wait_for_workers(ids, deadline);
        left
    }

    /// Waits until nothing more can reach these members, and nothing is queued on them. If another
    /// member fails meanwhile, `steer` has what is new go around them again: the index of one of
    /// them may have changed. It returns whether to go on.
    pub(crate) fn drain(&self, ids: &[usize], deadline: Instant, steer: impl Fn() -> bool) {
        let members = self.members_of(ids);
        for member in &members {
            member.stop.request(true);
        }
        loop {
            P::drain(self, &members, deadline);
            // If steering fails, the program before it goes on, and the members drain all the same.
            if !self.is_stale() || Instant::now() >= deadline || !steer() {
                return;
            }
        }
    }

    /// Has members serve again that were to leave: all others have failed.
    fn serve_again(&self, ids: &[usize]) {
        let members = self.members_of(ids);
        for member in &members {
            member.stop.request(false);
        }
        P::take_new(&members);
        self.set_state(ids, MemberState::Serving);
    }

    /// Takes the members out of the kernel's group and of the list, the last one first: so the
    /// indexes of the others among them do not change. What is new goes to the members in `state`.
    /// A member stays on which connections are queued, unless `reset` has them reset and counted;
    /// and so do all, unless `reset`, if none serves any more. In a joined group others do.
    pub(crate) fn leave(
        &self,
        control: &Control<P>,
        ids: &[usize],
        state: MemberState,
        reset: bool,
    ) -> Result<(), GroupError> {
        let mut members = self.members_of(ids);
        for member in &members {
            if self.pool.lock().index_of(member.id).is_none() {
                // It has left the group before, and is closed now.
                _ = P::leave_group(member);
            }
        }
        let joined = self.other_listeners() == OtherListeners::Some;
        let kept = !reset && !joined && control.config.can_steer();
        let mut result = Ok(());
        let mut remaining = ids.to_vec();
        let last = |ids: &[usize]| {
            let state = self.pool.lock();
            let mut members = state.members.iter().enumerate().rev();
            let last = members.find(|(_, entry)| ids.contains(&entry.id()));
            last.map(|(index, entry)| (index, Arc::clone(&entry.member)))
        };
        while let Some((index, member)) = last(&remaining) {
            if kept && self.pool.lock().none_is(state) {
                result = Err(GroupError::LastMember);
                break;
            }
            remaining.retain(|id| *id != member.id);
            let queued = match P::queued(&member) {
                Ok(queued) => queued,
                Err(_) if reset => 0,
                Err(error) => {
                    result = Err(GroupError::call(error, self.address, index));
                    continue;
                }
            };
            if queued > 0 && !reset {
                result = Err(GroupError::StillQueued {
                    id: member.id,
                    queued,
                });
                continue;
            }
            self.steer_to_unmoved(control, member.id, state);
            // A worker that ends finds the member where it is.
            let mut list = self.pool.lock();
            list.note_failed();
            let Some(index) = list.index_of(member.id) else {
                continue;
            };
            if kept && list.none_is(state) {
                result = Err(GroupError::LastMember);
                break;
            }
            match P::leave_group(&member) {
                Ok(()) => {
                    member.counters.reset.fetch_add(queued as usize, Relaxed);
                    list.depart(index);
                }
                Err(error) => result = Err(GroupError::call(error, self.address, index)),
            }
        }
        // What is addressed to the others by their indexes must not wait for the last lookups.
        let steered = self.steer_to(control, state);
        members.retain(|member| self.pool.lock().index_of(member.id).is_none());
        P::release(self, &members);
        result.and(steered)
    }

    /// Waits for the workers of members that have left, until `deadline`, and a short time in any
    /// case.
    pub(crate) fn wait_for_workers(&self, ids: &[usize], deadline: Instant) {
        let deadline = deadline.max(deadline_after(MIN_JOIN_TIMEOUT));
        self.pool.wait_until(deadline, |state| {
            !state.departed.iter().any(|entry| ids.contains(&entry.id()))
        });
    }
}

/// Returns now + `wait`, or a time far in the future if the sum overflows.
pub(crate) fn deadline_after(wait: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(wait)
        .unwrap_or_else(|| now + Duration::from_secs(1 << 32))
}

/// The error of a call that was made for the whole group.
pub(super) fn call<P: Serve>(server: &Server<P>, error: Error) -> GroupError {
    GroupError::call(error, server.address, 0)
}
