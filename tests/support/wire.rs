//! A wire that takes its time: two network namespaces, a TUN device in each, and two threads that
//! carry every packet from the one to the other after half a round-trip time, in order.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    missing_debug_implementations
)]

use std::collections::VecDeque;
use std::ffi::c_ulong;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The addresses of the two ends. No other namespace sees them.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

const NAME: &str = "wire";
/// How many packets may wait for the thread that carries them: more than ever do, also when that
/// thread does not get a CPU for a while. Further ones would be lost.
const ROOM: i32 = 20_000;

type Loses = Box<dyn FnMut(&[u8]) -> bool + Send>;

pub struct Wire {
    pub server: Namespace,
    pub client: Namespace,
    /// What the carriers could not hand over.
    refused: Arc<AtomicUsize>,
    /// How many milliseconds at most a carrier was late with a packet.
    latest: Arc<AtomicU64>,
    /// Closing it stops the carriers.
    stop: Option<UnixStream>,
    carriers: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Fails where namespaces or TUN devices cannot be had: they are root's.
    pub fn new(round_trip: Duration) -> io::Result<Wire> {
        Wire::losing(round_trip, |_| false)
    }

    /// A wire that loses the packets from client to server that `loses` returns true for.
    pub fn losing(
        round_trip: Duration,
        mut loses: impl FnMut(&[u8]) -> bool + Send + 'static,
    ) -> io::Result<Wire> {
        let (server, at_server) = end(SERVER)?;
        let (client, at_client) = end(CLIENT)?;
        let (stop, stopped) = UnixStream::pair()?;
        let refused = Arc::<AtomicUsize>::default();
        let latest = Arc::<AtomicU64>::default();
        let mut carriers = Vec::new();
        let mut loses: Option<Loses> = Some(Box::new(move |packet| loses(packet)));
        for (from, to) in [(&at_client, &at_server), (&at_server, &at_client)] {
            let (from, to) = (Arc::clone(from), Arc::clone(to));
            let mut loses = loses.take().unwrap_or_else(|| Box::new(|_| false));
            let stopped = stopped.try_clone()?;
            let (refused, latest) = (Arc::clone(&refused), Arc::clone(&latest));
            carriers.push(thread::spawn(move || {
                let counters = (&*refused, &*latest);
                carry(&from, &to, round_trip / 2, &stopped, counters, &mut loses);
            }));
        }
        Ok(Wire {
            server,
            client,
            refused,
            latest,
            stop: Some(stop),
            carriers,
        })
    }

    /// How late a packet was at most: a machine may be too busy for the carriers.
    pub fn latest(&self) -> Duration {
        Duration::from_millis(self.latest.load(Relaxed))
    }

    /// How many packets were lost on the way. Any makes a test with this wire worthless.
    pub fn lost(&self) -> usize {
        let dropped = |end: &Namespace| end.inside(dropped);
        self.refused.load(Relaxed) + dropped(&self.server) + dropped(&self.client)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop = None;
        self.carriers
            .drain(..)
            .for_each(|carrier| _ = carrier.join());
    }
}

/// A network namespace. It lives as long as this value, or a thread or a socket in it.
#[derive(Clone)]
pub struct Namespace(Arc<File>);

impl Namespace {
    /// Moves the calling thread there: the sockets that it opens, and the threads that it starts.
    pub fn enter(&self) {
        // SAFETY: takes two integers, and changes no other thread.
        let done = unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(done, 0, "setns: {}", io::Error::last_os_error());
    }

    /// Sets a sysctl there, by its path below `/proc/sys`.
    pub fn set(&self, sysctl: &str, value: &str) {
        self.inside(|| fs::write(format!("/proc/sys/{sysctl}"), value).expect(sysctl));
    }

    /// Runs `what` there, in a thread of its own: the calling one may be the test harness's.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let there = || {
            self.enter();
            what()
        };
        let done = thread::scope(|scope| scope.spawn(there).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// A namespace of its own, and in it a device with this address.
fn end(ip: Ipv4Addr) -> io::Result<(Namespace, Arc<File>)> {
    let made = move || {
        // SAFETY: takes an integer, and changes no other thread.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let namespace = Namespace(Arc::new(File::open("/proc/thread-self/ns/net")?));
        Ok((namespace, Arc::new(device(ip)?)))
    };
    thread::spawn(made).join().expect("an end of the wire")
}

/// A device with this address in the calling thread's namespace. What is written to it the kernel
/// has received, and what is read the kernel has sent.
pub fn device(ip: Ipv4Addr) -> io::Result<File> {
    let device = open_tun()?;
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request(&device, libc::TUNSETIFF as _, NAME, &flags_of(flags));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let up = flags_of(libc::IFF_UP);
    request(&socket, libc::SIOCSIFFLAGS, "lo", &up);
    request(&socket, libc::SIOCSIFTXQLEN, NAME, &ROOM.to_ne_bytes());
    request(&socket, libc::SIOCSIFADDR, NAME, &address_of(ip));
    let mask = address_of(Ipv4Addr::new(255, 255, 255, 0));
    request(&socket, libc::SIOCSIFNETMASK, NAME, &mask);
    request(&socket, libc::SIOCSIFFLAGS, NAME, &up);
    Ok(device)
}

fn open_tun() -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK);
    let open = || options.open("/dev/net/tun");
    open().or_else(|error| {
        if error.kind() != ErrorKind::NotFound {
            return Err(error);
        }
        // A container often lacks the node and yet has the device.
        fs::create_dir_all("/dev/net")?;
        let path = c"/dev/net/tun".as_ptr();
        let device = libc::makedev(10, 200);
        // SAFETY: `path` is a C string.
        _ = unsafe { libc::mknod(path, libc::S_IFCHR | 0o600, device) };
        open()
    })
}

