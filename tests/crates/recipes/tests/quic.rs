//! QUIC connections whose clients move to another port, and whose server is restarted: none breaks,
//! and none is answered by another member. By the kernel's hash most break.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::{fs::PermissionsExt, process::CommandExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::{collections::HashMap, env, fs, process, sync::Arc, thread, time::Duration};

use quinn::{ClientConfig, Connection, Endpoint};
use rustls::RootCertStore;
use support::{BOUND, Newest, Server, recipe, skip, wait_until};
use tokio::runtime::{Builder, Runtime};
use tokio::{task::JoinSet, time::timeout};

const MEMBERS: usize = 4;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A directory that every user can read, with the server's program and its certificate. It is
/// removed with this value.
struct Directory {
    path: PathBuf,
    /// It trusts the certificate.
    client: ClientConfig,
}

impl Directory {
    fn new(name: &str) -> Directory {
        let path = env::temp_dir().join(format!("recipes-{name}-{}", process::id()));
        _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let copied = Command::new("cp").arg(recipe("quic")).arg(&path).status();
        assert!(copied.unwrap().success());
        let issued = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        fs::write(path.join("certificate"), issued.cert.pem()).unwrap();
        fs::write(path.join("key"), issued.signing_key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(issued.cert.der().clone()).unwrap();
        let client = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
        Directory { path, client }
    }

    /// The server's command; `more` is behind the other arguments.
    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(self.path.join("quic"));
        command.args(["127.0.0.1:0", &MEMBERS.to_string()]);
        command.args(["certificate", "key"].map(|file| self.path.join(file)));
        command.args(more).stdout(Stdio::piped());
        command
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.path);
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// One connection, on a socket of its own.
struct Client {
    endpoint: Endpoint,
    connection: Connection,
    /// What has answered first: the member, and its process.
    member: String,
}

impl Client {
    async fn connect(to: SocketAddr, config: ClientConfig) -> Result<Client, Failure> {
        let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into())?;
        let connecting = endpoint.connect_with(config, to, "localhost")?;
        let connection = timeout(BOUND, connecting).await??;
        let mut client = Client {
            endpoint,
            connection,
            member: String::new(),
        };
        client.member = client.ask(BOUND).await?;
        Ok(client)
    }

    async fn ask(&self, limit: Duration) -> Result<String, Failure> {
        timeout(limit, async {
            let (mut send, mut receive) = self.connection.open_bi().await?;
            send.write_all(b"who").await?;
            send.finish()?;
            Ok(String::from_utf8(receive.read_to_end(100).await?)?)
        })
        .await?
    }

    /// Moves to another port, and asks.
    async fn move_and_ask(&self, limit: Duration) -> Result<(), Failure> {
        self.endpoint.rebind(UdpSocket::bind("127.0.0.1:0")?)?;
        let member = self.ask(limit).await?;
        if member != self.member {
            return Err(format!("{member} in place of {}", self.member).into());
        }
        Ok(())
    }

    /// The end of the connection is sent, also when this has returned.
    fn close(self) {
        self.connection.close(0_u32.into(), b"done");
        tokio::spawn(async move { self.endpoint.wait_idle().await });
    }
}

/// What became of 200 connections, each of which moves three times: how many each member had, and
/// how many broke. An answer that takes longer than `limit` counts as none.
async fn moved(to: SocketAddr, config: &ClientConfig, limit: Duration) -> (Vec<usize>, usize) {
    let mut clients = JoinSet::new();
    for _ in 0..200 {
        let config = config.clone();
        clients.spawn(async move {
            let client = Client::connect(to, config).await.expect("a connection");
            let mut moved = Ok(());
            for _ in 0..3 {
                if moved.is_ok() {
                    moved = client.move_and_ask(limit).await;
                }
            }
            let member = client.member.clone();
            client.close();
            (member, moved)
        });
    }
    let (mut counts, mut broken) = (HashMap::new(), 0);
    for (member, moved) in clients.join_all().await {
        *counts.entry(member).or_default() += 1;
        broken += usize::from(moved.is_err());
    }
    let mut counts: Vec<usize> = counts.into_values().collect();
    counts.resize(MEMBERS, 0);
    (counts, broken)
}

