//! The acceptors of a group: how each waits, how it is woken, and the order that the kernel keeps.

use core::mem;
#[cfg(linux_kernel)]
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::thread::Builder;
use std::{boxed::Box, io, vec::Vec};

use crate::acceptors::{Acceptor, Seat, Stats};
use crate::error::{Call, Error};
#[cfg(linux_kernel)]
use crate::server::blocking::Flags;
use crate::socket::protocol::Protocol;
#[cfg(linux_kernel)]
use crate::{
    error::check,
    group::Row,
    server::stealing::{Epoll, Ring},
};

/// Every acceptor at work, in index order: where one leaves, the last takes its place, as in the
/// kernel's own array.
pub(crate) struct Crew<P: Protocol> {
    pub(crate) posts: Vec<Post<P>>,
    /// Those whose listener is closed to new connections, while a handler still runs.
    pub(crate) leaving: Vec<Post<P>>,
    /// What those did who are gone.
    pub(crate) gone: Vec<Stats>,
}

/// An acceptor at its place.
pub(crate) struct Post<P: Protocol> {
    pub(crate) acceptor: Acceptor<P::Socket>,
    pub(crate) exit: Exit,
    /// Which of the allowed CPUs is its own, where that matters.
    pub(crate) slot: usize,
}

/// How an acceptor is told to leave.
pub(crate) enum Exit {
    /// Its listener is this process's alone: shut down, it wakes whoever waits in `accept`.
    #[cfg(linux_kernel)]
    ShutDown(Arc<Flags>),
    /// Its epoll has an event for it.
    #[cfg(linux_kernel)]
    Dismiss(Arc<Ring>, Arc<Flags>, Arc<Epoll>),
    /// Its datagram socket is this process's alone: shut down, it wakes whoever waits there; and
    /// this takes its place.
    #[cfg(linux_kernel)]
    Replace(Arc<OwnedFd>),
    /// It polls the other end of this, which hangs up.
    HangUp(UnixStream),
}

/// What a thread begins with.
type Start<P> = (Arc<Seat<<P as Protocol>::Socket>>, <P as Protocol>::Source);

/// A thread with its handler, waiting for a socket: what can fail is done before there is one.
pub(crate) struct Parked<P: Protocol> {
    id: usize,
    start: mpsc::Sender<Start<P>>,
    thread: std::thread::JoinHandle<()>,
}

pub(crate) type Launch<P> = dyn FnMut(usize) -> Result<Parked<P>, Error> + Send;

/// What parks a thread with the work that `make` makes for its number.
pub(crate) fn launch<P, M, W>(mut make: M) -> Box<Launch<P>>
where
    P: Protocol,
    M: FnMut(usize) -> W + Send + 'static,
    W: FnOnce(&Seat<P::Socket>, P::Source) + Send + 'static,
{
    Box::new(move |id| {
        let work = make(id);
        let (start, begin) = mpsc::channel::<Start<P>>();
        let thread = Builder::new().name(std::format!("{}-{id}", P::WHO));
        let thread = thread.spawn(move || {
            if let Ok((seat, source)) = begin.recv() {
                work(&seat, source);
            }
        });
        let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EAGAIN);
        let thread = thread.map_err(|error| Error::new(Call::PthreadCreate, errno(error)))?;
        Ok(Parked { id, start, thread })
    })
}

impl<P: Protocol> Parked<P> {
    /// Sets it to work: nothing can fail any more.
    pub(crate) fn start(self, socket: P::Socket, way: Way<P>, slot: usize) -> Post<P> {
        let seat = Arc::new(Seat::new(self.id, socket));
        // It waits for nothing else.
        _ = self.start.send((Arc::clone(&seat), way.source));
        Post {
            acceptor: Acceptor {
                seat,
                thread: self.thread,
            },
            exit: way.exit,
            slot,
        }
    }
}

/// How an acceptor is to wait, and how to wake it.
pub(crate) struct Way<P: Protocol> {
    pub(crate) source: P::Source,
    pub(crate) exit: Exit,
}

/// The two ends of what tells a thread that polls to leave.
pub(crate) fn line() -> Result<(UnixStream, UnixStream), Error> {
    let errno = |error: io::Error| error.raw_os_error().unwrap_or_default();
    UnixStream::pair().map_err(|error| Error::new(Call::SocketPair, errno(error)))
}

/// A descriptor on which a thread may be told to leave; or that only is no socket.
#[cfg(linux_kernel)]
pub(crate) fn eventfd() -> Result<OwnedFd, Error> {
    // SAFETY: takes two integers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    let fd = check(Call::EventFd, fd)?;
    // SAFETY: the kernel has just opened it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl<P: Protocol> Post<P> {
    pub(crate) fn id(&self) -> usize {
        self.acceptor.seat.id
    }

    pub(crate) fn socket(&self) -> &P::Socket {
        &self.acceptor.seat.socket
    }

    /// As those know it who choose a member.
    #[cfg(linux_kernel)]
    pub(crate) fn row(&self) -> Row {
        Row {
            id: self.id(),
            slot: self.slot,
        }
    }

    /// Takes the socket back from an acceptor that has had nothing to do.
    #[cfg(linux_kernel)]
    pub(crate) fn disband(self) -> P::Socket {
        if let Exit::Dismiss(ring, _, epoll) = &self.exit {
            ring.leave(self.id());
            epoll.dismiss();
        }
        _ = self.acceptor.thread.join();
        let seat = self.acceptor.seat;
        match Arc::try_unwrap(seat) {
            Ok(seat) => seat.socket,
            Err(_) => unreachable!("the thread has ended and the ring has let go"),
        }
    }

    /// What the acceptor of a listener that is this process's alone has to know.
    #[cfg(linux_kernel)]
    pub(crate) fn flags(&self) -> Option<&Flags> {
        match &self.exit {
            Exit::ShutDown(flags) | Exit::Dismiss(_, flags, _) => Some(flags),
            Exit::Replace(_) | Exit::HangUp(_) => None,
        }
    }
}

impl<P: Protocol> Crew<P> {
    /// What each has done, in the order of their numbers.
    pub(crate) fn counts(&self) -> Vec<Stats> {
        let here = self.leaving.iter().chain(&self.posts);
        let here = here.map(|post| post.acceptor.count());
        let mut counts: Vec<Stats> = self.gone.iter().copied().chain(here).collect();
        counts.sort_by_key(|count| count.id);
        // Two that have worked on one listener, under one number, are told as one.
        counts.dedup_by(|later, first| {
            let same = later.id == first.id;
            if same {
                first.accepted += later.accepted;
                first.panicked += later.panicked;
                first.transient_errors += later.transient_errors;
                first.backoffs += later.backoffs;
                first.error = first.error.or(later.error);
                first.running |= later.running;
                first.stolen += later.stolen;
            }
            same
        });
        counts
    }

    /// Takes out the one at `index`; the last moves into its place.
    pub(crate) fn remove(&mut self, index: usize) {
        let post = self.posts.swap_remove(index);
        self.leaving.push(post);
    }

    /// Those whose thread has ended are gone, and their listeners closed.
    pub(crate) fn reap(&mut self) {
        let leaving = mem::take(&mut self.leaving).into_iter();
        let (ended, working) = leaving.partition(|post| post.acceptor.thread.is_finished());
        self.leaving = working;
        let ended = Vec::into_iter(ended).map(|post| post.acceptor.join());
        self.gone.extend(ended);
    }
}
