//! [`Group`]: several listeners on one port, made together and for this program alone.

mod error;
mod options;

use core::net::SocketAddr;
use std::os::fd::AsFd;
#[cfg(linux_kernel)]
use std::sync::Arc;
use std::vec::Vec;

use crate::claim::claim;
#[cfg(linux_kernel)]
use crate::cpus::Cpus;
use crate::error::{Call, Error};
use crate::inherit::Ready;
use crate::listener::Listener;
#[cfg(linux_kernel)]
use crate::steering;

pub use error::{GroupError, SpawnError};
use options::First;
pub use options::GroupOptions;
pub(crate) use options::MOST_THAT_STEAL;

/// Listeners on one port, in the order in which they began to listen: the kernel's own index order.
///
/// The port is claimed: a second copy of the program is refused with `EADDRINUSE`, where plain
/// `SO_REUSEPORT` would let it join in silence. All members exist or none does.
#[derive(Debug)]
pub struct Group {
    pub(crate) listeners: Vec<Listener>,
    pub(crate) site: Site,
    /// Who is told when they are served.
    pub(crate) ready: Option<Ready>,
}

/// Where the group is and how its members are made: all that it takes to add one.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    pub(crate) options: GroupOptions,
    /// Who opened its first socket.
    user: u32,
    /// The CPUs that whoever made it may run on.
    #[cfg(linux_kernel)]
    cpus: Result<Arc<[u32]>, Error>,
    /// Other processes hold the listeners too.
    pub(crate) inherited: bool,
}

impl Group {
    /// Claims `address` and binds `members` listeners to it; port 0 is any free port.
    ///
    /// Fails with `EADDRINUSE` if anybody listens there. Fails on a kernel that would give one
    /// listener everything, unless there is but one, or it is [`shared`](GroupOptions::shared).
    pub fn bind(address: impl Into<SocketAddr>, members: usize) -> Result<Group, GroupError> {
        Group::options().bind(address, members)
    }

    /// The general case.
    pub fn options() -> GroupOptions {
        GroupOptions::default()
    }

    fn make(
        first: First,
        address: SocketAddr,
        members: usize,
        options: &GroupOptions,
    ) -> Result<Group, GroupError> {
        let of_a_member = options.of_a_member().reuse_address(true);
        let listener = match first {
            First::Claims => claim(&of_a_member, address),
            First::Joins => of_a_member.bind(address),
            First::Alone => of_a_member.reuse_port(false).bind(address),
        };
        let listener = listener.map_err(|error| GroupError::call(error, address, 0))?;
        let mut group = Group::of(Vec::from([listener]), options.clone())?;
        while group.listeners.len() < members {
            group.open_one_more()?;
        }
        if options.is_steered() {
            group.steer(options.steering)?;
        }
        Ok(group)
    }

    /// Takes back what [`into_listeners`](Self::into_listeners) gave, in the same order. Nobody
    /// else may hold one of the listeners, nor a further socket on their port.
    ///
    /// Fails if there are none, or if they have different addresses.
    pub fn from_listeners(listeners: Vec<Listener>) -> Result<Group, GroupError> {
        let group = Group::of(listeners, Group::options())?;
        for (member, listener) in group.listeners.iter().enumerate() {
            if local_addr(listener, member)? != group.site.address {
                return Err(GroupError::Apart { member });
            }
        }
        Ok(group)
    }

    fn of(listeners: Vec<Listener>, options: GroupOptions) -> Result<Group, GroupError> {
        let address = local_addr(listeners.first().ok_or(GroupError::Empty)?, 0)?;
        let user = listeners.first().map_or_else(effective_user, owner);
        let site = Site {
            address,
            options,
            user,
            #[cfg(linux_kernel)]
            cpus: Cpus::allowed().map(|cpus| cpus.numbers().into()),
            inherited: false,
        };
        Ok(Group {
            listeners,
            site,
            ready: None,
        })
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
        let [only] = self.listeners.as_slice() else {
            return Err(GroupError::OneSocket);
        };
        self.site.options = self.site.options.shared(true);
        let copies = (1..acceptors).map(|member| self.site.share(only, member));
        let copies = copies.collect::<Result<Vec<_>, _>>()?;
        self.listeners.extend(copies);
        Ok(self)
    }

    /// Says how a group was made that this program has not made itself: how its acceptors work,
    /// and how members that are added later are made. Steering is noted, not changed: a predecessor
    /// that hands a group over leaves it steered.
    #[must_use]
    pub fn with(mut self, options: GroupOptions) -> Group {
        let shared = self.site.options.shared;
        self.site.options = options.shared(shared);
        self
    }

    /// Binds one more listener, which gets the highest index.
    ///
    /// Fails with [`GroupError::OtherUser`] if the group was made by another user than the process
    /// is now.
    pub fn add(&mut self) -> Result<(), GroupError> {
        if self.site.inherited {
            return Err(GroupError::Inherited);
        }
        self.open_one_more()?;
        let steering = self.site.options.steering;
        let steered = if self.site.options.is_steered() {
            self.steer(steering)
        } else {
            Ok(())
        };
        if steered.is_err() {
            self.listeners.pop();
        }
        steered
    }

