//! How the thread of a UDP member receives datagrams, one by one or in batches.

use core::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use super::member::{Entry, Member, MemberState};
use super::pool::Pool;
use super::worker::{Outcome, Work, Worker};
use crate::acceptors::{StopToken, Stopped};
use crate::address::SockAddr;
use crate::error::Error;
use crate::os;
use crate::socket::datagram::Datagram;
use crate::socket::destination::Destination;
use crate::socket::protocol::Udp;
use crate::socket::udp::UdpSocket;

/// How many datagrams a batch has at most.
#[cfg(linux_kernel)]
const BATCH_SIZE: usize = 32;

/// What a receiver thread does.
pub(super) struct Receiver<M, H> {
    pub(super) make: Arc<M>,
    pub(super) handler: Option<H>,
}

impl<M, H> Work<Udp> for Receiver<M, H>
where
    M: Fn(usize) -> H,
    H: FnMut(Datagram<'_>, &StopToken),
{
    fn prepare(&mut self, member: &Member<Udp>) -> bool {
        let (make, handler) = (&self.make, &mut self.handler);
        member.counters.catch(|| *handler = Some(make(member.id)))
    }

    fn serve(&mut self, pool: &Pool<Udp>, _: &Arc<Worker<Udp>>, member: &Member<Udp>) -> Outcome {
        let Some(handler) = &mut self.handler else {
            return Outcome::Ended;
        };
        let Stopped = if member.source.batch {
            member.receive_batches(pool, handler)
        } else {
            member.receive_one_by_one(pool, handler)
        };
        member.source.ended.store(true, Relaxed);
        Outcome::Ended
    }
}

impl Member<Udp> {
    fn receive_one_by_one(
        &self,
        pool: &Pool<Udp>,
        handler: &mut impl FnMut(Datagram<'_>, &StopToken),
    ) -> Stopped {
        let socket = &self.socket;
        let mut buffer = std::vec![0; self.source.max_datagram_size];
        let mut peer = SockAddr::empty();
        loop {
            if let Err(stopped) = self.wait() {
                return stopped;
            }
            let (len, truncated, destination) = match socket.receive(&mut buffer, &mut peer) {
                Ok(received) => received,
                Err(error) => match self.is_refused(error) {
                    Ok(()) => continue,
                    Err(stopped) => return stopped,
                },
            };
            if self.is_spare_copy(destination, pool) {
                continue;
            }
            let mut reply = None;
            let datagram = Datagram {
                socket,
                buffer: &mut buffer,
                len,
                truncated,
                peer: &peer,
                destination,
                reply: &mut reply,
                routing_byte: Some(self.routing_byte),
            };
            self.counters.run(|| handler(datagram, &self.stop));
            let reply = reply.and_then(|len| buffer.get(..len));
            if reply.is_some_and(|bytes| send(socket, bytes, &peer, destination).is_err()) {
                self.counters.transient_errors.fetch_add(1, Relaxed);
            }
        }
    }

    /// Waits until a datagram is there, where `recvmsg` does not. What is queued on an inherited
    /// socket is left to the processes that hold it.
    fn wait(&self) -> Result<(), Stopped> {
        let pipe = self.source.pipe.as_ref();
        let inherited = os::SHUTDOWN_WAKES; // elsewhere all sockets have a pipe
        pipe.map_or(Ok(()), |pipe| pipe.wait(self.raw(), inherited))
    }

    #[cold]
    fn is_refused(&self, error: Error) -> Result<(), Stopped> {
        if error.errno() == libc::EAGAIN && self.source.pipe.is_some() {
            // Another worker, or another process, has taken it, or its checksum was wrong: wait
            // again, on the pipe too.
            self.pause_after_many_failures();
            return Ok(());
        }
        self.handle_error(error)
    }

    #[cfg(linux_kernel)]
    fn receive_batches(
        &self,
        pool: &Pool<Udp>,
        handler: &mut impl FnMut(Datagram<'_>, &StopToken),
    ) -> Stopped {
        let mut buffer = std::vec![0; BATCH_SIZE * self.source.max_datagram_size];
        let mut batch = os::Batch::<BATCH_SIZE>::new(&mut buffer);
        loop {
            if let Err(stopped) = self.wait() {
                return stopped;
            }
            if let Err(error) = batch.receive(&self.socket) {
                match self.is_refused(error) {
                    Ok(()) => continue,
                    Err(stopped) => return stopped,
                }
            }
            for mut datagram in batch.datagrams(&self.socket) {
                datagram.routing_byte = Some(self.routing_byte);
                if !self.is_spare_copy(datagram.destination, pool) {
                    self.counters.run(|| handler(datagram, &self.stop));
                }
            }
            let (_, failed, _) = batch.try_replies(&self.socket);
            self.counters.transient_errors.fetch_add(failed, Relaxed);
        }
    }

    /// The option is refused here, so this is not reached.
    #[cfg(not(linux_kernel))]
    fn receive_batches(
        &self,
        pool: &Pool<Udp>,
        handler: &mut impl FnMut(Datagram<'_>, &StopToken),
    ) -> Stopped {
        self.receive_one_by_one(pool, handler)
    }

    /// Whether a datagram with this destination is a copy that another member handles: the first of
    /// those that serve, or that a new process has.
    fn is_spare_copy(&self, destination: Option<Destination>, pool: &Pool<Udp>) -> bool {
        if !self.source.single_copy || destination.is_none_or(|to| to.is_unicast()) {
            return false;
        }
        let list = pool.lock();
        let leaves = |entry: &&Entry<Udp>| entry.state == MemberState::Draining;
        let first = list.members.iter().min_by_key(leaves);
        first.is_some_and(|entry| entry.id() != self.id)
    }
}

/// Sends a reply, in spite of signals.
fn send(
    socket: &UdpSocket,
    bytes: &[u8],
    to: &SockAddr,
    from: Option<Destination>,
) -> Result<(), Error> {
    loop {
        match socket.send_from(bytes, to, from) {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result,
        }
    }
}
