//! What `serve` says when it cannot have its address: each cause is brought about, and has a line.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, id};

use support::{
    ServeProcess, compile, finish, program, reuseport, role_with_sysctls, text, tool, wait_until,
};

const REUSEPORT: &str = env!("CARGO_BIN_EXE_reuseport");

/// Runs `serve`, which must fail with one line that contains this.
#[track_caller]
fn assert_line(command: &mut Command, expected: &str) {
    let done = finish(command);
    let err = text(&done.stderr);
    assert_eq!(
        (done.status.code(), err.lines().count()),
        (Some(1), 1),
        "{err}"
    );
    assert!(err.contains(expected), "{expected:?} is not in {err}");
}

fn serve(address: &str) -> Command {
    reuseport(&["serve", "--quiet", "--addr", address])
}

/// An outgoing connection, its other end, and the listener that it was made to.
fn outgoing() -> (TcpStream, TcpStream, TcpListener) {
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(far.local_addr().unwrap()).unwrap();
    let accepted = far.accept().unwrap().0;
    (near, accepted, far)
}

#[test]
fn cause_outside_has_its_line() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let held = listener.local_addr().unwrap().to_string();
    let (near, _accepted, far) = outgoing();
    let local = near.local_addr().unwrap();
    let (own, peer) = (id(), far.local_addr().unwrap());
    let any = format!("0.0.0.0:{}", local.port());
    let connection =
        format!("nothing listens there, but the connection {local} -> {peer} of pid {own} (");

    for (address, expected) in [
        (held.as_str(), format!("; pid {own} (")),
        (
            &held,
            format!(
                " listens on {held}: choose another port by --addr; if it has set SO_REUSEPORT"
            ),
        ),
        (&any, connection.clone()),
        (&any, "and --join is no help: wait".to_owned()),
        (
            "8.8.8.8:0",
            "the address is not one of this machine's".to_owned(),
        ),
        (
            "[fe80::1]:0",
            "a link-local address needs its interface, such as [fe80::1%eth0]".to_owned(),
        ),
        (
            "[fe80::1%nope]:0",
            "there is no network interface \"nope\"".to_owned(),
        ),
        (
            "[fe80::1%999999]:0",
            "no interface has this number".to_owned(),
        ),
        (
            "[ff02::1%lo]:0",
            "a multicast address is for datagrams".to_owned(),
        ),
    ] {
        assert_line(&mut serve(address), &expected);
    }
    assert_line(serve(&any).arg("--join"), &connection);
}

#[test]
fn udp_socket_that_has_the_port_is_named() {
    let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (address, own) = (holder.local_addr().unwrap(), id());
    let held = address.to_string();

    for expected in [
        format!("; pid {own} ("),
        ") of user ".to_owned(),
        format!(" has {held}: choose another port by --addr; "),
        "if it has set SO_REUSEPORT, --join shares it".to_owned(),
    ] {
        assert_line(serve(&held).arg("--udp"), &expected);
    }
}

#[test]
fn outgoing_connection_that_has_ended_is_named() {
    // A child with copies would have the other end close first.
    let none = support::no_process_starts();
    let (near, accepted, far) = outgoing();
    let local = near.local_addr().unwrap();
    drop((near, accepted));
    drop(none);
    wait_until("it is in TIME_WAIT", || {
        support::time_waits(local.port()) > 0
    });

    let line = format!(
        "the connection {local} -> {} has ended; ",
        far.local_addr().unwrap()
    );
    assert_line(&mut serve(&format!("0.0.0.0:{}", local.port())), &line);
}

#[test]
fn interface_of_a_link_local_address_is_given_by_name() {
    let server = ServeProcess::start(&["--addr", "[::1%lo]:0"]);

    assert!(server.address.ip().is_loopback());
}

#[test]
fn limit_of_descriptors_is_named() {
    let mut shell = program("sh");
    shell.args(["-c", "ulimit -n 8; exec \"$@\"", "sh", REUSEPORT, "serve"]);

    let limited = shell.args(["--acceptors", "20", "--addr", "127.0.0.1:0"]);

    assert_line(limited, "a larger `ulimit -n` allows more descriptors");
}

