//! Restarts of servers of datagrams, and of several servers at once: no datagram is lost.
//!
//! `REUSEPORT_HAND_OVERS` sets how many there are of each kind; the long form has 200.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::time::Duration;
use std::env;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

use reuseport::{AnyServer, Connection, Datagram, Group, GroupError, HandOverError, Inherited};
use support::{BOUND, ServeProcess, program, role, wait_until};

/// The answers of the old process and of the new one.
const OLD: &[u8] = b"old";
const NEW: &[u8] = b"new";

fn hand_overs() -> usize {
    let wanted = env::var("REUSEPORT_HAND_OVERS");
    wanted.map_or(3, |wanted| wanted.parse().expect("a number"))
}

fn client(to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = UdpSocket::bind(any).unwrap();
    client.connect(to).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    client
}

/// Flows that send, wait `limit` for the answer and send again, while `act` runs; it is given the
/// number of those without one. Returns how many answers there were, and how many there were not.
/// One that comes from elsewhere is none.
fn flows_while(
    asked: &[SocketAddr],
    limit: Duration,
    act: impl FnOnce(&AtomicUsize) + Send,
) -> [usize; 2] {
    let done = AtomicBool::new(false);
    let [answers, lost] = [0; 2].map(AtomicUsize::new);
    thread::scope(|scope| {
        for to in asked {
            let (done, answers, lost) = (&done, &answers, &lost);
            scope.spawn(move || {
                let mut number = 0_u32;
                while !done.load(SeqCst) {
                    // A new flow for each 20, and after a loss.
                    let client = client(*to);
                    client.set_read_timeout(Some(limit)).unwrap();
                    for _ in 0..20 {
                        number += 1;
                        client.send(&number.to_ne_bytes()).unwrap();
                        let mut answer = [0; 8];
                        let Ok(len) = client.recv(&mut answer) else {
                            lost.fetch_add(1, SeqCst);
                            break;
                        };
                        assert_eq!(answer[..len], number.to_ne_bytes());
                        answers.fetch_add(1, SeqCst);
                    }
                }
            });
        }
        // In a thread, so that the flows end also if it panics.
        let acted = scope.spawn(|| act(&lost)).join();
        done.store(true, SeqCst);
        acted.unwrap();
    });
    [answers, lost].map(AtomicUsize::into_inner)
}

/// Where servers are bound, and at which addresses they are asked.
const BOUND_AND_ASKED: [(&str, &[&str]); 4] = [
    ("127.0.0.1:0", &["127.0.0.1"]),
    ("0.0.0.0:0", &["127.0.0.1", "127.0.0.2"]),
    ("[::1]:0", &["::1"]),
    ("[::]:0", &["::1", "127.0.0.1"]),
];

/// What four flows ask.
fn four_of(asked: &[&str], port: u16) -> Vec<SocketAddr> {
    let ips = asked.iter().map(|ip| ip.parse::<IpAddr>().unwrap());
    let asked = ips.map(|ip| SocketAddr::new(ip, port));
    asked
        .collect::<Vec<_>>()
        .into_iter()
        .cycle()
        .take(4)
        .collect()
}

