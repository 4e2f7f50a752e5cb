//! Many listening sockets on one port, with the kernel spreading the connections among them.
//!
//! Every thread of a server opens a socket of its own, sets `SO_REUSEPORT`, binds the *same* port
//! and waits in its own `accept`. The kernel hashes the addresses and ports of each new connection
//! and gives it to one of the sockets: no thread hands connections out, and none compete for them.
//!
//! # What to type
//!
//! A TCP server with three sockets on one port. The handler runs on the thread that accepted. It
//! reads the request first, which is short here: closing a [`Connection`] with bytes unread resets
//! it, and the client may lose the answer.
//!
#![cfg_attr(feature = "std", doc = "```")]
#![cfg_attr(not(feature = "std"), doc = "```ignore")]
//! use reuseport::Group;
//! use std::time::Duration;
//!
//! let group = Group::bind(([127, 0, 0, 1], 0), 3)?; // port 0: any free port
//! let address = group.local_addr();
//! let server = group.spawn(|acceptor, connection| {
//!     let _request = connection.recv(&mut [0; 1024]);
//!     _ = connection.send(format!("acceptor {acceptor}\n").as_bytes());
//! })?;
//! # use std::io::{Read, Write};
//! # let (mut client, mut answer) = (std::net::TcpStream::connect(address)?, String::new());
//! # client.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
//! # client.read_to_string(&mut answer)?;
//! # assert!(answer.starts_with("acceptor "));
//!
//! let stats = server.stop(Duration::from_secs(3)); // serves what is queued, then closes
//! assert_eq!(stats.len(), 3);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! A UDP server that sends each datagram back:
//!
#![cfg_attr(feature = "std", doc = "```")]
#![cfg_attr(not(feature = "std"), doc = "```ignore")]
//! use reuseport::{Group, UdpSocket};
//!
//! let group = Group::bind_udp(([127, 0, 0, 1], 0), 2)?;
//! let address = group.local_addr();
//! let server = group.spawn(|_receiver, datagram| {
//!     let len = datagram.payload().len();
//!     datagram.reply(len);
//! })?;
//!
//! let client = UdpSocket::bind(([127, 0, 0, 1], 0))?;
//! client.send_to(b"hello", address)?;
//! let mut buffer = [0; 16];
//! assert_eq!(client.recv_from(&mut buffer)?.len, 5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to start
//!
//! | type | purpose |
//! |---|---|
//! | [`Group`] | several sockets on one port, bound together and exclusively |
//! | [`GroupOptions`], [`Steering`] | options of a group; how the kernel chooses a member |
//! | [`Server`] | a group with its threads: add, remove, count and stop members |
//! | [`Group::into_server`] | the same, where tokio, mio or threads of your own accept |
//! | [`Stats`], [`Totals`] | what was done for a member; sums that never fall |
//! | [`HandOver`] | a new process takes over the port, and no connection is lost |
//! | [`Listener`], [`Connection`] | one socket that listens; one that was accepted |
//! | [`UdpSocket`], [`Datagram`], [`Batch`] | one UDP socket; what it received; many at once |
//! | [`Options`] | the socket options of a `Listener` or a `UdpSocket` |
//! | [`Acceptors`] | one thread for each listener, as in the C program |
//! | [`Error`], [`AcceptAction`] | a failed call; what an accept loop does about it |
//!
//! [`guide`] explains the option, and `reuseport explain` tests its claims on your kernel.
//! [`BALANCES`] says whether this kernel spreads connections at all.
//!
//! # Without the standard library
//!
//! The crate is `no_std` and allocates nothing without the feature `std`, which is on by default.
//! Without it there are [`Listener`], [`Connection`], [`UdpSocket`], [`Datagram`], [`Options`],
//! [`SockAddr`], [`Error`] and [`sys`]; on Linux and Android also [`Batch`] and [`steering`].
//! [`Group`], [`Server`], [`Acceptors`] and the conversions to the standard library's types need
//! the feature. `Options::bind_exclusive` (Linux) keeps other programs out without it.
//!
//! A `no_std` binary needs a C library, a panic handler, and in its profile `panic = "abort"` and
//! `lto = "fat"`: without them the linker looks for an unwinder. `tests/crates/minimal` has six.
//!
//! # The source, in reading order
//!
//! The first five files are the C program:
//!
//! 1. `sys.rs`: [`sys`], one function for each system call, with C's names and arguments.
//! 2. `error.rs`: [`Error`], the errno with the name of the call that failed; [`AcceptAction`].
//! 3. `address.rs`: [`SockAddr`], C's `struct sockaddr`.
//! 4. `listener.rs`: [`Listener::bind`], the C program's four calls, each below its C line.
//! 5. `acceptors.rs`: [`Acceptors`], the C program's threads.
//!
//! **Stop here and you have the C program.** Each folder below builds on those above it:
//!
//! 6. `socket/`, one socket: `options.rs`, `names.rs` (of options), `udp.rs`, `datagram.rs`,
//!    `destination.rs` (where a datagram was sent to), `queue.rs` (what is queued),
//!    `connection.rs` (addresses, options), `bpf.rs` (steering programs), `protocol.rs` (what a
//!    group needs from TCP and from UDP).
//! 7. `group/`, several sockets on one port: `mod.rs` ([`Group`]), `options.rs`,
//!    `socket_options.rs`, `config.rs` (how a member is made), `steering.rs` (from a policy to a
//!    program), `old_process.rs` (the process that hands it over), `error.rs`.
//! 8. `server/`, a group at work: `mod.rs` ([`Server`]), `start.rs`, `add.rs`, `member.rs` and
//!    `list.rs` (the members), `pool.rs` and `worker.rs` (threads), `handoff.rs` and `mark.rs` (a
//!    blocked thread gives its listener to another), `tcp.rs`, `udp.rs`, `polling.rs` (how workers
//!    wait), `external.rs` (another runtime accepts), `drain.rs` (how members leave),
//!    `steering.rs` (which members get new connections), `new_process.rs` (members for a new
//!    process), `totals.rs` ([`Totals`]).
//! 9. `restart/`, a new process takes over: `hand_over.rs` (the old process), `listen_fds.rs` (the
//!    new process, and systemd).
//! 10. `os/`, what differs between kernels: `mod.rs` (the contract), `linux/`, `other.rs` (the same
//!     functions for other kernels), `apple.rs`.
//! 11. `interop.rs`: conversions to and from the standard library's types.
//! 12. `guide/`: documentation only, with its pictures.
//! 13. `bin/reuseport/`: the command `reuseport`.
//!
#![cfg_attr(
    not(feature = "std"),
    doc = "
