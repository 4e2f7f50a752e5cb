//! A network namespace for each test process: its ports, `TIME_WAIT` entries and sysctls are then
//! its own, and no other program is on its network.
//!
//! [`BEFORE_MAIN`] runs before `main`, while the process has one thread: all threads and processes
//! that begin later are in the same namespace. A child process tries first, so that a failure
//! half way leaves the process on the host's network.

use std::ffi::{CStr, c_int, c_long};
use std::io::{self, Error};
use std::mem::zeroed;
use std::net::{Ipv6Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::{env, fs};

/// The variable that tells a process which namespace it has been given, by its inode: a role of a
/// test stays where the test is.
pub const GIVEN: &str = "REUSEPORT_TEST_NETWORK";
const GIVEN_C: &CStr = c"REUSEPORT_TEST_NETWORK";

/// The variable that names sysctls below `/proc/sys/net` for a process whose namespace is made by
/// [`enter`]: `core/somaxconn=16 ipv4/tcp_syncookies=2`.
pub const SYSCTLS: &str = "REUSEPORT_TEST_SYSCTLS";

static OWN: AtomicBool = AtomicBool::new(false);
static FIRST: AtomicU64 = AtomicU64::new(0);

/// Returns whether the network is the tests' own. Without that no test may change a sysctl.
pub fn own_namespace() -> bool {
    OWN.load(Relaxed)
}

/// Returns the inode of the namespace in which this process began.
pub fn first_namespace() -> u64 {
    FIRST.load(Relaxed)
}

/// Returns the inode of the calling thread's namespace.
pub fn namespace() -> u64 {
    fs::metadata("/proc/thread-self/ns/net").map_or(0, |file| file.ino())
}

#[used]
// SAFETY: the C library calls what stands in this section, once each, with arguments that `enter`
// does not look at.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = enter;

extern "C" fn enter() {
    let here = namespace();
    FIRST.store(here, Relaxed);
    let given = env::var(GIVEN).unwrap_or_default();
    let host = format!("host {here}");
    if given == here.to_string() {
        return OWN.store(true, Relaxed);
    }
    if here == 0 || given == host {
        return;
    }
    let tried = in_a_child(make_own).and_then(|()| make_own());
    if let Err(error) = &tried {
        eprintln!("these tests run on the host's network; a namespace cannot be had: {error}");
    }
    OWN.store(tried.is_ok(), Relaxed);
    let now = if tried.is_ok() {
        namespace().to_string()
    } else {
        host
    };
    let value = std::ffi::CString::new(now).unwrap_or_default();
    // SAFETY: both are C strings, and no other thread is there to read the environment.
    unsafe { libc::setenv(GIVEN_C.as_ptr(), value.as_ptr(), 1) };
}

/// Runs `step` in a child process, and returns what it came to.
fn in_a_child(step: fn() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: this process has one thread, so the child may do whatever this process may.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(Error::last_os_error());
    }
    if child == 0 {
        let done = step().map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
        // SAFETY: ends the process; takes an integer.
        unsafe { libc::_exit(done) };
    }
    let mut status = 0;
    // SAFETY: `status` is writable, and the child is this function's.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        return Err(Error::last_os_error());
    }
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => Ok(()),
        (true, errno) => Err(Error::from_raw_os_error(errno)),
        (false, _) => Err(Error::other("the attempt was ended by a signal")),
    }
}

/// Moves this process to a namespace of its own, in which the loopback device works.
fn make_own() -> io::Result<()> {
    // SAFETY: takes nothing.
    let (user, group) = (unsafe { libc::geteuid() }, unsafe { libc::getegid() });
    let with_users = match unshare(libc::CLONE_NEWNET) {
        // An ordinary user becomes the owner of a user namespace, and that owns the network.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && user != 0 => {
            unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)?;
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
            fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
            true
        }
        done => done.map(|()| false)?,
    };
    start_loopback()?;
    // The namespace of a machine with little memory keeps fewer than the tests leave in a minute.
    let buckets = "/proc/sys/net/ipv4/tcp_max_tw_buckets";
    let kept = fs::read_to_string(buckets)?;
    if kept.trim().parse().unwrap_or(0) < 131_072 {
        _ = fs::write(buckets, "131072");
    }
    for (name, value) in sysctls().iter().filter_map(|one| one.split_once('=')) {
        fs::write(format!("/proc/sys/net/{name}"), value)?;
    }
    if with_users {
        // With them, what an ordinary user may not do would never be tried.
        drop_capabilities()?;
    }
    Ok(())
}

fn sysctls() -> Vec<String> {
    let all = env::var(SYSCTLS).unwrap_or_default();
    all.split_whitespace().map(str::to_owned).collect()
}

fn unshare(what: c_int) -> io::Result<()> {
    // SAFETY: takes an integer; no other thread is there.
    succeeded(unsafe { libc::unshare(what) }.into())
}

fn succeeded(result: c_long) -> io::Result<()> {
    if result < 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}

fn start_loopback() -> io::Result<()> {
    let any = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
    // SAFETY: made of integers, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = (*from).try_into().unwrap_or_default();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP.try_into().unwrap_or_default();
    let at = &raw mut request;
    // SAFETY: `at` points to an `ifreq`, which this request reads.
    let done = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS as _, at) };
    succeeded(done.into())?;
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).map(drop)
}

/// Takes all capabilities from the calling thread.
pub fn drop_capabilities() -> io::Result<()> {
    // `struct __user_cap_header_struct` with version 3 and this process, and its two data structs.
    let (header, none) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    // SAFETY: both are readable, and as long as version 3 has them.
    succeeded(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) })
}
