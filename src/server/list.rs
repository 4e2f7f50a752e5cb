//! [`PoolState`]: the list of members, in the kernel's order, and the threads.

use core::mem;
use std::sync::Arc;
use std::thread::{JoinHandle, Thread};
use std::vec::Vec;

use super::Serve;
use super::member::{Entry, Member, MemberState, OtherListeners};
use super::totals::Totals;
use super::worker::Worker;
use crate::acceptors::Stats;
use crate::group::{Slot, unused_byte};

/// Of how many members that are gone a row is kept until it is returned.
const MAX_UNTOLD: usize = 1024;

/// The lists. Nothing that waits is done while this is locked, and no code of the user runs.
#[allow(clippy::struct_excessive_bools)] // each is a state of its own
pub(crate) struct PoolState<P: Serve> {
    /// The members in the kernel's order. When one leaves, the last takes its index, as in the
    /// kernel's array. A member is here as long as its socket is in the kernel's group.
    pub(crate) members: Vec<Entry<P>>,
    /// Members whose socket has left the kernel's group, and whose handlers still run.
    pub(crate) departed: Vec<Entry<P>>,
    /// What was done for members that are gone, and whose row was not returned yet.
    untold: Vec<Stats>,
    /// What was done for all members that are gone.
    gone: Totals,
    /// How many members have left the list.
    pub(crate) departures: usize,
    /// A member has left since the steering program was computed.
    pub(crate) stale: bool,
    /// How often the group was steered because a member had left: what had come to a member before
    /// may have come by an index that was another's.
    pub(crate) steered_anew: usize,
    /// Several members have failed at once, so the kernel's order is not known.
    pub(crate) scrambled: bool,
    /// Workers without a member.
    pub(crate) spares: Vec<Arc<Worker<P>>>,
    /// All threads, but for the monitor.
    pub(crate) threads: usize,
    pub(crate) most_spares: usize,
    pub(super) handles: Vec<JoinHandle<()>>,
    /// The monitor's thread, if there is one.
    pub(crate) monitor: Option<Thread>,
    /// A member waits for a spare worker.
    pub(crate) starving: bool,
    /// Whether sockets of other processes were in the group when it was last looked at.
    pub(crate) other_listeners: OtherListeners,
    /// The server is stopping: workers end instead of becoming spares.
    pub(crate) closing: bool,
}

impl<P: Serve> PoolState<P> {
    pub(super) fn new() -> PoolState<P> {
        PoolState {
            members: Vec::new(),
            departed: Vec::new(),
            untold: Vec::new(),
            gone: Totals::default(),
            departures: 0,
            stale: false,
            steered_anew: 0,
            scrambled: false,
            spares: Vec::new(),
            threads: 0,
            most_spares: 0,
            handles: Vec::new(),
            monitor: None,
            starving: false,
            other_listeners: OtherListeners::Unknown,
            closing: false,
        }
    }

    /// The entry of a member, whether its socket is in the kernel's group or not.
    pub(crate) fn entry(&mut self, id: usize) -> Option<&mut Entry<P>> {
        let mut all = self.members.iter_mut().chain(&mut self.departed);
        all.find(|entry| entry.id() == id)
    }

    pub(crate) fn index_of(&self, id: usize) -> Option<usize> {
        self.members.iter().position(|entry| entry.id() == id)
    }

    pub(crate) fn none_is(&self, state: MemberState) -> bool {
        self.members.iter().all(|entry| entry.state != state)
    }

    /// The index that the next member gets, and what [`enter`](Self::enter) takes.
    pub(crate) fn next_index(&self) -> (usize, usize) {
        (self.members.len(), self.departures)
    }

    /// The routing byte that the next member gets.
    pub(crate) fn unused_byte(&self) -> u8 {
        let bytes = self.members.iter().map(|entry| entry.member.routing_byte);
        unused_byte(&bytes.collect::<Vec<_>>())
    }

    /// The members in index order, as a steering program has to know them.
    pub(crate) fn slots(&self, state: MemberState) -> Vec<Slot> {
        let entries = self.members.iter().enumerate();
        entries.map(|(at, entry)| entry.slot(at, state)).collect()
    }

    /// Enters a member whose socket has just entered the kernel's group, when there had been so
    /// many `departures`. If a member has failed meanwhile, which of the two came first is unknown.
    pub(crate) fn enter(&mut self, entry: Entry<P>, departures: usize) {
        self.note_failed();
        self.scrambled |= self.departures != departures && !self.members.is_empty();
        self.members.push(entry);
    }

    /// Takes the member at `index` out of the list: its socket has left the kernel's group, and the
    /// last one has moved to its index.
    pub(crate) fn depart(&mut self, index: usize) {
        let mut entry = self.members.swap_remove(index);
        entry.state = MemberState::Closed;
        self.departed.push(entry);
        self.departures += 1;
        self.stale = true;
        self.scrambled &= self.members.len() > 1;
        self.forget_finished();
    }

    /// Takes the members out of the list whose sockets have left the kernel's group by themselves.
    /// Of several the order is not known; but it is looked at whenever a member fails.
    pub(crate) fn note_failed(&mut self) {
        let before = self.members.len();
        for index in (0..before).rev() {
            if P::has_left(&self.members[index].member) {
                self.depart(index);
            }
        }
        self.scrambled |= before - self.members.len() > 1 && self.members.len() > 1;
    }

    /// Takes out a member whose worker has met an error that ends it.
    pub(super) fn fail(&mut self, member: &Member<P>) {
        self.note_failed();
        match self.index_of(member.id) {
            Some(index) if P::leave_group(member).is_ok() => self.depart(index),
            Some(index) => self.members[index].state = MemberState::Draining,
            None => {}
        }
    }

    /// Keeps no more than the statistics of members that are gone.
    pub(super) fn forget_finished(&mut self) {
        let departed = mem::take(&mut self.departed).into_iter();
        let (running, finished): (Vec<_>, Vec<_>) = departed.partition(Entry::is_running);
        self.departed = running;
        for entry in finished {
            let stats = entry.stats();
            self.gone.add(&stats);
            if !entry.told {
                self.untold.push(stats);
            }
        }
        let excess = self.untold.len().saturating_sub(MAX_UNTOLD);
        self.untold.drain(..excess);
    }

    /// What was done for each member that is here, and for those that have left and whose row was
    /// not returned yet, in the order of their numbers.
    pub(crate) fn stats(&self) -> Vec<Stats> {
        let here = self.members.iter().chain(&self.departed).map(Entry::stats);
        let mut stats: Vec<_> = self.untold.iter().copied().chain(here).collect();
        stats.sort_by_key(|stats| stats.id);
        stats
    }

    /// The sum for all members that there were.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = self.gone;
        let own = |entry: &&Entry<P>| entry.state != MemberState::HandedOver;
        let here = self.members.iter().chain(&self.departed).filter(own);
        here.for_each(|entry| totals.add(&entry.stats()));
        totals
    }

    /// Returns what was done for the first member that is `wanted`, each member once.
    pub(crate) fn tell(&mut self, wanted: impl Fn(&Stats) -> bool) -> Option<Stats> {
        if let Some(at) = self.untold.iter().position(&wanted) {
            return Some(self.untold.remove(at));
        }
        let all = self.members.iter_mut().chain(&mut self.departed);
        let mut untold = all.filter(|entry| !entry.told);
        let entry = untold.find(|entry| wanted(&entry.stats()))?;
        entry.told = true;
        Some(entry.stats())
    }

    /// The threads beside one for each member.
    pub(crate) fn spares(&self) -> usize {
        self.threads.saturating_sub(self.members.len())
    }
}
