//! What the tests share: waiting with a bound, servers in processes of their own, outside tools.
// Each test file uses its own part of this.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_imports,
    missing_debug_implementations
)]

#[cfg(target_os = "linux")]
mod namespace;
mod process;
mod server;
mod sockets;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs};

#[cfg(target_os = "linux")]
pub use namespace::{GIVEN, SYSCTLS, drop_capabilities, first_namespace, namespace, own_namespace};
pub use process::{
    LONG, Lines, Resource, Running, bounded, finish, limit_softly, no_process_starts, program,
    start, try_start,
};
#[cfg(feature = "std")]
pub use server::runs;
pub use server::{ServeProcess, counts, read_until, ten_hand_overs, word_after};
pub use sockets::reset;
#[cfg(target_os = "linux")]
pub use sockets::steer_to_index;

/// The longest wait for anything that must happen.
pub const BOUND: Duration = Duration::from_secs(match option_env!("REUSEPORT_SHORT_BOUND") {
    Some(_) => 15, // where tests are to fail: .ci/seeded-faults
    None => 60,
});

/// Waits until `condition` holds; panics with `what` after [`BOUND`].
#[track_caller]
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_until_within(BOUND, what, condition);
}

/// As [`wait_until`], for what may take longer, or must not take as long.
#[track_caller]
pub fn wait_until_within(bound: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < bound,
            "waited {bound:?} in vain until {what}"
        );
        sleep(Duration::from_millis(2));
    }
}

/// Connects, and reads until the server closes.
#[track_caller]
pub fn visit(address: SocketAddr) -> String {
    let mut text = String::new();
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(BOUND)).expect("a timeout");
    stream.read_to_string(&mut text).expect("the server's end");
    text
}

/// Whether a packet of this connection was sent again, the SYN or another: what makes a client late
/// that the kernel has turned away, and not a machine that is busy or stands still.
#[cfg(target_os = "linux")]
pub fn sent_again(stream: &TcpStream) -> bool {
    use std::os::fd::AsRawFd;
    // The 26th word of `struct tcp_info`: `tcpi_total_retrans`.
    let (mut info, mut len) = ([0_u32; 26], 104);
    let (fd, at) = (stream.as_raw_fd(), info.as_mut_ptr().cast());
    // SAFETY: `info` is writable for the 104 bytes that `len` states; the kernel writes no more.
    let got = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, at, &raw mut len) };
    assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
    info[25] > 0
}

/// Returns how many SYNs were sent again, in the calling thread's network namespace.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn syns_sent_again() -> usize {
    let counters = fs::read_to_string("/proc/thread-self/net/netstat").expect("/proc");
    let mut rows = counters
        .lines()
        .filter_map(|row| row.strip_prefix("TcpExt: "));
    let (names, values) = rows.next().zip(rows.next()).expect("names and values");
    let mut all = names.split_whitespace().zip(values.split_whitespace());
    let found = all
        .find(|(name, _)| *name == "TCPSynRetrans")
        .expect("the counter");
    found.1.parse().expect("a number")
}

/// Returns how many connections the calling thread's namespace has in `TIME_WAIT` on a local port.
#[cfg(target_os = "linux")]
pub fn time_waits(port: u16) -> usize {
    let local = format!(":{port:04X}");
    let is_one = |row: &&str| {
        let mut words = row.split_whitespace().skip(1);
        let here = words
            .next()
            .is_some_and(|address| address.ends_with(&local));
        here && words.nth(1) == Some("06")
    };
    let tables =
        ["tcp", "tcp6"].map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")));
    tables
        .iter()
        .flatten()
        .flat_map(|table| table.lines())
        .filter(is_one)
        .count()
}

/// Whether an outside tool is there. Without it a test passes at home, saying so, and fails in CI.
#[track_caller]
pub fn tool(name: &str) -> bool {
    let found = env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(name).is_file()));
    if !found {
        skip(&format!("no {name}"));
    }
    found
}

/// Says that this machine cannot run the test; in CI that is a failure.
#[track_caller]
pub fn skip(why: &str) {
    assert!(
        env::var_os("CI").is_none(),
        "skipped, but this is CI: {why}"
    );
    tell(&format!("skipped: {why}"));
}

/// Writes a line to standard error itself, which the test harness does not hold back.
fn tell(line: &str) {
    use std::io::Write;
    _ = writeln!(std::io::stderr(), "{line}");
}

/// The version of the kernel.
pub fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok());
    next().zip(next()).expect("a version")
}

