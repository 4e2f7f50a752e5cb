//! Linux and Android: steering programs, queue lengths, the kernel's list of sockets, CPUs.

#[cfg(feature = "std")]
mod affinity;
mod batch;
mod constants;
#[cfg(feature = "std")]
mod departure;
#[cfg(feature = "std")]
mod exclusive;
mod first;
mod options;
#[cfg(feature = "std")]
mod poller;
#[cfg(feature = "std")]
mod proc_net;
#[cfg(feature = "std")]
mod sock_diag;
mod socket;

#[cfg(feature = "std")]
pub(crate) use affinity::{allowed_cpus, move_to_cpus, name_thread, start_on_cpu};
pub use batch::Batch;
#[cfg(feature = "std")]
pub(crate) use constants::dup3;
#[cfg(feature = "std")]
pub(crate) use departure::{Placeholder, may_have_sent_cookies, wait_for_lookups};
#[cfg(feature = "std")]
pub(crate) use exclusive::bind_exclusive;
#[cfg(feature = "std")]
pub(crate) use first::{bind_exclusive_udp, bind_member_udp, leave_port};
pub(crate) use options::{KernelOptions, OPTION_NAMES, SO_LINGER, bind_to_device, peer_name};
#[cfg(feature = "std")]
pub(crate) use poller::Poller;
#[cfg(feature = "std")]
pub(crate) use sock_diag::{Handshake, Handshakes, members};
#[cfg(feature = "std")]
pub(crate) use socket::{accept_queue, accept_silent_clients, receive_buffer};
#[cfg(feature = "std")]
pub(crate) use socket::{attach_filter, attach_program, detach_filter, detach_program};
#[cfg(feature = "std")]
pub(crate) use socket::{bind_to_nowhere, interface, namespace};

/// Whether `shutdown(2)` wakes threads that are blocked in `accept` or `recvmsg`, and takes a
/// listener out of its group.
#[cfg(feature = "std")]
pub(crate) const SHUTDOWN_WAKES: bool = true;

/// Whether a program can choose the member that gets a connection.
#[cfg(feature = "std")]
pub(crate) const STEERS: bool = true;