    fn open_one_more(&mut self) -> Result<(), GroupError> {
        let member = self.listeners.len();
        let listener = match self.listeners.first() {
            Some(only) if self.site.options.shared => self.site.share(only, member)?,
            _ => self.site.open(member)?,
        };
        self.listeners.push(listener);
        Ok(())
    }

    /// Whether other processes hold the listeners too: see [`from_env`](Self::from_env).
    pub fn is_inherited(&self) -> bool {
        self.site.inherited
    }

    /// The address of every member.
    pub fn local_addr(&self) -> SocketAddr {
        self.site.address
    }

    /// The members, in index order.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Hands the members out in index order, for another runtime to serve. They stay a group, and
    /// steered as they were.
    pub fn into_listeners(self) -> Vec<Listener> {
        if let Some(ready) = self.ready {
            ready.say();
        }
        self.listeners
    }

    /// Changes how the kernel chooses a member, from the next connection on.
    ///
    /// Fails on kernels that cannot be told, for a joined or shared group, and for an index that
    /// no member has.
    pub fn steer(&mut self, steering: Steering) -> Result<(), GroupError> {
        if self.site.inherited {
            return Err(GroupError::Inherited);
        }
        steering.check(self.listeners.len())?;
        let before = self.site.options.set_steering(steering)?;
        #[cfg(linux_kernel)]
        if let Some(first) = self.listeners.first() {
            let slots: Vec<_> = (0..self.listeners.len()).collect();
            if let Err(error) = self.site.steer(first, &slots) {
                self.site.options.set_steering(before)?;
                return Err(error);
            }
        }
        _ = before;
        Ok(())
    }
}

impl Site {
    /// Opens a member for the group that is there already.
    pub(crate) fn open(&self, member: usize) -> Result<Listener, GroupError> {
        let options = self.options.of_a_member().reuse_address(true);
        options.bind(self.address).map_err(|error| {
            let now = effective_user();
            if error.errno() == libc::EADDRINUSE && now != self.user {
                return GroupError::OtherUser {
                    address: self.address,
                    member,
                    then: self.user,
                    now,
                };
            }
            GroupError::call(error, self.address, member)
        })
    }

    /// Another descriptor for the one socket of a shared group.
    pub(crate) fn share(&self, only: &Listener, member: usize) -> Result<Listener, GroupError> {
        let duplicate = only.as_fd().try_clone_to_owned().map_err(|error| {
            let errno = error.raw_os_error().unwrap_or_default();
            GroupError::call(Error::new(Call::Fcntl, errno), self.address, member)
        })?;
        Ok(duplicate.into())
    }

    /// The CPU of the acceptor in `slot`: the allowed ones in turn, and then from the start again.
    #[cfg(linux_kernel)]
    pub(crate) fn cpu_of(&self, slot: usize) -> Result<Option<u32>, Error> {
        let cpus = self.cpus.clone()?;
        Ok(cpus.get(slot % cpus.len().max(1)).copied())
    }

    /// Steers as the options say, through any one `member`. `slots` has the slot of each member,
    /// in index order.
    #[cfg(linux_kernel)]
    pub(crate) fn steer(&self, member: &Listener, slots: &[usize]) -> Result<(), GroupError> {
        let count = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let result = match self.options.steering {
            Steering::Hash => match member.unsteer() {
                Err(error) if error.errno() == libc::ENOENT => Ok(()),
                result => result,
            },
            Steering::Random => member.steer(&steering::random(count)),
            Steering::Except(index) => match u32::try_from(index) {
                Ok(index) if index < count => member.steer(&steering::except(count, index)),
                // It has left since: none is excepted.
                _ => member.steer(&steering::random(count)),
            },
            Steering::Cpu => self.cpus.clone().and_then(|cpus| {
                let row = |(index, slot): (u32, &usize)| Some((*cpus.get(*slot)?, index));
                let rows: Vec<_> = (0..).zip(slots).filter_map(row).collect();
                let rows = &rows[..rows.len().min((steering::MAX_INSTRUCTIONS - 2) / 2)];
                let mut space = std::vec![steering::Instruction::default(); 2 * rows.len() + 2];
                member.steer(steering::cpu(rows, &mut space).unwrap_or_default())
            }),
        };
        result.map_err(|error| GroupError::call(error, self.address, 0))
    }
}

fn local_addr(listener: &Listener, member: usize) -> Result<SocketAddr, GroupError> {
    let unknown = SocketAddr::from(([0; 4], 0));
    listener
        .local_addr()
        .map_err(|error| GroupError::call(error, unknown, member))
}

/// The effective user when the socket was opened: with whom its siblings must agree.
fn owner(listener: &Listener) -> u32 {
    // SAFETY: `stat` is made of integers and pointers, for which zeros are a value.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: `stat` is writable, the descriptor the listener's.
    match unsafe { libc::fstat(listener.raw(), &raw mut stat) } {
        0 => stat.st_uid,
        _ => effective_user(),
    }
}

fn effective_user() -> u32 {
    // SAFETY: takes nothing, and always succeeds.
    unsafe { libc::geteuid() }
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
