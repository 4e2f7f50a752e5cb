//! Why there is no group, or not the one asked for.

use core::fmt;
use core::net::SocketAddr;
use std::boxed::Box;
use std::io;

use super::Group;
use crate::error::Error;
use crate::socket::protocol::{Protocol, Tcp};

/// Why there is no group, or not the one asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupError {
    /// A call failed, for the member with this index.
    Call {
        /// Which, and why.
        error: Error,
        /// Where the member was to listen.
        address: SocketAddr,
        /// Its index.
        member: usize,
    },
    /// `bind` failed, with `EADDRINUSE` or `EACCES`, and the group's first member was opened by
    /// another user: bind all members before privileges are dropped.
    UserMismatch {
        /// What `bind` said.
        error: Error,
        /// Where the member was to listen.
        address: SocketAddr,
        /// Its index.
        member: usize,
        /// The effective user when the group was made.
        then: u32,
        /// The effective user now.
        now: u32,
    },
    /// No member was asked for.
    NoMembers,
    /// A member listens elsewhere than the first.
    AddressMismatch {
        /// Its index.
        member: usize,
    },
    /// This kernel gives all connections to one of the listeners.
    NotBalanced,
    /// Steering by index, in a group whose indexes are not this program's alone.
    JoinedGroup,
    /// Steering among, or retiring one of, acceptors that share one socket.
    SharedSocket,
    /// More members than may steal from one another.
    TooMany,
    /// Steering around, or retiring, a member that is not there.
    NoSuchMember,
    /// Retiring the last member: [`Server::stop`](crate::Server::stop) does that.
    LastMember,
    /// Adding to, retiring from, or steering listeners that other processes hold, too or alone.
    Inherited,
    /// `LISTEN_FDS` is no number.
    InvalidListenFds,
    /// A descriptor from `LISTEN_FDS` is no TCP socket that listens.
    NotAListener {
        /// Which.
        descriptor: i32,
        /// What the kernel says of it.
        error: Error,
    },
    /// Steering by a byte of what has none: the first packet of a connection.
    NoPayload,
    /// Steering, pinning, stealing or batches on a kernel that has not what it takes.
    Unsupported,
}

impl GroupError {
    pub(crate) const fn call(error: Error, address: SocketAddr, member: usize) -> GroupError {
        GroupError::Call {
            error,
            address,
            member,
        }
    }

    /// The failed call, where it was one.
    pub const fn error(&self) -> Option<Error> {
        match self {
            GroupError::Call { error, .. } | GroupError::UserMismatch { error, .. } => Some(*error),
            _ => None,
        }
    }
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GroupError::Call {
                error,
                address,
                member,
            } => {
                write!(f, "{} {address}: {error:#}", error.call().name())?;
                return match member {
                    0 => Ok(()),
                    _ => write!(f, ", for member {member} of the group"),
                };
            }
            GroupError::UserMismatch {
                error,
                address,
                member,
                then,
                now,
            } => {
                return write!(
                    f,
                    "bind {address}: {error:#}, for member {member} of the group: all members must \
                     be opened by one user, but that was {then} and now is {now}"
                );
            }
            GroupError::AddressMismatch { member } => {
                return write!(f, "member {member} listens elsewhere than the first");
            }
            GroupError::NoMembers => "a group needs a member",
            GroupError::NotBalanced => {
                "this kernel gives all connections to one of the listeners on a port; \
                 one listener can be shared by all acceptors instead"
            }
            GroupError::JoinedGroup => {
                "a joined group cannot be steered: its members are not all this program's, \
                 and their indexes shift when a stranger leaves"
            }
            GroupError::SharedSocket => {
                "acceptors that share one listener can be neither steered nor retired one by one, \
                 and have nothing to steal"
            }
            GroupError::TooMany => "at most 128 members can steal from one another",
            GroupError::NoSuchMember => "the group has no such member",
            GroupError::LastMember => "the last member cannot be retired",
            GroupError::Inherited => {
                "other processes hold the listeners: who is to listen is theirs to say"
            }
            GroupError::InvalidListenFds => "LISTEN_FDS is not a number",
            GroupError::NotAListener { descriptor, error } => {
                return write!(f, "descriptor {descriptor} is no TCP listener: {error}");
            }
            GroupError::NoPayload => "only datagrams have bytes to be steered by",
            GroupError::Unsupported => {
                "this kernel has not what steering, pinning, stealing or batches take"
            }
        })
    }
}

impl core::error::Error for GroupError {}

/// Why no acceptors work, and the group that they were meant for, as it was.
#[derive(Debug)]
pub struct SpawnError<P: Protocol = Tcp> {
    /// Which call failed, and why.
    pub error: Error,
    /// The group.
    pub group: Box<Group<P>>,
}

impl<P: Protocol> fmt::Display for SpawnError<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "starting the {}s: {}", P::WHO, self.error)
    }
}

impl<P: Protocol> core::error::Error for SpawnError<P> {}

impl<P: Protocol> From<SpawnError<P>> for io::Error {
    fn from(failure: SpawnError<P>) -> io::Error {
        failure.error.into()
    }
}
