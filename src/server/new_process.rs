//! Members that are in the kernel's group and in the list, but that no worker of this process
//! serves: those for a new process.

use std::vec::Vec;

use super::member::{Entry, Member, MemberState};
use super::worker::Order;
use super::{Control, Serve, Server};
use crate::group::GroupError;

impl<P: Serve> Server<P> {
    /// Opens a member, and returns its number.
    pub(crate) fn open_without_worker(
        &self,
        control: &mut Control<P>,
        cpu_index: usize,
    ) -> Result<usize, GroupError> {
        let index = self.pool.lock().members.len();
        let call = |error| GroupError::call(error, self.address, index);
        let first = self.members_of(&self.numbers()).into_iter().next();
        let sibling = first.as_ref().map(|first| &first.source);
        let source = P::new_source(&control.config, sibling).map_err(call)?;
        let socket = control.config.open(index)?;
        let id = self.unused_id(control);
        control.next_id = id + 1;
        let member = Member::new(id, cpu_index, socket, source);
        let entry = Entry::new(member, MemberState::HandedOver);
        self.pool.lock().members.push(entry);
        Ok(id)
    }

    /// Gives each of these members a worker. One for which no thread can be had gets no new
    /// connections.
    pub(crate) fn employ_without_worker(
        &self,
        control: &Control<P>,
        ids: &[usize],
        state: MemberState,
    ) {
        self.set_state(ids, state);
        for member in self.members_of(ids) {
            let worker = self.spare_or_new_worker(&control.config, member.id, member.cpu_index);
            let Ok(worker) = worker else {
                self.set_state(&[member.id], MemberState::Draining);
                continue;
            };
            if let Some(entry) = self.pool.lock().entry(member.id) {
                entry.holders.push(std::sync::Arc::clone(&worker));
            }
            worker.give(Order::Serve(member));
        }
    }

    /// Closes this process's descriptors of these members, which live on in another process.
    pub(crate) fn forget(&self, ids: &[usize]) {
        let mut state = self.pool.lock();
        let members = core::mem::take(&mut state.members).into_iter();
        let (forgotten, kept): (Vec<_>, _) = members.partition(|entry| ids.contains(&entry.id()));
        state.members = kept;
        drop(state);
        drop(forgotten);
    }
}