/// Has a process of a test end at once, by its pid.
fn kill(pid: i32) {
    // SAFETY: takes two integers; the process lives, for nothing has ended it.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

#[test]
fn datagrams_during_hand_overs_are_all_answered() {
    for (bound, asked) in BOUND_AND_ASKED {
        for more in [&[][..], &["--batch"]] {
            let args = [&["--udp", "--echo", "--quiet", "--addr", bound], more].concat();
            let mut server = ServeProcess::start(&args);
            let asked = four_of(asked, server.address.port());
            let mut pid = server.pid();

            let [answers, lost] = flows_while(&asked, BOUND, |_| {
                (0..hand_overs()).for_each(|_| pid = server.hand_over(pid));
            });

            let all = hand_overs();
            println!("{bound} {more:?}: {answers} answers in {all} hand-overs, {lost} lost");
            assert!(answers > 0 && lost == 0, "{bound} {more:?}: {lost} lost");
            kill(pid);
        }
    }
}

/// Each new process is asked to hand over as soon as it serves, while the old one is leaving: it
/// does so at the first moment at which it may.
#[test]
fn datagrams_during_hand_overs_as_early_as_permitted_are_all_answered() {
    let directory = support::scratch("as-early-as-permitted");
    for (number, (bound, asked)) in BOUND_AND_ASKED.into_iter().enumerate() {
        let path = directory.join(number.to_string());
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(BOUND)).unwrap();
        let mut serve =
            support::reuseport(&["serve", "--udp", "--echo", "--quiet", "--addr", bound]);
        let server = ServeProcess::from(serve.env("NOTIFY_SOCKET", path));
        let asked = four_of(asked, server.address.port());
        let mut pid = server.pid();
        let _process = server.discard_stderr();

        let [answers, lost] = flows_while(&asked, BOUND, |_| {
            for _ in 0..hand_overs() {
                // SAFETY: takes two integers; the process lives, for nothing has ended it.
                unsafe { libc::kill(pid, libc::SIGHUP) };
                pid = new_main_pid(&manager);
            }
        });

        let all = hand_overs();
        println!("{bound}: {answers} answers in {all} early hand-overs, {lost} lost");
        assert!(answers > 0 && lost == 0, "{bound}: {lost} lost");
        kill(pid);
    }
}

/// Waits until a process reports to the service manager that another one is the main process.
fn new_main_pid(manager: &UnixDatagram) -> i32 {
    loop {
        let mut state = [0; 64];
        let len = manager.recv(&mut state).unwrap();
        let state = std::str::from_utf8(&state[..len]).unwrap();
        if let Some(pid) = state.strip_prefix("MAINPID=") {
            return pid.parse().unwrap();
        }
    }
}

/// The control: a new process joins, and the old one ends at once.
#[test]
fn datagrams_during_restarts_without_a_hand_over_are_lost() {
    for (bound, asked) in BOUND_AND_ASKED {
        let start = |bound: &str| {
            ServeProcess::start(&["--udp", "--echo", "--quiet", "--join", "--addr", bound])
        };
        let mut server = start(bound);
        let address = server.address.to_string();
        let (asked, mut restarts) = (four_of(asked, server.address.port()), 0);

        let [_, lost] = flows_while(&asked, Duration::from_millis(500), |lost| {
            // One of four flows is most often at the old process.
            while lost.load(SeqCst) == 0 && restarts < 1000 {
                server = start(&address);
                restarts += 1;
            }
        });

        println!("{bound}: {lost} lost in {restarts} restarts without a hand-over");
        assert!(lost > 0, "{bound}: none lost in {restarts} restarts");
    }
}

/// Groups of both protocols on one port, for both families.
struct Four {
    tcp: [Group; 2],
    udp: [Group<reuseport::Udp>; 2],
}

fn four() -> Four {
    let mut found = None;
    wait_until("a port is free for both", || {
        let first = Group::bind(([127, 0, 0, 1], 0), 2).unwrap();
        let port = first.local_addr().port();
        let v6 = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port));
        let tcp = Group::bind(v6, 2);
        let udp = [first.local_addr(), v6].map(|address| Group::bind_udp(address, 2));
        let [Ok(udp4), Ok(udp6)] = udp else {
            return false;
        };
        found = tcp.ok().map(|tcp| Four {
            tcp: [first, tcp],
            udp: [udp4, udp6],
        });
        found.is_some()
    });
    found.unwrap()
}

