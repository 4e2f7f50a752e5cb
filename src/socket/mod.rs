//! One socket: its options, its queue, and datagrams one by one or in batches.

pub(crate) mod batch;
#[cfg(feature = "std")]
pub(crate) mod exclusive;
pub(crate) mod options;
pub(crate) mod protocol;
pub(crate) mod queue;
pub(crate) mod udp;
