//! [`Group`]: several sockets on one port, made together and for this program alone.

mod config;
mod error;
mod old_process;
mod options;
mod socket_options;
mod steering;

use core::net::SocketAddr;
use std::vec::Vec;

pub(crate) use config::GroupConfig;
pub use error::GroupError;
pub(crate) use old_process::{Left, OldProcess};
pub use options::GroupOptions;
pub use steering::Steering;
pub(crate) use steering::{Slot, unused_byte};

use crate::listener::Listener;
use crate::socket::protocol::{BindMode, Protocol, Tcp, Udp};
use crate::socket::udp::UdpSocket;

/// Sockets on one port, listeners or UDP sockets, in the kernel's index order: the order of their
/// `listen`, or of their `bind` for UDP.
///
/// The port is bound exclusively: a second copy of the program is refused with `EADDRINUSE`, where
/// plain `SO_REUSEPORT` would let it join silently. All members exist or none does.
///
/// That is a guard against accidents. Once the group is made its sockets have the option, and
/// another program of the same user can join by setting it before `bind`, as
/// [`join`](GroupOptions::join) does.
///
/// # Examples
/// ```
/// use reuseport::Group;
///
/// let group = Group::bind("127.0.0.1:0".parse::<std::net::SocketAddr>()?, 3)?;
/// assert_eq!(group.sockets().len(), 3);
/// let second = Group::bind(group.local_addr(), 3);
/// assert_eq!(second.unwrap_err().error().unwrap().errno(), libc::EADDRINUSE);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping a group closes its sockets"]
pub struct Group<P: Protocol = Tcp> {
    pub(crate) sockets: Vec<P::Socket>,
    pub(crate) config: GroupConfig<P>,
    /// The routing bytes of the first members: those that an old process has passed.
    pub(crate) routing_bytes: Vec<u8>,
    /// The process that has handed the group over, if one has.
    pub(crate) old_process: Option<OldProcess>,
}

impl Group {
    /// Binds `members` listeners to `address`, exclusively. Port 0 is any free port.
    ///
    /// # Errors
    /// - [`GroupError::Call`]: a system call failed. Of `bind` or `listen`, `EADDRINUSE`: another
    ///   socket listens there, or has the port. Of `bind`, `EACCES`: the port is below
    ///   `net.ipv4.ip_unprivileged_port_start`, 1024 by default; `EADDRNOTAVAIL`: the machine does
    ///   not have the address. Of `socket`, `EMFILE`: no descriptor is left.
    /// - [`GroupError::NotBalanced`]: this kernel would give one listener all connections, and more
    ///   than one member was asked for ([`shared`](GroupOptions::shared) works there).
    /// - [`GroupError::NoMembers`]: `members` is 0.
    pub fn bind(address: impl Into<SocketAddr>, members: usize) -> Result<Group, GroupError> {
        Group::options().bind(address, members)
    }

    /// Returns the options of a group of listeners, to bind it with.
    pub fn options() -> GroupOptions {
        GroupOptions::default()
    }

    /// Binds `members` UDP sockets to `address`, exclusively, as [`bind`](Group::bind) does
    /// listeners.
    ///
    /// # Errors
    /// Those of [`bind`](Group::bind); `EADDRINUSE` if another socket is bound to the port.
    pub fn bind_udp(
        address: impl Into<SocketAddr>,
        members: usize,
    ) -> Result<Group<Udp>, GroupError> {
        Group::udp_options().bind(address, members)
    }

    /// Returns the options of a group of UDP sockets, to bind it with.
    pub fn udp_options() -> GroupOptions<Udp> {
        GroupOptions::default()
    }

    /// Makes a group of listeners that listen already, in index order: the order of their `listen`.
    /// [`into_sockets`](Self::into_sockets) returns them so.
    ///
    /// No other process may hold one of the listeners, nor a further one on their port.
    ///
    /// # Errors
    /// [`NoMembers`](GroupError::NoMembers) if there are none;
    /// [`AddressMismatch`](GroupError::AddressMismatch),
    /// [`NamespaceMismatch`](GroupError::NamespaceMismatch) and
    /// [`OptionMismatch`](GroupError::OptionMismatch) if the kernel has them in different groups;
    /// [`Call`](GroupError::Call) if one is no bound IP socket.
    pub fn from_listeners(listeners: Vec<Listener>) -> Result<Group, GroupError> {
        Group::from_sockets(listeners)
    }
}

