//! Members are replaced, processes restarted and servers stopped under load, and no connection is
//! lost; the naive program loses some.

mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::{fs::PermissionsExt, process::CommandExt};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::{env, fs};

use support::{BOUND, Newest, Server, line, recipe, wait_until};

/// Clients that connect, ask and read the answer, one after the other.
struct Load {
    end: Arc<AtomicBool>,
    /// The server is about to end: from then on clients may be refused.
    may_refuse: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    /// What became of those that were not served.
    lost: Arc<Mutex<Vec<String>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(address: SocketAddr) -> Load {
        let (end, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let may_refuse = Arc::<AtomicBool>::default();
        let lost = Arc::<Mutex<Vec<String>>>::default();
        let clients = (0..8).map(|_| {
            let (end, served) = (Arc::clone(&end), Arc::clone(&served));
            let (lost, may_refuse) = (Arc::clone(&lost), Arc::clone(&may_refuse));
            thread::spawn(move || {
                while !end.load(Relaxed) {
                    match ask(address) {
                        Ok(()) => _ = served.fetch_add(1, Relaxed),
                        Err(error) if is_refused(&error) && may_refuse.load(Relaxed) => {
                            thread::yield_now();
                        }
                        Err(error) => lost.lock().unwrap().push(error.to_string()),
                    }
                }
            })
        });
        let clients = clients.collect();
        Load {
            end,
            may_refuse,
            served,
            lost,
            clients,
        }
    }

    #[track_caller]
    fn goes_on(&self) {
        let before = self.served.load(Relaxed);
        wait_until("more are served", || {
            self.served.load(Relaxed) > before + 50
        });
    }

    #[track_caller]
    fn lost_none(&self) {
        let lost = self.lost.lock().unwrap();
        assert!(lost.is_empty(), "{}: {lost:?}", lost.len());
    }

    fn end(&mut self) {
        self.end.store(true, Relaxed);
        let clients = self.clients.drain(..);
        clients.for_each(|client| client.join().unwrap());
    }
}

fn is_refused(error: &io::Error) -> bool {
    error.kind() == ErrorKind::ConnectionRefused
}

fn ask(address: SocketAddr) -> io::Result<()> {
    let mut client = TcpStream::connect_timeout(&address, BOUND)?;
    client.set_read_timeout(Some(BOUND))?;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200 OK\r\n") {
        return Ok(());
    }
    Err(io::Error::other(format!("answered {answer:?}")))
}

#[track_caller]
fn survives(mut server: Server, copied: &Copied) {
    let mut load = Load::start(server.address);
    let mut newest = Newest(server.child.id().try_into().unwrap());
    for _ in 0..20 {
        load.goes_on();
        newest.signal(libc::SIGUSR1);
        assert_eq!(line(&mut server.stdout), "a worker has left");
    }
    // A release that does not start: the server goes on.
    copied.put(Path::new("/bin/false"));
    newest.signal(libc::SIGHUP);
    let said = line(&mut server.stdout);
    assert!(said.starts_with("not handed over: "), "{said}");
    load.goes_on();
    // One that does, at the same path.
    copied.put(&recipe(&copied.name));
    for _ in 0..10 {
        load.goes_on();
        newest.restart(&mut server.stdout);
    }
    load.goes_on();
    load.lost_none();

    load.may_refuse.store(true, Relaxed);
    newest.signal(libc::SIGTERM);
    wait_until("the server has ended", || newest.has_ended());
    load.end();

    load.lost_none();
    println!("{} served", load.served.load(Relaxed));
}

/// As the user that runs the tests, and as an ordinary one, whom the kernel may refuse a packet
/// filter.
#[track_caller]
fn loses_none(name: &str) {
    let copied = Copied::new(name);
    let command = || {
        let mut command = Command::new(copied.path());
        command.args(["127.0.0.1:0", "3"]).stdout(Stdio::piped());
        command
    };
    survives(Server::of(command().spawn().unwrap()), &copied);
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } == 0 {
        let mut command = command();
        command.uid(65534).gid(65534);
        survives(Server::of(command.spawn().unwrap()), &copied);
    }
}

/// A directory with a recipe that every user can reach. It goes with this value.
struct Copied {
    directory: PathBuf,
    name: String,
}

impl Copied {
    fn new(name: &str) -> Copied {
        let directory = env::temp_dir().join(format!("recipes-{name}-{}", process::id()));
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let name = name.to_owned();
        let copied = Copied { directory, name };
        copied.put(&recipe(&copied.name));
        copied
    }

    fn path(&self) -> PathBuf {
        self.directory.join(&self.name)
    }

    /// Puts a program in the recipe's place, as a package manager does.
    fn put(&self, program: &Path) {
        // A process of its own: a file that this one has open for writing cannot be started.
        let new = self.directory.join("new");
        let mut copy = Command::new("install");
        copy.args(["-m", "755"]).arg(program).arg(&new);
        assert!(copy.status().unwrap().success());
        fs::rename(new, self.path()).unwrap();
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn tokio_under_load_loses_none() {
    loses_none("tokio");
}

#[test]
fn axum_under_load_loses_none() {
    loses_none("axum");
}

#[test]
fn mio_under_load_loses_none() {
    loses_none("mio");
}

/// A client that begins a request and does not end it keeps no server for ever.
#[test]
fn half_a_request_holds_up_the_end_for_half_a_minute() {
    thread::scope(|scope| {
        for name in ["tokio", "axum", "mio"] {
            scope.spawn(move || {
                let mut server = Server::start(name, 1);
                let mut client = TcpStream::connect(server.address).unwrap();
                client.write_all(b"G").unwrap();
                server.signal(libc::SIGINT);
                wait_until(&format!("{name} has ended"), || {
                    server.child.try_wait().unwrap().is_some()
                });
                assert!(server.child.wait().unwrap().success());
            });
        }
    });
}

#[test]
fn naive_program_stopped_under_load_loses_some() {
    let mut lost = 0;

    wait_until("a stop loses a connection", || {
        let mut server = Server::start("naive", 3);
        let mut load = Load::start(server.address);
        load.goes_on();
        load.may_refuse.store(true, Relaxed);
        server.signal(libc::SIGTERM);
        assert!(server.child.wait().unwrap().success());
        load.end();
        lost += load.lost.lock().unwrap().len();
        lost > 0
    });

    println!("{lost} lost");
}