[`Acceptors`]: #without-the-standard-library
[`Group`]: #without-the-standard-library
[`Group::into_server`]: #without-the-standard-library
[`GroupOptions`]: #without-the-standard-library
[`HandOver`]: #without-the-standard-library
[`Server`]: #without-the-standard-library
[`Stats`]: #without-the-standard-library
[`Steering`]: #without-the-standard-library
[`Totals`]: #without-the-standard-library"
)]
#![cfg_attr(
    not(linux_kernel),
    doc = "
[`Batch`]: #without-the-standard-library
[`HandOver`]: #where-to-start
[`steering`]: #without-the-standard-library"
)]
#![no_std]
#![warn(clippy::std_instead_of_core)] // the core must not lean on std by accident

#[cfg(feature = "std")]
extern crate std;

// The C program: where nothing else is said, a function fails as its C call does.
#[allow(clippy::missing_errors_doc)]
#[cfg(feature = "std")]
mod acceptors;
mod address;
mod error;
#[allow(clippy::missing_errors_doc)]
mod listener;
#[allow(clippy::missing_errors_doc)]
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
#[cfg(feature = "std")]
pub use restart::Inherited;
#[cfg(all(feature = "std", linux_kernel))]
pub use restart::{AnyServer, HandOver, HandOverError, hand_over};
#[cfg(feature = "std")]
pub use server::{
    MemberState, MemberStats, OtherListeners, Serve, Server, SpareThreads, SpawnError, Totals,
};
#[cfg(linux_kernel)]
pub use socket::bpf as steering;
pub use socket::datagram::Datagram;
pub use socket::destination::Destination;
pub use socket::options::Options;
#[cfg(feature = "std")]
pub use socket::protocol::Protocol;
pub use socket::protocol::{Tcp, Udp};
pub use socket::queue::{AcceptQueue, ReceiveBuffer};
pub use socket::udp::{Received, UdpSocket};

/// States whether this target's kernel spreads the connections among the sockets of one port.
///
/// `true` on Linux 3.9 and later, Android, FreeBSD 12 and later (there the option is
/// `SO_REUSEPORT_LB`) and `DragonFly`. `false` on macOS, iOS, NetBSD and OpenBSD: they let several
/// sockets bind, and give every connection to one of them.
pub const BALANCES: bool = cfg!(balances);

// The README's examples are compiled and run with the others.
#[cfg(all(doctest, feature = "std", linux_kernel))]
#[doc = include_str!("../README.md")]
struct Readme;

/// A server that is not kept stops at once: the compiler warns.
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// let group = reuseport::Group::bind(([127, 0, 0, 1], 0), 1).unwrap();
/// group.spawn(|_, _| {}).unwrap();
/// ```
#[cfg(all(doctest, feature = "std"))]
struct MustUse;
