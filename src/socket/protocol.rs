//! The two kinds of socket, [`Tcp`] and [`Udp`]; and all in which their groups differ.

/// Connections, which a [`Listener`](crate::Listener) accepts.
#[derive(Clone, Copy, Debug)]
pub enum Tcp {}

/// Datagrams, which a [`UdpSocket`](crate::UdpSocket) socket receives.
#[derive(Clone, Copy, Debug)]
pub enum Udp {}

#[cfg(feature = "std")]
pub(crate) use differences::First;
#[cfg(feature = "std")]
pub use differences::Protocol;

#[cfg(feature = "std")]
mod differences {
    use core::fmt::Debug;
    use core::net::SocketAddr;
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::Instant;
    use std::vec::Vec;

    use crate::error::Error;
    use crate::group::GroupOptions;
    use crate::listener::Descriptor;
    use crate::server::worker::{Post, Way};
    use crate::server::{Plans, Server};
    use crate::socket::queue::Queue;

    /// How the first member comes to its port.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum First {
        /// Without the option, which goes on afterwards.
        Claims,
        /// With the option, among strangers.
        Joins,
        /// Without the option, for good.
        Alone,
    }

    /// [`Tcp`](crate::Tcp) or [`Udp`](crate::Udp): what a [`Group`](crate::Group) is of. There is
    /// no third: what it asks is between the rooms of this crate.
    #[allow(private_interfaces)]
    pub trait Protocol: Copy + Debug + Send + Sync + 'static {
        /// A member: [`Listener`](crate::Listener) or [`UdpSocket`](crate::UdpSocket).
        type Socket: AsFd + From<OwnedFd> + Debug + Send + Sync;
        #[doc(hidden)]
        /// How its threads wait.
        type Source: Send;
        #[doc(hidden)]
        /// What its threads are called.
        const WHO: &'static str;
        #[doc(hidden)]
        /// Whether what the kernel chooses a member for has bytes to choose by.
        const HAS_BYTES: bool;

        #[doc(hidden)]
        fn open(
            options: &GroupOptions<Self>,
            how: First,
            address: SocketAddr,
        ) -> Result<Self::Socket, Error>;

        #[doc(hidden)]
        fn descriptor(socket: &Self::Socket) -> &Descriptor;

        #[doc(hidden)]
        /// What waits; `None` where the kernel does not say.
        fn queue(socket: &Self::Socket) -> Option<Queue>;

        #[doc(hidden)]
        /// How a thread of this group is to wait.
        fn way(plans: &mut Plans<Self>) -> Result<Way<Self>, Error>;

        #[doc(hidden)]
        /// Lets the newcomers in among those that help each other.
        fn enter(_: &Plans<Self>, _: Vec<&Post<Self>>) -> Result<(), Error> {
            Ok(())
        }

        #[doc(hidden)]
        /// Whether who leaves has left the kernel's group once it takes no more.
        #[cfg(linux_kernel)]
        fn leaves_first(_: &Plans<Self>) -> bool {
            false
        }

        #[doc(hidden)]
        /// Keeps what is new from the members at `indexes`, who leave. `all`: nobody stays.
        #[cfg(linux_kernel)]
        fn take_no_more(
            server: &Server<Self>,
            plans: &Plans<Self>,
            indexes: &[usize],
            all: bool,
        ) -> Result<(), Error>;

        #[doc(hidden)]
        /// Waits until nothing more can come to the members at `indexes`, and nothing waits there.
        fn finish(
            server: &Server<Self>,
            plans: &mut Plans<Self>,
            indexes: &[usize],
            deadline: Instant,
        );

        #[doc(hidden)]
        /// Takes a member out of the kernel's group, and has its thread leave. It may come again.
        fn dismiss(post: &Post<Self>);
    }
}
