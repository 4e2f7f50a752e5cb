//! Members are replaced, processes restarted and servers stopped under load, and no connection is
//! lost; the naive program loses some.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::{fs::PermissionsExt, process::CommandExt};
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::{env, fs};

use support::{BOUND, Newest, Server, line, recipe, wait_until};

/// Clients that connect, ask and read the answer, one after the other.
struct Load {
    end: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    /// What became of those that were not served.
    lost: Arc<Mutex<Vec<String>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(address: SocketAddr) -> Load {
        let (end, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let lost = Arc::<Mutex<Vec<String>>>::default();
        let clients = (0..8).map(|_| {
            let (end, served) = (Arc::clone(&end), Arc::clone(&served));
            let lost = Arc::clone(&lost);
            thread::spawn(move || {
                while !end.load(Relaxed) {
                    match ask(address) {
                        None => thread::yield_now(),
                        Some(Ok(())) => _ = served.fetch_add(1, Relaxed),
                        Some(Err(why)) => lost.lock().unwrap().push(why),
                    }
                }
            })
        });
        let clients = clients.collect();
        Load {
            end,
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

/// `None`: refused, so no server had the connection.
fn ask(address: SocketAddr) -> Option<Result<(), String>> {
    let mut client = TcpStream::connect_timeout(&address, BOUND).ok()?;
    client.set_read_timeout(Some(BOUND)).ok()?;
    let mut answer = String::new();
    let asked = client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .and_then(|()| client.read_to_string(&mut answer));
    Some(match asked {
        Ok(_) if answer.starts_with("HTTP/1.1 200 OK\r\n") => Ok(()),
        Ok(_) => Err(format!("answered {answer:?}")),
        Err(error) => Err(error.to_string()),
    })
}

#[track_caller]
fn survives(mut server: Server) {
    let mut load = Load::start(server.address);
    let mut newest = Newest(server.child.id().try_into().unwrap());
    for _ in 0..20 {
        load.goes_on();
        newest.signal(libc::SIGUSR1);
        assert_eq!(line(&mut server.stdout), "a worker has left");
    }
    for _ in 0..10 {
        load.goes_on();
        newest.restart(&mut server.stdout);
    }
    load.goes_on();
    load.lost_none();

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
    survives(Server::start(name, 3));
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } == 0 {
        let copied = Copied::new(name);
        let mut command = Command::new(copied.0.join(name));
        command.args(["127.0.0.1:0", "3"]).uid(65534).gid(65534);
        survives(Server::of(command.stdout(Stdio::piped()).spawn().unwrap()));
    }
}

/// A directory with a recipe that every user can reach. It goes with this value.
struct Copied(PathBuf);

impl Copied {
    fn new(name: &str) -> Copied {
        let directory = env::temp_dir().join(format!("recipes-{name}-{}", process::id()));
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        // A process of its own: a file that this one has open for writing cannot be started.
        let mut copy = Command::new("install");
        copy.args(["-m", "755"]).arg(recipe(name)).arg(&directory);
        assert!(copy.status().unwrap().success());
        Copied(directory)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
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

#[test]
fn naive_program_stopped_under_load_loses_some() {
    let mut lost = 0;

    wait_until("a stop loses a connection", || {
        let mut server = Server::start("naive", 3);
        let mut load = Load::start(server.address);
        load.goes_on();
        server.signal(libc::SIGTERM);
        assert!(server.child.wait().unwrap().success());
        load.end();
        lost += load.lost.lock().unwrap().len();
        lost > 0
    });

    println!("{lost} lost");
}
