//! The processes that tests start. Each begins in a stated condition, whatever the test process
//! itself was started with, and each ends with the value that stands for it.

use std::ffi::{OsStr, OsString, c_int};
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Output};
use std::sync::mpsc::{Sender, channel};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};
use std::{env, mem, thread};

use super::{BOUND, wait_until_within};

/// The longest wait for a process that has much to do, such as a compiler.
pub const LONG: Duration = Duration::from_secs(300);

/// The variables that a process gets from the test process. `LC_ALL` is C.
fn is_kept(name: &OsStr) -> bool {
    const KEPT: [&str; 7] = [
        "PATH",
        "HOME",
        "TMPDIR",
        "CI",
        "LD_LIBRARY_PATH",
        "QEMU_LD_PREFIX",
        "REUSEPORT_TEST_NETWORK",
    ];
    let name = name.to_string_lossy();
    let prefixed = ["CARGO", "RUST"].iter().any(|kept| name.starts_with(kept));
    prefixed || KEPT.contains(&&*name) || name.ends_with("SAN_OPTIONS")
}

/// Returns the command that runs a program, with an empty standard input.
pub fn program(path: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(path);
    command.stdin(std::process::Stdio::null());
    command
}

/// Starts a process: every signal with its default disposition and none blocked, in a session of
/// its own, without core files, with at most 4096 descriptors, with the environment of [`is_kept`]
/// and what the command itself sets. The kernel ends it when the test process ends.
#[track_caller]
pub fn start(command: &mut Command) -> Running {
    match try_start(command) {
        Ok(running) => running,
        Err(error) => panic!("{}: {error}", command.get_program().to_string_lossy()),
    }
}

/// As [`start`], for a program that may not be there.
pub fn try_start(command: &mut Command) -> io::Result<Running> {
    state_environment(command);
    let test_process = std::process::id();
    // SAFETY: the function makes system calls alone.
    unsafe { command.pre_exec(move || begin_clean(test_process)) };
    let (reply, answer) = channel();
    let request = Request {
        command: mem::replace(command, Command::new("false")),
        #[cfg(target_os = "linux")]
        network: File::open("/proc/thread-self/ns/net")?,
        reply,
    };
    starter().send(request).expect("the starter lives");
    let (used, child) = answer.recv().expect("the starter answers");
    *command = used;
    Ok(Running {
        child: child?,
        ended: None,
    })
}

/// Runs a process to its end, within [`LONG`], and returns what it wrote. Its standard input is
/// empty.
#[track_caller]
pub fn finish(command: &mut Command) -> Output {
    use std::process::Stdio;
    start(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )
    .into_output()
}

fn state_environment(command: &mut Command) {
    let own = |(name, value): (&OsStr, Option<&OsStr>)| (name.into(), value.map(Into::into));
    let own: Vec<(OsString, Option<OsString>)> = command.get_envs().map(own).collect();
    command.env_clear().env("LC_ALL", "C");
    command.envs(env::vars_os().filter(|(name, _)| is_kept(name)));
    for (name, value) in own {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
}

/// Runs in the new process, before the program.
fn begin_clean(test_process: u32) -> io::Result<()> {
    // SAFETY: takes nothing. It fails in a process that leads a group already: then nothing is due.
    unsafe { libc::setsid() };
    for signal in 1..=64 {
        #[cfg(target_os = "linux")]
        // SAFETY: the kernel's `struct sigaction` with the default disposition: all zeros. The C
        // library's own function refuses the signals that the C library uses, 32 and 33.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                [0_u64; 4].as_ptr(),
                0_usize,
                8_usize,
            )
        };
        #[cfg(not(target_os = "linux"))]
        // SAFETY: a disposition without a handler.
        unsafe {
            libc::signal(signal, libc::SIG_DFL)
        };
    }
    // SAFETY: made of integers, for which zeros are a value.
    let mut none: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `none` is writable.
    unsafe { libc::sigemptyset(&raw mut none) };
    // SAFETY: `none` is readable, and the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    // SAFETY: takes an integer.
    unsafe { libc::umask(0o022) };
    limit_softly(libc::RLIMIT_CORE, 0)?;
    limit_softly(libc::RLIMIT_NOFILE, 4096)?;
    #[cfg(target_os = "linux")]
    {
        // SAFETY: takes two integers.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: takes nothing.
        if u32::try_from(unsafe { libc::getppid() }) != Ok(test_process) {
            // It has ended before the kernel was told to watch it.
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
    }
    _ = test_process;
    Ok(())
}

