//! [`AnyServer`]: what a hand-over does with each of the servers that it takes part in.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;
use std::vec::Vec;

use super::{HandOverError, POLL_INTERVAL};
use crate::group::GroupError;
use crate::server::member::{MemberState, OtherListeners};
use crate::server::{Serve, Server, deadline_after};

/// A [`Server`] of either protocol, for [`hand_over`](super::hand_over). The trait is sealed.
///
/// # Platforms
/// Linux and Android alone.
pub trait AnyServer: Part {}

impl<P: Serve> AnyServer for Server<P> {}

/// The numbers of a server's members in a hand-over.
///
/// # Platforms
/// Linux and Android alone.
#[derive(Debug, Default)]
pub struct Split {
    begun: bool,
    old: Vec<usize>,
    /// Those of the old members that got new connections before.
    serving: Vec<usize>,
    new: Vec<usize>,
}

/// Keeps [`AnyServer`] to this crate.
///
/// # Platforms
/// Linux and Android alone.
pub trait Part: core::fmt::Debug {
    /// Opens as many members as there are, for the new process; nothing is steered to them.
    fn begin(&self, split: &mut Split) -> Result<(), HandOverError>;
    /// The sockets of the new members, with their routing bytes.
    fn descriptors(&self, split: &Split) -> Vec<(RawFd, u8)>;
    /// The CPUs of this process, if the calling thread is a worker that is pinned to one of them.
    fn cpus_of_the_process(&self) -> Option<Arc<[u32]>>;
    fn steer_to_new(&self, split: &Split) -> Result<(), GroupError>;
    /// Waits until nothing more can reach the old members.
    fn drain_old(&self, split: &Split, deadline: Instant);
    /// Takes the old members out of the kernel's group. It may be called again.
    fn leave_old(&self, split: &Split) -> Result<(), GroupError>;
    /// Leaves the new members to the new process. Returns whether they are in their order.
    fn end(&self, split: &Split) -> bool;
    fn wait_for_old(&self, split: &Split, deadline: Instant);
    /// Serves on the members that were meant for the new process, and ends the old ones.
    fn go_on(&self, split: &Split, deadline: Instant);
    /// Serves on the old members, and ends the new ones.
    fn take_back(&self, split: &Split);
}

impl<P: Serve> Part for Server<P> {
    fn begin(&self, split: &mut Split) -> Result<(), HandOverError> {
        let mut control = self.change()?;
        if control.config.options.shared {
            return Err(GroupError::SharedSocket.into());
        }
        let others = self.look_for_others() == OtherListeners::Some;
        if control.config.options.join || others {
            return Err(GroupError::JoinedGroup.into());
        }
        control.handing_over = true;
        split.begun = true;
        split.old = self.numbers();
        split.serving = self.serving();
        self.steer_before_new(&control)?;
        let config = control.config.clone();
        drop(control);
        for cpu_index in 0..split.old.len() {
            let new = self.open_without_worker(&config, cpu_index)?;
            split.new.push(new);
        }
        let slots = self.pool.lock().slots(MemberState::Serving);
        Ok(config.options.steering.check_bytes(&slots)?)
    }

    fn descriptors(&self, split: &Split) -> Vec<(RawFd, u8)> {
        let members = self.members_of(&split.new).into_iter();
        members.map(|one| (one.raw(), one.routing_byte)).collect()
    }

    fn cpus_of_the_process(&self) -> Option<Arc<[u32]>> {
        let config = &self.control().config;
        let pinned = config.options.pin && self.pool.runs_here();
        pinned.then(|| config.cpus.clone().ok()).flatten()
    }

    fn steer_to_new(&self, split: &Split) -> Result<(), GroupError> {
        let control = self.control();
        self.set_state(&split.old, MemberState::Draining);
        self.steer_to(&control, MemberState::HandedOver)
    }

    fn drain_old(&self, split: &Split, deadline: Instant) {
        // The group is steered to the new members already. Where a filter cannot be had, the old
        // ones leave without. Datagrams that are still on their way are to be received.
        if !P::HAS_PAYLOAD {
            _ = P::turn_away(self, &self.control(), &split.old, false);
        }
        self.drain(&split.old, deadline, || {
            self.steer_to(&self.control(), MemberState::HandedOver)
                .is_ok()
        });
    }

    fn leave_old(&self, split: &Split) -> Result<(), GroupError> {
        self.leave(&self.control(), &split.old, MemberState::HandedOver, true)
    }

    fn end(&self, split: &Split) -> bool {
        let mut control = self.control();
        let in_order = self.forget(&split.new);
        control.handing_over = false;
        control.handed_over = true;
        in_order
    }

    fn wait_for_old(&self, split: &Split, deadline: Instant) {
        self.wait_for_workers(&split.old, deadline);
    }

    fn go_on(&self, split: &Split, deadline: Instant) {
        self.pool.lock().note_failed();
        let mut new = split.new.clone();
        new.retain(|id| self.pool.lock().index_of(*id).is_some());
        let config = self.control().config.clone();
        // A new process that has stopped in good order has shut its members down.
        while new.len() < split.new.len() {
            match self.open_without_worker(&config, new.len()) {
                Ok(id) => new.push(id),
                Err(_) if Instant::now() >= deadline => break,
                Err(_) => std::thread::sleep(POLL_INTERVAL),
            }
        }
        let mut control = self.control();
        self.serve_without_worker(&control, &new, MemberState::Serving);
        _ = self.steer(&control);
        let old = self.members_of(&split.old);
        let old: Vec<_> = old.iter().map(|member| member.id).collect();
        _ = self.finish_removal(&control, &old, deadline);
        // Their threads are free now.
        self.employ_orphans(&control);
        _ = self.steer_if_stale(&control);
        control.handing_over = false;
    }

    fn take_back(&self, split: &Split) {
        let mut control = self.control();
        if !split.begun || !core::mem::replace(&mut control.handing_over, false) {
            return;
        }
        let deadline = deadline_after(control.config.options.grace);
        self.set_state(&split.serving, MemberState::Serving);
        // What may have come to the new members is served before they leave.
        self.serve_without_worker(&control, &split.new, MemberState::Draining);
        _ = self.steer(&control);
        while !self.employ_orphans(&control) && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
        let left = self.finish_removal(&control, &split.new, deadline);
        if left != Err(GroupError::LastMember) {
            // One without a worker stays in the list otherwise.
            _ = self.leave(&control, &split.new, MemberState::Serving, true);
        }
    }
}
