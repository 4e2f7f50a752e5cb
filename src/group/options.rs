//! [`GroupOptions`]: how to make a group, and what that means on which kernel.

use core::ffi::c_int;
use core::marker::PhantomData;
use core::net::SocketAddr;
use core::time::Duration;
use std::sync::Arc;

use super::{Group, GroupError, Steering};
use crate::error::Error;
use crate::socket::options::{Options, Unshown};
use crate::socket::protocol::{First, Protocol, Tcp, Udp};

/// How to make a [`Group`].
#[derive(Clone, Debug)]
#[must_use]
#[allow(clippy::struct_excessive_bools)] // each is a switch of its own
pub struct GroupOptions<P = Tcp> {
    pub(crate) join: bool,
    pub(crate) shared: bool,
    pub(crate) steering: Steering,
    pub(crate) pin: bool,
    pub(crate) steal: bool,
    /// Its threads poll: further members must not block.
    pub(crate) nonblocking: bool,
    backlog: Option<c_int>,
    only_v6: Option<bool>,
    before_bind: Option<Unshown<Arc<Hook>>>,
    pub(crate) grace: Duration,
    pub(crate) batch: bool,
    pub(crate) room: usize,
    protocol: PhantomData<P>,
}

type Hook = dyn Fn(c_int) -> Result<(), Error> + Send + Sync;

impl<P> Default for GroupOptions<P> {
    fn default() -> GroupOptions<P> {
        GroupOptions {
            join: false,
            shared: false,
            steering: Steering::Hash,
            pin: false,
            steal: false,
            nonblocking: false,
            backlog: None,
            only_v6: None,
            before_bind: None,
            grace: Duration::from_secs(1),
            batch: false,
            room: LARGEST,
            protocol: PhantomData,
        }
    }
}

impl GroupOptions {
    /// An idle acceptor takes what waits for a busy sibling; its own listener comes first. Without
    /// it a connection waits behind the handler of the member that the kernel has chosen, while
    /// others idle. Costs one system call more for a connection. Linux and Android; elsewhere it is
    /// refused, and so are more than 128 members.
    pub fn steal(mut self, on: bool) -> GroupOptions {
        self.steal = on;
        self
    }

    /// As [`Options::backlog`], for each member.
    pub fn backlog(mut self, connections: c_int) -> GroupOptions {
        self.backlog = Some(connections);
        self
    }

    pub(crate) fn of_a_listener(&self) -> Options<'_> {
        let options = self.of_a_member().reuse_address(true);
        match self.backlog {
            Some(connections) => options.backlog(connections),
            None => options,
        }
    }
}

impl GroupOptions<Udp> {
    /// A receiver takes up to 32 datagrams that wait by one system call, and sends its answers by
    /// another. Without it each datagram costs a call, and each answer. Linux and Android;
    /// elsewhere it is refused.
    pub fn batch(mut self, on: bool) -> GroupOptions<Udp> {
        self.batch = on;
        self
    }

    /// How many bytes of a datagram a receiver has room for; of a longer one the rest is lost, and
    /// that is told. At least 1. Unset, and at most: 65 535, which is more than any has. Memory
    /// that no datagram has reached is not taken up.
    pub fn max_datagram_size(mut self, bytes: usize) -> GroupOptions<Udp> {
        self.room = bytes.clamp(1, LARGEST);
        self
    }
}

/// No datagram is longer: its length has 16 bits, which count its header too.
const LARGEST: usize = 65_535;

impl<P: Protocol> GroupOptions<P> {
    /// Joins a group that another program may have made already, claimed or not, or makes one that
    /// others may join. All must run under one effective user.
    ///
    /// Such a group is not steered: its indexes are not its own, and shift when a stranger leaves.
    pub fn join(mut self, on: bool) -> GroupOptions<P> {
        self.join = on;
        self
    }

    /// One socket in place of many: all acceptors wait on the same one. That is the manual page's
    /// older way, which no kernel refuses; whoever is idle takes the next connection or datagram.
    pub fn shared(mut self, on: bool) -> GroupOptions<P> {
        self.shared = on;
        self
    }

    /// How the kernel chooses a member. Linux and Android; elsewhere all but `Hash` is refused.
    pub fn steering(mut self, steering: Steering) -> GroupOptions<P> {
        self.steering = steering;
        self
    }

    /// Runs each acceptor on one CPU: of those that the program may use, acceptor 0 on the first,
    /// and so on, from the start again where there are more acceptors. Linux and Android;
    /// elsewhere it is refused.
    pub fn pin(mut self, on: bool) -> GroupOptions<P> {
        self.pin = on;
        self
    }

    /// As [`Options::only_v6`].
    pub fn only_v6(mut self, on: bool) -> GroupOptions<P> {
        self.only_v6 = Some(on);
        self
    }

