//! One socket: its options, its queue, UDP, and steering programs as data. `no_std`.

// Public where the kernel has such programs.
#[cfg_attr(not(linux_kernel), allow(dead_code, unreachable_pub, unused_imports))]
pub mod bpf;
mod connection;
pub(crate) mod datagram;
pub(crate) mod destination;
pub(crate) mod names;
pub(crate) mod options;
pub(crate) mod protocol;
pub(crate) mod queue;
pub(crate) mod udp;