impl Group<Udp> {
    /// Makes a group of UDP sockets that are bound already, as
    /// [`from_listeners`](Group::from_listeners); the index order is that of their `bind`.
    ///
    /// # Errors
    /// Those of [`from_listeners`](Group::from_listeners).
    pub fn from_udp_sockets(sockets: Vec<UdpSocket>) -> Result<Group<Udp>, GroupError> {
        Group::from_sockets(sockets)
    }
}

impl<P: Protocol> Group<P> {
    /// Makes a group of sockets that another process has opened. `exclusive`: that process has
    /// given them away.
    pub(crate) fn inherited(
        sockets: Vec<P::Socket>,
        exclusive: bool,
    ) -> Result<Group<P>, GroupError> {
        let mut group = Group::from_sockets(sockets)?;
        group.config.inherited = !exclusive;
        Ok(group)
    }

    /// Duplicates the one socket of this group, so that `workers` share it, as with
    /// [`shared`](GroupOptions::shared): for a single socket that was inherited.
    ///
    /// # Errors
    /// [`GroupError::SharedSocket`] if the group has several sockets; [`GroupError::Call`] if no
    /// descriptor is left.
    pub fn share_among(mut self, workers: usize) -> Result<Group<P>, GroupError> {
        let [only] = self.sockets.as_slice() else {
            return Err(GroupError::SharedSocket);
        };
        self.config.options = self.config.options.shared(true);
        let copies = (1..workers).map(|member| self.config.share(only, member));
        let copies = copies.collect::<Result<Vec<_>, _>>()?;
        self.sockets.extend(copies);
        Ok(self)
    }

    /// Returns whether other processes hold the sockets too: see
    /// [`Group::from_env`](Group::from_env).
    pub fn is_inherited(&self) -> bool {
        self.config.inherited
    }

    fn make(
        mode: BindMode,
        address: SocketAddr,
        members: usize,
        options: &GroupOptions<P>,
    ) -> Result<Group<P>, GroupError> {
        let socket = P::open(&options.socket_options(), mode, address);
        let socket = socket.map_err(|error| GroupError::call(error, address, 0))?;
        let mut group = Group::new(Vec::from([socket]), options.clone())?;
        while group.sockets.len() < members {
            group.open_one_more()?;
        }
        if options.is_steered() {
            group.set_steering(options.steering)?;
        }
        Ok(group)
    }

    fn from_sockets(sockets: Vec<P::Socket>) -> Result<Group<P>, GroupError> {
        let group = Group::new(sockets, GroupOptions::default())?;
        for (member, socket) in group.sockets.iter().enumerate() {
            let address = group.config.address;
            if local_addr::<P>(socket, member)? != address {
                return Err(GroupError::AddressMismatch { member });
            }
            group.config.check_alike(socket, member)?;
            let adopted = P::adopt(socket, address);
            adopted.map_err(|error| GroupError::call(error, address, member))?;
        }
        Ok(group)
    }

    fn new(sockets: Vec<P::Socket>, options: GroupOptions<P>) -> Result<Group<P>, GroupError> {
        let first = sockets.first().ok_or(GroupError::NoMembers)?;
        let config = GroupConfig::new(first, local_addr::<P>(first, 0)?, options);
        Ok(Group {
            sockets,
            config,
            routing_bytes: Vec::new(),
            old_process: None,
        })
    }

    /// Sets the options of a group that was inherited or made of sockets. They apply to its workers
    /// and to members that are added later. The steering program in the kernel is not changed.
    pub fn with_options(mut self, options: GroupOptions<P>) -> Group<P> {
        let shared = self.config.options.shared;
        self.config.options = options.shared(shared);
        self
    }

