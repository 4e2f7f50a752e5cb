//! Many listening sockets on one port, with the kernel spreading the connections among them.
//!
//! Every thread of a server opens a socket of its own, sets `SO_REUSEPORT`, binds the *same* port
//! and waits in its own `accept`. No thread hands connections out and none compete for them: the
//! kernel hashes each new connection's addresses and ports and gives it to one of the sockets.
//!
#![cfg_attr(feature = "std", doc = "```")]
#![cfg_attr(not(feature = "std"), doc = "```ignore")]
//! use reuseport::Group;
//!
//! let group = Group::bind(([127, 0, 0, 1], 0), 3)?; // three sockets, one port that nobody had
//! let address = group.local_addr();
//! let serving = group.spawn(|acceptor, connection| {
//!     _ = connection.send(format!("acceptor {acceptor}\n").as_bytes());
//! })?;
//! # use std::io::Read;
//! # let mut greeting = String::new();
//! # std::net::TcpStream::connect(address)?.read_to_string(&mut greeting)?;
//! # assert!(greeting.starts_with("acceptor "));
//! # let grace = std::time::Duration::from_secs(1);
//! # assert_eq!(serving.stop(grace).len(), 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The rooms, in reading order
//!
//! The source files are the rooms. The first wing is the C program, no more: it reads in one
//! sitting.
//!
//! 1. [`sys`]: one thin function a system call, with C's names and arguments.
//! 2. `error.rs`: [`Error`] never loses the errno nor the name of the call that failed;
//!    [`AcceptAction`] is what an accept loop should do about it.
//! 3. `address.rs`: [`SockAddr`], C's `struct sockaddr`.
//! 4. `listener.rs`: [`Listener::bind`] is the C program's four calls, each below its C line.
//! 5. `acceptors.rs` (feature `std`): `Acceptors`, the C program's threads.
//!
//! **Stop here and you have the C program.** The second wing goes beyond it.
//!
//! 6. `options.rs`: [`Listener::options`], every socket option visible and none hidden.
//! 7. `datagram.rs`: [`UdpSocket`], the same story for UDP; `batch.rs`: [`Datagram`], and many of
//!    them in one system call.
//! 8. `steering` and `queue.rs` (Linux, Android): programs that choose the socket in the
//!    kernel's place; how much waits, and what was dropped.
//! 9. `group.rs`, `claim.rs` (feature `std`): `Group`, sockets made together, on a port that no
//!    other program has, or deliberately on one that it has. `protocol.rs`: where a group of
//!    listeners and one of datagram sockets differ.
//! 10. `serving.rs`, `crew.rs` (feature `std`): `Server`, a group with its threads at work.
//!     `accepting.rs`, `alone.rs`, `polling.rs`: how those wait who accept, and how they are woken;
//!     `stealing.rs`: idle ones help busy siblings; `receiving.rs`: those who receive datagrams.
//! 11. `drain.rs`, `away.rs` (feature `std`): how members leave without losing a connection.
//! 12. `inherit.rs`, `handover.rs` (feature `std`): listeners from systemd, or from the process
//!     whose place this one takes.
//! 13. `diag.rs` (the kernel's list of sockets), `cpus.rs` (pinning), `interop.rs` (conversions
//!     to and from the standard library's types): feature `std`.
//!
//! And a book: [`guide`] tells how the option works, and `reuseport explain` tries each sentence of
//! it on your kernel.
//!
//! # Without the standard library
//!
//! The crate is `no_std` and allocates nothing without the feature `std`, which is on by default.
//! The feature adds modules and conversions; what it does not add compiles the same either way.

#![no_std]
#![warn(clippy::std_instead_of_core)] // the core must not lean on std by accident

#[cfg(feature = "std")]
extern crate std;

// The C program.
#[cfg(feature = "std")]
mod acceptors;
mod address;
mod error;
mod listener;
pub mod sys;

// Built on it: each folder imports only from those above it, and from `os`.
mod os;
mod socket;

#[cfg(feature = "std")]
mod group;
#[cfg(feature = "std")]
mod server;

#[cfg(feature = "std")]
mod restart;

#[cfg(feature = "std")]
mod interop;

pub mod guide;

#[cfg(feature = "std")]
pub use acceptors::{Acceptors, Stats, StopToken};
pub use address::SockAddr;
pub use error::{AcceptAction, Call, Error};
#[cfg(feature = "std")]
pub use group::{Group, GroupError, GroupOptions, Steering};
pub use listener::{Connection, Listener};
#[cfg(linux_kernel)]
pub use os::Batch;
#[cfg(all(feature = "std", linux_kernel))]
pub use restart::{HandOver, HandOverError};
#[cfg(feature = "std")]
pub use server::{
    MemberState, MemberStats, OtherListeners, Serve, Server, SpareThreads, SpawnError,
};
#[cfg(linux_kernel)]
pub use socket::bpf as steering;
pub use socket::datagram::Datagram;
pub use socket::options::Options;
#[cfg(feature = "std")]
pub use socket::protocol::Protocol;
pub use socket::protocol::{Tcp, Udp};
pub use socket::queue::{AcceptQueue, ReceiveBuffer};
pub use socket::udp::{Received, UdpSocket};

/// Whether this target's kernel spreads the connections among the sockets of one port.
///
/// True on Linux 3.9 and later, Android, FreeBSD 12 and later (there the option is
/// `SO_REUSEPORT_LB`) and `DragonFly`. False on macOS, iOS, NetBSD and OpenBSD: they let several
/// sockets bind, and give every connection to one of them.
pub const BALANCES: bool = cfg!(balances);

// The README's examples are compiled and run with the others.
#[cfg(all(doctest, feature = "std", linux_kernel))]
#[doc = include_str!("../README.md")]
struct Readme;
