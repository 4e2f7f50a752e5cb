//! What a person reads: stdout for what was asked for, stderr for the rest.

use core::fmt::Write as _;
use core::net::SocketAddr;
use std::io::{self, ErrorKind, Write};
use std::process;

use reuseport::{Call, Count, Error};

/// Prints to stdout. Where its reader is gone (`serve | head -3`), the command ends quietly.
pub(crate) fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        if error.kind() != ErrorKind::BrokenPipe {
            report(&format!("stdout: {error}"));
            process::exit(1);
        }
        process::exit(0);
    }
}

/// Prints a line to stderr. If nobody reads it, nobody is to be told.
pub(crate) fn report(line: &str) {
    _ = writeln!(io::stderr().lock(), "reuseport: {line}");
}

/// The error of a call on `address`, with a hint where there is one to give.
pub(crate) fn explain(error: Error, address: SocketAddr) -> String {
    let hint = match (error.call(), error.errno()) {
        (Call::Bind | Call::Listen, libc::EADDRINUSE) => {
            "; another program holds the port: choose one with --addr, or any free one with port 0"
        }
        (Call::Bind, libc::EACCES) => "; a port below 1024 needs a privilege: choose another",
        (Call::Bind, libc::EADDRNOTAVAIL) => "; the address is not one of this machine's",
        (Call::Socket, libc::EAFNOSUPPORT) => "; the kernel does not speak this address family",
        (_, libc::EMFILE) => "; a larger `ulimit -n` allows more descriptors",
        _ => "",
    };
    format!("{} {address}: {error:#}{hint}", error.call().name())
}

/// One line an acceptor: count, share, bar; and what else happened to it.
pub(crate) fn tally(counts: &[Count]) -> String {
    const BAR: usize = 40;
    let total: usize = counts.iter().map(|count| count.accepted).sum();
    let most = counts
        .iter()
        .map(|count| count.accepted)
        .max()
        .unwrap_or(0)
        .max(1);
    let width = most.to_string().len();
    let mut text = String::new();
    for (acceptor, count) in counts.iter().enumerate() {
        let share = 100.0 * ratio(count.accepted, total.max(1));
        let bar = "#".repeat((count.accepted * BAR).div_ceil(most));
        let line = format!(
            "acceptor {acceptor:<3} {:>width$}  {share:5.1} %  {bar}",
            count.accepted
        );
        _ = write!(text, "{}", line.trim_end());
        for (what, times) in [
            ("handlers panicked", count.panicked),
            ("accepts went wrong", count.went_on),
            ("pauses for want of descriptors", count.backed_off),
        ] {
            if times > 0 {
                _ = write!(text, "  ({times} {what})");
            }
        }
        if let Some(error) = count.failed {
            _ = write!(text, "  ({error})");
        }
        text.push('\n');
    }
    text
}

#[allow(clippy::cast_precision_loss)] // counts of connections, printed with three digits
pub(crate) fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}
