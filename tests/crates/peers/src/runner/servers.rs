//! The servers: how each is made and started, and how it is ended.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use crate::{load, system};

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Connect, read the end.
    Close,
    /// Connect, ask, read the answer and the end.
    OneRequest,
    /// Ask over and over on one connection.
    KeepAlive,
    /// Send eight datagrams, wait until all have come back.
    Echo,
}

impl Work {
    pub(crate) const ALL: [Work; 4] = [Work::Close, Work::OneRequest, Work::KeepAlive, Work::Echo];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Work::Close => "close",
            Work::OneRequest => "one-request",
            Work::KeepAlive => "keep-alive",
            Work::Echo => "echo",
        }
    }
}

/// A row of the tables.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    how: How,
    stays: Stays,
}

/// How it serves clients that stay connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stays {
    /// Not at all: an acceptor keeps to a client until it leaves, and serves no other of its
    /// listener. Where the hash gives one listener two that stay, the second waits for ever.
    Not,
    /// A thread or a task for each client.
    Many,
}

#[derive(Debug)]
enum How {
    /// One of src/bin, and the way it is to go.
    Rust(&'static str, &'static str),
    /// c/server.c, and the way it is to go.
    C(Option<&'static str>),
    /// go/server.go.
    Go,
    /// nginx with a configuration of ours.
    Nginx,
}

const fn peer(name: &'static str, how: How, stays: Stays) -> Peer {
    Peer { name, how, stays }
}

/// The first that does a work is what the others are compared with.
const PEERS: [Peer; 16] = [
    peer(
        "reuseport, cpu + hand-off",
        How::Rust("ours", "cpu-hand-off"),
        Stays::Many,
    ),
    peer("reuseport, cpu", How::Rust("ours", "cpu"), Stays::Not),
    peer(
        "reuseport, hand-off",
        How::Rust("ours", "hand-off"),
        Stays::Many,
    ),
    peer("reuseport, plain", How::Rust("ours", "plain"), Stays::Not),
    peer(
        "reuseport, shared",
        How::Rust("ours", "shared"),
        Stays::Many,
    ),
    peer("C", How::C(None), Stays::Not),
    peer("C, cpu", How::C(Some("cpu")), Stays::Not),
    peer(
        "socket2, threads",
        How::Rust("socket2-threads", ""),
        Stays::Not,
    ),
    peer("std, one thread", How::Rust("std-threads", ""), Stays::Not),
    peer(
        "std, thread a client",
        How::Rust("std-threads", "each"),
        Stays::Many,
    ),
    peer(
        "std, 64 threads",
        How::Rust("std-threads", "64"),
        Stays::Many,
    ),
    peer("tokio, tutorial", How::Rust("tokio-tasks", ""), Stays::Many),
    peer(
        "tokio, accepting task",
        How::Rust("tokio-tasks", "task"),
        Stays::Many,
    ),
    peer(
        "tokio, runtime a thread",
        How::Rust("tokio-tasks", "each"),
        Stays::Many,
    ),
    peer("nginx", How::Nginx, Stays::Many),
    peer("Go", How::Go, Stays::Many),
];

/// Those that receive datagrams.
const RECEIVERS: [Peer; 7] = [
    peer("reuseport, cpu", How::Rust("ours", "cpu"), Stays::Many),
    peer("reuseport, plain", How::Rust("ours", "plain"), Stays::Many),
    peer("reuseport, batch", How::Rust("ours", "batch"), Stays::Many),
    peer("std, one thread", How::Rust("std-threads", ""), Stays::Many),
    peer(
        "std, shared by threads",
        How::Rust("std-threads", "each"),
        Stays::Many,
    ),
    peer(
        "socket2, threads",
        How::Rust("socket2-threads", ""),
        Stays::Many,
    ),
    peer(
        "tokio, shared by tasks",
        How::Rust("tokio-tasks", ""),
        Stays::Many,
    ),
];

/// Those that do this work.
pub(crate) fn peers(work: Work) -> Vec<&'static Peer> {
    if work == Work::Echo {
        return RECEIVERS.iter().collect();
    }
    let does = |peer: &&Peer| work != Work::KeepAlive || peer.stays != Stays::Not;
    PEERS.iter().filter(does).collect()
}