    /// Binds one more member, which gets the highest index.
    ///
    /// # Errors
    /// - [`GroupError::UserMismatch`]: the process has another effective user than when the group
    ///   was made.
    /// - [`GroupError::NamespaceMismatch`]: the calling thread is in another network namespace.
    /// - [`GroupError::Inherited`]: other processes hold the sockets too.
    /// - [`GroupError::PredecessorLeaving`]: the old process has not closed its sockets yet.
    /// - [`GroupError::JoinedGroup`]: it ended before it had left in order, so that the indexes are
    ///   not known.
    /// - [`GroupError::Call`]: a system call failed. The group is as it was.
    pub fn add(&mut self) -> Result<(), GroupError> {
        self.check_changeable()?;
        self.open_one_more()?;
        let mut steered = Ok(());
        if self.config.options.is_steered() {
            steered = self.set_steering(self.config.options.steering);
        }
        if steered.is_err() {
            self.sockets.pop();
        }
        steered
    }

    fn check_changeable(&self) -> Result<(), GroupError> {
        if self.config.inherited {
            return Err(GroupError::Inherited);
        }
        match self.old_process.as_ref().map(OldProcess::left) {
            Some(None) => Err(GroupError::PredecessorLeaving),
            Some(Some(Left::InAnyOrder)) => Err(GroupError::JoinedGroup),
            Some(Some(Left::InOrder)) | None => Ok(()),
        }
    }

    fn open_one_more(&mut self) -> Result<(), GroupError> {
        let member = self.sockets.len();
        let socket = match self.sockets.first() {
            Some(only) if self.config.options.shared => self.config.share(only, member)?,
            _ => self.config.open(member)?,
        };
        self.sockets.push(socket);
        Ok(())
    }

    /// The routing byte of each member, in index order.
    pub(crate) fn routing_bytes(&self) -> Vec<u8> {
        let mut bytes = self.routing_bytes.clone();
        while bytes.len() < self.sockets.len() {
            bytes.push(unused_byte(&bytes));
        }
        bytes
    }

    /// Returns the members, in index order.
    pub fn sockets(&self) -> &[P::Socket] {
        &self.sockets
    }

    /// Returns the members in index order, for another runtime to serve. They stay a group, and the
    /// kernel goes on choosing among them as it did.
    ///
    /// The runtime then closes them, and closing a listener resets its queue: see
    /// [the guide](crate::guide). [`into_server`](Group::into_server) keeps control and loses none.
    pub fn into_sockets(self) -> Vec<P::Socket> {
        if let Some(mut old_process) = self.old_process {
            old_process.notify();
            // It stays open as long as this process lives: closed, it would mean that it has ended.
            core::mem::forget(old_process);
        }
        self.sockets
    }

    /// Returns the address of every member.
    pub fn local_addr(&self) -> SocketAddr {
        self.config.address
    }

    /// Sets how the kernel chooses a member, from the next connection or datagram on.
    ///
    /// # Errors
    /// - [`GroupError::Unsupported`]: this kernel has no steering programs.
    /// - [`GroupError::JoinedGroup`], [`GroupError::SharedSocket`]: such a group has the hash.
    /// - [`GroupError::Inherited`], [`GroupError::PredecessorLeaving`]: as for [`add`](Self::add).
    /// - [`GroupError::NoSuchMember`]: no member has the index.
    /// - [`GroupError::NoPayload`]: TCP cannot be steered by a byte.
    /// - [`GroupError::InvalidConnectionId`], [`GroupError::TooManyMembers`]: see
    ///   [`Steering::Quic`].
    /// - [`GroupError::Call`]: the kernel refused the program.
    pub fn set_steering(&mut self, steering: Steering) -> Result<(), GroupError> {
        self.check_changeable()?;
        steering.check(self.sockets.len())?;
        let before = self.config.options.set_steering(steering)?;
        let Some(first) = self.sockets.first().filter(|_| self.config.can_steer()) else {
            return Ok(());
        };
        let bytes = self.routing_bytes().into_iter().enumerate();
        let slots: Vec<_> = bytes.map(|(index, byte)| Slot::new(index, byte)).collect();
        let steered = self.config.steer(first, &slots);
        if steered.is_err() {
            self.config.options.set_steering(before)?;
        }
        steered
    }
}

fn local_addr<P: Protocol>(socket: &P::Socket, member: usize) -> Result<SocketAddr, GroupError> {
    let unspecified = SocketAddr::from(([0; 4], 0));
    let address = P::descriptor(socket).local_addr();
    address.map_err(|error| GroupError::call(error, unspecified, member))
}
