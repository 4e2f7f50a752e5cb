//! Each recipe serves a client that others have written. Where all members must have served some:
//! of 3 members one has none of 200 connections with a chance of 3 * (2/3)^200 < 2e-35.

mod support;

use std::fmt::Display;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{fs, process, thread};

use support::{Server, line, recipe, skip, tool, wait_until};

const MEMBERS: u32 = 3;
const CONNECTIONS: usize = 200;

#[track_caller]
fn root() -> bool {
    // SAFETY: takes nothing.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        skip("not root");
    }
    root
}

/// What a client says, which must succeed.
#[track_caller]
fn output(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.stdin(Stdio::null()).output().expect("it");
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}\n{stderr}");
    String::from_utf8(stdout).expect("UTF-8")
}

/// curl asks so many times, each time over a connection of its own.
#[track_caller]
fn curl(address: impl Display, times: usize, more: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args([
        "-sS",
        "--fail",
        "--max-time",
        "60",
        "-H",
        "Connection: close",
    ])
    .args(more);
    output(curl.arg(format!("{address}/[1-{times}]")))
}

/// Each line names a member; all of them are named.
#[track_caller]
fn assert_spread(answers: &str, members: u32) {
    let mut counts = vec![0; members as usize];
    for line in answers.lines() {
        let number = line.strip_prefix("member ").expect(line);
        let number = number.split(':').next().expect("a number");
        counts[number.parse::<usize>().expect("a number")] += 1;
    }
    assert_eq!(counts.iter().sum::<usize>(), CONNECTIONS);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[track_caller]
fn serves_http(name: &str) {
    if tool("curl") {
        let server = Server::start(name, MEMBERS);
        assert_spread(&curl(server.address, CONNECTIONS, &[]), MEMBERS);
    }
}

#[test]
fn tokio() {
    serves_http("tokio");
}

#[test]
fn axum() {
    serves_http("axum");
}

#[test]
fn handed() {
    serves_http("handed");
}

#[test]
fn mio() {
    serves_http("mio");
}

/// Ctrl-C is SIGINT.
#[test]
fn ctrl_c() {
    const CLIENTS: usize = 30;
    let mut server = Server::start("ctrl_c", MEMBERS);
    let connect = || TcpStream::connect(server.address).expect("a connection");
    let is_greeted = |mut client: TcpStream| {
        let mut greeting = String::new();
        client.read_to_string(&mut greeting).expect("a greeting");
        assert!(greeting.starts_with("acceptor "), "{greeting}");
    };
    (0..CLIENTS).for_each(|_| is_greeted(connect()));
    server.signal(libc::SIGSTOP);
    let queued: Vec<_> = (0..CLIENTS).map(|_| connect()).collect();

    server.signal(libc::SIGINT);
    server.signal(libc::SIGCONT);

    queued.into_iter().for_each(is_greeted);
    let mut accepted = 0;
    for acceptor in 0..MEMBERS {
        let line = line(&mut server.stdout);
        let count = line.strip_prefix(&format!("acceptor {acceptor} accepted "));
        accepted += count.expect(&line).parse::<usize>().expect("a number");
    }
    assert_eq!(accepted, 2 * CLIENTS);
    assert!(server.child.wait().expect("its end").success());
}

#[test]
fn udp() {
    if !tool("bash") {
        return;
    }
    let server = Server::start("udp", MEMBERS);
    let ask = format!(
        "for i in {{1..{CONNECTIONS}}}; do
            exec 3<> /dev/udp/127.0.0.1/{} && echo hello >&3 && head -n 1 <&3 || exit 1
        done",
        server.address.port()
    );
    let answers = output(Command::new("timeout").args(["60", "bash", "-c", &ask]));
    assert_spread(&answers, MEMBERS);
}

#[test]
fn tls() {
    if !tool("curl") || !tool("openssl") {
        return;
    }
    let mut server = Server::start("tls", MEMBERS);
    let mut certificate = String::new();
    while !certificate.contains("END CERTIFICATE") {
        certificate += &(line(&mut server.stdout) + "\n");
    }
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("recipes.pem");
    fs::write(&file, certificate).expect("a file");
    let file = file.to_str().expect("UTF-8");
    // Both look at the certificate.
    let (port, host) = (
        server.address.port(),
        format!("localhost:{}", server.address.port()),
    );
    let resolve = format!("localhost:{port}:127.0.0.1");
    let more = ["--cacert", file, "--resolve", &resolve];
    assert_spread(
        &curl(format!("https://{host}"), CONNECTIONS, &more),
        MEMBERS,
    );

    let mut openssl = Command::new("openssl");
    openssl.args([
        "s_client",
        "-quiet",
        "-verify_return_error",
        "-verify_hostname",
        "localhost",
    ]);
    openssl.args(["-CAfile", file, "-connect", &server.address.to_string()]);
    let piped = openssl
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut openssl = piped.spawn().expect("openssl");
    let mut stdin = openssl.stdin.take().expect("a pipe");
    stdin.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("a pipe");
    let Output {
        status,
        stdout,
        stderr,
    } = openssl.wait_with_output().expect("openssl");
    let (said, why) = (
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr),
    );
    assert!(
        status.success() && said.contains("\r\n\r\nmember "),
        "{status}: {said}{why}"
    );
}

