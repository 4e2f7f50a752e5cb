//! The acceptors of a group: how each waits, how it is woken, and the order that the kernel keeps.

use core::mem;
#[cfg(linux_kernel)]
use core::sync::atomic::Ordering::Relaxed;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::thread::Builder;
use std::{boxed::Box, io, vec::Vec};

use crate::acceptors::{Acceptor, Count, Seat, Stop};
#[cfg(linux_kernel)]
use crate::alone::{Alone, Flags};
use crate::error::{Call, Error};
use crate::listener::{Connection, Listener};
use crate::polling::Polling;
#[cfg(linux_kernel)]
use crate::stealing::{Epoll, Place, Ring, Stealing};

/// Every acceptor at work, in index order: where one leaves, the last takes its place, as in the
/// kernel's own array.
pub(crate) struct Crew {
    pub(crate) posts: Vec<Post>,
    /// Those whose listener is closed to new connections, while a handler still runs.
    pub(crate) leaving: Vec<Post>,
    /// What those did who are gone.
    pub(crate) gone: Vec<Count>,
}

/// An acceptor at its place.
pub(crate) struct Post {
    pub(crate) acceptor: Acceptor,
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
    /// It polls the other end of this, which hangs up.
    HangUp(UnixStream),
}

/// Where connections come from.
enum Source {
    #[cfg(linux_kernel)]
    Alone(Alone),
    #[cfg(linux_kernel)]
    Stealing(Stealing),
    Polling(Polling),
}

/// A thread with its handler, waiting for a listener: what can fail is done before one listens.
pub(crate) struct Parked {
    id: usize,
    start: mpsc::Sender<(Arc<Seat>, Source)>,
    thread: std::thread::JoinHandle<()>,
}

pub(crate) type Launch = dyn FnMut(usize) -> Result<Parked, Error> + Send;

/// What parks a thread with the handler that `make` makes for its number.
pub(crate) fn launch<M, H>(mut make: M) -> Box<Launch>
where
    M: FnMut(usize) -> H + Send + 'static,
    H: FnMut(Connection, &Stop) + Send + 'static,
{
    Box::new(move |id| {
        let handler = make(id);
        let (start, begin) = mpsc::channel::<(Arc<Seat>, Source)>();
        let thread = Builder::new()
            .name(std::format!("acceptor-{id}"))
            .spawn(move || match begin.recv() {
                #[cfg(linux_kernel)]
                Ok((seat, Source::Alone(source))) => seat.work(source, handler),
                #[cfg(linux_kernel)]
                Ok((seat, Source::Stealing(source))) => seat.work(source, handler),
                Ok((seat, Source::Polling(source))) => seat.work(source, handler),
                Err(mpsc::RecvError) => {}
            });
        let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EAGAIN);
        let thread = thread.map_err(|error| Error::new(Call::PthreadCreate, errno(error)))?;
        Ok(Parked { id, start, thread })
    })
}

impl Parked {
    /// Sets it to work: nothing can fail any more.
    pub(crate) fn start(self, listener: Listener, way: Way, slot: usize) -> Post {
        let seat = Arc::new(Seat::new(self.id, listener));
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
pub(crate) struct Way {
    source: Source,
    pub(crate) exit: Exit,
}

impl Way {
    /// `inherited`: other processes hold the listener too.
    pub(crate) fn new(inherited: bool) -> Result<Way, Error> {
        #[cfg(linux_kernel)]
        if !inherited {
            let flags = Arc::new(Flags::default());
            let source = Source::Alone(Alone::new(Arc::clone(&flags)));
            return Ok(Way {
                source,
                exit: Exit::ShutDown(flags),
            });
        }
        let errno = |error: io::Error| error.raw_os_error().unwrap_or_default();
        let pair = UnixStream::pair();
        let (near, far) = pair.map_err(|error| Error::new(Call::SocketPair, errno(error)))?;
        let source = Source::Polling(Polling::new(far, inherited));
        Ok(Way {
            source,
            exit: Exit::HangUp(near),
        })
    }

    /// As the others of the `ring` do, for a listener that does not block. The acceptor gets
    /// nothing before its [`Place`] has entered the ring.
    #[cfg(linux_kernel)]
    pub(crate) fn stealing(ring: &Arc<Ring>) -> Result<Way, Error> {
        let (ring, flags, epoll) = (Arc::clone(ring), Arc::default(), Arc::new(Epoll::new()?));
        let exit = Exit::Dismiss(Arc::clone(&ring), Arc::clone(&flags), Arc::clone(&epoll));
        let source = Source::Stealing(Stealing { ring, flags, epoll });
        Ok(Way { source, exit })
    }

    /// Whether the listener must be one that does not block.
    pub(crate) const fn polls(inherited: bool) -> bool {
        inherited || cfg!(not(linux_kernel))
    }
}

impl Post {
    pub(crate) fn id(&self) -> usize {
        self.acceptor.seat.id
    }

    pub(crate) fn listener(&self) -> &Listener {
        &self.acceptor.seat.listener
    }

    /// What it has done so far.
    pub(crate) fn count(&self) -> Count {
        let count = self.acceptor.count();
        #[cfg(linux_kernel)]
        let count = Count {
            stolen: self.flags().map_or(0, |flags| flags.stolen.load(Relaxed)),
            ..count
        };
        count
    }

    /// Takes the listener back from an acceptor that has had nothing to do.
    #[cfg(linux_kernel)]
    pub(crate) fn disband(self) -> Listener {
        if let Exit::Dismiss(ring, _, epoll) = &self.exit {
            ring.leave(&self.acceptor.seat);
            epoll.dismiss();
        }
        _ = self.acceptor.thread.join();
        let seat = self.acceptor.seat;
        match Arc::try_unwrap(seat) {
            Ok(seat) => seat.listener,
            Err(_) => unreachable!("the thread has ended and the ring has let go"),
        }
    }

    /// Waits for its end.
    pub(crate) fn join(self) -> Count {
        let stolen = self.count().stolen;
        Count {
            stolen,
            ..self.acceptor.join()
        }
    }

    /// What the acceptor of a listener that is this process's alone has to know.
    #[cfg(linux_kernel)]
    pub(crate) fn flags(&self) -> Option<&Flags> {
        match &self.exit {
            Exit::ShutDown(flags) | Exit::Dismiss(_, flags, _) => Some(flags),
            Exit::HangUp(_) => None,
        }
    }

    /// Where it stands in a ring of those who steal.
    #[cfg(linux_kernel)]
    pub(crate) fn place(&self) -> Option<Place> {
        let Exit::Dismiss(_, flags, epoll) = &self.exit else {
            return None;
        };
        let seat = Arc::clone(&self.acceptor.seat);
        Some(Place {
            seat,
            flags: Arc::clone(flags),
            epoll: Arc::clone(epoll),
        })
    }
}

impl Crew {
    /// What each has done, in the order of their numbers.
    pub(crate) fn counts(&self) -> Vec<Count> {
        let here = self.leaving.iter().chain(&self.posts).map(Post::count);
        let mut counts: Vec<Count> = self.gone.iter().copied().chain(here).collect();
        counts.sort_by_key(|count| count.acceptor);
        // Two that have worked on one listener, under one number, are told as one.
        counts.dedup_by(|later, first| {
            let same = later.acceptor == first.acceptor;
            if same {
                first.accepted += later.accepted;
                first.panicked += later.panicked;
                first.went_on += later.went_on;
                first.backed_off += later.backed_off;
                first.failed = first.failed.or(later.failed);
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
        self.gone.extend(Vec::into_iter(ended).map(Post::join));
    }
}
