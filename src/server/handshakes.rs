//! Waiting for the handshakes that a leaving listener has begun: it would reset their clients.

use core::time::Duration;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Instant;
use std::vec::Vec;

use super::Server;
use super::drain::POLL_INTERVAL;
use super::member::{Member, MemberState};
use crate::error::Error;
use crate::os;
use crate::socket::protocol::Tcp;

/// How long handshakes are awaited where the kernel does not list them: the answer to a `SYN` is
/// sent again after 1 s, and the client's answer to that takes a round-trip time.
const UNLISTED_WAIT: Duration = Duration::from_millis(1_200);

/// The handshakes that were under way when a member began to leave, and how often the group had
/// been steered anew by then.
#[derive(Debug, Default)]
pub(super) struct Begun(Mutex<Option<(usize, Arc<HashSet<os::Handshake>>)>>);

impl Begun {
    fn lock(&self) -> MutexGuard<'_, Option<(usize, Arc<HashSet<os::Handshake>>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the handshakes that are under way on the group's port have ended, at most until
/// `deadline`, or until another member fails. The kernel does not tell which member began them, so
/// all are awaited. A member that could not leave before waits for those of its first attempt only,
/// unless the group was steered anew since.
pub(super) fn wait_for(server: &Server, members: &[Arc<Member<Tcp>>], deadline: Instant) {
    if members.is_empty() {
        return;
    }
    let left = || deadline.saturating_duration_since(Instant::now());
    // A SYN that was being looked up when the steering changed has become a handshake then.
    os::wait_for_lookups(left());
    let listed = wait_for_listed(server, members, deadline);
    // Where another member serves, it takes a handshake that ends by a SYN cookie.
    if listed.is_err() || none_serves(server) && os::may_have_sent_cookies() {
        sleep(UNLISTED_WAIT.min(left()));
    }
    // A connection is in neither list for a short time between handshake and queue.
    os::wait_for_lookups(left());
}

fn none_serves(server: &Server) -> bool {
    let list = server.pool.lock();
    list.none_is(MemberState::Serving) && list.none_is(MemberState::HandedOver)
}

/// Fails where the kernel's list is not available.
fn wait_for_listed(
    server: &Server,
    members: &[Arc<Member<Tcp>>],
    deadline: Instant,
) -> Result<(), Error> {
    let Some(any) = members.first() else {
        return Ok(());
    };
    let handshakes = os::Handshakes::of(&any.socket.0, server.local_addr())?;
    let steered = server.pool.lock().steered_anew;
    let list = |member: &Arc<Member<Tcp>>| {
        let begun = member.source.begun.lock().clone();
        begun
            .filter(|begun| begun.0 == steered)
            .map(|begun| begun.1)
    };
    let lists: Option<Vec<_>> = members.iter().map(list).collect();
    let mut begun: HashSet<_> = match lists {
        Some(lists) => lists.iter().flat_map(|list| list.iter().copied()).collect(),
        None => handshakes.list()?.into_iter().collect(),
    };
    let shared = Arc::new(begun.clone());
    for member in members {
        *member.source.begun.lock() = Some((steered, Arc::clone(&shared)));
    }
    let (mut interval, mut before) = (POLL_INTERVAL, begun.clone());
    while !begun.is_empty() && Instant::now() < deadline && !server.is_stale() {
        sleep(interval.min(deadline.saturating_duration_since(Instant::now())));
        let asked = Instant::now();
        let now: HashSet<_> = handshakes.list()?.into_iter().collect();
        // A list in several parts may miss one that is there: it has ended if two miss it.
        begun.retain(|handshake| now.contains(handshake) || before.contains(handshake));
        before = now;
        // A long list takes at most a fifth of one CPU.
        interval = (2 * interval)
            .min(16 * POLL_INTERVAL)
            .max(4 * asked.elapsed());
    }
    Ok(())
}
