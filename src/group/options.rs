//! [`GroupOptions`]: how a group is made, steered and served.

use core::ffi::c_int;
use core::marker::PhantomData;
use core::net::SocketAddr;
use core::time::Duration;
use std::sync::Arc;

use super::{Group, GroupError, Steering};
use crate::error::Error;
use crate::os;
use crate::socket::options::{DebugOpaque, Options, Settings};
use crate::socket::protocol::{BindMode, Protocol, Tcp, Udp};

/// Options of a [`Group`], and of the [`Server`](crate::Server) that it becomes.
///
/// # Examples
/// ```
/// use reuseport::Group;
/// use std::time::Duration;
///
/// let options = Group::options().backlog(128).grace(Duration::from_secs(5)).spare_threads(64);
/// let group = options.bind("127.0.0.1:0".parse::<std::net::SocketAddr>()?, 4)?;
/// assert_eq!(group.sockets().len(), 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
#[allow(clippy::struct_excessive_bools)] // each is a switch of its own
pub struct GroupOptions<P = Tcp> {
    pub(crate) join: bool,
    pub(crate) shared: bool,
    pub(crate) steering: Steering,
    pub(crate) pin: bool,
    pub(crate) spare_threads: usize,
    /// The options of each member's socket.
    pub(super) socket: Settings,
    protocol: PhantomData<P>,
    pub(super) device: Option<Arc<str>>,
    pub(super) before_bind: Option<DebugOpaque<Arc<Hook>>>,
    pub(crate) grace: Duration,
    pub(crate) batch: bool,
    pub(crate) single_copy: bool,
    pub(crate) max_datagram_size: usize,
}

pub(super) type Hook = dyn Fn(c_int) -> Result<(), Error> + Send + Sync;

/// The payload of a datagram is shorter than this: its length has 16 bits and counts the header
/// too.
const MAX_DATAGRAM: usize = 65_535;

impl<P> Default for GroupOptions<P> {
    fn default() -> GroupOptions<P> {
        GroupOptions {
            join: false,
            shared: false,
            steering: Steering::Hash,
            pin: false,
            spare_threads: 512,
            socket: Options::<P>::new().settings,
            protocol: PhantomData,
            device: None,
            before_bind: None,
            grace: Duration::from_secs(3),
            batch: false,
            single_copy: false,
            max_datagram_size: MAX_DATAGRAM,
        }
    }
}

impl GroupOptions {
    /// Sets how many threads may be started beside one for each member. Default: 512.
    ///
    /// A handler that runs for more than 1 to 2 ms keeps its thread; a spare thread then accepts on
    /// its listener. So there may be more handlers at a time than members. A spare is started when
    /// it is needed, and ends after 5 s without work. It takes about 12 kB of the process's memory,
    /// and of the kernel's a stack (16 KiB on x86-64).
    ///
    /// With no spare left, connections wait behind the blocked handlers: as many silent clients as
    /// there are threads stop the server. [`Stats::starved`](crate::Stats::starved) counts it.
    ///
    /// With 0 there is one thread for each member, as in the C program: a connection waits until
    /// the handler of its member has returned.
    ///
    /// # Examples
    /// ```
    /// use reuseport::Group;
    ///
    /// let options = Group::options().spare_threads(64); // at most 66 handlers at a time
    /// let group = options.bind(([127, 0, 0, 1], 0), 2)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn spare_threads(mut self, threads: usize) -> GroupOptions {
        self.spare_threads = threads;
        self
    }
}

impl GroupOptions<Udp> {
    /// Has a receiver take up to 32 queued datagrams with one system call, and send its replies
    /// with another. Default: off, one call for each datagram and each reply.
    ///
    /// # Platforms
    /// Linux and Android; elsewhere it is refused.
    pub fn batch(mut self, on: bool) -> GroupOptions<Udp> {
        self.batch = on;
        self
    }

    /// Has one member handle a datagram that was sent by multicast or broadcast. The kernel gives a
    /// copy to every member, and ignores the steering; the others discard theirs. Default: off.
    ///
    /// While members come and go, or a new process takes over, such a datagram may be handled
    /// twice, or not at all.
    ///
    /// # Platforms
    /// Linux and Android; elsewhere it is refused.
    pub fn single_copy(mut self, on: bool) -> GroupOptions<Udp> {
        self.single_copy = on;
        self.socket.destination = on;
        self
    }

    /// Sets the size of the buffer for each datagram, in bytes: 1 to 65 535, the default; other
    /// values are cut to that. A longer datagram is truncated, and
    /// [`Datagram::is_truncated`](crate::Datagram::is_truncated) returns true. The memory is used
    /// only as far as datagrams fill it.
    pub fn max_datagram_size(mut self, bytes: usize) -> GroupOptions<Udp> {
        self.max_datagram_size = bytes.clamp(1, MAX_DATAGRAM);
        self
    }
}

impl<P: Protocol> GroupOptions<P> {
    /// Joins the sockets that other programs of the same effective user have on the port, or opens
    /// the port for them. Default: off, the port is bound exclusively.
    ///
    /// A joined group cannot be steered: sockets of other processes are in it, and the indexes
    /// change when one of them closes.
    pub fn join(mut self, on: bool) -> GroupOptions<P> {
        self.join = on;
        self
    }

    /// Opens one socket, on which all workers wait, in place of one for each member. It works on
    /// every kernel. An idle worker takes the next connection or datagram. Default: off.
    pub fn shared(mut self, on: bool) -> GroupOptions<P> {
        self.shared = on;
        self
    }

