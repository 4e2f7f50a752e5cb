//! [`Group`]: several sockets on one port, made together and for this program alone.

mod config;
mod error;
mod options;

use core::net::SocketAddr;
use std::vec::Vec;

use crate::listener::Listener;
use crate::restart::listen_fds::Ready;
use crate::socket::protocol::{First, Protocol, Tcp, Udp};
use crate::socket::udp::UdpSocket;

#[cfg(linux_kernel)]
pub(crate) use config::Row;
pub(crate) use config::Site;
pub use error::{GroupError, SpawnError};
pub use options::GroupOptions;
pub(crate) use options::MOST_THAT_STEAL;

/// Sockets on one port, listeners or datagram sockets, in the order in which they came to it: the
/// kernel's own index order.
///
/// The port is claimed: a second copy of the program is refused with `EADDRINUSE`, where plain
/// `SO_REUSEPORT` would let it join in silence. All members exist or none does.
///
/// That is for accidents. Once the group is made its sockets have the option, and another program
/// of the same user that sets it on purpose, as [`join`](GroupOptions::join) does, comes in.
#[derive(Debug)]
pub struct Group<P: Protocol = Tcp> {
    pub(crate) sockets: Vec<P::Socket>,
    pub(crate) site: Site<P>,
    /// Who is told when they are served.
    pub(crate) ready: Option<Ready>,
}

impl Group {
    /// Claims `address` and binds `members` listeners to it; port 0 is any free port.
    ///
    /// Fails with `EADDRINUSE` if anybody listens there. Fails on a kernel that would give one
    /// listener everything, unless there is but one, or it is [`shared`](GroupOptions::shared).
    pub fn bind(address: impl Into<SocketAddr>, members: usize) -> Result<Group, GroupError> {
        Group::options().bind(address, members)
    }

    /// The general case of [`bind`](Group::bind).
    pub fn options() -> GroupOptions {
        GroupOptions::default()
    }

    /// As [`bind`](Group::bind), but for datagrams.
    pub fn bind_udp(
        address: impl Into<SocketAddr>,
        members: usize,
    ) -> Result<Group<Udp>, GroupError> {
        Group::udp_options().bind(address, members)
    }

    /// The general case of [`bind_udp`](Group::bind_udp).
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
    /// [`AddressMismatch`](GroupError::AddressMismatch) if they have different addresses.
    pub fn from_listeners(listeners: Vec<Listener>) -> Result<Group, GroupError> {
        Group::from_sockets(listeners)
    }

    /// A group of one that another process has opened. `alone`: it has given it away.
    pub(crate) fn inherited(
        listener: Listener,
        alone: bool,
        ready: Option<Ready>,
    ) -> Result<Group, GroupError> {
        let mut group = Group::of(Vec::from([listener]), Group::options())?;
        group.site.inherited = !alone;
        group.ready = ready;
        Ok(group)
    }

    /// Has `acceptors` share the one listener of this group, as
    /// [`shared`](GroupOptions::shared) does: for a single one that was inherited.
    pub fn share_among(mut self, acceptors: usize) -> Result<Group, GroupError> {
        let [only] = self.sockets.as_slice() else {
            return Err(GroupError::SharedSocket);
        };
        self.site.options = self.site.options.shared(true);
        let copies = (1..acceptors).map(|member| self.site.share(only, member));
        let copies = copies.collect::<Result<Vec<_>, _>>()?;
        self.sockets.extend(copies);
        Ok(self)
    }

    /// Whether other processes hold the listeners too: see [`from_env`](Self::from_env).
    pub fn is_inherited(&self) -> bool {
        self.site.inherited
    }
}

impl Group<Udp> {
    /// Makes a group of UDP sockets that are bound already, as
    /// [`from_listeners`](Group::from_listeners); the index order is that of their `bind`.
    pub fn from_udp_sockets(sockets: Vec<UdpSocket>) -> Result<Group<Udp>, GroupError> {
        Group::from_sockets(sockets)
    }
}

impl<P: Protocol> Group<P> {
    fn make(
        first: First,
        address: SocketAddr,
        members: usize,
        options: &GroupOptions<P>,
    ) -> Result<Group<P>, GroupError> {
        let socket = P::open(options, first, address);
        let socket = socket.map_err(|error| GroupError::call(error, address, 0))?;
        let mut group = Group::of(Vec::from([socket]), options.clone())?;
        while group.sockets.len() < members {
            group.open_one_more()?;
        }
        if options.is_steered() {
            group.set_steering(options.steering)?;
        }
        Ok(group)
    }

    fn from_sockets(sockets: Vec<P::Socket>) -> Result<Group<P>, GroupError> {
        let group = Group::of(sockets, GroupOptions::default())?;
        for (member, socket) in group.sockets.iter().enumerate() {
            if local_addr::<P>(socket, member)? != group.site.address {
                return Err(GroupError::AddressMismatch { member });
            }
        }
        Ok(group)
    }

