//! The acceptors of a group: how each waits, how it is woken, and the order that the kernel keeps.

use core::mem;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::Builder;
use std::{boxed::Box, io, vec::Vec};

use crate::acceptors::{Acceptor, Count, Leave, Next, Seat, Stop};
use crate::error::{Call, Error, check};
use crate::listener::{Connection, Listener};
#[cfg(linux_kernel)]
use crate::sys;

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
    /// It polls the other end of this, which hangs up.
    HangUp(UnixStream),
}

/// What the acceptor of a listener that is about to be shut down has to know.
#[derive(Default)]
pub(crate) struct Flags {
    /// The listener has a packet filter, which its connections inherit.
    pub(crate) filtered: AtomicBool,
    /// What waited when the listener was shut down.
    waiting: Mutex<VecDeque<Connection>>,
}

/// Where connections come from.
enum Source {
    #[cfg(linux_kernel)]
    Alone(Alone),
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
            let source = Source::Alone(Alone(Arc::clone(&flags)));
            return Ok(Way {
                source,
                exit: Exit::ShutDown(flags),
            });
        }
        let errno = |error: io::Error| error.raw_os_error().unwrap_or_default();
        let pair = UnixStream::pair();
        let (near, far) = pair.map_err(|error| Error::new(Call::SocketPair, errno(error)))?;
        let source = Source::Polling(Polling {
            hung_up: far,
            inherited,
        });
        Ok(Way {
            source,
            exit: Exit::HangUp(near),
        })
    }

    /// Whether the listener must be one that does not block.
    pub(crate) const fn polls(inherited: bool) -> bool {
        inherited || cfg!(not(linux_kernel))
    }
}

/// Two system calls a connection: a blocking `accept` and the `close`.
#[cfg(linux_kernel)]
struct Alone(Arc<Flags>);

#[cfg(linux_kernel)]
impl Next for Alone {
    fn next(&mut self, seat: &Seat) -> Result<Connection, Leave> {
        loop {
            match seat.accept(&seat.listener) {
                Ok(Some(connection)) => {
                    if self.0.filtered.load(Relaxed) {
                        connection.unfilter();
                    }
                    return Ok(connection);
                }
                Ok(None) => {}
                Err(Leave) => return self.0.taken().pop_front().ok_or(Leave),
            }
        }
    }
}

#[cfg(linux_kernel)]
impl Flags {
    /// What was taken from the queue for the acceptor.
    pub(crate) fn taken(&self) -> MutexGuard<'_, VecDeque<Connection>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Three: `poll`, `accept`, `close`. For listeners that somebody else holds too, which must not be
/// shut down; and for kernels where that would wake nobody.
struct Polling {
    hung_up: UnixStream,
    inherited: bool,
}

impl Next for Polling {
    fn next(&mut self, seat: &Seat) -> Result<Connection, Leave> {
        let row = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut rows = [row(seat.listener.raw()), row(self.hung_up.as_raw_fd())];
        loop {
            // SAFETY: two rows, readable and writable; the descriptors are open.
            let result = unsafe { libc::poll(rows.as_mut_ptr(), 2, -1) };
            let [listener, hung_up] = rows;
            let leaving = check(Call::Poll, result).is_ok() && hung_up.revents != 0;
            // What waits on an inherited listener is for those who hold it on.
            if leaving && (self.inherited || listener.revents == 0) {
                return Err(Leave);
            }
            if let Some(connection) = seat.accept(&seat.listener)? {
                return Ok(connection);
            }
        }
    }
}

/// Takes a listener that nobody else holds out of its group, and wakes who waits there.
#[cfg(linux_kernel)]
pub(crate) fn shut_down(listener: &Listener) {
    // It fails where it has been done before.
    // SAFETY: the descriptor is the listener's.
    _ = unsafe { sys::shutdown(listener.raw(), sys::SHUT_RD) };
}

impl Post {
    pub(crate) fn id(&self) -> usize {
        self.acceptor.seat.id
    }

    pub(crate) fn listener(&self) -> &Listener {
        &self.acceptor.seat.listener
    }
}

impl Crew {
    /// What each has done, in the order of their numbers.
    pub(crate) fn counts(&self) -> Vec<Count> {
        let here = self
            .leaving
            .iter()
            .chain(&self.posts)
            .map(|post| post.acceptor.count());
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
        self.gone
            .extend(Vec::into_iter(ended).map(|post| post.acceptor.join()));
    }
}
