//! How a program without `std` ends on Ctrl-C with nothing lost.
//!
//! All threads block the signal, and `main` waits for it by `sigwait`: so it can arrive neither
//! before nor between two calls of `accept`, as it would with a handler. Then the listeners refuse
//! new clients, the acceptors serve what is queued, and `shutdown` ends their `accept`.

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::net::Ipv4Addr;
use core::ptr;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};

use minimal::{check, fail, line, port};
use reuseport::{AcceptAction, Connection, Error, Listener, sys};

const THREADS: usize = 3;

/// How long handshakes under way are waited for, in microseconds: a lost SYN-ACK is sent again
/// after 1 s. A listener does not tell how many it has.
const GRACE: u32 = 1_200_000;
const POLL_INTERVAL: u32 = 1_000;

/// `SO_BINDTOIFINDEX` (Linux 5.0), and an interface that does not exist.
const SO_BINDTOIFINDEX: c_int = 62;
static NOWHERE: c_int = c_int::MAX;

/// SIGINT and SIGTERM, blocked in this thread and in those that it starts.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them. This comes before the first thread.
    #[must_use]
    pub fn block() -> Signals {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `set` is writable; the call initialises it.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for signal in [libc::SIGINT, libc::SIGTERM] {
            // SAFETY: initialised above.
            unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
        }
        // SAFETY: initialised above.
        let signals = Signals(unsafe { set.assume_init() });
        signals.mask(libc::SIG_BLOCK);
        signals
    }

    /// Waits for one of them. The next one ends the program at once.
    pub fn wait(&self) {
        let mut signal = 0;
        // SAFETY: the set is readable, and `signal` writable.
        let code = unsafe { libc::sigwait(&raw const self.0, &raw mut signal) };
        if code != 0 {
            fail("sigwait", code);
        }
        self.mask(libc::SIG_UNBLOCK);
    }

    fn mask(&self, how: c_int) {
        // SAFETY: the set is readable; null stands for "old mask not wanted".
        let code = unsafe { libc::pthread_sigmask(how, &raw const self.0, ptr::null_mut()) };
        if code != 0 {
            fail("pthread_sigmask", code);
        }
    }
}

/// A listener with the number of its descriptor, by which another thread can shut it down.
pub struct Server {
    listener: Listener,
    fd: c_int,
    pub line: [u8; 11],
}

impl Server {
    fn bind(number: usize) -> Server {
        let fd = AtomicI32::new(-1);
        let hook = |opened| {
            fd.store(opened, Relaxed);
            Ok(())
        };
        let options = Listener::options().before_bind(&hook);
        Server {
            listener: check(options.bind((Ipv4Addr::LOCALHOST, port()))),
            line: line(ptr::without_provenance_mut(number)),
            fd: fd.load(Relaxed),
        }
    }

    /// The next client; `None` when the listener has been shut down.
    pub fn accept(&self) -> Option<Connection> {
        loop {
            match self.listener.accept() {
                Ok(client) => return Some(client),
                Err(error) => match error.accept_action() {
                    AcceptAction::Closed => return None,
                    AcceptAction::Fatal => check(Err(error)),
                    AcceptAction::BackOff => pause(POLL_INTERVAL),
                    AcceptAction::Retry | AcceptAction::WouldBlock => {}
                },
            }
        }
    }

    /// Refuses new clients; handshakes under way go on. Since Linux 5.7 this needs no privilege.
    /// Before, a filter needs none, by which new clients wait in vain.
    fn turn_away(&self) {
        let (level, value) = (sys::SOL_SOCKET, (&raw const NOWHERE).cast());
        // SAFETY: the descriptor is the listener's. The option takes an int, which is readable.
        let bound = unsafe { sys::setsockopt(self.fd, level, SO_BINDTOIFINDEX, value, 4) };
        if bound.is_err() {
            _ = self.listener.attach_syn_filter();
        }
    }

    /// Waits until the acceptor has emptied the queue, which nothing reaches any more, and ends it.
    fn shut_down(&self) -> Result<(), Error> {
        while self.listener.queue()?.len > 0 {
            pause(POLL_INTERVAL);
        }
        // SAFETY: the descriptor is the listener's.
        unsafe { sys::shutdown(self.fd, sys::SHUT_RD) }
    }
}

/// Runs `acceptor` on three threads, each with a pointer to a [`Server`] of its own, until Ctrl-C.
/// Returns when all that was queued is served.
pub fn run_until(signals: &Signals, acceptor: extern "C" fn(*mut c_void) -> *mut c_void) {
    let servers: [Server; THREADS] = [Server::bind(0), Server::bind(1), Server::bind(2)];
    let mut threads = [const { MaybeUninit::<libc::pthread_t>::uninit() }; THREADS];
    for (thread, server) in threads.iter_mut().zip(&servers) {
        let server = ptr::from_ref(server).cast_mut().cast();
        // SAFETY: `thread` is writable, and the server outlives the acceptor, which is joined.
        let code =
            unsafe { libc::pthread_create(thread.as_mut_ptr(), ptr::null(), acceptor, server) };
        if code != 0 {
            fail("pthread_create", code);
        }
    }
    signals.wait();
    servers.iter().for_each(Server::turn_away);
    pause(GRACE);
    for server in &servers {
        check(server.shut_down());
    }
    for thread in &threads {
        // SAFETY: every one was created.
        let thread = unsafe { thread.assume_init() };
        // SAFETY: it is joined once; null stands for "no result wanted".
        unsafe { libc::pthread_join(thread, ptr::null_mut()) };
    }
}

fn pause(microseconds: u32) {
    // SAFETY: takes an integer.
    unsafe { libc::usleep(microseconds) };
}
