//! [`GroupConfig`]: where a group is bound, and how its members are made and steered.

use core::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use super::steering::{Slot, Steering};
use super::{GroupError, GroupOptions};
use crate::error::{Call, Error};
use crate::listener::Descriptor;
use crate::os;
use crate::socket::options::Options;
use crate::socket::protocol::{BindMode, Protocol, Tcp};
use crate::sys::{IPPROTO_IPV6, IPV6_V6ONLY};

/// What it takes to make one more member, and to steer to it.
#[derive(Clone, Debug)]
pub struct GroupConfig<P = Tcp> {
    pub(crate) address: SocketAddr,
    pub(crate) options: GroupOptions<P>,
    /// The user that opened the first member.
    user: u32,
    /// The network namespace of the first member.
    namespace: Option<u64>,
    /// `IPV6_V6ONLY` of the first member, if that has an IPv6 address. A member with another value
    /// would be in another group of the kernel, which gives IPv6 clients to one group alone.
    only_v6: Option<bool>,
    /// The interface that the first member is bound to, or 0.
    interface: u32,
    /// The CPUs that the thread which made the group may run on.
    pub(crate) cpus: Result<Arc<[u32]>, Error>,
    /// Whether other processes hold the sockets too.
    pub(crate) inherited: bool,
}

impl<P: Protocol> GroupConfig<P> {
    pub(super) fn new(
        first: &P::Socket,
        address: SocketAddr,
        options: GroupOptions<P>,
    ) -> GroupConfig<P> {
        GroupConfig {
            address,
            options,
            user: owner(first),
            namespace: os::namespace(P::descriptor(first).raw()),
            only_v6: only_v6(first, address),
            interface: os::interface(P::descriptor(first).raw()),
            cpus: os::allowed_cpus().map(Arc::from),
            inherited: false,
        }
    }

    /// Whether the group has a steering program of its own: not if its sockets are shared with
    /// other processes, or if it has only one socket.
    pub(crate) fn can_steer(&self) -> bool {
        let options = &self.options;
        os::STEERS && !options.join && !options.shared && !self.inherited
    }

    /// Opens the member that gets this index. The first one claims the port anew, for the members
    /// before it are gone.
    pub(crate) fn open(&self, member: usize) -> Result<P::Socket, GroupError> {
        let options = self.socket_options();
        let socket = P::open(&options, self.mode(member), self.address);
        let socket = socket.map_err(|error| self.failed(error, member))?;
        self.check_alike(&socket, member)?;
        Ok(socket)
    }

