//! Options of an accepted [`Connection`].

use core::ffi::c_int;
use core::time::Duration;

use crate::address::socklen;
use crate::error::{Call, Error};
use crate::listener::Connection;
use crate::sys::{self, SOL_SOCKET};

impl Connection {
    /// Sets how long [`recv`](Self::recv) waits for the client: `SO_RCVTIMEO`. After that it fails
    /// with `EAGAIN`. `None`, the default, waits without limit.
    ///
    /// # Errors
    /// `EINVAL` if the time is zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> Result<(), Error> {
        self.set_timeout(libc::SO_RCVTIMEO, timeout)
    }

    /// Sets how long [`send`](Self::send) waits for space in the send buffer: `SO_SNDTIMEO`.
    /// After that it fails with `EAGAIN`. `None`, the default, waits without limit.
    ///
    /// # Errors
    /// `EINVAL` if the time is zero.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> Result<(), Error> {
        self.set_timeout(libc::SO_SNDTIMEO, timeout)
    }

    fn set_timeout(&self, name: c_int, timeout: Option<Duration>) -> Result<(), Error> {
        // To the kernel zero means no limit.
        if timeout == Some(Duration::ZERO) {
            return Err(Error::new(Call::SetSockOpt, libc::EINVAL));
        }
        let timeout = timeout.unwrap_or_default();
        // SAFETY: `timeval` is made of integers, for which zeros are a value.
        let mut value: libc::timeval = unsafe { core::mem::zeroed() };
        value.tv_sec = timeout.as_secs().try_into().unwrap_or(i32::MAX.into());
        // Not to zero, and at most 999 999, which every type of the field holds.
        let micros = timeout.subsec_nanos().div_ceil(1000).min(999_999);
        #[allow(clippy::cast_lossless)] // the field has 32 bits on some systems, 64 on others
        let micros = micros as _;
        value.tv_usec = micros;
        let (at, len) = ((&raw const value).cast(), socklen::<libc::timeval>());
        // SAFETY: `value` is readable for `len` bytes, and the option takes that struct.
        unsafe { sys::setsockopt(self.raw(), SOL_SOCKET, name, at, len) }
    }
}