/// Chi-square with 3 degrees of freedom exceeds 35.7 by chance once in 10 million runs.
fn assert_even(counts: &[usize]) {
    let number = |n: usize| f64::from(u32::try_from(n).unwrap());
    let expected = number(counts.iter().sum()) / number(counts.len());
    let terms = counts
        .iter()
        .map(|n| (number(*n) - expected).powi(2) / expected);
    let chi_square: f64 = terms.sum();
    assert!(chi_square < 35.7, "{chi_square}: {counts:?}");
}

#[test]
fn connections_of_clients_that_move_break_by_the_hash_and_not_by_the_connection_id() {
    let directory = Directory::new("quic-moves");
    let server = |more: &[&str]| Server::of(directory.command(more).spawn().unwrap());
    let (by_id, by_hash) = (server(&[]), server(&["hash"]));
    let runtime = runtime();

    let (counts, broken) = runtime.block_on(moved(by_id.address, &directory.client, BOUND));
    println!("by the connection id: {broken} of 200 broken, handshakes {counts:?}");
    assert_eq!(broken, 0);
    assert_even(&counts);

    let limit = Duration::from_secs(3);
    let (_, broken) = runtime.block_on(moved(by_hash.address, &directory.client, limit));
    println!("by the hash: {broken} of 200 broken");
    assert!(broken > 100, "{broken} of 200");
}

/// What all clients have done.
#[derive(Default)]
struct Load {
    ends: AtomicBool,
    connections: AtomicUsize,
    moves: AtomicUsize,
}

impl Load {
    /// Connects, moves 14 times and closes, again and again.
    async fn client(&self, to: SocketAddr, config: ClientConfig) -> Result<(), Failure> {
        while !self.ends.load(Relaxed) {
            let client = Client::connect(to, config.clone()).await?;
            for _ in 0..14 {
                client.move_and_ask(BOUND).await?;
                self.moves.fetch_add(1, Relaxed);
            }
            client.close();
            self.connections.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// Runs 16 clients on a thread of their own, until they are to end.
    fn run(self: Arc<Load>, to: SocketAddr, config: ClientConfig) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            runtime().block_on(async {
                let mut clients = JoinSet::new();
                for _ in 0..16 {
                    let (load, config) = (Arc::clone(&self), config.clone());
                    clients.spawn(async move { load.client(to, config).await });
                }
                for result in clients.join_all().await {
                    result.expect("no connection fails");
                }
            });
        })
    }
}

/// 20 restarts, 1 500 connections and 20 000 moves.
#[track_caller]
fn restarts(name: &str, user: Option<u32>) {
    let directory = Directory::new(name);
    let mut command = directory.command(&[]);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let mut server = Server::of(command.spawn().unwrap());
    let mut newest = Newest(server.child.id().try_into().unwrap());
    let load = Arc::<Load>::default();
    let clients = Arc::clone(&load).run(server.address, directory.client.clone());

    let done = || [&load.connections, &load.moves].map(|count| count.load(Relaxed));
    for restart in 1..=20 {
        wait_until("the clients go on", || {
            let [connections, moves] = done();
            clients.is_finished() || (connections >= 75 * restart && moves >= 1000 * restart)
        });
        assert!(!clients.is_finished(), "a connection has failed");
        newest.restart(&mut server.stdout);
    }
    load.ends.store(true, Relaxed);
    clients.join().expect("no connection fails");

    let [connections, moves] = done();
    println!("20 restarts, {connections} connections, {moves} moves, none broken");
    assert!(connections >= 1500 && moves >= 20_000);
    _ = server.child.wait();
}

#[test]
fn connections_of_clients_that_move_survive_restarts() {
    restarts("quic-restarts", None);
}

#[test]
fn connections_of_clients_that_move_survive_restarts_of_an_ordinary_users_server() {
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        return skip("not root: the test before this one is of an ordinary user");
    }
    restarts("quic-user", Some(65_534));
}
