//! A server without threads: another runtime accepts, and the group stays under control.

use std::os::fd::AsFd;

use super::member::MemberState;
use super::{Serve, Server, SpawnError};
use crate::error::{Call, Error};
use crate::group::{Group, GroupError};
use crate::listener::Listener;
use crate::os;
use crate::socket::protocol::Udp;
use crate::socket::udp::UdpSocket;

impl<P: Serve> Group<P> {
    /// Returns a server without threads: another runtime, such as tokio or mio, accepts on the
    /// [listeners](Server::listener) of its members, or receives on their
    /// [sockets](Server::socket).
    ///
    /// The server steers, adds, retires, stops and hands over as one with threads does, with the
    /// same promises. Its calls block, some for the whole grace period, and so do the drops of the
    /// server and of a `HandOver`: in an asynchronous program they belong on a thread for blocking
    /// calls, with the server in an `Arc` (tokio: `spawn_blocking`, `hand_over` and `leave` in one
    /// closure). The listeners do not block; [`Stats`](crate::Stats) count nothing that the runtime
    /// does. `spare_threads`, `batch`, `max_datagram_size` and `single_copy` have no effect.
    ///
    /// **A member leaves** once the runtime has emptied its queue. Then its socket is shut down,
    /// and the runtime's next `accept` fails with `EINVAL`
    /// ([`AcceptAction::Closed`](crate::AcceptAction); `raw_os_error` of an `io::Error`): that ends
    /// its loop. Connections that it has accepted are its own to finish.
    ///
    /// **A runtime that drops its listener** without that leaves a member on which no one accepts.
    /// Its queue grows ([`MemberStats::queue`](crate::MemberStats::queue)), and `retire` fails with
    /// [`StillQueued`](GroupError::StillQueued). Nothing is lost yet:
    /// [`listener`](Server::listener) gives the socket out again. `stop`, the drop and
    /// `HandOver::leave` reset what is queued, and count it. The server cannot notice: the member
    /// counts as running, and `wait_failed` reports none. The runtime must not shut it down.
    ///
    /// **If `HandOver::leave` fails with `ChildExited`**, the members have new
    /// numbers: take the listener of each, and accept there. If a `HandOver` is dropped,
    /// what is queued on the members for the new process is reset after the grace period, and
    /// counted.
    ///
    /// Members of an [inherited](Group::is_inherited) group are never shut down, so `accept` does
    /// not fail: the runtime has to end its loops itself. What is queued is left to the process
    /// that holds the sockets, and the sockets stay as they are, not blocking.
    ///
    /// **A UDP member** that leaves is closed to all senders, and what is queued can still be read.
    /// The runtime gets no sign: what it has begun on that socket, it ends before `retire`, or
    /// between `hand_over` and `HandOver::leave`. Before Linux 6.13 such a member cannot leave, and
    /// stays until its process ends.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where `shutdown(2)` does not end an accept loop: on all but Linux and Android.
    /// `EMFILE` for inherited sockets, which take two descriptors each.
    ///
    /// # Examples
    /// ```
    /// use reuseport::Group;
    /// use std::{net::TcpListener, thread, time::Duration};
    ///
    /// let server = Group::bind(([127, 0, 0, 1], 0), 2)?.into_server()?;
    /// let mut threads = Vec::new();
    /// for member in server.members() {
    ///     let listener = TcpListener::from(server.listener(member.stats.id)?);
    ///     listener.set_nonblocking(false)?; // these threads wait in `accept`
    ///     threads.push(thread::spawn(move || loop {
    ///         match listener.accept() {
    ///             Ok((_client, _peer)) => {}
    ///             // The member has left.
    ///             Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
    ///             // No descriptor is left, for example.
    ///             Err(_) => thread::sleep(Duration::from_millis(50)),
    ///         }
    ///     }));
    /// }
    ///
    /// server.retire(0)?; // ends the first thread
    /// server.stop(Duration::from_secs(1));
    /// threads.into_iter().for_each(|thread| thread.join().unwrap());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn into_server(self) -> Result<Server<P>, SpawnError<P>> {
        if !os::SHUTDOWN_WAKES {
            let unsupported = Error::new(Call::Shutdown, libc::EOPNOTSUPP);
            return Err(SpawnError::new(unsupported, self));
        }
        self.start(None)
    }
}

impl Server {
    /// Duplicates the listener of a member, for another runtime to accept on: `fcntl(2)` with
    /// `F_DUPFD_CLOEXEC`. Closing the duplicate leaves the member in the group. Both have one
    /// `O_NONBLOCK`, which this call sets.
    ///
    /// # Errors
    /// - [`GroupError::HasThreads`]: the server was made by [`spawn`](Group::spawn).
    /// - [`GroupError::NoSuchMember`]: it has left, or is for a new process.
    /// - [`GroupError::Call`]: no descriptor can be had (`EMFILE`).
    pub fn listener(&self, member: usize) -> Result<Listener, GroupError> {
        self.duplicate(member)
    }
}

impl Server<Udp> {
    /// Duplicates the socket of a member, for another runtime to receive on, as
    /// [`listener`](Server::listener) duplicates a listener.
    ///
    /// # Errors
    /// Those of [`listener`](Server::listener).
    pub fn socket(&self, member: usize) -> Result<UdpSocket, GroupError> {
        self.duplicate(member)
    }
}

impl<P: Serve> Server<P> {
    fn duplicate(&self, member: usize) -> Result<P::Socket, GroupError> {
        if self.pool.work.is_some() {
            return Err(GroupError::HasThreads);
        }
        let state = self.pool.lock();
        let index = state.index_of(member);
        let own = |index: &usize| state.members[*index].state != MemberState::HandedOver;
        let unknown = GroupError::NoSuchMember { member };
        let index = index.filter(own).ok_or(unknown)?;
        let socket = &state.members[index].member.socket;
        let call = |error| GroupError::call(error, self.local_addr(), index);
        // A new process that has ended may have had it block.
        P::descriptor(socket).set_nonblocking(true).map_err(call)?;
        let duplicate = socket.as_fd().try_clone_to_owned().map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EMFILE);
            call(Error::new(Call::Fcntl, errno))
        })?;
        Ok(duplicate.into())
    }
}
