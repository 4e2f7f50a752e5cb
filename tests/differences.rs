//! What may differ between the first member of a group and a later one, or between a group and
//! what else uses its port: it is neither accepted wrongly nor refused wrongly.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/refuse.rs"]
mod refuse;
mod support;

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::thread;

use refuse::refusing;
use reuseport::{Call, Error, Group, GroupError, Listener, SockAddr, sys};

/// Runs `what` on a thread that has entered a network namespace of its own; `None` if it cannot.
fn in_another_namespace<T: Send>(what: impl FnOnce() -> T + Send) -> Option<T> {
    let there = || {
        // SAFETY: takes an integer, and changes no other thread.
        let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        entered.then(what)
    };
    let done = thread::scope(|scope| scope.spawn(there).join().unwrap());
    if done.is_none() {
        support::skip("a thread cannot enter a network namespace of its own");
    }
    done
}

#[test]
fn add_from_another_network_namespace_is_refused() {
    // The loopback's address cannot be had where it is down; the wildcard's always can.
    let any = (Ipv4Addr::UNSPECIFIED, 0);
    let mut group = Group::bind(any, 2).unwrap();
    let mismatch = GroupError::NamespaceMismatch { member: 2 };

    let Some(refused) = in_another_namespace(|| group.add()) else {
        return;
    };
    assert_eq!(refused, Err(mismatch));
    assert_eq!(
        mismatch.to_string(),
        "member 2 is in another network namespace than the first"
    );
    let server = group.spawn(|_, _| {}).unwrap();
    let refused = in_another_namespace(|| server.add());
    assert_eq!(refused, Some(Err(mismatch)));
    assert_eq!(server.members().len(), 2);
    assert_eq!(server.add(), Ok(2));

    let udp = Group::bind_udp(any, 2).unwrap().spawn(|_, _| {}).unwrap();
    let refused = in_another_namespace(|| udp.add());
    assert_eq!(refused, Some(Err(mismatch)));
}

#[test]
fn listeners_of_two_network_namespaces_are_no_group() {
    let bind = || Listener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let here = bind();
    let address = here.local_addr().unwrap();

    let there = in_another_namespace(|| Listener::bind(address).unwrap());

    let Some(there) = there else { return };
    let refused = Group::from_listeners(vec![here, there]).unwrap_err();
    assert_eq!(refused, GroupError::NamespaceMismatch { member: 1 });
}

#[test]
fn bind_over_time_wait_passes_by_a_listener_on_another_device() {
    if !support::own_namespace() || !support::tool("ip") {
        return support::skip("a network device is to be made");
    }
    let mut ip = support::program("ip");
    let made = support::finish(ip.args("link add other type veth peer name another".split(' ')));
    if !made.status.success() {
        return support::skip("no pair of devices");
    }
    let address = support::leftovers((Ipv4Addr::UNSPECIFIED, 0).into());
    let on_other = Listener::options().bind_to_device("other");
    let elsewhere = on_other.bind(address).unwrap();

    let group = Group::options().bind_to_device("lo").bind(address, 2);

    assert_eq!(group.unwrap().local_addr(), address);
    drop(elsewhere);
    // The control: on the same device it is in the way.
    let address = support::leftovers((Ipv4Addr::UNSPECIFIED, 0).into());
    let here = Listener::options().bind_to_device("lo").bind(address);
    let refused = Group::options().bind_to_device("lo").bind(address, 2);
    let in_use = Error::new(Call::Bind, libc::EADDRINUSE);
    assert_eq!(refused.unwrap_err().error(), Some(in_use));
    drop(here);
}

#[test]
fn bind_over_time_wait_reads_proc_where_netlink_is_refused() {
    let netlink = Some(libc::AF_NETLINK);
    for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let any = SocketAddr::new(ip, 0);
        let free = support::leftovers(any);
        let held = support::leftovers(any);
        let holder = Listener::bind(held).unwrap();

        let bind = |address| Group::bind(address, 2).map(|group| group.local_addr());
        let [over, beside] = refusing(libc::SYS_socket, netlink, libc::EAFNOSUPPORT, || {
            [free, held].map(bind)
        });

        assert_eq!(over, Ok(free));
        let in_use = Error::new(Call::Bind, libc::EADDRINUSE);
        assert_eq!(beside.unwrap_err().error(), Some(in_use));
        drop(holder);
    }
}

