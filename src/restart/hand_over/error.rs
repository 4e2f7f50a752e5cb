//! [`HandOverError`]: no new process has taken over.

use core::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use crate::error::Error;
use crate::group::GroupError;

/// An error of [`Server::hand_over`](crate::Server::hand_over) and
/// [`HandOver::leave`](crate::HandOver::leave).
///
/// `Debug` prints the same sentence as `Display`.
///
/// # Platforms
/// Linux and Android alone.
#[non_exhaustive]
pub enum HandOverError {
    /// The group could not be prepared.
    Group(GroupError),
    /// A descriptor could not be duplicated for the new process, or its inode not be read.
    Prepare(Error),
    /// The new process could not be started.
    Spawn {
        /// The program, as the command names it.
        program: PathBuf,
        /// Why it could not be started.
        error: io::Error,
    },
    /// The new process has ended, or given its group up.
    ChildExited,
    /// The new process was not ready in time, and was killed.
    TimedOut,
}

impl From<GroupError> for HandOverError {
    fn from(error: GroupError) -> HandOverError {
        HandOverError::Group(error)
    }
}

impl fmt::Display for HandOverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandOverError::Group(error) => write!(f, "{error}"),
            HandOverError::Prepare(error) => write!(f, "passing a descriptor on: {error}"),
            HandOverError::Spawn { program, error } => {
                write!(f, "starting {}: {error}", program.display())
            }
            HandOverError::ChildExited => f.write_str("the new process has ended"),
            HandOverError::TimedOut => f.write_str("the new process was not ready in time"),
        }
    }
}

impl fmt::Debug for HandOverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for HandOverError {}

/// Keeps the errno of a failed call, and its kind. An error without an errno keeps its sentence.
impl From<HandOverError> for io::Error {
    fn from(error: HandOverError) -> io::Error {
        match error {
            HandOverError::Group(error) => error.into(),
            HandOverError::Prepare(error) => error.into(),
            HandOverError::Spawn { error, .. } => error,
            HandOverError::ChildExited => io::Error::new(ErrorKind::BrokenPipe, error),
            HandOverError::TimedOut => io::Error::new(ErrorKind::TimedOut, error),
        }
    }
}