    /// As [`Options::before_bind`], for each member, also one that is added later.
    pub fn before_bind<F>(mut self, hook: F) -> GroupOptions<P>
    where
        F: Fn(c_int) -> Result<(), Error> + Send + Sync + 'static,
    {
        self.before_bind = Some(Unshown(Arc::new(hook)));
        self
    }

    /// How long a member that leaves waits at most for the handshakes that it has begun, and for
    /// its handler. Unset: a second, which is enough for any round-trip time on earth.
    pub fn grace(mut self, grace: Duration) -> GroupOptions<P> {
        self.grace = grace;
        self
    }

    /// As [`Group::bind`].
    pub fn bind(
        &self,
        address: impl Into<SocketAddr>,
        members: usize,
    ) -> Result<Group<P>, GroupError> {
        Group::make(
            plan(crate::BALANCES, members, self)?,
            address.into(),
            members,
            self,
        )
    }

    /// Whether such a group may be steered like this.
    fn check_steering(&self) -> Result<(), GroupError> {
        let steered = self.steering != Steering::Hash;
        match () {
            () if (steered || self.pin || self.steal || self.batch) && !cfg!(linux_kernel) => {
                Err(GroupError::Unsupported)
            }
            () if steered && self.join => Err(GroupError::JoinedGroup),
            () if (steered || self.steal) && self.shared => Err(GroupError::SharedSocket),
            () if matches!(self.steering, Steering::Byte(_)) && !P::HAS_BYTES => {
                Err(GroupError::NoPayload)
            }
            () => Ok(()),
        }
    }

    /// Takes a steering for such a group, and returns the one before.
    pub(crate) fn set_steering(&mut self, steering: Steering) -> Result<Steering, GroupError> {
        let changed = GroupOptions {
            steering,
            ..self.clone()
        };
        changed.check_steering()?;
        Ok(core::mem::replace(self, changed).steering)
    }

    pub(crate) fn is_steered(&self) -> bool {
        self.steering != Steering::Hash
    }

    /// What the calls of each member are made with.
    pub(crate) fn of_a_member(&self) -> Options<'_, P> {
        let mut options = Options::new().nonblocking(self.nonblocking);
        if let Some(on) = self.only_v6 {
            options = options.only_v6(on);
        }
        match &self.before_bind {
            Some(Unshown(hook)) => options.before_bind(&**hook),
            None => options,
        }
    }
}

/// The most members that steal from one another: n of them are n * n registrations.
pub(crate) const MOST_THAT_STEAL: usize = 128;

/// What the options mean on a kernel that balances or does not.
fn plan<P: Protocol>(
    balances: bool,
    members: usize,
    options: &GroupOptions<P>,
) -> Result<First, GroupError> {
    let sockets = if options.shared {
        members.min(1)
    } else {
        members
    };
    options.check_steering()?;
    match sockets {
        0 => Err(GroupError::NoMembers),
        _ if options.steal && sockets > MOST_THAT_STEAL => Err(GroupError::TooMany),
        _ if !balances && (sockets > 1 || options.join) => Err(GroupError::NotBalanced),
        _ if options.join => Ok(First::Joins),
        1 if options.shared || !balances => Ok(First::Alone),
        _ => Ok(First::Claims),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_on_which_kernel() {
        let plain = Group::options();
        let (joined, shared) = (plain.clone().join(true), plain.clone().shared(true));
        for (balances, members, options, expected) in [
            (true, 0, &plain, Err(GroupError::NoMembers)),
            (true, 1, &plain, Ok(First::Claims)),
            (true, 3, &plain, Ok(First::Claims)),
            (true, 3, &joined, Ok(First::Joins)),
            (true, 3, &shared, Ok(First::Alone)),
            (true, 3, &shared.clone().join(true), Ok(First::Joins)),
            (false, 1, &plain, Ok(First::Alone)),
            (false, 2, &plain, Err(GroupError::NotBalanced)),
            (false, 2, &shared, Ok(First::Alone)),
            (false, 1, &joined, Err(GroupError::NotBalanced)),
        ] {
            assert_eq!(
                plan(balances, members, options),
                expected,
                "{members} {options:?}"
            );
        }
    }

    #[test]
    fn what_is_not_steered() {
        let random = Group::options().steering(Steering::Random);
        for (options, expected) in [
            (random.clone().join(true), Err(GroupError::JoinedGroup)),
            (random.clone().shared(true), Err(GroupError::SharedSocket)),
            (random, Ok(First::Claims)),
        ] {
            let expected = if cfg!(linux_kernel) {
                expected
            } else {
                Err(GroupError::Unsupported)
            };
            assert_eq!(plan(true, 3, &options), expected);
        }
    }
}
