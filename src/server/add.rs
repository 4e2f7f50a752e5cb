//! How a member is added, and where its worker comes from.

use std::sync::Arc;

use super::member::Member;
use super::worker::{Order, Waiting, Worker};
use super::{Control, Serve, Server};
use crate::error::Error;
use crate::group::{GroupConfig, GroupError};

impl<P: Serve> Server<P> {
    /// Adds a member with its worker, and returns its number: one that no other member had.
    ///
    /// Connections do not move: each stays with the member that the kernel chose for it.
    ///
    /// # Errors
    /// The group is then as it was.
    /// - [`GroupError::Call`]: a system call failed; `pthread_create` with `EAGAIN` if no thread
    ///   can be had.
    /// - [`GroupError::UserMismatch`]: the process has dropped its privileges since.
    /// - [`GroupError::NamespaceMismatch`]: the calling thread is in another network namespace.
    /// - [`GroupError::Inherited`]: other processes hold the sockets too.
    /// - [`GroupError::PredecessorLeaving`], [`GroupError::HandingOver`]: try again later.
    /// - [`GroupError::HandedOver`], [`GroupError::Stopped`]: the server has come to its end.
    /// - [`GroupError::TooManyMembers`]: see [`Steering::Quic`](crate::Steering::Quic).
    pub fn add(&self) -> Result<usize, GroupError> {
        let mut control = self.change()?;
        let (index, departures, cpu_index, first) = {
            let state = self.pool.lock();
            let (index, departures) = state.next_index();
            let taken = |cpu: &usize| state.members.iter().any(|e| e.member.cpu_index == *cpu);
            let cpu_index = (0..=index).find(|cpu| !taken(cpu)).unwrap_or_default();
            let first = state.members.first().map(|entry| Arc::clone(&entry.member));
            (index, departures, cpu_index, first)
        };
        let config = &control.config;
        let call = |error| GroupError::call(error, self.address, index);
        let sibling = first.as_ref().map(|first| &first.source);
        let source = P::new_source(config, sibling).map_err(call)?;
        let only = match first.filter(|_| config.options.shared) {
            Some(first) => Some(config.share(&first.socket, index)?),
            None => None,
        };
        let id = self.unused_id(&control);
        let worker = self.spare_or_new_worker(config, id, cpu_index);
        let worker = worker.map_err(call)?.map(Waiting::new);
        let socket = only.map_or_else(|| config.open(index), Ok)?;
        control.next_id = id + 1;
        let byte = self.pool.lock().unused_byte();
        let member = Member::new(id, cpu_index, byte, socket, source);
        let worker = worker.map(Waiting::employ);
        self.pool.employ(member, worker.as_ref(), departures);
        if let Err(error) = self.steer(&control) {
            self.undo_add(&control, id);
            self.pool.lock().tell(|stats| stats.id == id);
            return Err(error);
        }
        Ok(id)
    }

    /// Returns the next number that no member has had, and that no member shares its last byte
    /// with: [`Steering::Byte`](crate::Steering::Byte) goes by that. With 256 members or more it
    /// cannot be had.
    pub(super) fn unused_id(&self, control: &Control<P>) -> usize {
        let state = self.pool.lock();
        let collides = |id: &usize| state.members.iter().any(|e| e.id() % 256 == id % 256);
        let mut ids = control.next_id..control.next_id + 256;
        ids.find(|id| !collides(id)).unwrap_or(control.next_id)
    }

    fn spare_or_new_worker(
        &self,
        config: &GroupConfig<P>,
        id: usize,
        cpu_index: usize,
    ) -> Result<Option<Arc<Worker<P>>>, Error> {
        let spare = self.pool.lock().spares.pop();
        let new = || self.pool.start_worker(id, config.pinned_cpu(cpu_index)?);
        spare.map_or_else(new, |spare| Ok(Some(spare)))
    }

    /// Gives members for which no thread could be had a worker, if one can be had now. Returns
    /// whether all have one.
    pub(crate) fn employ_orphans(&self, control: &Control<P>) -> bool {
        let next = || {
            let state = self.pool.lock();
            let orphan = state.members.iter().find(|entry| entry.orphan);
            orphan.map(|entry| (entry.id(), entry.member.cpu_index))
        };
        while let Some((id, cpu_index)) = next() {
            let Ok(worker) = self.spare_or_new_worker(&control.config, id, cpu_index) else {
                return false;
            };
            let mut state = self.pool.lock();
            // Another worker may have taken it meanwhile.
            let orphan = state.entry(id).filter(|entry| entry.orphan);
            let order = orphan.and_then(|entry| entry.employ(worker.as_ref()));
            state.stale = true;
            if let Some(worker) = worker {
                worker.give(order.unwrap_or(Order::End));
            }
        }
        true
    }
}
