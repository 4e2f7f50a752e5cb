//! What not to do: the sockets are given away, and closed on SIGTERM. Closing a listener resets its
//! queue; a test counts what is lost.

use std::{io, net, thread};

use reuseport::Group;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

fn main() -> io::Result<()> {
    let group = Group::bind(recipes::address(), recipes::members())?;
    let address = group.local_addr();
    let mut threads = Vec::new();
    for (member, listener) in group.into_sockets().into_iter().enumerate() {
        listener.set_nonblocking(true)?;
        threads.push(thread::spawn(move || serve(member, listener.into())));
    }
    println!("listening on {address}");
    threads
        .into_iter()
        .try_for_each(|thread| thread.join().expect("no panic"))
}

fn serve(member: usize, listener: net::TcpListener) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut end = signal(SignalKind::terminate())?;
        let listener = TcpListener::from_std(listener)?;
        let mut clients = JoinSet::new();
        loop {
            let mut client = tokio::select! {
                accepted = listener.accept() => accepted?.0,
                _ = end.recv() => break,
            };
            clients.spawn(async move {
                _ = client.read(&mut [0; 4096]).await?;
                client.write_all(recipes::answer(member).as_bytes()).await
            });
        }
        drop(listener);
        while clients.join_next().await.is_some() {}
        Ok(())
    })
}
