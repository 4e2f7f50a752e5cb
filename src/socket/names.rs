//! [`Error::option`]: the names of socket options. How `main` prints an error.

use core::ffi::c_int;
use core::fmt;

use crate::error::Error;
use crate::os;
use crate::sys;

/// Level, number and C symbol of an option.
pub(crate) type Name = (c_int, c_int, &'static str);

macro_rules! names {
    ($($from:ident, $level:ident: $($name:ident)*;)*) => {
        &[$($(($crate::sys::$level, $from::$name, stringify!($name)),)*)*]
    };
}
pub(crate) use names;

/// What every kernel has.
const NAMES: &[Name] = names![
    sys, SOL_SOCKET: SO_REUSEPORT SO_REUSEADDR;
    os, SOL_SOCKET: SO_LINGER;
    libc, SOL_SOCKET: SO_KEEPALIVE SO_RCVBUF SO_SNDBUF SO_RCVTIMEO SO_SNDTIMEO;
    libc, IPPROTO_TCP: TCP_NODELAY;
    sys, IPPROTO_IPV6: IPV6_V6ONLY;
];

impl Error {
    /// Returns the C symbol of the socket option, `"SO_REUSEPORT"`, if the failed call is
    /// `setsockopt` or `getsockopt` and the option is one that this crate sets or reads.
    pub fn option(self) -> Option<&'static str> {
        let mut names = NAMES.iter().chain(os::OPTION_NAMES);
        let found = names.find(|(level, name, _)| self == self.of_option(*level, *name));
        found.map(|(.., symbol)| *symbol)
    }
}

/// Prints as `Display` does: it is what `main` prints of an error that it returns.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