    fn of(sockets: Vec<P::Socket>, options: GroupOptions<P>) -> Result<Group<P>, GroupError> {
        let first = sockets.first().ok_or(GroupError::NoMembers)?;
        let site = Site::of(first, local_addr::<P>(first, 0)?, options);
        Ok(Group {
            sockets,
            site,
            ready: None,
        })
    }

    /// Says how a group was made that this program has not made itself: how its threads work, and
    /// how members that are added later are made. Steering is noted, not changed: a predecessor
    /// that hands a group over leaves it steered.
    #[must_use]
    pub fn with_options(mut self, options: GroupOptions<P>) -> Group<P> {
        let shared = self.site.options.shared;
        self.site.options = options.shared(shared);
        self
    }

    /// Binds one more member, which gets the highest index.
    ///
    /// Fails with [`GroupError::UserMismatch`] if the group was made by another user than the process
    /// is now.
    pub fn add(&mut self) -> Result<(), GroupError> {
        if self.site.inherited {
            return Err(GroupError::Inherited);
        }
        self.open_one_more()?;
        let steering = self.site.options.steering;
        let steered = if self.site.options.is_steered() {
            self.set_steering(steering)
        } else {
            Ok(())
        };
        if steered.is_err() {
            self.sockets.pop();
        }
        steered
    }

    fn open_one_more(&mut self) -> Result<(), GroupError> {
        let member = self.sockets.len();
        let socket = match self.sockets.first() {
            Some(only) if self.site.options.shared => self.site.share(only, member)?,
            _ => self.site.open(member)?,
        };
        self.sockets.push(socket);
        Ok(())
    }

    /// Returns the members, in index order.
    pub fn sockets(&self) -> &[P::Socket] {
        &self.sockets
    }

    /// Returns the members in index order, for another runtime to serve. They stay a group, and the
    /// kernel goes on choosing among them as it did.
    pub fn into_sockets(self) -> Vec<P::Socket> {
        if let Some(ready) = self.ready {
            ready.say();
        }
        self.sockets
    }

    /// The address of every member.
    pub fn local_addr(&self) -> SocketAddr {
        self.site.address
    }

    /// Changes how the kernel chooses a member, from the next connection or datagram on.
    ///
    /// Fails on kernels that cannot be told, for a joined or shared group (which have the hash, and
    /// keep it), and for an index that no member has.
    pub fn set_steering(&mut self, steering: Steering) -> Result<(), GroupError> {
        if self.site.inherited {
            return Err(GroupError::Inherited);
        }
        steering.check(self.sockets.len())?;
        let before = self.site.options.set_steering(steering)?;
        // In a joined group, who is steered by a program is a stranger's affair.
        #[cfg(linux_kernel)]
        if let (Some(first), false, false) = (
            self.sockets.first(),
            self.site.options.join,
            self.site.options.shared,
        ) {
            let rows: Vec<_> = (0..self.sockets.len()).map(Row::alike).collect();
            if let Err(error) = self.site.steer(first, &rows) {
                self.site.options.set_steering(before)?;
                return Err(error);
            }
        }
        _ = before;
        Ok(())
    }
}

fn local_addr<P: Protocol>(socket: &P::Socket, member: usize) -> Result<SocketAddr, GroupError> {
    let unknown = SocketAddr::from(([0; 4], 0));
    let address = P::descriptor(socket).local_addr();
    address.map_err(|error| GroupError::call(error, unknown, member))
}

/// Which member of the group the kernel gives a connection to (Linux, Android): see
/// the module `steering` for the programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Steering {
    /// A hash of the four-tuple decides: the kernel's own way.
    #[default]
    Hash,
    /// The member of the CPU that received it: of the CPUs that the program may run on, the first
    /// is member 0's, and so on. A CPU that has no member falls to the hash.
    Cpu,
    /// Any member, at random.
    Random,
    /// Any but the member with this index, at random.
    Except(usize),
    /// For datagrams: the member whose number, modulo 256, is the byte at this offset. Protocols
    /// that carry a connection's identity have a server write its own number there, and the flow
    /// comes back to it whatever its addresses are. A datagram that is too short, or that has no
    /// member's number, falls to the hash; and so does any in the moment in which a member leaves.
    Byte(u16),
}

impl Steering {
    /// Whether it makes sense among so many.
    pub(crate) fn check(self, members: usize) -> Result<(), GroupError> {
        match self {
            Steering::Except(index) if index >= members || members < 2 => {
                Err(GroupError::NoSuchMember)
            }
            _ => Ok(()),
        }
    }
}
