//! [`GroupError`]: errors of making, changing and inheriting a group.

use core::fmt;
use core::net::SocketAddr;
use std::io::{self, ErrorKind};

use crate::error::Error;

/// An error of making, changing or inheriting a group.
///
/// `Debug` prints the same sentence as `Display`: it is what `main` prints of an error that it
/// returns.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupError {
    /// A system call failed, for the member with this index.
    Call {
        /// The call and its errno.
        error: Error,
        /// The group's address.
        address: SocketAddr,
        /// The member's index.
        member: usize,
    },
    /// `bind` failed with `EADDRINUSE` or `EACCES`, and another user has opened the first member:
    /// open all members before privileges are dropped.
    UserMismatch {
        /// The call and its errno.
        error: Error,
        /// The group's address.
        address: SocketAddr,
        /// The member's index.
        member: usize,
        /// The effective user that opened the first member.
        expected: u32,
        /// The effective user now.
        actual: u32,
    },
    /// No member was asked for.
    NoMembers,
    /// A member has another address than the first.
    AddressMismatch {
        /// The member's index.
        member: usize,
    },
    /// A member is in another network namespace than the first, where no client of the group finds
    /// it: the calling thread has changed its namespace.
    NamespaceMismatch {
        /// The member's index.
        member: usize,
    },
    /// A member differs from the first in an option by which the kernel tells groups apart.
    OptionMismatch {
        /// The member's index.
        member: usize,
        /// `"SO_BINDTODEVICE"` or `"IPV6_V6ONLY"`.
        option: &'static str,
    },
    /// This kernel gives all connections to one of the listeners.
    NotBalanced,
    /// A joined group can be neither steered nor handed over: sockets of other processes are in it.
    JoinedGroup,
    /// Members that share one socket can be neither steered nor removed one by one.
    SharedSocket,
    /// No member has this number, or this index.
    NoSuchMember {
        /// The number, or the index.
        member: usize,
    },
    /// The last serving member cannot be removed: [`Server::stop`](crate::Server::stop) does that.
    LastMember,
    /// A member could not be removed within the grace period: connections are still queued on it,
    /// and no thread or descriptor could be had to serve them. It gets no new connection and stays
    /// in the group, draining; a later [`retire`](crate::Server::retire) goes on.
    StillQueued {
        /// The member's number.
        id: usize,
        /// The connections that are queued.
        queued: u32,
    },
    /// Other processes hold the sockets too, so members cannot be added, removed or steered.
    Inherited,
    /// The old process has not closed its sockets yet: try again later.
    PredecessorLeaving,
    /// A new process is taking over: `Server::hand_over` has not ended yet.
    HandingOver,
    /// A new process has taken over.
    HandedOver,
    /// The server was stopped.
    Stopped,
    /// The server's own threads accept on its listeners: see `Group::into_server`.
    HasThreads,
    /// `LISTEN_FDS` is no number.
    InvalidListenFds,
    /// A descriptor from `LISTEN_FDS` is no TCP socket that listens.
    NotAListener {
        /// The descriptor.
        descriptor: i32,
        /// The call that shows it.
        error: Error,
    },
    /// TCP cannot be steered by a byte: the first packet of a connection has no payload.
    NoPayload,
    /// [`Steering::Quic`](crate::Steering::Quic) with parameters out of range.
    InvalidConnectionId {
        /// The length of the ids, which is 1 to 7.
        id_len: u8,
        /// The offset of the routing byte, which is less than `id_len`.
        byte: u8,
    },
    /// [`Steering::Quic`](crate::Steering::Quic) distinguishes at most 256 members, those of an old
    /// process and a new one together.
    TooManyMembers,
    /// This kernel does not support what is named.
    Unsupported(&'static str),
}

impl GroupError {
    pub(crate) const fn call(error: Error, address: SocketAddr, member: usize) -> GroupError {
        GroupError::Call {
            error,
            address,
            member,
        }
    }

    /// Returns the failed system call, if it was one.
    pub const fn error(&self) -> Option<Error> {
        match self {
            GroupError::Call { error, .. }
            | GroupError::UserMismatch { error, .. }
            | GroupError::NotAListener { error, .. } => Some(*error),
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
                expected,
                actual,
            } => {
                return write!(
                    f,
                    "bind {address}: {error:#}, for member {member} of the group: all members must \
                     be opened by user {expected}, but this is user {actual}"
                );
            }
            GroupError::AddressMismatch { member } => {
                return write!(f, "member {member} has another address than the first");
            }
            GroupError::NamespaceMismatch { member } => {
                return write!(
                    f,
                    "member {member} is in another network namespace than the first"
                );
            }
            GroupError::OptionMismatch { member, option } => {
                return write!(f, "member {member} has another {option} than the first");
            }
            GroupError::NoMembers => "a group needs at least one member",
            GroupError::NotBalanced => {
                "this kernel gives all connections to one of the listeners on a port; \
                 all acceptors can share one listener instead"
            }
            GroupError::JoinedGroup => {
                "a joined group can be neither steered nor handed over: sockets of other processes \
                 are in it, and the indexes change when one of them closes"
            }
            GroupError::SharedSocket => {
                "members that share one socket can be neither steered nor removed one by one"
            }
            GroupError::NoSuchMember { member } => {
                return write!(f, "the group has no member {member}");
            }
            GroupError::LastMember => "the last member cannot be removed",
            GroupError::StillQueued { id, queued } => {
                return write!(
                    f,
                    "member {id} still has {queued} queued connections; it stays, draining"
                );
            }
            GroupError::Inherited => {
                "the sockets are inherited from another process, so members cannot be added, \
                 removed or steered"
            }
            GroupError::PredecessorLeaving => "the old process has not closed its sockets yet",
            GroupError::HandingOver => "a new process is taking over",
            GroupError::HandedOver => "a new process has taken over",
            GroupError::Stopped => "the server was stopped",
            GroupError::HasThreads => "the server's own threads accept on its listeners",
            GroupError::InvalidListenFds => "LISTEN_FDS is not a number",
            GroupError::NotAListener { descriptor, error } => {
                return write!(f, "descriptor {descriptor} is no TCP listener: {error}");
            }
            GroupError::NoPayload => "only datagrams can be steered by a byte",
            GroupError::InvalidConnectionId { id_len, byte } => {
                let what = "an id has 1 to 7, and the routing byte is one of them";
                return write!(f, "byte {byte} of an id of {id_len} bytes: {what}");
            }
            GroupError::TooManyMembers => "ids distinguish 256 members, old and new together",
            GroupError::Unsupported(what) => {
                return write!(f, "this kernel does not support {what}");
            }
        })
    }
}

impl fmt::Debug for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for GroupError {}

/// Keeps the errno of a failed call, and its kind; the call and the address are lost. An error
/// without an errno keeps its sentence.
impl From<GroupError> for io::Error {
    fn from(error: GroupError) -> io::Error {
        if let Some(error) = error.error() {
            return error.into();
        }
        let kind = match error {
            GroupError::NotBalanced
            | GroupError::JoinedGroup
            | GroupError::SharedSocket
            | GroupError::Inherited
            | GroupError::HasThreads
            | GroupError::Unsupported(_) => ErrorKind::Unsupported,
            GroupError::NoSuchMember { .. } => ErrorKind::NotFound,
            GroupError::StillQueued { .. } => ErrorKind::TimedOut,
            GroupError::PredecessorLeaving | GroupError::HandingOver => ErrorKind::ResourceBusy,
            GroupError::HandedOver | GroupError::Stopped => ErrorKind::BrokenPipe,
            _ => ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}