/// The command under test.
pub fn reuseport(args: &[&str]) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_reuseport"));
    command
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// Runs the command to its end: exit code, stdout, stderr.
#[track_caller]
pub fn run(args: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = finish(&mut reuseport(args));
    (
        status.code().expect("no signal"),
        text(&stdout).to_owned(),
        text(&stderr).to_owned(),
    )
}

/// A test of this same file, run in a process of its own: for what a process can do only once or
/// to all its threads. It is an ignored test named `role`.
pub fn role(role: &str) -> Command {
    role_of(env::current_exe().expect("this test"), role)
}

fn role_of(test: PathBuf, role: &str) -> Command {
    let mut command = program(test);
    command.args([
        "--exact",
        role,
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.stdout(Stdio::piped());
    command
}

/// A role whose process has a further namespace, in which these sysctls are set (names below
/// `/proc/sys/net`). Where this machine refuses that, the role skips: see [`has_sysctls`].
#[cfg(target_os = "linux")]
#[track_caller]
pub fn role_with_sysctls(name: &str, sysctls: &[(&str, &str)]) -> Command {
    let set: Vec<_> = sysctls
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mut command = role(name);
    command.env_remove(GIVEN).env(SYSCTLS, set.join(" "));
    command
}

/// Returns whether the sysctls are set; skips the role otherwise.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn has_sysctls() -> bool {
    let set = own_namespace() && env::var_os(SYSCTLS).is_some();
    if !set {
        skip("sysctls cannot be set in a network namespace of this machine");
    }
    set
}

/// Plays a role to its end, and returns what it said. It must pass.
#[track_caller]
pub fn play(role: &mut Command) -> String {
    let done = finish(role);
    let said = text(&done.stdout).to_owned() + text(&done.stderr);
    assert!(
        done.status.success() && said.contains("1 passed"),
        "{:?}: {said}",
        done.status
    );
    let skipped = said.lines().filter(|line| line.starts_with("skipped: "));
    skipped.for_each(tell);
    said
}

/// Plays a role as another user, from a copy of this program that everybody can reach.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn play_as(user: u32, role: &str, set: impl FnOnce(&mut Command)) -> String {
    use std::os::unix::process::CommandExt;
    let directory = Directory::for_everybody(role);
    let copied = directory.0.join("test");
    copy(env::current_exe().expect("this test"), &copied);
    let mut command = role_of(copied, role);
    set(command.uid(user).gid(user).env("TMPDIR", &directory.0));
    play(&mut command)
}

/// A directory outside the target directory, which another user may not reach. It is removed with
/// this value.
pub struct Directory(pub PathBuf);

impl Directory {
    #[track_caller]
    pub fn for_everybody(name: &str) -> Directory {
        use std::os::unix::fs::PermissionsExt;
        let name = format!("reuseport-{name}-{}", std::process::id());
        let path = env::temp_dir().join(name);
        _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a directory");
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&path, everybody).expect("open to everybody");
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// An example of this package: built beside the tests.
#[track_caller]
pub fn example(name: &str) -> PathBuf {
    let this = env::current_exe().expect("this test");
    let profile = this
        .parent()
        .and_then(Path::parent)
        .expect("target/PROFILE");
    let path = profile.join("examples").join(name);
    assert!(
        path.is_file(),
        "cargo build --example {name} first: `cargo test` does"
    );
    path
}

/// Compiles a C program, of this package or elsewhere, into `directory`; warnings are errors.
#[track_caller]
pub fn compile(source: impl AsRef<Path>, directory: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let built = directory.join("reuseport-c");
    let mut cc = program("cc");
    cc.args(["-Wall", "-Wextra", "-Werror", "-O2", "-pthread", "-o"])
        .arg(&built)
        .arg(source);
    let done = finish(&mut cc);
    assert!(done.status.success(), "{}", text(&done.stderr));
    built
}

/// A port that this process holds, and on which a program under test may listen: bound with the
/// option but not listening, this socket gets no connection and keeps strangers away.
#[track_caller]
pub fn reserve() -> (u16, std::os::fd::OwnedFd) {
    use reuseport::{SockAddr, sys};
    use std::os::fd::FromRawFd;
    let (on, any) = (1, SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0))));
    let kind = sys::SOCK_STREAM | sys::SOCK_CLOEXEC;
    // SAFETY: owned by the next line.
    let fd = unsafe { sys::socket(sys::AF_INET, kind, 0) }.expect("a socket");
    // SAFETY: opened by the line above.
    let owner = unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) };
    let value = (&raw const on).cast::<core::ffi::c_void>();
    // SAFETY: `on` is an int, readable for its four bytes.
    unsafe { sys::setsockopt(fd, sys::SOL_SOCKET, sys::SO_REUSEPORT, value, 4) }.expect("set");
    // SAFETY: `any` is readable for its own length.
    unsafe { sys::bind(fd, any.as_ptr(), any.len()) }.expect("bound");
    let mut name = SockAddr::empty();
    let (at, len) = (name.as_mut_ptr(), name.len_mut_ptr());
    // SAFETY: both point into `name`, which has room for the length it states.
    unsafe { sys::getsockname(fd, at, len) }.expect("its name");
    (name.get().expect("an address").port(), owner)
}

