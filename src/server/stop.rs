//! The end of a server: all members leave, then all threads end.

use core::time::Duration;
use std::process;
use std::sync::MutexGuard;
use std::thread::sleep;
use std::time::Instant;
use std::vec::Vec;

use super::drain::{MIN_JOIN_TIMEOUT, POLL_INTERVAL};
use super::member::MemberState;
use super::{Control, Serve, Server, deadline_after};
use crate::acceptors::Stats;

impl<P: Serve> Server<P> {
    /// Takes nothing new, has every established connection or queued datagram handled, closes, and
    /// returns what was done for each member: all within `grace`.
    ///
    /// A handler that still runs then goes on until it returns ([`Stats::running`]). It cannot be
    /// interrupted: one that waits for its client needs a [read
    /// timeout](crate::Connection::set_read_timeout), or has to look at its
    /// [`StopToken`](crate::StopToken). If a handler calls `stop` itself, the call takes the whole
    /// grace. Connections that are still queued then, because no thread or
    /// descriptor is left, are reset and counted ([`Stats::reset`]).
    ///
    /// A client that connects meanwhile gets no answer and tries again after 1 s, or is refused at
    /// once where the kernel wants `CAP_NET_ADMIN` for a packet filter (Linux 6.18 does). Without
    /// that right it may be reset in three cases: its handshake ends by a SYN cookie, the listeners
    /// are bound to a device, or the kernel is older than Linux 5.7.
    ///
    /// It takes 1.2 s longer where the kernel does not list all handshakes: netlink is refused, the
    /// calling thread is in another network namespace, or the kernel has ever sent a SYN cookie in
    /// this one (`/proc/net/netstat`).
    ///
    /// A change of the group that is under way is waited for first, at most for the group's
    /// [`grace`](crate::GroupOptions::grace).
    ///
    /// Inherited sockets are left to the processes that hold them, with what is queued there. They
    /// block again if they did before, but for those of a runtime
    /// ([`into_server`](crate::Group::into_server)).
    pub fn stop(&self, grace: Duration) -> Vec<Stats> {
        if process::id() != self.process {
            return Vec::new();
        }
        let control = self.control();
        self.end(control, deadline_after(grace));
        self.stats()
    }

    /// Joins threads, whose thread-local destructors may call this server: so without the lock.
    fn end(&self, mut control: MutexGuard<'_, Control<P>>, deadline: Instant) {
        let ids = self.numbers();
        let blocked = core::mem::take(&mut control.blocked);
        if !core::mem::replace(&mut control.stopped, true) {
            // A listener without the filter takes a few connections more than it should, and
            // serves them.
            _ = self.turn_away(&control, &ids, true);
            self.drain(&ids, deadline, || self.steer(&control).is_ok());
            while self
                .leave(&control, &ids, MemberState::Serving, true)
                .is_err()
                && Instant::now() < deadline
            {
                sleep(POLL_INTERVAL);
            }
            self.pool.close();
        }
        drop(control);
        let monitor = self.monitor.lock().map(|mut monitor| monitor.take());
        if let Ok(Some(monitor)) = monitor {
            _ = monitor.join();
        }
        // Also for handlers of members that have left before.
        let deadline = deadline.max(deadline_after(MIN_JOIN_TIMEOUT));
        self.pool.wait_until(deadline, |state| state.threads == 0);
        self.pool.join_all(deadline);
        // A runtime may still poll its duplicates.
        let restored = blocked.iter().filter(|_| self.pool.work.is_some());
        for member in restored {
            // It fails on no open socket.
            _ = P::descriptor(&member.socket).set_nonblocking(false);
        }
    }
}

impl<P: Serve> Drop for Server<P> {
    fn drop(&mut self) {
        // A child that was forked without `exec` has no threads to stop, and shares the sockets.
        if process::id() != self.process {
            return;
        }
        let control = self.control();
        let has_ended = control.stopped || control.handed_over;
        let grace = control.config.options.grace;
        let deadline = deadline_after(if has_ended { Duration::ZERO } else { grace });
        self.end(control, deadline);
    }
}
