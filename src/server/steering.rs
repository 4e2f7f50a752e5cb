//! How a server steers: the policy, the list of members, and other processes' listeners.

use std::sync::Arc;
use std::vec::Vec;

use super::member::{Entry, MemberState, OtherListeners};
use super::{Control, Serve, Server};
use crate::group::{GroupError, Slot, Steering};
use crate::os;

impl<P: Serve> Server<P> {
    /// Sets how the kernel chooses a member, as
    /// [`Group::set_steering`](crate::Group::set_steering): `Except` takes an index, not a number.
    ///
    /// # Errors
    /// Those of [`Group::set_steering`](crate::Group::set_steering), and
    /// [`GroupError::PredecessorLeaving`] and [`GroupError::HandingOver`]: try again later;
    /// [`GroupError::HandedOver`] and [`GroupError::Stopped`]: there are no members any more.
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
    /// Linux and Android; elsewhere it is [`OtherListeners::Unknown`].
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
            self.pool.lock().stale = false;
            return Ok(());
        }
        loop {
            let others = self.look_for_others();
            let mut list = self.pool.lock();
            let stale = core::mem::take(&mut list.stale);
            list.steered_anew += usize::from(stale);
            let slots = list.slots(state);
            let through = list.members.last().map(|last| Arc::clone(&last.member));
            drop(list);
            let eligible = slots.iter().any(|slot| slot.eligible);
            let steered = match through {
                // An index may be another process's: the hash is for all of them.
                Some(through) if others == OtherListeners::Some => {
                    control.config.detach(&through.socket)
                }
                Some(through) if eligible => control.config.steer(&through.socket, &slots),
                _ => Ok(()),
            };
            let mut list = self.pool.lock();
            list.note_failed();
            if !list.stale {
                return steered;
            }
        }
    }

    /// Steers as before, if a member has failed since.
    pub(crate) fn steer_if_stale(&self, control: &Control<P>) -> Result<(), GroupError> {
        if self.is_stale() {
            self.steer(control)
        } else {
            Ok(())
        }
    }

    /// Whether a member has left since the group was steered.
    pub(super) fn is_stale(&self) -> bool {
        let mut list = self.pool.lock();
        list.note_failed();
        list.stale
    }

    /// Compares the kernel's list of the group with this server's.
    pub(crate) fn look_for_others(&self) -> OtherListeners {
        let inode = |entry: &Entry<P>| entry.member.inode;
        let mut list = self.pool.lock();
        list.note_failed();
        let mut ours: Vec<u32> = list.members.iter().map(inode).collect();
        // One that leaves may be bound to another interface.
        let serves = |entry: &&Entry<P>| entry.state == MemberState::Serving;
        let serving = list.members.iter().find(serves).map(inode);
        drop(list);
        let one = serving.or(ours.first().copied());
        ours.sort_unstable();
        let listed = |one| os::members(P::HAS_PAYLOAD, self.address, one);
        let mut others = match one.map(listed) {
            Some(Ok(listed)) if listed.iter().all(|one| ours.binary_search(one).is_ok()) => {
                OtherListeners::None
            }
            Some(Ok(_)) => OtherListeners::Some,
            Some(Err(_)) | None => OtherListeners::Unknown,
        };
        let mut list = self.pool.lock();
        if list.scrambled {
            others = OtherListeners::Some;
        }
        list.other_listeners = others;
        others
    }

    /// Steers to the members whose index does not change when this one leaves and the last one
    /// takes its place. It is not needed where all others get what is new: then the hash, which an
    /// index without a member falls back to, is as good.
    pub(super) fn steer_to_unmoved(&self, control: &Control<P>, id: usize, state: MemberState) {
        let list = self.pool.lock();
        let through = list.members.last().map(|last| Arc::clone(&last.member));
        let (Some(index), Some(through)) = (list.index_of(id), through) else {
            return;
        };
        let mut slots = list.slots(state);
        drop(list);
        let is_other = |(at, slot): (usize, &Slot)| at == index || slot.eligible;
        let joined = self.other_listeners() == OtherListeners::Some;
        if joined || !control.config.can_steer() || slots.iter().enumerate().all(is_other) {
            return;
        }
        let last = slots.len() - 1;
        if last != index && slots.iter().filter(|slot| slot.eligible).count() > 1 {
            slots[last].eligible = false;
        }
        if slots.iter().any(|slot| slot.eligible) {
            // If this fails, the program before it is nearly as good.
            _ = control.config.steer(&through.socket, &slots);
        }
    }

    /// Steers to the members that there are, also when more are opened after this.
    #[cfg(linux_kernel)]
    pub(crate) fn steer_before_new(&self, control: &Control<P>) -> Result<(), GroupError> {
        let list = self.pool.lock();
        let mut slots = list.slots(MemberState::Serving);
        let mut new = Slot::new(slots.len(), list.unused_byte());
        drop(list);
        new.eligible = false;
        slots.push(new);
        let first = self.members_of(&self.numbers()).into_iter().next();
        first.map_or(Ok(()), |first| control.config.steer(&first.socket, &slots))
    }
}
