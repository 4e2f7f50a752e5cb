//! One socket: its options, its queue, UDP, and steering programs as data. `no_std`.

pub mod bpf;
mod connection;
pub(crate) mod datagram;
pub(crate) mod options;
pub(crate) mod protocol;
pub(crate) mod queue;
pub(crate) mod udp;
