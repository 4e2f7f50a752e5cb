//! `reuseport serve` in a process of its own.

use std::io::{BufRead, Read};
use std::net::SocketAddr;
use std::process::{ChildStderr, Command, Output, Stdio};
use std::time::Instant;

use super::{LONG, Lines, Running, reuseport, start, text};

/// A running `reuseport serve`. It dies with this value.
pub struct ServeProcess {
    pub process: Running,
    pub address: SocketAddr,
    stderr: Lines<ChildStderr>,
}

impl ServeProcess {
    #[track_caller]
    pub fn start(args: &[&str]) -> ServeProcess {
        let mut all = vec!["serve"];
        all.extend(args);
        if !args.contains(&"--addr") {
            all.extend(["--addr", "127.0.0.1:0"]);
        }
        ServeProcess::from(&mut reuseport(&all))
    }

    /// Starts `command`, which is or becomes `reuseport serve`.
    #[track_caller]
    pub fn from(command: &mut Command) -> ServeProcess {
        let mut process = start(command.stderr(Stdio::piped()));
        let mut stderr = process.stderr();
        let said = read_until(&mut stderr, "listening on ");
        let address = word_after(&said, "listening on ").parse();
        ServeProcess {
            process,
            address: address.expect("an address"),
            stderr,
        }
    }

    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    #[track_caller]
    pub fn signal(&self, signal: i32) {
        self.process.signal(signal);
    }

    /// Reads stderr until a line that contains `wanted`.
    #[track_caller]
    pub fn read_stderr_until(&mut self, wanted: &str) -> String {
        read_until(&mut self.stderr, wanted)
    }

    /// Reads stderr in a thread from now on, so that many processes can write to it.
    pub fn discard_stderr(self) -> Running {
        let mut stderr = self.stderr;
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        self.process
    }

    /// Has the newest process of this server, `pid`, hand over; returns the pid of the successor.
    #[track_caller]
    pub fn hand_over(&mut self, pid: i32) -> i32 {
        // SAFETY: takes two integers; the process lives, for nothing has ended it.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGHUP) }, 0);
        let said = self.read_stderr_until("handed over to pid ");
        word_after(&said, "handed over to pid ")
            .parse()
            .expect("a pid")
    }

    /// Waits for its end: exit code, stdout, what was left of stderr.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        if let Some(mut stdout) = self.process.stdout_if_left() {
            stdout.read_to_string(&mut out).expect("stdout");
        }
        self.stderr.read_to_string(&mut err).expect("stderr");
        (self.process.wait().code(), out, err)
    }
}

/// The counts in the rows of a table: what each member has had.
#[track_caller]
pub fn counts(table: &str) -> Vec<usize> {
    let is_row = |line: &&str| {
        ["acceptor ", "receiver "]
            .iter()
            .any(|who| line.starts_with(who))
    };
    let rows = table.lines().filter(is_row);
    let third = |row: &str| row.split_whitespace().nth(2).and_then(|n| n.parse().ok());
    rows.map(|row| third(row).expect("a count")).collect()
}

/// Reads lines until one contains `wanted`; returns all of them.
#[track_caller]
pub fn read_until(lines: &mut impl BufRead, wanted: &str) -> String {
    let mut all = String::new();
    while !all.contains(wanted) {
        let length = lines.read_line(&mut all);
        let length = length.unwrap_or_else(|error| panic!("no {wanted:?}: {error}: {all}"));
        assert!(length > 0, "no {wanted:?}, but the end: {all}");
    }
    all
}

/// Returns the word that follows `what` in a text.
#[track_caller]
pub fn word_after<'a>(text: &'a str, what: &str) -> &'a str {
    let rest = text
        .split(what)
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    rest.unwrap_or_else(|| panic!("nothing after {what:?}: {text}"))
}

/// Ten hand-overs while clients come, all through `connect`, which is run by `client`. Nobody may
/// be lost, and no SYN may have to be sent again: that makes a client a second late. The kernel
/// counts those, for the clients' namespace: `sent_again` asks it, where there is none but these
/// clients.
#[track_caller]
pub fn ten_hand_overs(
    mut server: ServeProcess,
    client: impl Fn(&mut Command) -> Output + Sync,
    sent_again: impl Fn() -> Option<usize>,
) {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    let (done, begun) = (AtomicBool::new(false), Instant::now());
    let goes_on = || !done.load(SeqCst) && begun.elapsed() < LONG;
    let address = server.address.to_string();
    let before = sent_again();

    let reports = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut reports = Vec::new();
            while goes_on() {
                let mut connect = reuseport(&["connect", "--addr", &address, "--concurrency", "8"]);
                let report = client(connect.args(["--connections", "200"]));
                reports.push((report.status.code(), text(&report.stdout).to_owned()));
            }
            reports
        });
        let mut pid = server.pid();
        for _ in 0..10 {
            pid = server.hand_over(pid);
        }
        server.process.wait();
        done.store(true, SeqCst);
        let reports = load.join().expect("the load");
        // SAFETY: takes two integers; the last successor lives, for nothing has ended it.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        reports
    });

    for (code, report) in &reports {
        assert_eq!(*code, Some(0), "{report}");
    }
    if let (Some(before), Some(after)) = (before, sent_again()) {
        assert_eq!(after, before, "SYNs were sent again: {reports:?}");
    }
}

/// Whether a thread accepts or receives for this member, or one of its handlers runs.
#[cfg(feature = "std")]
pub fn runs<P: reuseport::Serve>(server: &reuseport::Server<P>, id: usize) -> bool {
    let stats = server.stats().into_iter();
    stats
        .filter(|stats| stats.id == id)
        .any(|stats| stats.running)
}
