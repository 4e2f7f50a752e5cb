//! What the tests share: waiting with a bound, servers in processes of their own, outside tools.
// Each test file uses its own part of this.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    missing_debug_implementations
)]

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs};

/// The longest wait for anything that must happen.
pub const BOUND: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; panics with `what` after [`BOUND`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < BOUND,
            "waited {BOUND:?} in vain until {what}"
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
    println!("skipped: {why}");
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
    let mut command = Command::new(env!("CARGO_BIN_EXE_reuseport"));
    command
        .args(args)
        .stdin(Stdio::null())
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
    } = reuseport(args).output().expect("the command");
    (
        status.code().expect("no signal"),
        text(&stdout).to_owned(),
        text(&stderr).to_owned(),
    )
}

/// A running `reuseport serve`. It dies with this value.
pub struct ServeProcess {
    pub child: Child,
    pub address: SocketAddr,
    stderr: Option<BufReader<std::process::ChildStderr>>,
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
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the server");
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            let length = stderr.read_line(&mut line).expect("stderr");
            assert!(length > 0, "the server did not start: {said}");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest
                    .split_whitespace()
                    .next()
                    .expect("an address")
                    .parse()
                    .expect("one");
            }
            said += &line;
        };
        ServeProcess {
            child,
            address,
            stderr: Some(stderr),
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().try_into().expect("a pid")
    }

    #[track_caller]
    pub fn signal(&self, signal: i32) {
        // SAFETY: takes two integers; the child has not been waited for, so the pid is its.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// Reads stderr until a line that contains `wanted`.
    #[track_caller]
    pub fn read_stderr_until(&mut self, wanted: &str) -> String {
        let mut all = String::new();
        while !all.contains(wanted) {
            let length = self
                .stderr
                .as_mut()
                .expect("once")
                .read_line(&mut all)
                .expect("stderr");
            assert!(length > 0, "no {wanted:?} on stderr: {all}");
        }
        all
    }

    /// Has the newest process of this server, `pid`, hand over; returns the pid of the successor.
    #[track_caller]
    pub fn hand_over(&mut self, pid: i32) -> i32 {
        // SAFETY: takes two integers; the process lives, for nothing has ended it.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGHUP) }, 0);
        let said = self.read_stderr_until("handed over to pid ");
        let next = said.split("handed over to pid ").nth(1).expect("a pid");
        next.split_whitespace()
            .next()
            .expect("a pid")
            .parse()
            .expect("a pid")
    }

    /// Waits for its end: exit code, stdout, what was left of stderr.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        let mut stderr = self.stderr.take().expect("once");
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut out).expect("stdout");
        }
        stderr.read_to_string(&mut err).expect("stderr");
        (self.child.wait().expect("the server").code(), out, err)
    }
}

impl Drop for ServeProcess {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A test of this same file, run in a process of its own: for what a process can do only once or
/// to all its threads. It is an ignored test named `role`.
pub fn role(role: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("this test"));
    command.args([
        "--exact",
        role,
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
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
    let program = directory.join("reuseport-c");
    let mut cc = Command::new("cc");
    cc.args(["-Wall", "-Wextra", "-Werror", "-O2", "-pthread", "-o"])
        .arg(&program)
        .arg(source);
    let done = cc.output().expect("a C compiler");
    assert!(done.status.success(), "{}", text(&done.stderr));
    program
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

/// A process that dies with this value.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// The only child of a process, such as strace.
#[track_caller]
pub fn child_of(pid: u32) -> i32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("/proc");
    let first = children.split_whitespace().next().expect("a child");
    first.parse().expect("a pid")
}

/// Copies a program that is then to be executed. Another process does: where this one held the copy
/// open to write, a child that another thread forks would too, and executing it would fail.
#[track_caller]
pub fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let copied = Command::new("cp")
        .arg(from.as_ref())
        .arg(to.as_ref())
        .status();
    assert!(copied.expect("cp").success());
}

/// A fresh directory under the target directory.
pub fn scratch(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    _ = fs::remove_dir_all(&directory);
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

/// Ten hand-overs while clients come, all through `connect`, which is run by `client`. Nobody may
/// be lost, or a second late.
#[track_caller]
pub fn ten_hand_overs(mut server: ServeProcess, client: impl Fn(&mut Command) -> Output + Sync) {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    let (done, begun) = (AtomicBool::new(false), Instant::now());
    let goes_on = || !done.load(SeqCst) && begun.elapsed() < 2 * BOUND;
    let address = server.address.to_string();
    let (reports, still) = std::thread::scope(|scope| {
        // How long the machine stands still, for clients too: seen by who wants to run always.
        let watch = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while goes_on() {
                let begun = Instant::now();
                sleep(Duration::from_millis(2));
                longest = longest.max(begun.elapsed());
            }
            longest
        });
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
        wait_until("the first has ended", || {
            server.child.try_wait().expect("it").is_some()
        });
        done.store(true, SeqCst);
        let reports = load.join().expect("the load");
        // SAFETY: takes two integers; the last successor lives, for nothing has ended it.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        (reports, watch.join().expect("the watch"))
    });
    let late = 900.0 + 1000.0 * still.as_secs_f64();
    for (code, report) in reports {
        assert_eq!(code, Some(0), "{report}");
        let longest = report
            .split("max ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let longest: f64 = longest.expect("a duration").parse().expect("a number");
        assert!(
            longest < late,
            "somebody was late; the machine stood still for {still:?}: {report}"
        );
    }
}

/// A server that sets `SO_REUSEPORT` alone, as the C program does, comes and goes and leaves
/// connections in `TIME_WAIT`. Returns its address, on which nobody listens.
///
/// The kernel keeps but so many (`net.ipv4.tcp_max_tw_buckets`); where earlier tests have left as
/// many, it has room again after a minute.
#[track_caller]
pub fn leftovers(at: SocketAddr) -> SocketAddr {
    let begun = Instant::now();
    loop {
        let listener = reuseport::Listener::bind(at).expect("a listener");
        let address = listener.local_addr().expect("an address");
        for _ in 0..3 {
            let client = TcpStream::connect(address).expect("connect");
            drop(listener.accept().expect("accept"));
            // The server has closed first; now the client does.
            (&client).read_exact(&mut [0]).expect_err("the end");
        }
        drop(listener);
        let alone = reuseport::Listener::options()
            .reuse_port(false)
            .reuse_address(true);
        if alone.bind(address).is_err() {
            return address;
        }
        assert!(begun.elapsed() < 3 * BOUND, "no leftovers");
        sleep(Duration::from_millis(100));
    }
}

/// Has two begin at once, 200 times on a `fresh` address and 200 times over leftovers: `both` tells
/// how many of the two came up. Never both, and seldom none.
#[track_caller]
pub fn of_two_at_once_one(fresh: SocketAddr, mut both: impl FnMut(SocketAddr) -> usize) {
    let left_over = leftovers(SocketAddr::from(([127, 0, 0, 1], 0)));
    for address in [fresh, left_over] {
        let mut none = 0;
        for round in 0..200 {
            if address == left_over && round % 10 == 0 {
                // They last for a minute, and a busy machine takes longer than that.
                leftovers(left_over);
            }
            let up = both(address);
            assert!(up < 2, "both have {address}");
            none += 1 - up;
        }
        assert!(none < 10, "nobody had {address} in {none} of 200");
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
