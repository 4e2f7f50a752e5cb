//! How a member is added, and where its worker comes from.

use std::sync::{Arc, MutexGuard};

use super::member::Member;
use super::worker::{Order, Waiting, Worker};
use super::{Control, Serve, Server};
use crate::error::Error;
use crate::group::{GroupConfig, GroupError};

/// The socket of a further member.
enum Opened<P: Serve> {
    /// The members share one, which is duplicated.
    Not,
    /// It has yet to join the group.
    Prepared(P::Socket),
    /// It is bound, and is the only one.
    Listens(P::Socket),
}

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
    /// - [`GroupError::OptionMismatch`]: a hook has bound the new member to another interface.
    /// - [`GroupError::Inherited`]: other processes hold the sockets too.
    /// - [`GroupError::PredecessorLeaving`], [`GroupError::HandingOver`]: try again later.
    /// - [`GroupError::HandedOver`], [`GroupError::Stopped`]: the server has come to its end.
    /// - [`GroupError::TooManyMembers`]: see [`Steering::Quic`](crate::Steering::Quic).
    pub fn add(&self) -> Result<usize, GroupError> {
        let (opened, mut control) = self.open_unlocked()?;
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
        let id = self.unused_id(&control);
        let worker = self.spare_or_new_worker(config, id, cpu_index);
        let worker = worker.map_err(call)?.map(Waiting::new);
        let socket = match opened {
            Opened::Listens(socket) => socket,
            Opened::Prepared(socket) => {
                config.join(&socket, index)?;
                socket
            }
            Opened::Not => {
                let first = first.as_ref().ok_or(GroupError::NoMembers)?;
                config.share(&first.socket, index)?
            }
        };
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

    /// Opens the socket of a further member as far as that can be done without the lock, which it
    /// then takes: `before_bind` is the user's code, and may call this server.
    fn open_unlocked(&self) -> Result<(Opened<P>, MutexGuard<'_, Control<P>>), GroupError> {
        loop {
            let control = self.change()?;
            let (config, members) = (control.config.clone(), self.pool.lock().members.len());
            drop(control);
            let opened = match members {
                // All have failed, and the port is bound anew.
                0 => Opened::Listens(config.open(0)?),
                _ if config.options.shared => Opened::Not,
                _ => Opened::Prepared(config.prepare(members)?),
            };
            let control = self.change()?;
            let none = self.pool.lock().members.is_empty();
            if none == (members == 0) {
                return Ok((opened, control));
            }
        }
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
