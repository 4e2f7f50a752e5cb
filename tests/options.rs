//! Every option is what the kernel then reports; and none is set that was not asked for.
#![cfg(feature = "std")]

mod support;

use core::ffi::c_int;
use core::time::Duration;
use std::fs;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use reuseport::{Call, Error, Group, Listener, sys};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn get(listener: &Listener, level: c_int, name: c_int) -> c_int {
    let (mut value, mut len) = (0, 4);
    let (at, fd) = ((&raw mut value).cast(), listener.as_raw_fd());
    // SAFETY: `value` is writable for the four bytes stated, and the options asked for are ints.
    unsafe { sys::getsockopt(fd, level, name, at, &raw mut len) }.unwrap();
    value
}

#[test]
fn each_option_reaches_the_kernel() {
    let bare = Listener::bind(ANY_PORT).unwrap();
    assert_eq!(get(&bare, sys::SOL_SOCKET, sys::SO_REUSEPORT), 1);
    assert_eq!(get(&bare, sys::SOL_SOCKET, sys::SO_REUSEADDR), 0);
    let other = Listener::options()
        .reuse_port(false)
        .reuse_address(true)
        .bind(ANY_PORT)
        .unwrap();
    assert_eq!(get(&other, sys::SOL_SOCKET, sys::SO_REUSEPORT), 0);
    assert_eq!(get(&other, sys::SOL_SOCKET, sys::SO_REUSEADDR), 1);

    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    for on in [false, true] {
        let listener = Listener::options().only_v6(on).bind(any).unwrap();
        assert_eq!(
            get(&listener, sys::IPPROTO_IPV6, sys::IPV6_V6ONLY),
            on.into()
        );
        let port = listener.local_addr().unwrap().port();
        assert_eq!(TcpStream::connect(("127.0.0.1", port)).is_err(), on);
        TcpStream::connect(("::1", port)).unwrap();
    }
    let wrong_family = Listener::options()
        .only_v6(true)
        .bind(ANY_PORT)
        .unwrap_err();
    assert_eq!(wrong_family.call(), Call::SetSockOpt);
    let named = "setsockopt: IPV6_V6ONLY: ENOPROTOOPT: ";
    assert!(wrong_family.to_string().starts_with(named));

    let idle = Listener::options()
        .nonblocking(true)
        .bind(ANY_PORT)
        .unwrap();
    assert_eq!(
        idle.accept().unwrap_err(),
        Error::new(Call::Accept, libc::EAGAIN)
    );
}

#[test]
#[cfg(target_os = "linux")]
fn backlog_of_n_queues_n_and_one_more() {
    for backlog in [0, 1, 5] {
        let listener = Listener::options().backlog(backlog).bind(ANY_PORT).unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = || {
            let mut info = [0_u32; 8];
            let mut len = 32;
            let at = info.as_mut_ptr().cast();
            // SAFETY: `info` is writable for the 32 bytes stated.
            unsafe {
                sys::getsockopt(listener.as_raw_fd(), sys::IPPROTO_TCP, 11, at, &raw mut len)
            }
            .unwrap();
            info[6]
        };

        let allowed = u32::try_from(backlog).unwrap() + 1;
        let _clients: Vec<_> = (0..allowed)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        support::wait_until("they wait", || waiting() == allowed);

        let late = TcpStream::connect_timeout(&address, core::time::Duration::from_millis(300));
        assert!(late.is_err(), "backlog {backlog} let one more wait");
    }
}

#[test]
fn before_bind_runs_between_socket_and_bind() {
    let unbound = |fd| {
        let (mut address, fd) = (reuseport::SockAddr::empty(), fd);
        let (at, len) = (address.as_mut_ptr(), address.len_mut_ptr());
        // SAFETY: both point into `address`, which has room for the length it states.
        unsafe { sys::getsockname(fd, at, len) }?;
        assert_eq!(address.get().unwrap().port(), 0);
        Ok(())
    };
    Listener::options()
        .before_bind(&unbound)
        .bind(ANY_PORT)
        .unwrap();

    let refuse = |_| Err(Error::new(Call::SetSockOpt, libc::EPERM));
    let refused = Listener::options()
        .before_bind(&refuse)
        .bind(ANY_PORT)
        .unwrap_err();
    assert_eq!(refused, Error::new(Call::SetSockOpt, libc::EPERM));
}

