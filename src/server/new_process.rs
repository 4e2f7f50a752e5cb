//! Members that are in the kernel's group and in the list, but that no worker of this process
//! serves: those for a new process.

use std::vec::Vec;

use super::member::{Entry, Member, MemberState};
use super::{Control, Serve, Server};
use crate::group::{GroupConfig, GroupError};

impl<P: Serve> Server<P> {
    /// Opens a member, and returns its number. `before_bind` runs without the lock; other changes
    /// are refused during a hand-over.
    pub(crate) fn open_without_worker(
        &self,
        config: &GroupConfig<P>,
        cpu_index: usize,
    ) -> Result<usize, GroupError> {
        let (index, departures) = self.pool.lock().next_index();
        let call = |error| GroupError::call(error, self.address, index);
        let first = self.members_of(&self.numbers()).into_iter().next();
        let sibling = first.as_ref().map(|first| &first.source);
        let source = P::new_source(config, sibling).map_err(call)?;
        let socket = config.open(index)?;
        let mut control = self.control();
        if control.stopped {
            return Err(GroupError::Stopped);
        }
        let id = self.unused_id(&control);
        control.next_id = id + 1;
        let byte = self.pool.lock().unused_byte();
        let member = Member::new(id, cpu_index, byte, socket, source);
        let entry = Entry::new(member, MemberState::HandedOver);
        self.pool.lock().enter(entry, departures);
        Ok(id)
    }

    /// Has this process serve these members.
    pub(crate) fn serve_without_worker(
        &self,
        control: &Control<P>,
        ids: &[usize],
        state: MemberState,
    ) {
        self.set_state(ids, state);
        for id in ids {
            if let Some(entry) = self.pool.lock().entry(*id) {
                entry.orphan = true;
            }
        }
        self.employ_orphans(control);
    }

    /// Closes this process's descriptors of these members, which live on in another process.
    /// Returns whether they were alone in the list, in this order.
    pub(crate) fn forget(&self, ids: &[usize]) -> bool {
        let mut state = self.pool.lock();
        state.note_failed();
        let in_order = state.members.iter().map(Entry::id).eq(ids.iter().copied());
        let members = core::mem::take(&mut state.members).into_iter();
        let (forgotten, kept): (Vec<_>, _) = members.partition(|entry| ids.contains(&entry.id()));
        state.members = kept;
        drop(state);
        drop(forgotten);
        in_order
    }
}
