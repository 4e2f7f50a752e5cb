//! What a person reads: stdout for what was asked for, stderr for the rest.

use core::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::process;

use reuseport::{AcceptQueue, GroupError, ReceiveBuffer, Stats};

use crate::hints::hint;

/// Prints to stdout. Where its reader is gone (`serve | head -3`), the command ends quietly. Where
/// it is a terminal that is gone, nothing is printed, and SIGHUP ends the command.
pub(crate) fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes());
    let Err(error) = printed.and_then(|()| stdout.flush()) else {
        return;
    };
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::BrokenPipe, _) => process::exit(0),
        (_, Some(libc::EIO)) if is_device(&stdout) => {}
        _ => {
            report(&format!("stdout: {error}"));
            process::exit(1);
        }
    }
}

/// Whether it is a character device: what is left of a terminal that was closed.
fn is_device(file: &impl AsRawFd) -> bool {
    // SAFETY: made of integers, for which zeros are a value.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: `stat` is writable; the kernel checks the descriptor.
    unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) };
    stat.st_mode & libc::S_IFMT == libc::S_IFCHR
}

/// Prints a line to stderr in one piece: an old process and its successor may write at the same
/// time. If that fails, there is no place left to report it.
pub(crate) fn report(line: &str) {
    report_lines(&format!("reuseport: {line}\n"));
}

/// Prints lines to stderr as they are.
pub(crate) fn report_lines(lines: &str) {
    _ = io::stderr().lock().write_all(lines.as_bytes());
}

/// A line on stderr that the next one writes over, where stderr is a terminal. An empty one is the
/// last.
pub(crate) fn progress(line: &str) {
    if io::stderr().is_terminal() {
        _ = write!(io::stderr().lock(), "\r\x1b[K{line}");
    }
}

/// Why there is no group, of datagram sockets if `udp`, with a hint where there is one to give.
pub(crate) fn explain(failure: &GroupError, udp: bool) -> String {
    format!("{failure}{}", hint(failure, udp))
}

/// What is queued on a member, in words.
pub(crate) trait Queued: Copy {
    fn describe(self) -> String;
    fn drops(self) -> u32;
}

impl Queued for AcceptQueue {
    fn describe(self) -> String {
        format!("{} of {} wait", self.len, self.limit)
    }

    fn drops(self) -> u32 {
        self.drops
    }
}

impl Queued for ReceiveBuffer {
    fn describe(self) -> String {
        format!("{} of {} bytes wait", self.bytes, self.limit)
    }

    fn drops(self) -> u32 {
        self.drops
    }
}

/// What a server's members are called, and what they take.
#[derive(Clone, Copy)]
pub(crate) struct Words {
    pub(crate) member: &'static str,
    pub(crate) item: &'static str,
}

pub(crate) const TCP: Words = Words {
    member: "acceptor",
    item: "connection",
};

pub(crate) const UDP: Words = Words {
    member: "receiver",
    item: "datagram",
};

/// A number of things, in words.
pub(crate) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What a server has done so far, and what is queued.
pub(crate) fn so_far<Q: Queued>(
    server: &str,
    words: Words,
    members: &[(Stats, Option<Q>)],
) -> String {
    let taken = members.iter().map(|(stats, _)| stats.accepted).sum();
    let taken = count(taken, words.item);
    format!(
        "reuseport: {server}: {taken} so far\n{}",
        rows(words, members, false)
    )
}

/// What a server has done in all. `inherited`: what is queued is left to others.
pub(crate) fn at_the_end(server: &str, words: Words, stats: &[Stats], inherited: bool) -> String {
    let sum = |of: fn(&Stats) -> usize| stats.iter().map(of).sum::<usize>();
    let (reset, running) = (sum(|stats| stats.reset), sum(|stats| stats.running.into()));
    let mut text = format!(
        "reuseport: {server}: {}",
        count(sum(|stats| stats.accepted), words.item)
    );
    if inherited {
        text += "; what is queued is left to the holder of the socket";
    } else if reset > 0 {
        _ = write!(text, "; {} reset in the queue", count(reset, words.item));
    } else {
        text += "; all that were queued are served";
    }
    if running > 0 {
        _ = write!(text, "; {} still running", count(running, "handler"));
    }
    let members: Vec<_> = stats
        .iter()
        .map(|stats| (*stats, None::<AcceptQueue>))
        .collect();
    let (all, width) = (sum(|stats| stats.accepted), words.member.len() + 4);
    text + "\n" + &rows(words, &members, true) + &format!("{:width$} {all}\n", "total")
}

/// A line for each member: count, share, bar, queue, and what else happened to it. `ended`: none
/// should run any more.
pub(crate) fn rows(words: Words, members: &[(Stats, Option<impl Queued>)], ended: bool) -> String {
    const BAR: usize = 40;
    let total: usize = members.iter().map(|(count, _)| count.accepted).sum();
    let most = members
        .iter()
        .map(|(count, _)| count.accepted)
        .max()
        .unwrap_or(0)
        .max(1);
    let width = if ended { total } else { most }.to_string().len();
    let mut text = String::new();
    for (count, queue) in members {
        let (id, accepted) = (count.id, count.accepted);
        let share = 100.0 * ratio(accepted, total.max(1));
        let bar = "#".repeat((accepted * BAR).div_ceil(most));
        _ = write!(
            text,
            "{} {id:<3} {accepted:>width$}  {share:5.1} %  {bar:BAR$}",
            words.member
        );
        if let Some(queue) = queue {
            _ = write!(text, "  {}", queue.describe());
        }
        let dropped = queue.map_or(0, |queue| queue.drops() as usize);
        for (what, times) in [
            ("dropped", dropped),
            ("handed off", count.handed_off),
            ("times without a spare thread", count.starved),
            ("reset", count.reset),
            ("handlers panicked", count.panicked),
            ("calls went wrong", count.transient_errors),
            ("pauses for want of descriptors", count.backoffs),
        ] {
            if times > 0 {
                _ = write!(text, ", {times} {what}");
            }
        }
        if count.running && ended {
            text.push_str(", a handler still runs");
        }
        if let Some(error) = count.error {
            _ = write!(text, ", {error}");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[allow(clippy::cast_precision_loss)] // counts of connections, printed with three digits
pub(crate) fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}
