//! Handshakes that have not ended when a member leaves: those that are its own are waited for, and
//! no others.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/refuse.rs"]
mod refuse;
mod support;
#[path = "support/wire.rs"]
mod wire;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use refuse::refusing;
use reuseport::{Connection, Group, Listener, Server, sys};
use wire::SERVER;

/// Far less than the grace of these tests, and far more than a retirement takes.
const SOON: Duration = Duration::from_secs(10);

fn defer_accept(fd: BorrowedFd<'_>) -> io::Result<()> {
    let seconds = 30_i32;
    let (level, value) = (libc::IPPROTO_TCP, (&raw const seconds).cast());
    // SAFETY: the option takes four bytes, which are readable.
    unsafe { sys::setsockopt(fd.as_raw_fd(), level, libc::TCP_DEFER_ACCEPT, value, 4) }?;
    Ok(())
}

#[test]
fn retire_serves_clients_that_tcp_defer_accept_keeps_back() {
    let options = Group::options().before_bind(defer_accept);
    let group = options.bind((Ipv4Addr::LOCALHOST, 0), 2).unwrap();
    // A handler for each waits for what its client says.
    let echo = |_: usize, connection: Connection| {
        if connection.recv(&mut [0]) == Ok(1) {
            _ = connection.send(b"y");
        }
    };
    let server = group.spawn(echo).unwrap();
    let connect = |_| TcpStream::connect(server.local_addr()).unwrap();
    let mut clients: Vec<_> = (0..40).map(connect).collect();

    server.retire(0).unwrap();

    for client in &mut clients {
        client.set_read_timeout(Some(support::BOUND)).unwrap();
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).expect("an answer");
    }
}

/// A SYN from one of 254 hosts beside `to`.
fn syn(number: u32, to: SocketAddr) -> [u8; 40] {
    let IpAddr::V4(ip) = to.ip() else {
        panic!("IPv4 alone")
    };
    let [host, port] = [2 + number % 253, 1024 + number / 253];
    let mut packet = [0; 40];
    (packet[0], packet[3], packet[8], packet[9]) = (0x45, 40, 64, 6);
    packet[12..16].copy_from_slice(&SERVER.octets());
    packet[15] = host.try_into().unwrap();
    packet[16..20].copy_from_slice(&ip.octets());
    packet[20..22].copy_from_slice(&u16::try_from(port).unwrap().to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    (packet[32], packet[33], packet[34]) = (0x50, 0x02, 0xff);
    let header = checksum(&packet[..20], 0);
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    // The pseudo header: both addresses, the protocol and the length.
    let segment = checksum(&packet[12..], 6 + 20);
    packet[36..38].copy_from_slice(&segment.to_be_bytes());
    packet
}

fn checksum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum = start + words.sum::<u32>();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// How many handshakes are under way in this namespace.
fn half_open() -> usize {
    let ss = support::finish(support::program("ss").args(["-Htn", "state", "syn-recv"]));
    support::text(&ss.stdout).lines().count()
}

/// Begins so many handshakes with `to` and ends none.
fn flood(mut device: &File, to: SocketAddr, count: u32) {
    // Some are dropped where the kernel has too much to do at a time.
    support::wait_until("all are half open", || {
        for number in 0..count {
            device.write_all(&syn(number, to)).unwrap();
        }
        half_open() >= count as usize
    });
}

fn group(options: reuseport::GroupOptions, ip: IpAddr, port: u16) -> Server {
    let group = options.grace(support::BOUND).bind((ip, port), 4).unwrap();
    group.spawn(|_, _| {}).unwrap()
}

/// The device is the namespace's, and so is its name.
static ONE: Mutex<()> = Mutex::new(());

/// The CPU time of the calling thread.
fn cpu_time() -> Duration {
    // SAFETY: made of integers, for which zeros are a value.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: `time` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let [seconds, nanos] = [time.tv_sec, time.tv_nsec].map(|part| part.try_into().unwrap());
    Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}

/// How long a call of `retire` takes, and how much CPU time: the medians of `rounds` calls.
fn retire(server: &Server, rounds: usize) -> [Duration; 2] {
    let once = |_| {
        let oldest = server.members().iter().map(|member| member.stats.id).min();
        server.add().unwrap();
        let (begun, used) = (Instant::now(), cpu_time());
        server.retire(oldest.unwrap()).unwrap();
        [begun.elapsed(), cpu_time().saturating_sub(used)]
    };
    let took: Vec<_> = (0..rounds).map(once).collect();
    [0, 1].map(|which| {
        let mut times: Vec<_> = took.iter().map(|both| both[which]).collect();
        times.sort();
        times[rounds / 2]
    })
}

/// What `retire` takes without and beside `count` half-open connections to a listener of
/// another program: of a group that has another address on the same port, and of one on the
/// wildcard address.
fn retire_beside(count: u32, rounds: usize) -> Option<[[[Duration; 2]; 2]; 2]> {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let device = match wire::device(SERVER) {
        Err(error) => {
            support::skip(&format!("no TUN device: {error}"));
            return None;
        }
        Ok(device) => device,
    };
    let theirs = Listener::bind((SERVER, 0)).unwrap();
    let address = theirs.local_addr().unwrap();
    let specific = group(Group::options(), Ipv4Addr::LOCALHOST.into(), address.port());
    let joined = Group::options().join(true);
    let wildcard = group(joined, Ipv4Addr::UNSPECIFIED.into(), address.port());
    let both = || [&specific, &wildcard].map(|server| retire(server, rounds));
    let without = both();
    flood(&device, address, count);
    Some([without, both()])
}

#[test]
fn retire_does_not_wait_for_handshakes_with_other_programs() {
    if !support::own_namespace() || !support::tool("ss") {
        return support::skip("no network of its own");
    }
    let Some([_, took]) = retire_beside(500, 1) else {
        return;
    };

    assert!(took.iter().all(|[took, _]| *took < SOON), "{took:?}");
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn retires_beside_a_hundred_thousand() {
    if support::has_sysctls() {
        let [without, beside] = retire_beside(100_000, 21).expect("root's devices");
        println!("\n{without:?} without, {beside:?} beside");
        // Of the CPU time, for a busy machine takes many times that.
        for ([_, without], [_, beside]) in without.iter().zip(&beside) {
            assert!(*beside < *without + Duration::from_millis(50));
        }
    }
}

#[test]
#[ignore = "the long form: cargo test --release --test half_open -- --ignored --nocapture"]
fn a_hundred_thousand_half_open_connections_cost_less_than_50_ms() {
    let sysctls = [("core/somaxconn", "200000")];
    let role = "retires_beside_a_hundred_thousand";
    println!(
        "{}",
        support::play(&mut support::role_with_sysctls(role, &sysctls))
    );
}

#[test]
fn retire_without_the_kernels_list_waits_for_1200_ms() {
    let netlink = Some(libc::AF_NETLINK);
    refusing(libc::SYS_socket, netlink, libc::EAFNOSUPPORT, || {
        let server = group(Group::options(), Ipv4Addr::LOCALHOST.into(), 0);

        let begun = Instant::now();
        server.retire(0).unwrap();
        let took = begun.elapsed();

        assert!(
            took >= Duration::from_millis(1200) && took < SOON,
            "{took:?}"
        );
    });
}
