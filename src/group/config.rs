//! [`Site`]: where a group is, and how its members are made and chosen.

use core::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
#[cfg(linux_kernel)]
use std::{sync::Arc, vec::Vec};

use super::{GroupError, GroupOptions};
use crate::error::{Call, Error};
use crate::socket::protocol::{First, Protocol, Tcp};
#[cfg(linux_kernel)]
use crate::{group::Steering, os::linux::affinity::Cpus, steering};

/// Where the group is and how its members are made: all that it takes to add one.
#[derive(Clone, Debug)]
pub(crate) struct Site<P = Tcp> {
    pub(crate) address: SocketAddr,
    pub(crate) options: GroupOptions<P>,
    /// Who opened its first socket.
    user: u32,
    /// The CPUs that whoever made it may run on.
    #[cfg(linux_kernel)]
    cpus: Result<Arc<[u32]>, Error>,
    /// Other processes hold the listeners too.
    pub(crate) inherited: bool,
}

/// A member, as those know it who choose it.
#[cfg(linux_kernel)]
#[derive(Clone, Copy)]
pub(crate) struct Row {
    /// Its number.
    pub(crate) id: usize,
    /// Which of the allowed CPUs is its own.
    pub(crate) slot: usize,
}

#[cfg(linux_kernel)]
impl Row {
    pub(crate) fn alike(number: usize) -> Row {
        Row {
            id: number,
            slot: number,
        }
    }
}

impl<P: Protocol> Site<P> {
    /// Of a group whose first member is at `address`.
    pub(super) fn of(first: &P::Socket, address: SocketAddr, options: GroupOptions<P>) -> Site<P> {
        Site {
            address,
            options,
            user: owner(first),
            #[cfg(linux_kernel)]
            cpus: Cpus::allowed().map(|cpus| cpus.numbers().into()),
            inherited: false,
        }
    }

    /// Opens a member for the group that is there already.
    pub(crate) fn open(&self, member: usize) -> Result<P::Socket, GroupError> {
        P::open(&self.options, First::Joins, self.address).map_err(|error| {
            let now = effective_user();
            // A port below 1024 is refused before the user is looked at.
            let refused = matches!(error.errno(), libc::EADDRINUSE | libc::EACCES);
            if refused && now != self.user {
                return GroupError::UserMismatch {
                    error,
                    address: self.address,
                    member,
                    then: self.user,
                    now,
                };
            }
            GroupError::call(error, self.address, member)
        })
    }

    /// Another descriptor for the one socket of a shared group.
    pub(crate) fn share(&self, only: &P::Socket, member: usize) -> Result<P::Socket, GroupError> {
        let duplicate = only.as_fd().try_clone_to_owned().map_err(|error| {
            let errno = error.raw_os_error().unwrap_or_default();
            GroupError::call(Error::new(Call::Fcntl, errno), self.address, member)
        })?;
        Ok(duplicate.into())
    }

    /// The CPU of the acceptor in `slot`: the allowed ones in turn, and then from the start again.
    #[cfg(linux_kernel)]
    pub(crate) fn cpu_of(&self, slot: usize) -> Result<Option<u32>, Error> {
        let cpus = self.cpus.clone()?;
        Ok(cpus.get(slot % cpus.len().max(1)).copied())
    }

    /// Steers as the options say, through any one `member`. `rows` has one for each member, in
    /// index order.
    #[cfg(linux_kernel)]
    pub(crate) fn steer(&self, member: &P::Socket, rows: &[Row]) -> Result<(), GroupError> {
        let steered = self.steer_through(member, rows);
        steered.map_err(|error| GroupError::call(error, self.address, 0))
    }

    #[cfg(linux_kernel)]
    pub(crate) fn steer_through(&self, member: &P::Socket, rows: &[Row]) -> Result<(), Error> {
        let member = P::descriptor(member);
        let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        // A program with a row for each member has two instructions for each, and a few more.
        let rows = &rows[..rows.len().min((steering::MAX_INSTRUCTIONS - 5) / 2)];
        let mut space = std::vec![steering::Instruction::default(); 2 * rows.len() + 5];
        match self.options.steering {
            Steering::Hash => match member.detach_program() {
                Err(error) if error.errno() == libc::ENOENT => Ok(()),
                result => result,
            },
            Steering::Random => member.attach_program(&steering::random(count)),
            Steering::Except(index) => match u32::try_from(index) {
                Ok(index) if index < count => {
                    member.attach_program(&steering::all_but(count, index))
                }
                // It has left since: none is excepted.
                _ => member.attach_program(&steering::random(count)),
            },
            Steering::Cpu => self.cpus.clone().and_then(|cpus| {
                let row = |(index, row): (u32, &Row)| Some((*cpus.get(row.slot)?, index));
                let rows: Vec<_> = (0..).zip(rows).filter_map(row).collect();
                member.attach_program(steering::by_cpu(&rows, &mut space).unwrap_or_default())
            }),
            Steering::Byte(offset) => {
                #[allow(clippy::cast_possible_truncation)] // a byte is all there is to go by
                let row = |(index, row): (u32, &Row)| (row.id as u8, index);
                let rows: Vec<_> = (0..).zip(rows).map(row).collect();
                member.attach_program(
                    steering::by_payload_byte(offset, &rows, &mut space).unwrap_or_default(),
                )
            }
        }
    }
}

/// The effective user when the socket was opened: with whom its siblings must agree.
fn owner(socket: &impl AsFd) -> u32 {
    // SAFETY: `stat` is made of integers and pointers, for which zeros are a value.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: `stat` is writable, the descriptor the socket's.
    match unsafe { libc::fstat(socket.as_fd().as_raw_fd(), &raw mut stat) } {
        0 => stat.st_uid,
        _ => effective_user(),
    }
}

fn effective_user() -> u32 {
    // SAFETY: takes nothing, and always succeeds.
    unsafe { libc::geteuid() }
}