#[cfg(target_env = "gnu")]
pub type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
pub type Resource = c_int;

/// Sets a soft limit, at most to the hard one, and returns what it was.
pub fn limit_softly(resource: Resource, to: libc::rlim_t) -> io::Result<libc::rlim_t> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable.
    if unsafe { libc::getrlimit(resource, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let before = mem::replace(&mut limit.rlim_cur, to.min(limit.rlim_max));
    // SAFETY: `limit` is readable.
    if unsafe { libc::setrlimit(resource, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(before)
}

static STARTING: RwLock<()> = RwLock::new(());

/// Keeps processes from being started in this test process while the guard lives. A child holds
/// copies of all descriptors from `fork` to `exec`: a socket that a test closes meanwhile stays in
/// its group, and takes connections that nobody accepts.
pub fn no_process_starts() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

struct Request {
    command: Command,
    #[cfg(target_os = "linux")]
    network: File,
    reply: Sender<(Command, io::Result<Child>)>,
}

/// The thread that starts all processes. The kernel ends a process when the *thread* that has
/// started it ends; this one lives as long as the test process.
fn starter() -> &'static Sender<Request> {
    static STARTER: OnceLock<Sender<Request>> = OnceLock::new();
    STARTER.get_or_init(|| {
        let (sender, requests) = channel::<Request>();
        let serve = move || {
            #[cfg(target_os = "linux")]
            run_where_the_process_runs();
            for mut request in requests {
                #[cfg(target_os = "linux")]
                let entered = enter(&request.network);
                #[cfg(not(target_os = "linux"))]
                let entered = io::Result::Ok(());
                // Returns when the child has become the program, and holds nothing of this process.
                let alone = STARTING.write().unwrap_or_else(PoisonError::into_inner);
                let child = entered.and_then(|()| request.command.spawn());
                drop(alone);
                _ = request.reply.send((request.command, child));
            }
        };
        thread::Builder::new()
            .name("starter".into())
            .spawn(serve)
            .expect("a thread");
        sender
    })
}

/// Gives this thread the CPUs of the first one: the thread that happens to start this one may be
/// pinned.
#[cfg(target_os = "linux")]
fn run_where_the_process_runs() {
    let process = std::process::id().try_into().expect("a pid");
    // SAFETY: the set is made of integers, for which zeros are a value.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the set is writable for its size.
    unsafe { libc::sched_getaffinity(process, size_of_val(&set), &raw mut set) };
    // SAFETY: the set is readable for its size; 0 is the calling thread.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
}

/// Moves the calling thread to a network namespace, unless it is there already.
#[cfg(target_os = "linux")]
fn enter(network: &File) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    if network.metadata()?.ino() == super::namespace::namespace() {
        return Ok(());
    }
    // SAFETY: takes two integers, and changes no other thread.
    match unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A process. It, and what it has started in its session, dies with this value; until then nobody
/// else gets its pid.
#[derive(Debug)]
pub struct Running {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id().try_into().expect("a pid")
    }

    #[track_caller]
    pub fn signal(&self, signal: i32) {
        // SAFETY: takes two integers; the child is not reaped before this value is dropped.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// Returns how it has ended, or `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        // SAFETY: made of integers and pointers, for which zeros are a value.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let id = self.child.id();
        // SAFETY: `info` is writable; the child is not reaped by this call.
        let done = unsafe { libc::waitid(libc::P_PID, id, &raw mut info, how) };
        assert_eq!(done, 0, "waitid: {}", io::Error::last_os_error());
        // SAFETY: `waitid` has filled the fields of a child's end, or left them zero.
        if unsafe { info.si_pid() } == 0 {
            return None;
        }
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        let status = match info.si_code {
            libc::CLD_EXITED => status << 8,
            libc::CLD_DUMPED => status | 0x80,
            _ => status,
        };
        self.ended = Some(ExitStatus::from_raw(status));
        self.ended
    }

    /// Waits for its end, within [`BOUND`].
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_within(BOUND)
    }

    #[track_caller]
    pub fn wait_within(&mut self, bound: Duration) -> ExitStatus {
        let pid = self.pid();
        let what = format!("process {pid} has ended");
        wait_until_within(bound, &what, || self.ended().is_some());
        self.ended.expect("it has")
    }

    /// Takes its standard output; it must be piped. So for the others.
    #[track_caller]
    pub fn stdout(&mut self) -> Lines<ChildStdout> {
        lines(self.child.stdout.take().expect("a pipe, once"), BOUND)
    }

    pub fn stdout_if_left(&mut self) -> Option<Lines<ChildStdout>> {
        self.child.stdout.take().map(|pipe| lines(pipe, BOUND))
    }

    #[track_caller]
    pub fn stderr(&mut self) -> Lines<ChildStderr> {
        lines(self.child.stderr.take().expect("a pipe, once"), BOUND)
    }

    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Reads what it writes to the pipes that were not taken, waits for its end, within [`LONG`].
    #[track_caller]
    pub fn into_output(mut self) -> Output {
        drop(self.stdin());
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let (stdout, stderr) = thread::scope(|scope| {
            let stderr = scope.spawn(|| all_of(stderr));
            (all_of(stdout), stderr.join().expect("a reader"))
        });
        let said = || String::from_utf8_lossy(&stdout.0) + String::from_utf8_lossy(&stderr.0);
        for outcome in [&stdout.1, &stderr.1] {
            assert!(outcome.is_ok(), "{outcome:?} of {}", said());
        }
        Output {
            status: self.wait_within(LONG),
            stdout: stdout.0,
            stderr: stderr.0,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: takes two integers. The child is not reaped, so the group is its.
        unsafe { libc::kill(-self.pid(), libc::SIGKILL) };
        _ = self.child.wait();
    }
}

/// A pipe of a process, read by lines.
pub type Lines<R> = BufReader<Bounded<R>>;

fn lines<R: Read + AsFd>(pipe: R, bound: Duration) -> Lines<R> {
    BufReader::new(Bounded { pipe, bound })
}

fn all_of<R: Read + AsFd>(pipe: Option<R>) -> (Vec<u8>, io::Result<usize>) {
    let mut all = Vec::new();
    let done = pipe.map_or(Ok(0), |pipe| lines(pipe, LONG).read_to_end(&mut all));
    (all, done)
}

/// Reads from a pipe or a terminal, and waits for at most [`BOUND`] each time.
pub fn bounded<R: Read + AsFd>(pipe: R) -> Bounded<R> {
    Bounded { pipe, bound: BOUND }
}

/// A pipe from which each `read` waits for at most `bound`.
#[derive(Debug)]
pub struct Bounded<R> {
    pipe: R,
    bound: Duration,
}

impl<R: AsFd> AsFd for Bounded<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl<R: Read + AsFd> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if is_readable(self.pipe.as_fd(), self.bound)? {
            return self.pipe.read(into);
        }
        let message = format!("nothing was written for {:?}", self.bound);
        Err(io::Error::new(ErrorKind::TimedOut, message))
    }
}

/// Waits until a descriptor can be read, for at most `bound`.
fn is_readable(fd: BorrowedFd<'_>, bound: Duration) -> io::Result<bool> {
    let begun = Instant::now();
    loop {
        let mut entry = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let rest = bound.saturating_sub(begun.elapsed()).as_millis();
        let rest = rest.try_into().unwrap_or(c_int::MAX);
        // SAFETY: one entry, readable and writable.
        match unsafe { libc::poll(&raw mut entry, 1, rest) } {
            0 => return Ok(false),
            1.. => return Ok(true),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