#[test]
fn refusal_by_a_policy_is_told_from_one_by_the_port() {
    if !tool("cc") {
        return;
    }
    let refuse = compile("tests/support/refuse.c", &support::scratch("hints"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let held = listener.local_addr().unwrap().to_string();

    for (what, address, expected) in [
        (
            "bind",
            "127.0.0.1:0",
            "the port needs no privilege: a security policy refuses it",
        ),
        (
            "netlink",
            &held,
            "who has the port is unknown: the kernel's list of sockets: socket: EAFNOSUPPORT",
        ),
    ] {
        let mut refused = program(&refuse);
        let serve = [what, "--", REUSEPORT, "serve", "--addr", address];
        refused
            .args(serve)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        assert_line(&mut refused, expected);
    }
}

/// The command from where every user can reach it, run by another user.
fn as_another_user(directory: &Path, args: &[&str]) -> Command {
    let copied = directory.join("reuseport");
    if !copied.exists() {
        support::copy(REUSEPORT, &copied);
    }
    let mut command = program(copied);
    command.args(args).uid(65534).gid(65534);
    command
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn asks_for_port_1500() {
    if !support::has_sysctls() {
        return;
    }
    let directory = support::Directory::for_everybody("hints-limit");
    let expected =
        "a port below 2000 (net.ipv4.ip_unprivileged_port_start) needs CAP_NET_BIND_SERVICE";

    let mut low = as_another_user(&directory.0, &["serve", "--addr", "127.0.0.1:1500"]);

    assert_line(&mut low, expected);
}

#[test]
fn other_user_has_lines_of_his_own() {
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        return support::skip("not root");
    }
    let limit = [("ipv4/ip_unprivileged_port_start", "2000")];
    support::play(&mut role_with_sysctls("asks_for_port_1500", &limit));
    let directory = support::Directory::for_everybody("hints");
    let args = ["serve", "--quiet", "--addr", "127.0.0.1:0"];
    let theirs = ServeProcess::from(&mut as_another_user(&directory.0, &args));
    let (pid, address) = (theirs.pid(), theirs.address);

    let line = format!("; pid {pid} (reuseport) of user nobody listens on {address}: ");
    assert_line(&mut serve(&address.to_string()), &line);
    let join = "--join is for sockets of one user";
    assert_line(serve(&address.to_string()).arg("--join"), join);
}

#[test]
fn tentative_address_is_named() {
    if !tool("ip") || !support::own_namespace() {
        return support::skip("no namespace in which a device can be made");
    }
    let ip = |line: &str| finish(program("ip").args(line.split(' '))).status.success();
    if !ip("link add v0 type veth peer name v1") {
        return support::skip("no device can be made");
    }
    assert!(ip("link set v0 up") && ip("link set v1 up"));

    // The kernel looks for a second or two.
    wait_until("serve finds it tentative", || {
        ip("addr del fd00::1/64 dev v0");
        assert!(ip("addr add fd00::1/64 dev v0"));
        let done = finish(&mut serve("[fd00::1]:0"));
        let line = "the address is still tentative on v0: duplicate address detection takes";
        text(&done.stderr).contains(line)
    });
}

/// `serve` with a descriptor that was passed to it.
fn passed(socket: OwnedFd) -> Command {
    let mut shell = program("sh");
    let lines = "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\" serve";
    shell.args(["-c", lines, "sh", REUSEPORT]);
    let pass = move || {
        // First out of the way: were it 3 itself, it would be closed.
        // SAFETY: takes integers.
        let copy = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 100) };
        // SAFETY: takes two integers; the copy is open in the program.
        match unsafe { libc::dup2(copy, 3) } {
            3 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the function makes a system call alone.
    unsafe { shell.pre_exec(pass) };
    shell
}

#[test]
fn passed_socket_of_another_kind_is_refused_by_name() {
    let directory = support::scratch("unix");
    let unix = UnixListener::bind(directory.join("socket")).unwrap();
    let datagrams = UnixDatagram::unbound().unwrap();
    let connected = outgoing().0;

    for (socket, expected) in [
        (
            OwnedFd::from(unix),
            "it is a UNIX socket, which has no port to share",
        ),
        (datagrams.into(), "it is a UNIX socket"),
        (
            connected.into(),
            "it is a stream socket that does not listen",
        ),
    ] {
        let mut serve = passed(socket);
        serve
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        assert_line(&mut serve, expected);
    }
}
