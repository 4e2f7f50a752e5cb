//! How new connections are kept from members that are about to leave.

#[cfg(linux_kernel)]
use std::vec::Vec;

#[cfg(linux_kernel)]
use crate::error::Error;
use crate::group::GroupError;
use crate::server::{Plans, Server};
use crate::socket::protocol::Protocol;
#[cfg(linux_kernel)]
use crate::{group::Steering, steering};

/// How many members a program lists at most, lest it take more memory than every kernel allows. For
/// as long as others leave, these will do.
#[cfg(linux_kernel)]
const LISTED: usize = 400;

/// Elsewhere nothing can be told to the kernel.
#[cfg(not(linux_kernel))]
impl<P: Protocol> Server<P> {
    pub(crate) fn steer_around(&self, _: &Plans<P>, _: &[usize]) -> Result<(), GroupError> {
        Ok(())
    }

    pub(crate) fn take_no_more(
        &self,
        _: &Plans<P>,
        _: &[usize],
        _: bool,
    ) -> Result<(), GroupError> {
        Ok(())
    }
}

#[cfg(linux_kernel)]
impl<P: Protocol> Server<P> {
    /// Steers what is new to the members that are not at `indexes`; unless those are about to leave
    /// the kernel's group, and the kernel does.
    pub(crate) fn steer_around(
        &self,
        plans: &Plans<P>,
        indexes: &[usize],
    ) -> Result<(), GroupError> {
        if P::leaves_first(plans) {
            return Ok(());
        }
        self.steer_around_through(None, plans, indexes)
    }

    /// Steers as it was asked for, if the members at `indexes` have left the kernel's group already
    /// and the last have moved into their places. Otherwise they are steered around, still.
    pub(crate) fn steer_without(
        &self,
        plans: &Plans<P>,
        indexes: &[usize],
    ) -> Result<(), GroupError> {
        if plans.site.options.join {
            return Ok(());
        }
        // One that has no group cannot be told how to steer it.
        let told = self.steer_around_through(indexes.first().copied(), plans, indexes);
        match told.map_err(|error| error.error().map(Error::errno)) {
            Err(Some(libc::EINVAL)) => {}
            _ => return told,
        }
        let crew = self.crew();
        let mut posts: Vec<_> = crew.posts.iter().collect();
        for index in indexes.iter().rev() {
            posts.swap_remove(*index);
        }
        let rows: Vec<_> = posts.iter().map(|post| post.row()).collect();
        let first = posts.first().ok_or(GroupError::LastMember)?;
        plans.site.steer(first.socket(), &rows)
    }

    /// Steers what is new to the members that are not at `indexes`, by way of the member at
    /// `through`, or of any that stays.
    pub(crate) fn steer_around_through(
        &self,
        through: Option<usize>,
        plans: &Plans<P>,
        indexes: &[usize],
    ) -> Result<(), GroupError> {
        if plans.site.options.join || cfg!(seeded = "no_steer") {
            return Ok(());
        }
        let crew = self.crew();
        let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        let count = crew.posts.len();
        let stays = |index: &usize| !indexes.contains(index);
        let wanted = |index: &usize| plans.site.options.steering != Steering::Except(*index);
        let mut others: Vec<u32> = (0..count)
            .filter(stays)
            .filter(wanted)
            .map(number)
            .collect();
        if others.is_empty() {
            others = (0..count).filter(stays).map(number).collect();
        }
        others.truncate(LISTED);
        let through = through.or_else(|| (0..count).find(stays));
        let Some(through) = through.and_then(|index| crew.posts.get(index)) else {
            return Err(GroupError::LastMember);
        };
        let through = P::descriptor(through.socket());
        // Each datagram is steered for itself: those of a flow are to stay together.
        let among = if P::HAS_BYTES {
            steering::any_of_by_flow
        } else {
            steering::any_of
        };
        let mut space = std::vec![steering::Instruction::default(); 2 * others.len() + 3];
        let mut larger = std::vec![steering::Instruction::default(); 4 * others.len() + 7];
        let program = among(&others, &mut space).map(|all| match plans.site.options.steering {
            Steering::Byte(offset) => {
                let id = |index: &u32| Some(crew.posts.get(*index as usize)?.id());
                #[allow(clippy::cast_possible_truncation)] // a byte is all there is to go by
                let row = |index: &u32| Some((id(index)? as u8, *index));
                let rows: Vec<_> = others.iter().filter_map(row).collect();
                steering::by_payload_byte_or(offset, &rows, all, &mut larger).unwrap_or(all)
            }
            _ => all,
        });
        let result = program.map_or(Ok(()), |program| through.attach_program(program));
        result.map_err(|error| GroupError::call(error, self.local_addr(), 0))
    }

    /// Has the members at `indexes` drop what is new from now on. If one cannot, none does.
    /// `all`: no member stays.
    pub(crate) fn take_no_more(
        &self,
        plans: &Plans<P>,
        indexes: &[usize],
        all: bool,
    ) -> Result<(), GroupError> {
        if plans.site.inherited {
            return Ok(());
        }
        let result = P::take_no_more(self, plans, indexes, all);
        if result.is_err() {
            // The first error counts.
            _ = self.steer_all(plans);
        }
        result.map_err(|error| GroupError::call(error, self.local_addr(), 0))
    }
}
