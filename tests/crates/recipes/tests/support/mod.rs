//! What the tests of the recipes share: a recipe at work, waiting with a bound, outside tools.
// Each test file uses its own part of this.
#![allow(dead_code, unreachable_pub)]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

/// The longest wait for anything that must happen.
pub const BOUND: Duration = Duration::from_secs(60);

#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < BOUND, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Says that this machine cannot run the test; in CI that is a failure.
#[track_caller]
pub fn skip(why: &str) {
    assert!(
        env::var_os("CI").is_none(),
        "skipped, but this is CI: {why}"
    );
    println!("skipped: {why}");
}

#[track_caller]
pub fn tool(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).any(|directory| directory.join(name).is_file());
    if !found {
        skip(&format!("no {name}"));
    }
    found
}

pub fn recipe(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_tokio")).with_file_name(name)
}

/// A recipe at work. It dies with this value.
pub struct Server {
    pub child: Child,
    pub stdout: BufReader<ChildStdout>,
    pub address: SocketAddr,
    /// What follows the address.
    pub note: String,
}

impl Server {
    #[track_caller]
    pub fn start(name: &str, members: u32) -> Server {
        Server::start_at(name, "127.0.0.1:0", members)
    }

    #[track_caller]
    pub fn start_at(name: &str, address: &str, members: u32) -> Server {
        let mut command = Command::new(recipe(name));
        command.arg(address).arg(members.to_string());
        Server::of(command.stdout(Stdio::piped()).spawn().expect("the recipe"))
    }

    /// A process that is, or becomes, a recipe.
    #[track_caller]
    pub fn of(mut child: Child) -> Server {
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let line = line(&mut stdout);
        let said = line.strip_prefix("listening on ").expect("an address");
        let (address, note) = said.split_once(',').unwrap_or((said, ""));
        let (address, note) = (address.parse().expect("an address"), note.trim().to_owned());
        Server {
            child,
            stdout,
            address,
            note,
        }
    }

    #[track_caller]
    pub fn signal(&self, signal: i32) {
        signal_to(&self.child, signal);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[track_caller]
pub fn signal_to(child: &Child, signal: i32) {
    let pid = child.id().try_into().expect("a pid");
    // SAFETY: takes two integers; the child has not been waited for, so the pid is its.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[track_caller]
pub fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    assert!(
        from.read_line(&mut line).expect("a pipe") > 0,
        "it has ended"
    );
    line.trim_end().to_owned()
}

/// The newest process. It is a child of one that has ended, and dies with this value.
pub struct Newest(pub i32);

impl Newest {
    #[track_caller]
    pub fn signal(&self, signal: i32) {
        // SAFETY: takes two integers; the process lives, for nothing has ended it.
        assert_eq!(unsafe { libc::kill(self.0, signal) }, 0);
    }

    /// Has it hand over, and waits until it has ended. Both write to `stdout`.
    #[track_caller]
    pub fn restart(&mut self, stdout: &mut impl BufRead) {
        self.signal(libc::SIGHUP);
        let said = [line(stdout), line(stdout)];
        let mut said = said.iter();
        let new = said.find_map(|line| line.strip_prefix("handed over to pid "));
        let new = Newest(new.expect("a pid").parse().expect("a pid"));
        let old = std::mem::replace(self, new);
        wait_until("the old process has ended", || old.has_ended());
        std::mem::forget(old);
    }

    pub fn has_ended(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0));
        stat.map_or(true, |stat| stat.contains(") Z "))
    }
}

impl Drop for Newest {
    fn drop(&mut self) {
        // SAFETY: takes two integers.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }
}