/// Where the programs are.
pub(crate) struct Programs {
    rust: PathBuf,
    c: PathBuf,
    go: Option<PathBuf>,
    nginx: Option<PathBuf>,
    /// nginx's configurations and files.
    directory: PathBuf,
}

impl Programs {
    /// Builds what there is to build, beside this program.
    pub(crate) fn build() -> Programs {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let this = env::current_exe().expect("this program has a path");
        let rust = this.parent().expect("and a directory").to_owned();
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["build", "--quiet", "--release", "--bins", "--manifest-path"]);
        cargo.arg(here.join("Cargo.toml"));
        let target = rust.parent().expect("in cargo's target directory");
        run(cargo.arg("--target-dir").arg(target));

        let directory = rust.join("peers-run");
        fs::create_dir_all(&directory).expect("a directory beside this program");
        let c = directory.join("c-server");
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"]);
        run(cc.arg(&c).arg(here.join("c/server.c")));

        let go = find("go").map(|go| {
            let server = directory.join("go-server");
            let mut build = Command::new(go);
            build.args(["build", "-o"]).arg(&server);
            run(build.arg(here.join("go/server.go")));
            server
        });
        Programs {
            rust,
            c,
            go,
            nginx: find("nginx").and_then(|nginx| {
                let both = Path::new(STREAM).is_file().then_some(nginx);
                wanted(STREAM, both)
            }),
            directory,
        }
    }

    /// `None` where the program is not to be had.
    fn command(&self, peer: &Peer, acceptors: usize, work: Work) -> Option<(Command, u16)> {
        let mode = match work {
            Work::Close => "close",
            Work::OneRequest | Work::KeepAlive => "http",
            Work::Echo => "echo",
        };
        let listen = |program: &Path| {
            let mut command = Command::new(program);
            command.args(["127.0.0.1:0", &acceptors.to_string(), mode]);
            command
        };
        let command = match peer.how {
            How::Rust(program, way) => {
                let mut command = listen(&self.rust.join(program));
                command.arg(way);
                command
            }
            How::C(way) => {
                let mut command = listen(&self.c);
                command.args(way);
                command
            }
            How::Go => listen(self.go.as_deref()?),
            How::Nginx => {
                let nginx = self.nginx.as_deref()?;
                let port = free_port();
                let file = self.directory.join("nginx.conf");
                fs::write(&file, nginx_conf(port, acceptors, work)).expect("nginx.conf");
                let mut command = Command::new(nginx);
                command.arg("-p").arg(&self.directory).arg("-c").arg(&file);
                command.args(["-e", "stderr"]);
                return Some((command, port));
            }
        };
        Some((command, 0))
    }

    /// The versions of what is compared.
    pub(crate) fn versions(&self) -> Vec<String> {
        let first_line = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output().ok()?;
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            text.lines().next().map(str::to_owned)
        };
        let lock = include_str!("../../Cargo.lock");
        let of_crate = |name: &str| {
            let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
            Some(format!("{name} {}", rest.split_once('"')?.0))
        };
        let nginx = self.nginx.as_ref().and_then(|_| {
            let version = first_line("nginx", &["-v"])?;
            Some(version.replace("nginx version: ", "").replace('/', " "))
        });
        let all = [
            first_line("rustc", &["--version"]),
            first_line("cc", &["--version"]),
            of_crate("socket2"),
            of_crate("tokio"),
            nginx,
            self.go.as_ref().and_then(|_| {
                first_line("go", &["version"]).map(|line| line.replace("go version ", ""))
            }),
        ];
        all.into_iter().flatten().collect()
    }
}

