//! [`Error`]: the errno of a failed call, always with the name of the call.

use core::ffi::{CStr, c_int};
use core::fmt;

use libc::{EACCES, EAGAIN, EBADF, ECONNABORTED, ECONNREFUSED, ECONNRESET, EFAULT, EHOSTDOWN};
use libc::{EHOSTUNREACH, EINTR, EINVAL, EMSGSIZE, ENETDOWN, ENETUNREACH, ENOPROTOOPT, ENOTSOCK};
use libc::{EOPNOTSUPP, EPROTO, ETIMEDOUT};

#[cfg(any(target_os = "android", target_os = "netbsd", target_os = "openbsd"))]
use libc::__errno as errno_location;
#[cfg(any(target_os = "linux", target_os = "dragonfly"))]
use libc::__errno_location as errno_location;
#[cfg(any(target_os = "freebsd", target_os = "macos", target_os = "ios"))]
use libc::__error as errno_location;

macro_rules! calls {
    ($($call:ident = $name:literal)*) => {
        /// The system calls of this crate, by their C names; `before_bind` is the user's hook.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[allow(missing_docs)] // each is named for its call
        pub enum Call { $($call),* }

        impl Call {
            /// Returns the name as C and the manual pages spell it: `"bind"`.
            #[inline(always)]
            pub const fn name(self) -> &'static str {
                match self { $(Call::$call => $name),* }
            }
        }
    };
}

calls! {
    Socket = "socket" SetSockOpt = "setsockopt" Bind = "bind" Listen = "listen" Accept = "accept"
    Close = "close" Send = "send" Recv = "recv" Shutdown = "shutdown" GetSockOpt = "getsockopt"
    GetSockName = "getsockname" Ioctl = "ioctl" Fcntl = "fcntl" Poll = "poll" SendMsg = "sendmsg"
    Connect = "connect" SocketPair = "socketpair" Fstat = "fstat" EventFd = "eventfd"
    EpollCreate = "epoll_create1" EpollCtl = "epoll_ctl" EpollWait = "epoll_wait"
    SchedGetAffinity = "sched_getaffinity" SchedSetAffinity = "sched_setaffinity"
    PthreadCreate = "pthread_create" RecvMsg = "recvmsg" RecvMmsg = "recvmmsg" SendTo = "sendto"
    SendMmsg = "sendmmsg" Dup = "dup3" GetPeerName = "getpeername" BeforeBind = "before_bind"
}

/// A failed call: its name and its errno, in eight bytes. `Result<(), Error>` is eight bytes too.
///
/// It prints as `bind: EADDRINUSE: Address already in use (os error 98)`, `{:#}` without the call.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Error {
    call: Call,
    option: [u8; 3],
    errno: c_int,
}

impl Error {
    /// Makes the error of `call` with the number `errno`.
    pub const fn new(call: Call, errno: c_int) -> Error {
        let option = [0; 3];
        Error {
            call,
            option,
            errno,
        }
    }

    /// Makes the error of `call` from the present `errno(3)`: to be called right after `call`.
    #[inline(always)]
    pub fn last(call: Call) -> Error {
        // SAFETY: takes nothing; returns the address of the calling thread's own errno.
        let errno = unsafe { errno_location() };
        // SAFETY: that address is aligned and readable for as long as the thread lives.
        Error::new(call, unsafe { *errno })
    }

    /// Adds the option of `setsockopt` or `getsockopt`: the low bits, for which there is room.
    #[inline(always)]
    pub(crate) const fn of_option(mut self, level: c_int, name: c_int) -> Error {
        let ([level, ..], [low, high, ..]) = (level.to_le_bytes(), name.to_le_bytes());
        self.option = [level, low, high];
        self
    }

    /// Returns the call that failed.
    pub const fn call(self) -> Call {
        self.call
    }

    /// Returns the number that the call left in `errno(3)`.
    pub const fn errno(self) -> c_int {
        self.errno
    }