fn accept(who: &'static [u8]) -> impl Fn(usize, Connection) + Send + Sync + 'static {
    move |_, connection| _ = connection.send(who)
}

fn answer(who: &'static [u8]) -> impl Fn(usize, Datagram<'_>) + Send + Sync + 'static {
    move |_, mut datagram| {
        datagram.buffer_mut()[..who.len()].copy_from_slice(who);
        datagram.reply(who.len());
    }
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn serves_all_that_it_inherits() {
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    for (name, inherited) in Inherited::from_env().unwrap() {
        assert_eq!(name, "reuseport");
        match inherited {
            Inherited::Tcp(group) => tcp.push(group.spawn(accept(NEW)).unwrap()),
            Inherited::Udp(group) => udp.push(group.spawn(answer(NEW)).unwrap()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((tcp.len(), udp.len()), (2, 2));
    assert!(tcp.iter().all(|server| server.members().len() == 2));
    thread::sleep(10 * BOUND);
}

/// Which process answers, by either protocol.
fn who(address: SocketAddr, udp: bool) -> Vec<u8> {
    let mut answer = Vec::new();
    if udp {
        let client = client(address);
        client.send(b"who").unwrap();
        answer.resize(3, 0);
        client.recv(&mut answer).unwrap();
    } else {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream.read_to_end(&mut answer).unwrap();
    }
    answer
}

#[test]
fn tcp_and_udp_of_both_families_are_handed_to_one_process_without_a_loss() {
    let _none = support::no_process_starts();
    let Four { tcp, udp } = four();
    let tcp = tcp.map(|group| group.spawn(accept(OLD)).unwrap());
    let udp = udp.map(|group| group.spawn(answer(OLD)).unwrap());
    let addresses = [tcp[0].local_addr(), tcp[1].local_addr()];
    let done = AtomicBool::new(false);

    let mut child = thread::scope(|scope| {
        let clients = addresses
            .iter()
            .flat_map(|address| [(*address, false), (*address, true)]);
        let clients: Vec<_> = clients
            .map(|(address, udp)| {
                let done = &done;
                scope.spawn(move || {
                    let mut seen = [0; 2];
                    while !done.load(SeqCst) {
                        let who = who(address, udp);
                        assert!(who == OLD || who == NEW, "{who:?}");
                        seen[usize::from(who == NEW)] += 1;
                    }
                    seen
                })
            })
            .collect();
        let servers = tcp.iter().map(|server| server as &dyn AnyServer);
        let servers = servers.chain(udp.iter().map(|server| server as &dyn AnyServer));
        let hand_over = reuseport::hand_over(servers, role("serves_all_that_it_inherits"), BOUND);
        let child = hand_over.unwrap().leave(BOUND).unwrap();
        for address in addresses {
            assert_eq!([false, true].map(|udp| who(address, udp)), [NEW, NEW]);
        }
        done.store(true, SeqCst);
        for client in clients {
            client.join().unwrap();
        }
        child
    });

    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn of_several_servers_all_are_handed_over_or_none() {
    let _none = support::no_process_starts();
    let Four { tcp, udp } = four();
    let tcp = tcp.map(|group| group.spawn(accept(OLD)).unwrap());
    let shared = Group::udp_options()
        .shared(true)
        .bind(([127, 0, 0, 1], 0), 2)
        .unwrap();
    let shared = shared.spawn(answer(OLD)).unwrap();
    drop(udp);

    let servers = [&tcp[0] as &dyn AnyServer, &tcp[1], &shared];
    let role = || role("serves_all_that_it_inherits");
    let refused = reuseport::hand_over(servers, role(), Duration::from_secs(1)).unwrap_err();

    let HandOverError::Group(error) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error, GroupError::SharedSocket);
    for server in &tcp {
        assert_eq!(server.members().len(), 2);
        assert_eq!(who(server.local_addr(), false), OLD);
        server.add().unwrap();
    }
}

#[test]
fn handler_that_outlives_the_grace_still_answers_from_the_address_that_was_asked() {
    let (gate, key) = std::sync::mpsc::channel::<()>();
    let key = std::sync::Mutex::new(key);
    let options = Group::udp_options().grace(Duration::from_millis(1));
    let server = options.bind(([0, 0, 0, 0], 0), 2).unwrap();
    let server = server.spawn(move |_, datagram| {
        _ = key.lock().unwrap().recv();
        answer(OLD)(0, datagram);
    });
    let server = server.unwrap();
    let asked = SocketAddr::from(([127, 0, 0, 2], server.local_addr().port()));
    let client = client(asked);
    client.send(b"who").unwrap();
    wait_until("its handler runs", || server.totals().accepted == 1);
    let stats = server.stats();
    let busy = stats.iter().find(|stats| stats.accepted == 1).unwrap().id;

    assert!(server.retire(busy).unwrap().running);
    drop(gate);

    let mut answer = [0; 3];
    client.recv(&mut answer).unwrap();
    assert_eq!(answer, OLD);
}

/// Passes descriptors as systemd does: from 3 on. A shell of this process's pid sets `LISTEN_PID`.
fn pass(command: &Command, descriptors: &[RawFd], names: &str) -> Command {
    let mut shell = program("sh");
    shell.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    // Copies behind the range, so that none is overwritten before it has been moved.
    let copy = |fd: &RawFd| {
        // SAFETY: takes three integers.
        let copy = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 100) };
        assert!(copy >= 100);
        copy
    };
    let copies: Vec<RawFd> = descriptors.iter().map(copy).collect();
    let arrange = move || {
        for (to, from) in (3..).zip(&copies) {
            // SAFETY: takes two integers.
            unsafe { libc::dup2(*from, to) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only.
    unsafe { shell.pre_exec(arrange) };
    shell.env("LISTEN_FDS", descriptors.len().to_string());
    shell.env("LISTEN_FDNAMES", names);
    shell.stdout(Stdio::piped());
    shell
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn says_what_it_inherits() {
    println!();
    for (name, inherited) in Inherited::from_env().unwrap() {
        match inherited {
            Inherited::Tcp(group) => {
                assert!(group.is_inherited());
                println!(
                    "{name}: tcp {} of {}",
                    group.local_addr(),
                    group.sockets().len()
                );
            }
            Inherited::Udp(group) => {
                assert!(group.is_inherited());
                println!(
                    "{name}: udp {} of {}",
                    group.local_addr(),
                    group.sockets().len()
                );
            }
            _ => println!("{name}: other"),
        }
    }
    assert!(Inherited::from_env().unwrap().is_empty());
}

#[test]
fn sockets_of_both_kinds_and_several_addresses_are_inherited_with_their_names() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp6 = TcpListener::bind("[::1]:0").unwrap();
    let udp = UdpSocket::bind(tcp.local_addr().unwrap()).unwrap();
    let directory = support::scratch("inherited");
    let unix = UnixListener::bind(directory.join("socket")).unwrap();
    let descriptors = [
        tcp.as_raw_fd(),
        tcp6.as_raw_fd(),
        udp.as_raw_fd(),
        unix.as_raw_fd(),
    ];

    let mut role = pass(
        &role("says_what_it_inherits"),
        &descriptors,
        "http:http6:quic:control",
    );
    let said = support::play(&mut role);

    let (v4, v6) = (tcp.local_addr().unwrap(), tcp6.local_addr().unwrap());
    for line in [
        format!("\nhttp: tcp {v4} of 1\n"),
        format!("\nhttp6: tcp {v6} of 1\n"),
        format!("\nquic: udp {v4} of 1\n"),
        "\ncontrol: other\n".to_owned(),
    ] {
        assert!(said.contains(&line), "{said}");
    }
}

#[test]
fn inherited_udp_socket_is_served_by_all_receivers_and_outlives_the_server() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let args = ["serve", "--udp", "--echo", "--quiet", "--acceptors", "2"];
    let mut serve = pass(&support::reuseport(&args), &[socket.as_raw_fd()], "udp");
    let server = ServeProcess::from(&mut serve);
    assert_eq!(server.address, address);

    let [answers, lost] = flows_while(&[address; 2], BOUND, |_| {
        thread::sleep(Duration::from_millis(50));
    });
    assert!(answers > 0 && lost == 0, "{lost} lost");
    server.signal(libc::SIGTERM);
    let (code, _, err) = server.end();

    assert_eq!(code, Some(0), "{err}");
    // What comes now waits for the next one.
    client(address).send(b"x").unwrap();
    socket.set_read_timeout(Some(BOUND)).unwrap();
    assert_eq!(socket.recv(&mut [0]).unwrap(), 1);
}