/// Debian's libnginx-mod-stream.
const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// The same as the others do: nothing logged, a connection never closed for having had its share.
fn nginx_conf(port: u16, workers: usize, work: Work) -> String {
    let general =
        format!("daemon off;\nworker_processes {workers};\npid nginx.pid;\nevents {{}}\n");
    let listen = format!("listen 127.0.0.1:{port} reuseport;");
    if work == Work::Close {
        let module = format!("load_module {STREAM};\n");
        return format!("{module}{general}stream {{ server {{ {listen} return \"\"; }} }}\n");
    }
    format!(
        "{general}http {{
            access_log off;
            default_type text/plain;
            keepalive_requests 1000000000;
            client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi; scgi_temp_path scgi;
            server {{ {listen} location / {{ return 200 \"ok\\n\"; }} }}
        }}\n"
    )
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("its number").port()
}

fn run(command: &mut Command) {
    let status = command.status();
    let status = status.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

/// The path of a program, if it is installed.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file());
    wanted(program, found)
}

/// CI installs all that is wanted, so there it must be.
fn wanted(what: &str, found: Option<PathBuf>) -> Option<PathBuf> {
    let ci = env::var_os("CI").is_some();
    assert!(found.is_some() || !ci, "CI must have {what}");
    found
}

/// A server at work. Dropping it ends it.
pub(crate) struct Server {
    child: Option<Child>,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts it and sees that it does its work. `None`: skipped.
    pub(crate) fn start(
        programs: &Programs,
        peer: &Peer,
        acceptors: usize,
        work: Work,
    ) -> Option<Server> {
        let (mut command, port) = programs.command(peer, acceptors, work)?;
        let command = system::tied_to_us(&mut command);
        let command = command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", peer.name));
        let stderr = child.stderr.take().expect("it is piped");
        let mut server = Server {
            child: Some(child),
            address: (Ipv4Addr::LOCALHOST, port).into(),
        };
        let (say, said) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                match line.strip_prefix("listening on ") {
                    Some(address) => _ = say.send(address.parse()),
                    None => eprintln!("{line}"),
                }
            }
        });
        if port == 0 {
            let address = said.recv_timeout(BOUND).ok().and_then(Result::ok);
            server.address =
                address.unwrap_or_else(|| panic!("{} does not say where it listens", peer.name));
        }
        if let Err(what) = check(server.address, work) {
            panic!("{}, {work:?}: {what}", peer.name);
        }
        Some(server)
    }

    /// Ends it and tells how much CPU time it has used.
    pub(crate) fn stop(mut self) -> Duration {
        let mut child = self.child.take().expect("it is ended once");
        system::end(&mut child).expect("a child of ours")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            _ = system::end(&mut child);
        }
    }
}

const BOUND: Duration = Duration::from_secs(10);

/// Whether it does what is asked of it, once.
fn check(address: SocketAddr, work: Work) -> Result<(), String> {
    if work == Work::Echo {
        return load::burst(address).map_err(|error| error.to_string());
    }
    let begun = Instant::now();
    let mut client = loop {
        match TcpStream::connect(address) {
            Ok(client) => break client,
            // nginx does not say when it is ready.
            Err(_) if begun.elapsed() < BOUND => thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(format!("connect: {error}")),
        }
    };
    let failed = |error| format!("{error}");
    client.set_read_timeout(Some(BOUND)).map_err(failed)?;
    let asked: &[&str] = match work {
        Work::Close | Work::Echo => &[],
        Work::OneRequest => &["close"],
        Work::KeepAlive => &["keep-alive", "close"],
    };
    let mut answer = String::new();
    for connection in asked {
        let request =
            format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: {connection}\r\n\r\n");
        client.write_all(request.as_bytes()).map_err(failed)?;
    }
    client.read_to_string(&mut answer).map_err(failed)?;
    let [starts, bodies] = [
        answer.matches("HTTP/1.1 200 OK\r\n").count(),
        answer.matches("\r\n\r\nok\n").count(),
    ];
    if (starts, bodies) == (asked.len(), asked.len()) {
        Ok(())
    } else {
        Err(format!("answered {answer:?}"))
    }
}
