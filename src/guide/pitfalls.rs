//! The pitfalls of `SO_REUSEPORT`: each with code that falls into it, and code that avoids it.
//!
//! [The guide](super) has the reasons.
//!
//! **A second copy of the server takes half of the connections.**
//!
#![cfg_attr(all(feature = "std", linux_kernel), doc = "```")]
#![cfg_attr(not(all(feature = "std", linux_kernel)), doc = "```ignore")]
//! use reuseport::{Group, Listener};
//!
//! let server = Listener::bind(([127, 0, 0, 1], 0))?;
//! let second_copy = Listener::bind(server.local_addr()?); // falls: it joins
//! assert!(second_copy.is_ok());
//!
//! let server = Group::bind(([127, 0, 0, 1], 0), 3)?;
//! let second_copy = Group::bind(server.local_addr(), 3); // avoids: EADDRINUSE
//! assert!(second_copy.is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Port 0 for every member gives each its own port**: as many groups of one.
//!
#![cfg_attr(all(feature = "std", linux_kernel), doc = "```")]
#![cfg_attr(not(all(feature = "std", linux_kernel)), doc = "```ignore")]
//! use reuseport::{Group, Listener};
//!
//! let any = ([127, 0, 0, 1], 0);
//! let (a, b) = (Listener::bind(any)?, Listener::bind(any)?); // falls: two ports
//! assert_ne!(a.local_addr()?, b.local_addr()?);
//!
//! let b = Listener::bind(a.local_addr()?)?; // avoids: binds the port that port 0 became
//! let group = Group::bind(any, 2)?; //         avoids: the group does the same
//! # assert_eq!(a.local_addr()?, b.local_addr()?);
//! # let same = |member: &Listener| member.local_addr() == Ok(group.local_addr());
//! # assert!(group.sockets().iter().all(same));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **A wildcard and an address on one port are two groups.** The address gets all its connections.
//!
#![cfg_attr(linux_kernel, doc = "```")]
#![cfg_attr(not(linux_kernel), doc = "```ignore")]
//! use reuseport::Listener;
//! # use std::net::TcpStream;
//!
//! let options = Listener::options().nonblocking(true);
//! let wildcard = options.bind(([0, 0, 0, 0], 0))?;
//! let port = wildcard.local_addr()?.port();
//! let address = options.bind(([127, 0, 0, 1], port))?; // falls
//! # let _clients: Vec<_> = (0..20).map(|_| TcpStream::connect(("127.0.0.1", port))).collect();
//! assert!(wildcard.accept().is_err()); // the wildcard gets none of the 20 connections
//!
//! drop(address);
//! let sibling = options.bind(([0, 0, 0, 0], port))?; // avoids: the same address
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **A backlog of 1**, as in many examples, makes clients wait for 1 s.
//!
//! ```
//! use reuseport::Listener;
//!
//! let any = ([127, 0, 0, 1], 0);
//! let short = Listener::options().backlog(1).bind(any)?; // falls: the third SYN is dropped
//! let long = Listener::bind(any)?; // avoids: as long as the kernel allows
//! # Ok::<(), reuseport::Error>(())
//! ```
//!
//! **Closing a listener to serve with fewer.** The queue is reset. To empty the queue before
//! `close` is not enough: handshakes under way are lost.
//!
#![cfg_attr(all(feature = "std", linux_kernel), doc = "```")]
#![cfg_attr(not(all(feature = "std", linux_kernel)), doc = "```ignore")]
//! # use reuseport::{Group, Listener};
//! let mut members = Group::bind(([127, 0, 0, 1], 0), 3)?.into_sockets();
//! drop(members.pop()); // falls: its queued connections are reset
//!
//! let server = Group::bind(([127, 0, 0, 1], 0), 3)?.spawn(|_, connection| drop(connection))?;
//! server.retire(2)?; // avoids: steered around, drained, closed
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **An accept loop that ends, or spins, after an error.** Sooner or later a server runs out of
//! descriptors.
//!
//! ```
//! use reuseport::{AcceptAction, Error, Listener};
//!
//! fn falls(listener: &Listener) -> Result<(), Error> {
//!     loop {
//!         drop(listener.accept()?); // EMFILE ends the server. And `continue` instead would spin.
//!     }
//! }
//!
//! fn avoids(listener: &Listener) -> Result<(), Error> {
//!     loop {
//!         match listener.accept().map_err(|error| (error, error.accept_action())) {
//!             Ok(connection) => drop(connection),
//!             Err((_, AcceptAction::Retry)) => {}
//!             Err((_, AcceptAction::BackOff | AcceptAction::WouldBlock)) => pause(),
//!             Err((error, _)) => return Err(error),
//!         }
//!     }
//! }
//! # fn pause() { std::thread::sleep(std::time::Duration::from_millis(20)) }
//! ```
//!
//! **A handler that waits for its client** keeps the other clients of its member waiting, if there
//! is no spare thread. With spare threads a silent client keeps a thread, so set a time limit.
//!
#![cfg_attr(all(feature = "std", linux_kernel), doc = "```")]
#![cfg_attr(not(all(feature = "std", linux_kernel)), doc = "```ignore")]
//! # use reuseport::{Connection, Group};
//! use std::time::Duration;
//!
//! let any = ([127, 0, 0, 1], 0);
//! let slow = |_: usize, connection: Connection| _ = connection.recv(&mut [0]);
//! let falls = Group::options().spare_threads(0).bind(any, 4)?.spawn(slow)?;
//!
//! let avoids = Group::bind(any, 4)?.spawn(|_, connection| { // up to 512 spare threads
//!     _ = connection.set_read_timeout(Some(Duration::from_secs(10)));
//!     _ = connection.recv(&mut [0]);
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Another option than the last release had.** A server that closes connections first leaves them
//! in `TIME_WAIT`, for 60 s. They keep the old server's options. For that time a new server that
//! sets only the other option is refused, although no socket listens.
//! `explain --claim leftovers-want-the-same-option`
//!
//! ```
//! use reuseport::Listener;
//!
//! let any = ([127, 0, 0, 1], 0);
//! let last_year = Listener::bind(any)?; // SO_REUSEPORT alone
//! let falls = Listener::options().reuse_port(false).reuse_address(true);
//! let avoids = Listener::options().reuse_address(true); // both: succeeds after either
//! # drop((falls.bind(any)?, avoids.bind(any)?));
//! # Ok::<(), reuseport::Error>(())
//! ```
//!
//! **Privileges dropped before the last member is open.** That member belongs to another user, and
//! is refused. Open all members first, or give those that are open to the new user with
//! `fchown(2)` before that one is opened. (The example needs root, so it is only compiled.)
//!
#![cfg_attr(all(feature = "std", linux_kernel), doc = "```no_run")]
#![cfg_attr(not(all(feature = "std", linux_kernel)), doc = "```ignore")]
//! # use reuseport::Group;
//! # fn drop_privileges() {}
//! let mut group = Group::bind(([0, 0, 0, 0], 80), 1)?;
//! drop_privileges();
//! assert!(group.add().is_err()); // falls: EADDRINUSE, in GroupError::UserMismatch
//!
//! let group = Group::bind(([0, 0, 0, 0], 81), 4)?; // avoids: all are open
//! drop_privileges();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `tests/users.rs` drops privileges. More failures of real servers, and what becomes of their
//! connections, are in `tests/failure_modes.rs` and `tests/faults.rs`.