    /// Returns the C symbol, `"EADDRINUSE"`, if the manual pages of this crate's calls list it.
    pub fn symbol(self) -> Option<&'static str> {
        let row = SYMBOLS.iter().find(|row| row.0 == self.errno);
        row.map(|row| row.1)
    }

    /// Returns what a loop around `accept(2)`, or around `recvmsg(2)`, should do about this error.
    ///
    /// A kernel may report the network error of a queued connection as an error of `accept`
    /// (accept(2), "Error handling"): that connection is lost, and the listener still works.
    pub const fn accept_action(self) -> AcceptAction {
        match self.errno {
            EAGAIN => AcceptAction::WouldBlock,
            EINTR | EPROTO | ECONNABORTED | ECONNREFUSED | ECONNRESET | ENETDOWN | ENETUNREACH
            | EHOSTDOWN | EHOSTUNREACH | ENOPROTOOPT | ETIMEDOUT => AcceptAction::Retry,
            // A UDP socket reports so what ICMP says, once each: any host on the way can send it.
            EACCES | EMSGSIZE | EOPNOTSUPP if !matches!(self.call, Call::Accept) => {
                AcceptAction::Retry
            }
            #[cfg(linux_kernel)]
            libc::ENONET => AcceptAction::Retry,
            EINVAL => AcceptAction::Closed,
            EBADF | ENOTSOCK | EFAULT => AcceptAction::Fatal,
            // EMFILE, ENFILE, ENOBUFS, ENOMEM, a policy's EPERM, and what a later kernel may add.
            _ => AcceptAction::BackOff,
        }
    }
}

/// The action of an accept loop after an error: see [`Error::accept_action`].
#[cfg_attr(feature = "std", doc = include_str!("examples/accept_action.md"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AcceptAction {
    /// Accept again at once: one connection is lost, or a signal has arrived.
    Retry,
    /// Wait with `poll(2)`: the queue is empty, and the socket does not block.
    WouldBlock,
    /// Pause, then accept again: no descriptor or no memory is left, or a security policy refuses
    /// the call. The connection stays queued; without the pause the loop would spin.
    BackOff,
    /// End the loop: the listener was shut down.
    Closed,
    /// End the loop: the descriptor is no listener, and every later `accept` fails too.
    Fatal,
}

/// Turns C's −1 into the [`Error`] of `call`. It takes the result: `unsafe` stays at the call.
// Inlined, as the calls of `bind` are: a program then contains the names of its own calls only.
#[inline(always)]
pub(crate) fn check<T: Copy + PartialEq + From<i8>>(call: Call, result: T) -> Result<T, Error> {
    if result == T::from(-1) {
        Err(Error::last(call))
    } else {
        Ok(result)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            write!(f, "{}: ", self.call.name())?;
        }
        for symbol in [self.option(), self.symbol()].iter().flatten() {
            write!(f, "{symbol}: ")?;
        }
        let mut text = [0_u8; 128];
        // SAFETY: `text` is writable for its whole length; what is written there ends with a zero.
        unsafe { libc::strerror_r(self.errno, text.as_mut_ptr().cast(), text.len()) };
        let sentence = CStr::from_bytes_until_nul(&text).unwrap_or_default();
        let sentence = sentence.to_str().unwrap_or("unknown error");
        write!(f, "{sentence} (os error {})", self.errno)
    }
}

impl core::error::Error for Error {}

macro_rules! symbols {
    ($($symbol:ident)*) => { &[$((libc::$symbol, stringify!($symbol))),*] };
}

/// The numbers that the manual pages of the crate's calls list.
const SYMBOLS: &[(c_int, &str)] = symbols![
    EACCES EADDRINUSE EADDRNOTAVAIL EAFNOSUPPORT EAGAIN EBADF EBUSY ECONNABORTED ECONNREFUSED
    ECONNRESET EDESTADDRREQ EDOM EEXIST EFAULT EHOSTDOWN EHOSTUNREACH EINTR EINVAL EIO EISCONN
    EMFILE EMSGSIZE ENETDOWN ENETUNREACH ENFILE ENOBUFS ENOENT ENOMEM ENOPROTOOPT ENOSPC ENOTCONN
    ENOTSOCK EOPNOTSUPP EPERM EPIPE EPROTO EPROTONOSUPPORT EPROTOTYPE ESRCH ETIMEDOUT
];
