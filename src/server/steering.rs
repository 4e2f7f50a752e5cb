//! How a server steers: the policy, the list of members, and other processes' listeners.

use std::sync::Arc;
use std::vec::Vec;

use super::member::{Entry, MemberState, OtherListeners};
use super::{Control, Serve, Server};
use crate::group::{GroupError, Slot, Steering};
use crate::os;

impl<P: Serve> Server<P> {
    /// Sets how the kernel chooses a member, as
    /// [`Group::set_steering`](crate::Group::set_steering).
    ///
    /// # Errors
    /// Those of [`Group::set_steering`](crate::Group::set_steering), and
    /// [`GroupError::PredecessorLeaving`] and [`GroupError::HandingOver`]: try again later.
    pub fn set_steering(&self, steering: Steering) -> Result<(), GroupError> {
        let mut control = self.change()?;
        steering.check(self.pool.lock().members.len())?;
        self.look_for_others();
        if steering != Steering::Hash && self.other_listeners() == OtherListeners::Some {
            return Err(GroupError::JoinedGroup);
        }
        let before = control.config.options.set_steering(steering)?;
        let steered = self.steer(&control);
        if steered.is_err() {
            control.config.options.set_steering(before)?;
        }
        steered
    }

    /// Returns whether another process had joined the group when it was last steered.
    ///
    /// Such a group is treated as a [joined](crate::GroupOptions::join) one: it has the hash, and
    /// only a packet filter turns clients away from a member that leaves. The kernel's list of
    /// listeners is looked at before each change and after each departure.
    ///
    /// # Platforms
    /// Linux and Android; elsewhere, and for UDP, it is [`OtherListeners::Unknown`].
    pub fn other_listeners(&self) -> OtherListeners {
        self.pool.lock().other_listeners
    }

    /// Attaches the program that has what is new go to the serving members.
    pub(crate) fn steer(&self, control: &Control<P>) -> Result<(), GroupError> {
        self.steer_to(control, MemberState::Serving)
    }

    /// Attaches the program that has what is new go to the members in `state`.
    pub(crate) fn steer_to(
        &self,
        control: &Control<P>,
        state: MemberState,
    ) -> Result<(), GroupError> {
        if !control.config.can_steer() {
            return Ok(());
        }
        let others = self.look_for_others();
        let slots = self.slots(state);
        let member = |entry: &Entry<P>| Arc::clone(&entry.member);
        let through = self.pool.lock().members.last().map(member);
        if others == OtherListeners::Some {
            // An index may be another process's: the hash is for all of them.
            return through.map_or(Ok(()), |through| control.config.detach(&through.socket));
        }
        let Some(through) = through.filter(|_| slots.iter().any(|slot| slot.eligible)) else {
            return Ok(());
        };
        control.config.steer(&through.socket, &slots)
    }

    /// Compares the kernel's list of the group with this server's.
    pub(crate) fn look_for_others(&self) -> OtherListeners {
        let inode = |entry: &Entry<P>| entry.member.inode;
        let mut ours: Vec<u32> = self.pool.lock().members.iter().map(inode).collect();
        ours.sort_unstable();
        let first = ours.first().filter(|_| !P::HAS_PAYLOAD);
        let others = match first.map(|first| os::listeners(self.address, *first)) {
            Some(Ok(listed)) if listed.iter().all(|one| ours.binary_search(one).is_ok()) => {
                OtherListeners::None
            }
            Some(Ok(_)) => OtherListeners::Some,
            Some(Err(_)) | None => OtherListeners::Unknown,
        };
        self.pool.lock().other_listeners = others;
        others
    }

    /// The members in index order, as a steering program has to know them.
    pub(crate) fn slots(&self, state: MemberState) -> Vec<Slot> {
        let list = self.pool.lock();
        let entries = list.members.iter().enumerate();
        entries.map(|(at, entry)| entry.slot(at, state)).collect()
    }

    /// Steers to the members whose index does not change when the one at `index` leaves and the
    /// last one takes its place. It is not needed where all others get what is new: then the hash,
    /// which an index without a member falls back to, is as good.
    pub(super) fn steer_to_unmoved(&self, control: &Control<P>, index: usize, state: MemberState) {
        let mut slots = self.slots(state);
        let is_other = |(at, slot): (usize, &Slot)| at == index || slot.eligible;
        let joined = self.other_listeners() == OtherListeners::Some;
        if joined || !control.config.can_steer() || slots.iter().enumerate().all(is_other) {
            return;
        }
        let last = slots.len() - 1;
        if last != index && slots.iter().filter(|slot| slot.eligible).count() > 1 {
            slots[last].eligible = false;
        }
        let through = Arc::clone(&self.pool.lock().members[last].member);
        if slots.iter().any(|slot| slot.eligible) {
            // If this fails, the program before it is nearly as good.
            _ = control.config.steer(&through.socket, &slots);
        }
    }

    /// Steers to the members that there are, also when more are opened after this.
    #[cfg(linux_kernel)]
    pub(crate) fn steer_before_new(&self, control: &Control<P>) -> Result<(), GroupError> {
        let mut slots = self.slots(MemberState::Serving);
        let mut new = Slot::new(slots.len());
        new.eligible = false;
        slots.push(new);
        let first = self.members_of(&self.numbers()).into_iter().next();
        first.map_or(Ok(()), |first| control.config.steer(&first.socket, &slots))
    }
}
