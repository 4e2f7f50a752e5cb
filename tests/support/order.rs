//! The kernel's list of a group's listeners, found out by clients; and listeners that fail.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    missing_debug_implementations
)]

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use reuseport::{GroupOptions, Listener, Server, sys};

use super::support::{steer_to_index, visit};

/// Copies of a group's listeners: by them they can be shut down behind its back.
#[derive(Clone, Default)]
pub struct Copies(Arc<Mutex<Vec<OwnedFd>>>);

impl Copies {
    /// Has a copy made of each listener that is opened.
    pub fn taken_by(&self, options: GroupOptions) -> GroupOptions {
        let copies = Arc::clone(&self.0);
        options.before_bind(move |fd| {
            // SAFETY: the listener that is being made is open.
            let listener = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
            let copy = listener.try_clone_to_owned().unwrap();
            copies.lock().unwrap().push(copy);
            Ok(())
        })
    }

    /// Shuts down the listener that was opened as this one, counted from 0.
    pub fn shut_down(&self, nth: usize) {
        shut_down(self.0.lock().unwrap()[nth].as_raw_fd());
    }

    /// Shuts down one of those that listen, if any does, and forgets those that do not.
    pub fn shut_down_any(&self, chance: usize) -> bool {
        let mut copies = self.0.lock().unwrap();
        copies.retain(|copy| listens(copy.as_raw_fd()));
        if copies.is_empty() {
            return false;
        }
        let at = chance % copies.len();
        shut_down(copies.swap_remove(at).as_raw_fd());
        true
    }

    /// Keeps copies of listeners that were inherited.
    pub fn keep(&self, listeners: &[Listener]) {
        let copies = listeners
            .iter()
            .map(|one| one.as_fd().try_clone_to_owned().unwrap());
        self.0.lock().unwrap().extend(copies);
    }

    /// Has every client of the group go to this index.
    pub fn steer_to(&self, index: usize) {
        let copies = self.0.lock().unwrap();
        let listens = |copy: &&OwnedFd| listens(copy.as_raw_fd());
        let through = copies.iter().rfind(listens).expect("one listens");
        steer_to_index(through, index.try_into().unwrap());
    }

    /// The numbers of the members at the first `count` indexes of the kernel's list: a program has
    /// the index chosen, and the member that answers says its number. It takes the place of the
    /// group's own program.
    pub fn order(&self, address: SocketAddr, count: usize) -> Vec<usize> {
        let who = |index| {
            self.steer_to(index);
            visit(address).parse().expect("a number")
        };
        (0..count).map(who).collect()
    }
}

fn shut_down(fd: RawFd) {
    // SAFETY: the descriptor is a copy, which is open.
    unsafe { sys::shutdown(fd, sys::SHUT_RD) }.unwrap();
}

fn listens(fd: RawFd) -> bool {
    let (mut value, mut len) = (0, 4);
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ACCEPTCONN);
    // SAFETY: `value` is writable for its four bytes.
    let asked = unsafe { sys::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) };
    asked.unwrap();
    value == 1
}

/// The members' numbers in the order of the server's own list.
pub fn listed(server: &Server) -> Vec<usize> {
    let members = server.members().into_iter();
    members.map(|member| member.stats.id).collect()
}
