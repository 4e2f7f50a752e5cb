//! [`HandOverError`]: no new process has taken over.

use core::fmt;
use std::io;

use crate::error::Error;
use crate::group::GroupError;

/// An error of [`Server::hand_over`](crate::Server::hand_over) and
/// [`HandOver::leave`](crate::HandOver::leave).
///
/// # Platforms
/// Linux and Android alone.
#[derive(Debug)]
#[non_exhaustive]
pub enum HandOverError {
    /// The group could not be prepared.
    Group(GroupError),
    /// A descriptor could not be prepared for the new process.
    Prepare(Error),
    /// The new process could not be started, or not be waited for.
    Spawn(io::Error),
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
            HandOverError::Spawn(error) => write!(f, "starting the new process: {error}"),
            HandOverError::ChildExited => f.write_str("the new process has ended"),
            HandOverError::TimedOut => f.write_str("the new process was not ready in time"),
        }
    }
}

impl core::error::Error for HandOverError {}
