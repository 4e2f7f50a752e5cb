//! The looks: whether this machine has what a claim needs. By trying it where that is possible; a
//! sysctl is read where the outcome of trying it would be the claim itself.

use core::ffi::c_short;
use core::mem;
use core::net::{Ipv6Addr, SocketAddr};
use core::time::Duration;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::{env, fs, thread};

use reuseport::{Listener, steering};

use super::joining::port_window;
use super::needs::{Need, State};
use super::sockets::{any_port, open};
use super::tools::{NOBODY, act_as, as_nobody, aside, check, group, stay_on_this_cpu};
use super::{Seen, Snag, Tried};

use State::{Doubtful, Met, Missing};

/// The longest wait for the one connection over the loopback.
const A_MOMENT: Duration = Duration::from_secs(5);

pub(super) fn look(need: Need) -> State {
    match need {
        Need::Loopback => loopback(),
        Need::NoTraffic => Met,
        Need::Ipv6 => {
            let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
            let bound = Listener::options().only_v6(false).bind(any);
            bound.map_or_else(|error| Missing(format!("no IPv6: {error}")), |_| Met)
        }
        Need::Steering => group(2).map_or_else(doubtful, |(members, _)| {
            let refused = |error| Missing(format!("steering is refused: {error}"));
            members[0]
                .attach_program(&steering::random(2))
                .map_or_else(refused, |()| Met)
        }),
        Need::Program => {
            let unknown = |error| Missing(format!("this program does not know its path: {error}"));
            env::current_exe().map_or_else(unknown, |_| Met)
        }
        Need::Threads => thread::Builder::new().spawn(|| ()).map_or_else(
            |error| Missing(format!("no thread can be started: {error}")),
            |thread| {
                _ = thread.join();
                Met
            },
        ),
        Need::Tasks => {
            // SAFETY: takes nothing.
            let stat = format!("/proc/self/task/{}/stat", unsafe { libc::gettid() });
            let unread = |error| Missing(format!("{stat}: {error}"));
            fs::read_to_string(&stat).map_or_else(unread, |_| Met)
        }
        Need::Affinity => within(aside(|| {
            stay_on_this_cpu()?;
            yes()
        })),
        Need::OtherUser => within(aside(|| {
            let ours = act_as(libc::uid_t::MAX)?; // no user has this number
            if ours != NOBODY && act_as(NOBODY)? == NOBODY {
                return yes();
            }
            Err(Snag::NotHere("it takes root to act as another user".into()))
        })),
        Need::NoPrivilege => within(as_nobody(yes)),
        Need::Queue => backlog(),
        Need::Requests => match (backlog(), sysctl("net.ipv4.tcp_syncookies")) {
            (Met, Sysctl::Is(value)) if value == "2" => {
                Missing("net.ipv4.tcp_syncookies is 2: the kernel remembers no handshake".into())
            }
            (Met, Sysctl::Unread(why)) => Doubtful(why),
            (state, _) => state,
        },
        Need::Cookies => match sysctl("net.ipv4.tcp_syncookies") {
            Sysctl::Is(value) if value != "0" => Met,
            Sysctl::Unread(why) => Doubtful(why),
            _ => Missing("the kernel sends no SYN cookies (net.ipv4.tcp_syncookies)".into()),
        },
        Need::NoMigration => zero("net.ipv4.tcp_migrate_req", "what waits moves to a sibling"),
        Need::NoAutobindReuse => zero("net.ipv4.ip_autobind_reuse", "port 0 reuses ports"),
        Need::LinearSyns => match sysctl("net.ipv4.tcp_syn_linear_timeouts") {
            Sysctl::Is(value) if value == "0" => {
                Missing("net.ipv4.tcp_syn_linear_timeouts is 0".into())
            }
            Sysctl::Is(_) => Met,
            Sysctl::None => {
                Missing("no net.ipv4.tcp_syn_linear_timeouts: it came with Linux 6.5".into())
            }
            Sysctl::Unread(why) => Doubtful(why),
        },
        Need::PortRange => port_window().map_or_else(snag, |_| Met),
        Need::Linux(major, minor) => linux(major, minor),
    }
}

/// A look that failed proves nothing.
fn doubtful(error: impl core::fmt::Display) -> State {
    Doubtful(error.to_string())
}

