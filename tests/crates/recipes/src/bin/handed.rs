//! The library accepts and tokio serves: each acceptor hands its connections to a runtime of its
//! own. On SIGUSR1 one member leaves, on SIGTERM all do, and no connection is lost.
//!
//! The library does what `axum.rs` has to do itself, and does it better: it sees in the kernel's
//! list which handshakes are under way, where that recipe can but wait for long enough; and who has
//! been accepted and is slow to ask is served all the same. The price is a wake-up for each
//! connection, from the acceptor's thread to the runtime's.

use std::thread::{self, JoinHandle};
use std::{error::Error, io, net, time::Duration};

use recipes::PATIENCE;
use reuseport::{Connection, Group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let mut leave = signal(SignalKind::user_defined1())?;
    let mut end = signal(SignalKind::terminate())?;
    let group = Group::bind(recipes::address(), recipes::members())?;
    let server = group.spawn_with(|acceptor| {
        let worker = Worker::start(acceptor);
        move |connection, _| worker.serve(connection)
    })?;
    println!("listening on {}", server.local_addr());
    loop {
        let one = runtime.block_on(async {
            tokio::select! { _ = leave.recv() => true, _ = end.recv() => false }
        });
        match server.members().as_slice() {
            [first, _, ..] if one => _ = server.retire(first.stats.id)?,
            _ => break,
        }
        println!("a worker has left");
    }
    server.stop(Duration::from_secs(10));
    Ok(())
}

/// A runtime on a thread of its own, which ends when it has served all that it was given.
struct Worker {
    give: Option<Sender<Connection>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(member: usize) -> Worker {
        // Here and not in the thread: without a runtime there shall be no acceptor.
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        // If it is behind by so many, its acceptor waits too, and the kernel keeps the rest.
        let (give, take) = channel(64);
        let thread = Some(thread::spawn(move || {
            runtime.block_on(serve_all(member, take));
        }));
        let give = Some(give);
        Worker { give, thread }
    }

    fn serve(&self, connection: Connection) {
        let give = self.give.as_ref().expect("not dropped");
        give.blocking_send(connection).expect("the runtime lives");
    }
}

impl Drop for Worker {
    /// The acceptor drops its handler when it has left, and with it this.
    fn drop(&mut self) {
        self.give = None;
        _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn serve_all(member: usize, mut take: Receiver<Connection>) {
    let mut tasks = JoinSet::new();
    while let Some(connection) = take.recv().await {
        while tasks.try_join_next().is_some() {}
        tasks.spawn(timeout(PATIENCE, answer(member, connection)));
    }
    while tasks.join_next().await.is_some() {}
}

async fn answer(member: usize, connection: Connection) -> io::Result<()> {
    let stream = net::TcpStream::from(connection);
    stream.set_nonblocking(true)?;
    let mut client = TcpStream::from_std(stream)?;
    // Read first: a socket that is closed with bytes unread resets, and the answer may be lost.
    _ = client.read(&mut [0; 4096]).await?;
    client.write_all(recipes::answer(member).as_bytes()).await
}