/// `ioctl` with a `struct ifreq`: a name in 16 bytes, then what the request is about.
#[track_caller]
fn request(on: &impl AsRawFd, request: c_ulong, name: &str, value: &[u8]) {
    let mut ifreq = [0_u8; 40];
    ifreq[..name.len()].copy_from_slice(name.as_bytes());
    ifreq[16..16 + value.len()].copy_from_slice(value);
    // SAFETY: `ifreq` is as large as the struct, or larger, and writable.
    let done = unsafe { libc::ioctl(on.as_raw_fd(), request as _, ifreq.as_mut_ptr()) };
    let error = io::Error::last_os_error();
    assert_eq!(done, 0, "ioctl {request:#x} on {name}: {error}");
}

/// `short ifr_flags`
fn flags_of(flags: i32) -> [u8; 2] {
    i16::try_from(flags).expect("two bytes").to_ne_bytes()
}

/// `struct sockaddr_in`
fn address_of(ip: Ipv4Addr) -> [u8; 16] {
    let mut address = [0; 16];
    let family = u16::try_from(libc::AF_INET).expect("two bytes");
    address[0..2].copy_from_slice(&family.to_ne_bytes());
    address[4..8].copy_from_slice(&ip.octets());
    address
}

/// What the device of the calling thread's namespace has dropped, in either direction.
fn dropped() -> usize {
    let devices = fs::read_to_string("/proc/thread-self/net/dev").expect("/proc");
    let ours = |line: &str| {
        Some(
            line.trim()
                .strip_prefix(NAME)?
                .strip_prefix(':')?
                .to_owned(),
        )
    };
    let counters = devices.lines().find_map(ours).expect("the device");
    let counters: Vec<_> = counters.split_whitespace().collect();
    // Received: bytes, packets, errors, drops and four more; then the same for sent.
    let bad = [2, 3, 10, 11].map(|at| counters[at].parse::<usize>().expect("a number"));
    bad.iter().sum()
}

/// Carries packets `from` one device `to` the other, each `delay` later, until it is `stopped`.
fn carry(
    mut from: &File,
    mut to: &File,
    delay: Duration,
    stopped: &UnixStream,
    (refused, latest): (&AtomicUsize, &AtomicU64),
    loses: &mut Loses,
) {
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut packet = [0; 2048]; // the device's MTU is 1500
    loop {
        let next = under_way.front().map(|(due, _)| *due);
        if !wait(from, stopped, next) {
            return;
        }
        // Not more at a time, so that nothing that is due waits for long.
        for _ in 0..64 {
            match from.read(&mut packet) {
                Ok(length) if loses(&packet[..length]) => {}
                Ok(length) => {
                    under_way.push_back((Instant::now() + delay, packet[..length].to_vec()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("the wire is broken: {error}"),
            }
        }
        let now = Instant::now();
        while under_way.front().is_some_and(|(due, _)| *due <= now) {
            let (due, packet) = under_way.pop_front().expect("there is one");
            let late = now.duration_since(due).as_millis();
            latest.fetch_max(late.try_into().unwrap_or(u64::MAX), Relaxed);
            let written = to.write(&packet);
            if !written.is_ok_and(|length| length == packet.len()) {
                refused.fetch_add(1, Relaxed);
            }
        }
    }
}

/// Waits for a packet, at most until `next`. False: it is to stop.
fn wait(from: &File, stopped: &UnixStream, next: Option<Instant>) -> bool {
    let entry = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polled = [entry(from.as_raw_fd()), entry(stopped.as_raw_fd())];
    let rest = next.map(|next| next.saturating_duration_since(Instant::now()));
    let rest = rest.map(|rest| libc::timespec {
        tv_sec: rest.as_secs().try_into().expect("a short time"),
        // An i32 on 32-bit machines, an i64 on others.
        tv_nsec: i32::try_from(rest.subsec_nanos())
            .expect("below a second")
            .into(),
    });
    let timeout = rest
        .as_ref()
        .map_or(std::ptr::null(), |rest| &raw const *rest);
    let list = polled.as_mut_ptr();
    // SAFETY: `list` has two entries, `timeout` is null or a time, and no mask is given.
    unsafe { libc::ppoll(list, 2, timeout, std::ptr::null()) };
    polled[1].revents == 0
}
