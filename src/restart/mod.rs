//! A new process takes over from an old one, or from a service manager.

#[cfg(linux_kernel)]
mod hand_over;
mod listen_fds;

#[cfg(linux_kernel)]
pub use hand_over::{AnyServer, HandOver, HandOverError, hand_over};
pub use listen_fds::Inherited;
