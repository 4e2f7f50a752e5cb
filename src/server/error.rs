//! [`SpawnError`]: no worker runs.

use core::fmt;
use std::boxed::Box;
use std::io;

use super::Serve;
use crate::error::Error;
use crate::group::Group;
use crate::socket::protocol::Tcp;

/// A group whose workers could not be started, with the group as it was.
pub struct SpawnError<P: Serve = Tcp> {
    error: Error,
    group: Box<Group<P>>,
}

impl<P: Serve> SpawnError<P> {
    pub(super) fn new(error: Error, group: Group<P>) -> SpawnError<P> {
        let group = Box::new(group);
        SpawnError { error, group }
    }

    /// Returns the failed system call.
    pub fn error(&self) -> Error {
        self.error
    }

    /// Returns the group, to try again or to give to another runtime.
    pub fn into_group(self) -> Group<P> {
        *self.group
    }
}

impl<P: Serve> fmt::Display for SpawnError<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "starting the {}s: {}", P::THREAD_NAME, self.error)
    }
}

impl<P: Serve> fmt::Debug for SpawnError<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<P: Serve> core::error::Error for SpawnError<P> {}

/// Keeps the errno and its kind.
impl<P: Serve> From<SpawnError<P>> for io::Error {
    fn from(failure: SpawnError<P>) -> io::Error {
        failure.error.into()
    }
}