/// The two ways, to be watched by strace.
#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn binds_both_ways() {
    Listener::bind(ANY_PORT).unwrap();
    Listener::options().bind(ANY_PORT).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn default_options_make_the_calls_of_bind() {
    if !support::tool("strace") {
        return;
    }
    let log = support::scratch("options").join("strace");
    let role = support::role("binds_both_ways");
    let mut strace = support::program("strace");
    strace
        .args(["-f", "-qq", "-e", "trace=%network,close", "-o"])
        .arg(&log);

    let traced = support::finish(strace.arg(role.get_program()).args(role.get_args()));
    assert!(traced.status.success(), "{traced:?}");

    let log = fs::read_to_string(log).unwrap();
    let calls: Vec<_> = log
        .lines()
        .map(|line| line.split_once(' ').unwrap().1.trim())
        .collect();
    let starts: Vec<_> = (0..calls.len())
        .filter(|at| calls[*at].starts_with("socket(AF_INET,"))
        .collect();
    let [first, second] = starts[..] else {
        panic!("{log}")
    };
    let one: Vec<_> = calls[first..first + 5].to_vec();
    let names: Vec<_> = one
        .iter()
        .map(|call| call.split_once('(').unwrap().0)
        .collect();

    assert_eq!(names, ["socket", "setsockopt", "bind", "listen", "close"]);
    assert_eq!(one, calls[second..second + 5]);
}

#[test]
#[cfg(target_os = "linux")]
fn options_of_a_group_reach_each_member_also_one_added_later() {
    let options = Group::options().receive_buffer(20_000).send_buffer(30_000);
    let options = options.defer_accept(Duration::from_millis(1500));
    let options = options.bind_to_device("lo").before_bind(|fd| {
        // SAFETY: takes integers; the descriptor is open.
        let set = unsafe { sys::fionbio(fd.as_raw_fd(), 1) };
        Ok(set?)
    });

    let mut group = options.bind(ANY_PORT, 1).unwrap();
    group.add().unwrap();

    for member in group.sockets() {
        // Linux doubles both: socket(7).
        assert_eq!(get(member, sys::SOL_SOCKET, libc::SO_RCVBUF), 40_000);
        assert_eq!(get(member, sys::SOL_SOCKET, libc::SO_SNDBUF), 60_000);
        // The kernel counts in retransmissions of the SYN-ACK: 1 s, and 2 s after that.
        let defer = get(member, sys::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
        assert_eq!(defer, 3);
        assert_eq!(member.accept().unwrap_err().errno(), libc::EAGAIN);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn mark_is_set_with_the_privilege_and_named_without() {
    let listener = Listener::options().mark(0x8000_0001).bind(ANY_PORT);

    match listener {
        Ok(listener) => {
            let mark = get(&listener, sys::SOL_SOCKET, libc::SO_MARK);
            assert_eq!(mark.to_ne_bytes(), 0x8000_0001_u32.to_ne_bytes());
        }
        Err(error) => {
            assert_eq!(error.option(), Some("SO_MARK"));
            assert_eq!(error.errno(), libc::EPERM);
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn name_of_a_device_that_is_not_there_is_refused() {
    // The kernel would take the second for no device at all, and cut the third.
    for name in ["no-such-device", "", "lo\0xxxxxxxxxxxxxxxx"] {
        let refused = Listener::options().bind_to_device(name).bind(ANY_PORT);

        let refused = refused.unwrap_err();
        assert_eq!(refused.option(), Some("SO_BINDTODEVICE"), "{name}");
        assert_eq!(refused.errno(), libc::ENODEV, "{name}");
    }
}