    /// Sets how the kernel chooses a member. Default: [`Steering::Hash`].
    ///
    /// # Platforms
    /// Linux and Android; elsewhere all but `Hash` is refused.
    pub fn steering(mut self, steering: Steering) -> GroupOptions<P> {
        self.steering = steering;
        self
    }

    /// Runs the workers of each member on one CPU: of those that the process may use, member 0 on
    /// the first, and so on; from the first again where there are more members. Default: off.
    ///
    /// A process or thread that a handler starts there stays on that CPU too, unless it changes its
    /// own set. The new process of a hand-over does not.
    ///
    /// # Platforms
    /// Linux and Android; elsewhere it is refused.
    pub fn pin(mut self, on: bool) -> GroupOptions<P> {
        self.pin = on;
        self
    }

    /// Sets how long a member that leaves waits at most for its handshakes, its queue and its
    /// handlers. Default: 3 s.
    ///
    /// Where the last packet of a handshake is lost, the kernel sends its own again after 1 s, and
    /// after 3 s for the second time. So a grace of 1 s resets clients whose packet was lost once;
    /// the default leaves them 2 s for the round trip.
    pub fn grace(mut self, grace: Duration) -> GroupOptions<P> {
        self.grace = grace;
        self
    }

    /// Binds `members` sockets to `address`, as [`Group::bind`].
    ///
    /// # Errors
    /// Those of [`Group::bind`], and [`GroupError::Unsupported`], [`GroupError::JoinedGroup`],
    /// [`GroupError::SharedSocket`] and [`GroupError::NoPayload`] for options that exclude each
    /// other; [`GroupError::InvalidConnectionId`] and [`GroupError::TooManyMembers`] for
    /// [`Steering::Quic`].
    pub fn bind(
        &self,
        address: impl Into<SocketAddr>,
        members: usize,
    ) -> Result<Group<P>, GroupError> {
        let mode = bind_mode(crate::BALANCES, members, self)?;
        Group::make(mode, address.into(), members, self)
    }

    /// Checks that such a group can be steered and served like this.
    fn check(&self) -> Result<(), GroupError> {
        let steered = self.steering != Steering::Hash;
        let by_payload = matches!(self.steering, Steering::Byte(_) | Steering::Quic { .. });
        match () {
            () if steered && !os::STEERS => Err(GroupError::Unsupported("steering")),
            () if self.pin && !os::STEERS => Err(GroupError::Unsupported("pinning")),
            () if self.batch && !os::STEERS => Err(GroupError::Unsupported("receiving in batches")),
            () if self.single_copy && !os::STEERS => Err(GroupError::Unsupported("single copies")),
            () if steered && self.join => Err(GroupError::JoinedGroup),
            () if steered && self.shared => Err(GroupError::SharedSocket),
            () if by_payload && !P::HAS_PAYLOAD => Err(GroupError::NoPayload),
            () => self.steering.check_id(),
        }
    }

    /// Sets the steering, if such a group can have it, and returns the one before.
    pub(crate) fn set_steering(&mut self, steering: Steering) -> Result<Steering, GroupError> {
        let changed = GroupOptions {
            steering,
            ..self.clone()
        };
        changed.check()?;
        Ok(core::mem::replace(self, changed).steering)
    }

    pub(crate) fn is_steered(&self) -> bool {
        self.steering != Steering::Hash
    }
}

/// How the first member binds, on a kernel that balances or does not.
fn bind_mode<P: Protocol>(
    balances: bool,
    members: usize,
    options: &GroupOptions<P>,
) -> Result<BindMode, GroupError> {
    let sockets = if options.shared {
        members.min(1)
    } else {
        members
    };
    options.check()?;
    match sockets {
        0 => Err(GroupError::NoMembers),
        _ if !balances && (sockets > 1 || options.join) => Err(GroupError::NotBalanced),
        _ if options.join => Ok(BindMode::Join),
        1 if options.shared || !balances => Ok(BindMode::Single),
        _ => Ok(BindMode::Exclusive),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_mode_follows_from_kernel_and_options() {
        let plain = Group::options();
        let (joined, shared) = (plain.clone().join(true), plain.clone().shared(true));

        for (balances, members, options, expected) in [
            (true, 0, &plain, Err(GroupError::NoMembers)),
            (true, 1, &plain, Ok(BindMode::Exclusive)),
            (true, 3, &plain, Ok(BindMode::Exclusive)),
            (true, 3, &joined, Ok(BindMode::Join)),
            (true, 3, &shared, Ok(BindMode::Single)),
            (true, 3, &shared.clone().join(true), Ok(BindMode::Join)),
            (false, 1, &plain, Ok(BindMode::Single)),
            (false, 2, &plain, Err(GroupError::NotBalanced)),
            (false, 2, &shared, Ok(BindMode::Single)),
            (false, 1, &joined, Err(GroupError::NotBalanced)),
        ] {
            let mode = bind_mode(balances, members, options);
            assert_eq!(mode, expected, "{members} {options:?}");
        }
    }

    #[test]
    fn joined_and_shared_groups_are_not_steered() {
        let random = Group::options().steering(Steering::Random);

        for (options, expected) in [
            (random.clone().join(true), Err(GroupError::JoinedGroup)),
            (random.clone().shared(true), Err(GroupError::SharedSocket)),
            (random, Ok(BindMode::Exclusive)),
        ] {
            let unsupported = Err(GroupError::Unsupported("steering"));
            let expected = if os::STEERS { expected } else { unsupported };
            assert_eq!(bind_mode(true, 3, &options), expected);
        }
    }
}
