//! The pitfalls of `SO_REUSEPORT`: each with code that falls into it, and code that does not.
//!
//! Why it is so is in [the guide](super).
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
//! let second_copy = Group::bind(server.local_addr(), 3); // does not: EADDRINUSE
//! assert!(second_copy.is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Port 0 for every member makes as many groups of one.**
//!
#![cfg_attr(all(feature = "std", linux_kernel), doc = "```")]
#![cfg_attr(not(all(feature = "std", linux_kernel)), doc = "```ignore")]
//! use reuseport::{Group, Listener};
//!
//! let any = ([127, 0, 0, 1], 0);
//! let (a, b) = (Listener::bind(any)?, Listener::bind(any)?); // falls: two ports
//! assert_ne!(a.local_addr()?, b.local_addr()?);
//!
//! let b = Listener::bind(a.local_addr()?)?; // does not: ask what port 0 became
//! let group = Group::bind(any, 2)?; //         nor does this, which asks for you
//! # assert_eq!(a.local_addr()?, b.local_addr()?);
//! # let same = |member: &Listener| member.local_addr() == Ok(group.local_addr());
//! # assert!(group.sockets().iter().all(same));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **A wildcard and an address on one port are no group.** The address gets all that is sent to it.
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
//! assert!(wildcard.accept().is_err()); // nothing for the wildcard, however many connect
//!
//! drop(address);
//! let sibling = options.bind(([0, 0, 0, 0], port))?; // does not: the very same address
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **A backlog of 1**, as in many examples, makes clients wait for a second.
//!
//! ```
//! use reuseport::Listener;
//!
//! let any = ([127, 0, 0, 1], 0);
//! let short = Listener::options().backlog(1).bind(any)?; // falls: two wait, the third is dropped
//! let long = Listener::bind(any)?; // does not: as long as the kernel allows
//! # Ok::<(), reuseport::Error>(())
//! ```
//!
//! **Closing a listener to serve with fewer.** Accept until nothing waits, then close, is no
//! better: handshakes under way are lost.
//!
#![cfg_attr(all(feature = "std", linux_kernel), doc = "```")]
#![cfg_attr(not(all(feature = "std", linux_kernel)), doc = "```ignore")]
//! # use reuseport::{Group, Listener};
//! let mut members = Group::bind(([127, 0, 0, 1], 0), 3)?.into_sockets();
//! drop(members.pop()); // falls: whoever waits there is reset
//!
//! let serving = Group::bind(([127, 0, 0, 1], 0), 3)?.spawn(|_, connection| drop(connection))?;
//! serving.retire(2)?; // does not: steered around, drained, closed
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **An accept loop that an error ends, or that an error makes spin.** Running out of descriptors
//! is a matter of time.
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
//! fn does_not(listener: &Listener) -> Result<(), Error> {
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
//! **A handler that waits for its client** keeps all others of its member waiting.
//!
#![cfg_attr(all(feature = "std", linux_kernel), doc = "```")]
#![cfg_attr(not(all(feature = "std", linux_kernel)), doc = "```ignore")]
//! # use reuseport::{Connection, Group};
//! let slow = |_: usize, connection: Connection| _ = connection.recv(&mut [0]);
//! let any = ([127, 0, 0, 1], 0);
//! let falls = Group::bind(any, 4)?.spawn(slow)?;
//! let does_not = Group::options().steal(true).bind(any, 4)?.spawn(slow)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Another option than the last release had.** A server that closes connections first leaves them
//! in `TIME_WAIT`, for a minute. They keep the old server's options, and a new one that sets only
//! the other is refused so long, although nobody listens.
//! `explain --claim leftovers-want-the-same-option`
//!
//! ```
//! use reuseport::Listener;
//!
//! let any = ([127, 0, 0, 1], 0);
//! let last_year = Listener::bind(any)?; // SO_REUSEPORT alone
//! let falls = Listener::options().reuse_port(false).reuse_address(true);
//! let does_not = Listener::options().reuse_address(true); // both: succeeds after either
//! # drop((falls.bind(any)?, does_not.bind(any)?));
//! # Ok::<(), reuseport::Error>(())
//! ```
//!
//! **Privileges dropped before the last member is open.** It belongs to another user then, and is
//! refused. Open all members first. (It takes root to run, so this is only compiled.)
//!
#![cfg_attr(all(feature = "std", linux_kernel), doc = "```no_run")]
#![cfg_attr(not(all(feature = "std", linux_kernel)), doc = "```ignore")]
//! # use reuseport::Group;
//! # fn drop_privileges() {}
//! let mut group = Group::bind(([0, 0, 0, 0], 80), 1)?;
//! drop_privileges();
//! assert!(group.add().is_err()); // falls: EADDRINUSE, told as GroupError::UserMismatch
//!
//! let group = Group::bind(([0, 0, 0, 0], 81), 4)?; // does not: all are there
//! drop_privileges();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `tests/users.rs` drops privileges in earnest. What else goes wrong with real servers, and what
//! becomes of the connections, is in `tests/failure_modes.rs` and `tests/faults.rs`.