/// Whether each socket of a group has left IPv4 to others.
fn only_v6(group: &Group) -> Vec<i32> {
    let of = |listener: &Listener| {
        let (mut value, mut len) = (-1_i32, 4);
        let at = (&raw mut value).cast();
        let fd = listener.as_raw_fd();
        let (level, name) = (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
        // SAFETY: `value` is writable for the four bytes that `len` states.
        unsafe { sys::getsockopt(fd, level, name, at, &raw mut len) }.unwrap();
        value
    };
    group.sockets().iter().map(of).collect()
}

/// The kernel has a group for IPv6 alone and another for both, and gives IPv6 clients to one.
#[test]
fn later_member_leaves_ipv4_to_others_as_the_first_does() {
    for on in [true, false] {
        let options = Listener::options().only_v6(on);
        let first = options.bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let second = options.bind(first.local_addr().unwrap()).unwrap();
        let mut group = Group::from_listeners(vec![first, second]).unwrap();

        group.add().unwrap();

        assert_eq!(only_v6(&group), [i32::from(on); 3]);
    }
}

#[test]
fn listeners_of_which_one_leaves_ipv4_to_others_are_no_group() {
    let options = Listener::options();
    let first = options.only_v6(true).bind((Ipv6Addr::UNSPECIFIED, 0));
    let first = first.unwrap();
    let second = options.only_v6(false).bind(first.local_addr().unwrap());
    let (member, option) = (1, "IPV6_V6ONLY");

    let refused = Group::from_listeners(vec![first, second.unwrap()]).unwrap_err();

    assert_eq!(refused, GroupError::OptionMismatch { member, option });
    assert_eq!(
        refused.to_string(),
        "member 1 has another IPV6_V6ONLY than the first"
    );
}

#[test]
fn add_whose_hook_binds_to_another_interface_is_refused() {
    if !support::own_namespace() {
        return support::skip("an interface is root's before Linux 5.7");
    }
    let opened = AtomicUsize::new(0);
    let options = Group::options().before_bind(move |fd| {
        let name = (opened.fetch_add(1, Relaxed) >= 2).then_some("lo");
        let Some(name) = name else { return Ok(()) };
        let (level, option, at) = (sys::SOL_SOCKET, libc::SO_BINDTODEVICE, name.as_ptr().cast());
        // SAFETY: the name is readable for its length.
        unsafe { sys::setsockopt(fd.as_raw_fd(), level, option, at, 2) }?;
        Ok(())
    });
    let server = options.bind((Ipv4Addr::LOCALHOST, 0), 2).unwrap();
    let server = server.spawn(|_, _| {}).unwrap();
    let (member, option) = (2, "SO_BINDTODEVICE");

    let refused = server.add();

    let mismatch = GroupError::OptionMismatch { member, option };
    assert_eq!(refused, Err(mismatch));
    assert_eq!(server.members().len(), 2);
}

#[test]
fn add_whose_hook_spoils_the_socket_is_refused_and_changes_nothing() {
    // What the hook does to the third member, and the call that reports it.
    type Hook = fn(i32) -> Result<(), Error>;
    let hooks: [(Hook, Call, i32); 3] = [
        // It takes the option away that every member must have.
        (
            |fd| {
                let off = 0_i32;
                let at = (&raw const off).cast();
                // SAFETY: `off` is readable for the four bytes stated.
                unsafe { sys::setsockopt(fd, sys::SOL_SOCKET, sys::SO_REUSEPORT, at, 4) }
            },
            Call::Bind,
            libc::EADDRINUSE,
        ),
        // It binds the socket itself.
        (
            |fd| {
                let address = SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)));
                // SAFETY: `address` is readable for its own length.
                unsafe { sys::bind(fd, address.as_ptr(), address.len()) }
            },
            Call::Bind,
            libc::EINVAL,
        ),
        (
            |_| Err(Error::new(Call::SetSockOpt, libc::EPERM)),
            Call::BeforeBind,
            libc::EPERM,
        ),
    ];
    for (hook, call, errno) in hooks {
        let made = AtomicUsize::new(0);
        let options = Group::options().before_bind(move |fd| match made.fetch_add(1, Relaxed) {
            0 | 1 => Ok(()),
            _ => Ok(hook(fd.as_raw_fd())?),
        });
        let group = options.bind(([127, 0, 0, 1], 0), 2).unwrap();
        let server = group.spawn(|_, connection| _ = connection.send(b"served"));
        let server = server.unwrap();

        let refused = server.add().unwrap_err();

        assert_eq!(refused.error(), Some(Error::new(call, errno)));
        assert_eq!(server.members().len(), 2);
        (0..20).for_each(|_| assert_eq!(support::visit(server.local_addr()), "served"));
    }
}

#[test]
fn add_to_an_address_that_is_gone_is_refused_and_changes_nothing() {
    if !support::own_namespace() || !support::tool("ip") {
        return support::skip("an address is to be taken away");
    }
    let ip = |what| {
        let mut ip = support::program("ip");
        let done = support::finish(ip.args(["addr", what, "198.51.100.7/32", "dev", "lo"]));
        done.status.success()
    };
    if !ip("add") {
        return support::skip("addresses are root's");
    }
    let group = Group::bind(([198, 51, 100, 7], 0), 2).unwrap();
    let server = group.spawn(|_, connection| _ = connection.send(b"served"));
    let server = server.unwrap();
    assert!(ip("del"));

    let refused = server.add().unwrap_err();

    let gone = Error::new(Call::Bind, libc::EADDRNOTAVAIL);
    assert_eq!(refused.error(), Some(gone));
    assert!(ip("add"));
    assert_eq!(support::visit(server.local_addr()), "served");
    assert_eq!(server.add(), Ok(2));
    assert!(ip("del"));
}