/// Waits until so many sockets listen on a port of 127.0.0.1. strace lets one thread wait for long
/// while it attends to another.
#[track_caller]
pub fn wait_until_listening(port: u16, sockets: usize) {
    let local = format!(" 0100007F:{port:04X} 00000000:0000 0A ");
    wait_until("all listen", || {
        let table = fs::read_to_string("/proc/thread-self/net/tcp").expect("/proc");
        table.matches(&local).count() == sockets
    });
}

/// Waits until a child that was not waited for is dead. Its first thread may be so before the
/// others, which still accept.
pub fn wait_until_dead(pid: u32) {
    wait_until("it is dead", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("not waited for");
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        stat.contains(") Z ") && threads <= 1
    });
}

/// The only child of a process, such as strace.
#[track_caller]
pub fn child_of(pid: i32) -> i32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("/proc");
    let first = children.split_whitespace().next().expect("a child");
    first.parse().expect("a pid")
}

/// Copies a program that is then to be executed. Another process does: where this one held the copy
/// open to write, a child that another thread forks would too, and executing it would fail.
#[track_caller]
pub fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let copied = finish(program("cp").arg(from.as_ref()).arg(to.as_ref()));
    assert!(copied.status.success(), "{}", text(&copied.stderr));
}

/// A fresh directory under the target directory, of this process alone: several test runs may share
/// that. Those of processes that have ended are removed.
pub fn scratch(name: &str) -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        let Some((of, pid)) = found.rsplit_once('.') else {
            continue;
        };
        let lives = Path::new("/proc").join(pid).exists() && pid != std::process::id().to_string();
        if of == name && !lives {
            _ = fs::remove_dir_all(entry.path());
        }
    }
    let directory = all.join(format!("{name}.{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    directory
}

/// The open descriptors of a process.
pub fn descriptors(pid: impl std::fmt::Display) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("/proc")
        .count()
}

/// Accepts whatever waits on the listeners, which do not block, until `total` are in: how many each
/// had.
#[track_caller]
pub fn drain(listeners: &[reuseport::Listener], total: usize) -> Vec<usize> {
    let mut counts = vec![0; listeners.len()];
    wait_until("all connections are accepted", || {
        for (listener, count) in listeners.iter().zip(&mut counts) {
            *count += std::iter::from_fn(|| listener.accept().ok()).count();
        }
        counts.iter().sum::<usize>() == total
    });
    counts
}

/// Runs the calling thread on one CPU from now on.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn run_on(cpu: usize) {
    // SAFETY: the set is made of integers, for which zeros are a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a set, with room for `cpu`.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is readable for its size; 0 is the calling thread.
    let done = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// The CPUs that this process may run on.
#[cfg(target_os = "linux")]
pub fn cpus() -> Vec<usize> {
    // SAFETY: the set is made of integers, for which zeros are a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is writable for its size; 0 is the calling thread.
    let done = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    assert_eq!(done, 0);
    // SAFETY: `set` is a set, with room for each number asked for.
    (0..1024)
        .filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
        .collect()
}

/// `bind` or `connect`.
type OnAddress = unsafe extern "C" fn(i32, *const libc::sockaddr, libc::socklen_t) -> i32;

