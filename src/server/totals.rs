//! [`Totals`]: what was done for all members that a server has had.

use crate::acceptors::Stats;

/// The sums of [`Stats`] for all members that a server has had: see
/// [`Server::totals`](crate::Server::totals).
///
/// No figure ever falls, also not when members leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Members that there were, also those for a new process that did not take over.
    pub members: usize,
    /// Members that an error has ended.
    pub failed: usize,
    /// Connections, or datagrams, that were given to a handler.
    pub accepted: usize,
    /// Handlers that panicked.
    pub panicked: usize,
    /// Errors that were passed over, and replies that could not be sent.
    pub transient_errors: usize,
    /// Pauses because no descriptor or no memory was left.
    pub backoffs: usize,
    /// How often a listener was handed to a spare thread.
    pub handed_off: usize,
    /// How often handlers were blocked and no spare thread could be had.
    pub starved: usize,
    /// Queued connections that the kernel reset when a member was stopped.
    pub reset: usize,
}

impl Totals {
    pub(super) fn add(&mut self, stats: &Stats) {
        self.members += 1;
        self.failed += usize::from(stats.error.is_some());
        self.accepted += stats.accepted;
        self.panicked += stats.panicked;
        self.transient_errors += stats.transient_errors;
        self.backoffs += stats.backoffs;
        self.handed_off += stats.handed_off;
        self.starved += stats.starved;
        self.reset += stats.reset;
    }
}