fn snag(snag: Snag) -> State {
    match snag {
        Snag::NotHere(why) => Missing(why),
        Snag::Broken(why) => Doubtful(why),
    }
}

fn within(tried: Tried) -> State {
    tried.map_or_else(snag, |_| Met)
}

#[allow(clippy::unnecessary_wraps)] // as the functions that try a claim
fn yes() -> Tried {
    let (holds, what) = (true, String::new());
    Ok(Seen { holds, what })
}

/// One connection to an address of the loopback.
fn loopback() -> State {
    match lo_flags() {
        Ok(flags) if i32::from(flags) & libc::IFF_UP == 0 => {
            return Missing("the network interface lo is down".into());
        }
        _ => {} // no such interface, or no answer: the connection tells
    }
    let listener = match Listener::bind(any_port()) {
        Ok(listener) => listener,
        Err(error) if error.errno() == libc::EADDRNOTAVAIL => {
            return Missing(format!(
                "{} is not an address here: {error}",
                any_port().ip()
            ));
        }
        Err(error) => return doubtful(error),
    };
    let address = match listener.local_addr() {
        Ok(address) => address,
        Err(error) => return doubtful(error),
    };
    match TcpStream::connect_timeout(&address, A_MOMENT) {
        Ok(_) => Met,
        Err(error) if error.raw_os_error() == Some(libc::EMFILE) => doubtful(error),
        Err(error) => Missing(format!("no connection to {}: {error}", address.ip())),
    }
}

/// `struct ifreq`: the name of an interface, and its flags.
#[repr(C)]
pub(super) struct Interface {
    name: [u8; 16],
    pub(super) flags: c_short,
    unused: [u8; 22],
}

pub(super) const LO: Interface = Interface {
    name: *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    flags: 0,
    unused: [0; 22],
};

/// The flags of the interface lo: `SIOCGIFFLAGS`.
fn lo_flags() -> Result<c_short, Snag> {
    let socket: Listener = open(libc::SOCK_DGRAM, any_port().ip())?;
    let mut lo = LO;
    // SAFETY: `lo` is readable and writable as the kernel's `struct ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), 0x8913, &raw mut lo) })?;
    Ok(lo.flags)
}

/// Checks that the longest queue that the kernel allows holds a second connection.
fn backlog() -> State {
    let limit = Listener::bind(any_port()).and_then(|listener| listener.queue());
    match limit.map(|queue| queue.limit) {
        Ok(0) => Missing("net.core.somaxconn is 0".into()),
        Ok(_) => Met,
        Err(error) => doubtful(error),
    }
}

enum Sysctl {
    Is(String),
    /// This kernel has none of this name.
    None,
    /// The file cannot be read, and this says why.
    Unread(String),
}

fn sysctl(name: &str) -> Sysctl {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    match fs::read_to_string(&path) {
        Ok(text) => Sysctl::Is(text.trim().to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound && has_directory(&path) => Sysctl::None,
        Err(error) => Sysctl::Unread(format!("{name} cannot be read: {error}")),
    }
}

fn has_directory(path: &str) -> bool {
    Path::new(path).parent().is_some_and(Path::is_dir)
}

/// A sysctl that must be 0, or missing; else `then`.
fn zero(name: &str, then: &str) -> State {
    match sysctl(name) {
        Sysctl::Is(value) if value != "0" => Missing(format!("{name} is {value}: {then}")),
        Sysctl::Is(_) | Sysctl::None => Met,
        Sysctl::Unread(why) => Doubtful(why),
    }
}

/// `uname(2)`. An older kernel may have it nevertheless.
fn linux(major: u32, minor: u32) -> State {
    // SAFETY: the structure is made of integers, for which zeros are a value.
    let mut name: libc::utsname = unsafe { mem::zeroed() };
    // SAFETY: `name` is writable.
    if let Err(error) = check(unsafe { libc::uname(&raw mut name) }) {
        return doubtful(error);
    }
    let bytes = name.release.iter().map(|byte| byte.to_ne_bytes()[0]);
    let release: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    let release = String::from_utf8_lossy(&release);
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|word| word.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(x), Some(y)) if (x, y) < (major, minor) => Doubtful(format!(
            "Linux does so since {major}.{minor}, and this is {x}.{y}"
        )),
        _ => Met,
    }
}
