//! tokio, shorter than `tokio.rs`: a runtime for each member, which greets whoever asks.
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};
use std::{io, thread, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::{net::TcpListener, net::TcpStream, task::JoinSet, time::sleep, time::timeout};

fn main() -> io::Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS)?; // Ctrl-C is one of them
    let server = reuseport::Group::bind(recipes::address(), recipes::members())?.into_server()?;
    println!("listening on {}", server.local_addr());
    let ids = server.members().into_iter().map(|member| member.stats.id);
    let listeners: Result<Vec<_>, _> = ids.map(|id| server.listener(id)).collect();
    thread::scope(|threads| {
        let start = |one| _ = threads.spawn(|| serve(one).expect("a runtime"));
        listeners?.into_iter().for_each(start);
        signals.forever().next();
        server.stop(recipes::PATIENCE); // the threads end once their queues are empty
        Ok(())
    })
}

#[tokio::main(flavor = "current_thread")]
async fn serve(listener: reuseport::Listener) -> io::Result<()> {
    let (listener, mut clients) = (TcpListener::from_std(listener.into())?, JoinSet::new());
    loop {
        while clients.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((client, _)) => _ = clients.spawn(timeout(recipes::PATIENCE, greet(client))),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break, // it has left
            Err(_) => sleep(Duration::from_millis(50)).await, // no descriptor, for example
        }
    }
    while clients.join_next().await.is_some() {}
    Ok(())
}

async fn greet(mut client: TcpStream) -> io::Result<()> {
    _ = client.read(&mut [0; 1024]).await?; // what is left unread would reset the client
    client.write_all(b"hello\n").await
}
