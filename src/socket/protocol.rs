//! The two kinds of socket, [`Tcp`] and [`Udp`], and what a group needs from one socket.

/// The protocol of connections, which a [`Listener`](crate::Listener) accepts.
#[derive(Clone, Copy, Debug)]
pub enum Tcp {}

/// The protocol of datagrams, which a [`UdpSocket`](crate::UdpSocket) receives.
#[derive(Clone, Copy, Debug)]
pub enum Udp {}

#[cfg(feature = "std")]
pub use with_std::*;

#[cfg(feature = "std")]
mod with_std {
    use core::fmt::Debug;
    use core::net::SocketAddr;
    use std::os::fd::{AsFd, OwnedFd};

    use super::{Tcp, Udp};
    use crate::address::SockAddr;
    use crate::error::Error;
    use crate::listener::{Descriptor, Listener};
    use crate::os;
    use crate::socket::destination::{is_shared, report_destination};
    use crate::socket::options::Options;
    use crate::socket::queue::{AcceptQueue, ReceiveBuffer};
    use crate::socket::udp::UdpSocket;

    /// How a socket binds its port.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum BindMode {
        /// Without `SO_REUSEPORT`, which is set afterwards: the first member.
        Exclusive,
        /// With it, beside other sockets.
        Join,
        /// With it, in the group of an exclusive first member.
        Member,
        /// Without it, permanently.
        Single,
    }

    /// [`Tcp`] or [`Udp`]: what a [`Group`](crate::Group) is made of.
    ///
    /// The trait is sealed: there is no third protocol.
    pub trait Protocol: Sealed + Copy + Debug + Send + Sync + 'static {
        /// A member: [`Listener`] or [`UdpSocket`].
        type Socket: AsFd + From<OwnedFd> + Debug + Send + Sync;

        /// What is queued on a member: [`AcceptQueue`] or [`ReceiveBuffer`].
        type Queue: Copy + Debug + PartialEq + Send + Sync;

        /// Whether the packet that the kernel chooses a member for has a payload.
        #[doc(hidden)]
        const HAS_PAYLOAD: bool;

        /// Makes a socket and binds it; a listener also listens.
        #[doc(hidden)]
        fn open(
            options: &Options<'_, Self>,
            mode: BindMode,
            address: SocketAddr,
        ) -> Result<Self::Socket, Error>;

        /// Makes a socket with its options, and runs the user's hook.
        #[doc(hidden)]
        fn prepare(options: &Options<'_, Self>, address: SocketAddr)
        -> Result<Self::Socket, Error>;

        /// Binds such a socket beside others; a listener also listens.
        #[doc(hidden)]
        fn join(
            options: &Options<'_, Self>,
            mode: BindMode,
            socket: &Self::Socket,
            address: SocketAddr,
        ) -> Result<(), Error>;

        /// Sets the options that a group needs on a socket that it has not opened.
        #[doc(hidden)]
        fn adopt(_: &Self::Socket, _: SocketAddr) -> Result<(), Error> {
            Ok(())
        }

        #[doc(hidden)]
        fn descriptor(socket: &Self::Socket) -> &Descriptor;

        /// Returns what is queued; `None` if the kernel does not report it.
        #[doc(hidden)]
        fn queue(socket: &Self::Socket) -> Option<Self::Queue>;
    }

    /// Keeps [`Protocol`] to this crate.
    pub trait Sealed {}
    impl Sealed for Tcp {}
    impl Sealed for Udp {}

    impl Protocol for Tcp {
        type Socket = Listener;
        type Queue = AcceptQueue;
        const HAS_PAYLOAD: bool = false;

        fn open(
            options: &Options<'_>,
            mode: BindMode,
            address: SocketAddr,
        ) -> Result<Listener, Error> {
            let options = options.reuse_address(true);
            match mode {
                BindMode::Exclusive => os::bind_exclusive(&options, address),
                BindMode::Join | BindMode::Member => options.bind(address),
                BindMode::Single => options.reuse_port(false).bind(address),
            }
        }

        fn prepare(options: &Options<'_>, address: SocketAddr) -> Result<Listener, Error> {
            options.reuse_address(true).prepare(address)
        }

        fn join(
            options: &Options<'_>,
            _: BindMode,
            listener: &Listener,
            address: SocketAddr,
        ) -> Result<(), Error> {
            options.bind_prepared(listener, address)
        }

        fn descriptor(listener: &Listener) -> &Descriptor {
            &listener.0
        }

        fn queue(listener: &Listener) -> Option<AcceptQueue> {
            let [len, limit] = os::accept_queue(&listener.0).ok()?;
            let drops = os::receive_buffer(&listener.0).ok()?.drops;
            Some(AcceptQueue { len, limit, drops })
        }
    }

    impl Protocol for Udp {
        type Socket = UdpSocket;
        type Queue = ReceiveBuffer;
        const HAS_PAYLOAD: bool = true;

        fn open(
            options: &Options<'_, Udp>,
            mode: BindMode,
            address: SocketAddr,
        ) -> Result<UdpSocket, Error> {
            match mode {
                BindMode::Exclusive => os::bind_exclusive_udp(options, address),
                BindMode::Join => options.bind(address),
                BindMode::Member => {
                    let socket = options.prepare(address)?;
                    os::bind_member_udp(options, &socket, address)?;
                    Ok(socket)
                }
                BindMode::Single => options.reuse_port(false).bind(address),
            }
        }

        fn prepare(options: &Options<'_, Udp>, address: SocketAddr) -> Result<UdpSocket, Error> {
            options.prepare(address)
        }

        fn join(
            options: &Options<'_, Udp>,
            mode: BindMode,
            socket: &UdpSocket,
            address: SocketAddr,
        ) -> Result<(), Error> {
            if mode == BindMode::Member {
                return os::bind_member_udp(options, socket, address);
            }
            options.bind_prepared(socket, address)
        }

        fn adopt(socket: &UdpSocket, address: SocketAddr) -> Result<(), Error> {
            if !is_shared(address.ip()) {
                return Ok(());
            }
            report_destination(&socket.0, SockAddr::from(address).family())
        }

        fn descriptor(socket: &UdpSocket) -> &Descriptor {
            &socket.0
        }

        fn queue(socket: &UdpSocket) -> Option<ReceiveBuffer> {
            os::receive_buffer(&socket.0).ok()
        }
    }
}