/// Connects from an address of its own for each number (127.1.0.0 and up), so that no four-tuple
/// comes twice; closes by a reset, so that none lingers.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn connect_from(number: u32, to: SocketAddr) -> TcpStream {
    use reuseport::SockAddr;
    use std::os::fd::FromRawFd;
    // SAFETY: takes three integers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: opened above, for us alone.
    let stream = unsafe { TcpStream::from_raw_fd(fd) };
    let on = 1_i32;
    let at = (&raw const on).cast();
    // SAFETY: `on` is readable for its four bytes, and the option takes an int.
    unsafe { libc::setsockopt(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, at, 4) };
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let at = (&raw const linger).cast();
    // SAFETY: `linger` is readable for its eight bytes, and the option takes that struct.
    unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, at, 8) };
    let ip = std::net::Ipv4Addr::from(0x7F01_0000 + number);
    let calls: [(SocketAddr, OnAddress); 2] =
        [(SocketAddr::from((ip, 0)), libc::bind), (to, libc::connect)];
    for (address, call) in calls {
        let address = SockAddr::from(address);
        // SAFETY: `address` is readable for its own length.
        let done = unsafe { call(fd, address.as_ptr().cast(), address.len()) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
    stream
}

/// Several listeners on one port of the loopback, bound as the C program binds them; and where.
#[track_caller]
pub fn listeners(n: usize) -> (Vec<reuseport::Listener>, SocketAddr) {
    let first = reuseport::Listener::bind(([127, 0, 0, 1], 0)).expect("a listener");
    let address = first.local_addr().expect("an address");
    let others = (1..n).map(|_| reuseport::Listener::bind(address).expect("a sibling"));
    (std::iter::once(first).chain(others).collect(), address)
}

/// A server that sets `SO_REUSEPORT` alone, as the C program does, comes and goes and leaves
/// connections in `TIME_WAIT`, which last for a minute. Returns its address, on which nobody
/// listens.
///
/// The kernel keeps but so many (`net.ipv4.tcp_max_tw_buckets`) and forgets at once what is beyond
/// that: it is asked whether it has these. On the host's network it may have room again only after
/// a minute.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn leftovers(at: SocketAddr) -> SocketAddr {
    let mut found = None;
    wait_until_within(3 * BOUND, "the kernel keeps leftovers", || {
        let listener = reuseport::Listener::bind(at).expect("a listener");
        let address = listener.local_addr().expect("an address");
        for _ in 0..3 {
            let client = TcpStream::connect(address).expect("connect");
            drop(listener.accept().expect("accept"));
            // The server has closed first; now the client does.
            (&client).read_exact(&mut [0]).expect_err("the end");
        }
        drop(listener);
        let begun = Instant::now();
        // The client's last packet is not the kernel's first concern.
        while time_waits(address.port()) < 3 && begun.elapsed() < Duration::from_secs(1) {
            sleep(Duration::from_millis(2));
        }
        let alone = reuseport::Listener::options()
            .reuse_port(false)
            .reuse_address(true);
        let kept = time_waits(address.port()) >= 3;
        found = (kept && alone.bind(address).is_err()).then_some(address);
        found.is_some()
    });
    found.expect("an address")
}

/// Has two begin at once, 200 times on a `fresh` address and 200 times over leftovers: `both` tells
/// how many of the two came up, which must be one. Two that meet over leftovers try again, 20 times
/// at most. In 2400 attempts they met 16 times, none of them in 800 beside 24 busy loops
/// (2026-11-26): 20 times in a row have a chance below 1e-30.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn of_two_at_once_one(fresh: SocketAddr, mut both: impl FnMut(SocketAddr) -> usize) {
    let left_over = leftovers(SocketAddr::from(([127, 0, 0, 1], 0)));
    for address in [fresh, left_over] {
        for round in 0..200 {
            if address == left_over && round % 10 == 0 {
                // They last for a minute, and a busy machine takes longer than that.
                leftovers(left_over);
            }
            assert_eq!(both(address), 1, "{address}, round {round}");
        }
    }
    let plain = reuseport::Listener::options()
        .reuse_port(false)
        .reuse_address(true)
        .bind(left_over);
    plain.expect_err("the leftovers have lasted");
}

/// Panics unless a fair lottery spreads like this: with one, it does so with a chance below 1e-7
/// (chi-square, Wilson and Hilferty's approximation at 5.2 standard deviations).
#[track_caller]
pub fn a_fair_lottery(counts: &[usize]) {
    let number = |n: usize| f64::from(u32::try_from(n).expect("not that many"));
    let expected = number(counts.iter().sum()) / number(counts.len());
    let chi_square: f64 = counts
        .iter()
        .map(|n| (number(*n) - expected).powi(2) / expected)
        .sum();
    let degrees = number(counts.len() - 1);
    let ninth = 2.0 / (9.0 * degrees);
    let limit = degrees * (1.0 - ninth + 5.2 * ninth.sqrt()).powi(3);
    assert!(chi_square < limit, "{chi_square} of {limit}: {counts:?}");
}