    fn socket_options(&self) -> Options<'_, P> {
        let options = self.options.socket_options();
        self.only_v6.map_or(options, |on| options.only_v6(on))
    }

    fn mode(&self, member: usize) -> BindMode {
        match member {
            0 if self.options.shared => BindMode::Single,
            0 if !self.options.join => BindMode::Exclusive,
            _ if self.options.join => BindMode::Join,
            _ => BindMode::Member,
        }
    }

    /// Makes the socket of a further member, which is in the group once it [joins](Self::join)
    /// that. The user's hook runs here.
    pub(crate) fn prepare(&self, member: usize) -> Result<P::Socket, GroupError> {
        let socket = P::prepare(&self.socket_options(), self.address);
        let socket = socket.map_err(|error| self.failed(error, member))?;
        self.check_alike(&socket, member)?;
        Ok(socket)
    }

    pub(crate) fn join(&self, socket: &P::Socket, member: usize) -> Result<(), GroupError> {
        let options = self.socket_options();
        let joined = P::join(&options, self.mode(member), socket, self.address);
        joined.map_err(|error| self.failed(error, member))
    }

    /// Checks that the kernel has a member in the group of the first: elsewhere it is in another
    /// one, on the same address.
    pub(super) fn check_alike(&self, socket: &P::Socket, member: usize) -> Result<(), GroupError> {
        let fd = P::descriptor(socket).raw();
        let both = self.namespace.zip(os::namespace(fd));
        let differs = |option| Err(GroupError::OptionMismatch { member, option });
        if both.is_some_and(|(first, its)| first != its) {
            Err(GroupError::NamespaceMismatch { member })
        } else if os::interface(fd) != self.interface {
            differs("SO_BINDTODEVICE")
        } else if only_v6(socket, self.address) != self.only_v6 {
            differs("IPV6_V6ONLY")
        } else {
            Ok(())
        }
    }

    fn failed(&self, error: Error, member: usize) -> GroupError {
        let actual = effective_user();
        // A port below 1024 is refused before the user is looked at.
        let refused = matches!(error.errno(), libc::EADDRINUSE | libc::EACCES);
        if refused && actual != self.user {
            return GroupError::UserMismatch {
                error,
                address: self.address,
                member,
                expected: self.user,
                actual,
            };
        }
        GroupError::call(error, self.address, member)
    }

    /// Duplicates the descriptor of the one socket of a shared group.
    pub(crate) fn share(&self, only: &P::Socket, member: usize) -> Result<P::Socket, GroupError> {
        let duplicate = only.as_fd().try_clone_to_owned().map_err(|error| {
            let errno = error.raw_os_error().unwrap_or_default();
            GroupError::call(Error::new(Call::Fcntl, errno), self.address, member)
        })?;
        Ok(duplicate.into())
    }

    /// Returns the CPU at `cpu_index`, if workers are pinned: the allowed CPUs in turn.
    pub(crate) fn pinned_cpu(&self, cpu_index: usize) -> Result<Option<u32>, Error> {
        if !self.options.pin {
            return Ok(None);
        }
        let cpus = self.cpus.clone()?;
        Ok(cpus.get(cpu_index % cpus.len().max(1)).copied())
    }

    /// Attaches the program that chooses among the eligible members of `slots`, which are all
    /// members of the kernel's group, in index order. Any member will do as `through`.
    pub(crate) fn steer(&self, through: &P::Socket, slots: &[Slot]) -> Result<(), GroupError> {
        self.options.steering.check_bytes(slots)?;
        let through = P::descriptor(through);
        let cpus = match (self.options.steering, &self.cpus) {
            (Steering::Cpu, Err(error)) => {
                return Err(GroupError::call(*error, self.address, 0));
            }
            (_, cpus) => cpus.as_deref().unwrap_or_default(),
        };
        let program = self.options.steering.program(slots, cpus, P::HAS_PAYLOAD);
        let Some(program) = program else {
            return self.detach_from(through);
        };
        let attached = os::attach_program(through, &program);
        attached.map_err(|error| GroupError::call(error, self.address, 0))
    }

    /// Detaches the program, if there is one: the kernel goes back to the hash.
    pub(crate) fn detach(&self, through: &P::Socket) -> Result<(), GroupError> {
        self.detach_from(P::descriptor(through))
    }

    fn detach_from(&self, through: &Descriptor) -> Result<(), GroupError> {
        match os::detach_program(through) {
            Err(error) if error.errno() != libc::ENOENT => {
                Err(GroupError::call(error, self.address, 0))
            }
            _ => Ok(()),
        }
    }
}

fn only_v6(socket: &impl AsFd, address: SocketAddr) -> Option<bool> {
    let fd = socket.as_fd().as_raw_fd();
    let asked = address.is_ipv6();
    let value = asked.then(|| os::option(fd, IPPROTO_IPV6, IPV6_V6ONLY));
    value.and_then(Result::ok).map(|on| on != 0)
}

/// The effective user when the socket was opened: all members must have the same.
fn owner(socket: &impl AsFd) -> u32 {
    // SAFETY: `stat` is made of integers and pointers, for which zeros are a value.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: `stat` is writable, the descriptor the socket's.
    match unsafe { libc::fstat(socket.as_fd().as_raw_fd(), &raw mut stat) } {
        0 => stat.st_uid,
        _ => effective_user(),
    }
}

fn effective_user() -> u32 {
    // SAFETY: takes nothing, and always succeeds.
    unsafe { libc::geteuid() }
}