#[test]
fn activation() {
    if !tool("curl") || !tool("systemd-socket-activate") {
        return;
    }
    // It takes no port 0. A socket that is bound but does not listen keeps a port for it.
    let kept = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let kept = kept.expect("a socket");
    kept.set_reuse_address(true).expect("set");
    kept.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .expect("bound");
    let address = kept
        .local_addr()
        .expect("an address")
        .as_socket()
        .expect("an address");
    let mut systemd = Command::new("systemd-socket-activate");
    systemd
        .args(["--listen", &address.to_string()])
        .arg(recipe("activation"));
    systemd.args(["127.0.0.1:0", &MEMBERS.to_string()]);
    let mut systemd = systemd
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it");
    // It stays open: what the recipe says there goes into the pipe.
    let mut stderr = BufReader::new(systemd.stderr.take().expect("a pipe"));
    while !line(&mut stderr).contains("Listening on") {}
    let first = thread::spawn(move || curl(address, 1, &[]));
    let server = Server::of(systemd); // the first client has started it
    assert_eq!(first.join().expect("an answer").lines().count(), 1);
    assert_eq!(server.address, address);
    assert_eq!(server.note, format!("from systemd, acceptors: {MEMBERS}"));
    // Who is awake takes the next, so that nobody can say how many each has.
    assert_eq!(curl(address, CONNECTIONS, &[]).lines().count(), CONNECTIONS);
}

#[test]
fn activation_with_a_group() {
    if !tool("curl") {
        return;
    }
    // As systemd does with `ReusePort=`: the shell stands in for it.
    let group = reuseport::Group::bind(([127, 0, 0, 1], 0), 2).expect("a group");
    let address = group.local_addr();
    let kept: Vec<TcpListener> = group.into_sockets().into_iter().map(Into::into).collect();
    let copy = |at: usize| OwnedFd::from(kept[at].try_clone().expect("a copy"));
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg("exec 3<&0 4>&2 2> /dev/null; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$0\"");
    shell
        .arg(recipe("activation"))
        .stdin(copy(0))
        .stderr(copy(1))
        .stdout(Stdio::piped());
    let server = Server::of(shell.spawn().expect("a shell"));
    assert_eq!(
        (server.address, &*server.note),
        (address, "from systemd, acceptors: 2")
    );
    // One of 2 has none of 200 with a chance of 2 * (1/2)^200 < 2e-60.
    assert_spread(&curl(address, CONNECTIONS, &[]), 2);
    // They live on without the program.
    drop(server);
    TcpStream::connect(address).expect("whoever holds them listens");
}

/// A cgroup, of either version, that allows the time of one and a half CPUs. It goes with this
/// value.
struct Quota(PathBuf);

impl Quota {
    fn new() -> Option<Quota> {
        let versions = [
            ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "150000"), // of a period of 100000
            ("/sys/fs/cgroup", "cpu.max", "150000 100000"),
        ];
        versions.into_iter().find_map(|(root, file, limit)| {
            let own = Path::new(root).join(format!("reuseport-recipes-{}", process::id()));
            fs::create_dir(&own).ok()?;
            let quota = Quota(own);
            fs::write(quota.0.join(file), limit).ok()?;
            Some(quota)
        })
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // Its last process is gone, but the kernel may need a moment.
        wait_until("the cgroup is removed", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn quota() {
    if !tool("curl") || !tool("taskset") {
        return;
    }
    let start = |command: &mut Command| {
        Server::of(command.stdout(Stdio::piped()).spawn().expect("the recipe"))
    };
    let all = thread::available_parallelism().map_or(1, usize::from);
    let free = start(&mut Command::new(recipe("quota")));
    assert_eq!(free.note, format!("members: {all}"));
    assert_eq!(
        curl(free.address, CONNECTIONS, &[]).lines().count(),
        CONNECTIONS
    );
    if all == 1 {
        skip("one CPU cannot become fewer");
        return;
    }
    let one = start(
        Command::new("taskset")
            .args(["-c", "0"])
            .arg(recipe("quota")),
    );
    assert_eq!(one.note, "members: 1");
    assert_spread(&curl(one.address, CONNECTIONS, &[]), 1);

    let Some(quota) = Quota::new() else {
        skip("no cgroup with a quota can be made");
        return;
    };
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "echo $$ > \"$0\" && exec \"$1\""])
        .arg(quota.0.join("cgroup.procs"));
    let limited = start(shell.arg(recipe("quota")));
    assert_eq!(limited.note, "members: 1");
    assert_spread(&curl(limited.address, CONNECTIONS, &[]), 1);
    drop(limited); // and then the cgroup
}

#[track_caller]
fn gives_up_privileges(port: u16) {
    let mut command = Command::new(recipe("privileges"));
    command.args([format!("127.0.0.1:{port}"), MEMBERS.to_string()]);
    let mut server = Server::of(command.stdout(Stdio::piped()).spawn().expect("the recipe"));
    let refused = line(&mut server.stdout);
    assert!(
        refused.starts_with("refused: ") && refused.contains("by user 0, but this is user 65534"),
        "{refused}"
    );
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).expect("/proc");
    for of in ["Uid", "Gid"] {
        let nobody = format!("{of}:\t65534\t65534\t65534\t65534\n");
        assert!(status.contains(&nobody), "{status}");
    }
    assert!(status.contains("\nGroups:\t \n"), "{status}");
    assert!(status.contains("\nCapEff:\t0000000000000000\n"), "{status}");
    assert_spread(&curl(server.address, CONNECTIONS, &[]), MEMBERS);
}

#[test]
fn privileges() {
    if !root() || !tool("curl") {
        return;
    }
    gives_up_privileges(0);
    // A free port that only root may take: for port 0 the kernel gives none of those.
    let ports = (512..1024)
        .cycle()
        .skip(process::id() as usize % 512)
        .take(512);
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    gives_up_privileges(ports.into_iter().find(free).expect("one"));
}
