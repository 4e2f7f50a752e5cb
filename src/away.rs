//! How new connections are kept from members that are about to leave.

#[cfg(linux_kernel)]
use core::sync::atomic::Ordering::Relaxed;
#[cfg(linux_kernel)]
use std::vec::Vec;

use crate::group::GroupError;
use crate::serving::{Plans, Serving};
#[cfg(linux_kernel)]
use crate::{crew::Post, group::Steering, steering};

/// Elsewhere nothing can be told to the kernel.
#[cfg(not(linux_kernel))]
impl Serving {
    pub(crate) fn steer_around(&self, _: &Plans, _: &[usize]) -> Result<(), GroupError> {
        Ok(())
    }

    pub(crate) fn take_no_more(&self, _: &Plans, _: &[usize]) -> Result<(), GroupError> {
        Ok(())
    }
}

#[cfg(linux_kernel)]
impl Serving {
    /// Steers new connections to the members that are not at `indexes`.
    pub(crate) fn steer_around(&self, plans: &Plans, indexes: &[usize]) -> Result<(), GroupError> {
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
        let Some(through) = (0..count)
            .find(stays)
            .and_then(|index| crew.posts.get(index))
        else {
            return Err(GroupError::LastMember);
        };
        let mut space = std::vec![steering::Instruction::default(); 2 * others.len() + 3];
        let result = match (steering::among(&others, &mut space), indexes) {
            (Some(program), _) => through.listener().steer(program),
            // Too many to be listed one by one.
            (None, [index]) => through
                .listener()
                .steer(&steering::except(number(count), number(*index))),
            // Too many to be listed: any member then, and the filter turns away whom it must.
            (None, _) => Ok(()),
        };
        result.map_err(|error| GroupError::call(error, self.local_addr(), 0))
    }

    /// Has the members at `indexes` drop every SYN from now on. If one cannot, none does.
    pub(crate) fn take_no_more(&self, plans: &Plans, indexes: &[usize]) -> Result<(), GroupError> {
        if plans.site.inherited {
            return Ok(());
        }
        // Recent kernels give a TCP socket a filter only with CAP_NET_ADMIN. Where the group has
        // been steered around a member, the filter is but a second belt, and it leaves without.
        let steered = !plans.site.options.join;
        let crew = self.crew();
        let mut result = Ok(());
        let posts: Vec<&Post> = indexes.iter().filter_map(|i| crew.posts.get(*i)).collect();
        for post in &posts {
            if let Some(flags) = post.flags() {
                // First the flag: whoever inherits the filter is accepted later.
                flags.filtered.store(true, Relaxed);
                result = result.and_then(|()| match post.listener().take_no_more() {
                    Err(error) if error.errno() == libc::EPERM && steered => Ok(()),
                    result => result,
                });
            }
        }
        let Err(error) = result else { return Ok(()) };
        for post in posts {
            _ = post.listener().take_again();
            if let Some(flags) = post.flags() {
                flags.filtered.store(false, Relaxed);
            }
        }
        drop(crew);
        // The first error counts.
        _ = self.steer_all(plans);
        Err(GroupError::call(error, self.local_addr(), 0))
    }
}
