//! tokio: one listener on the runtime with many threads, accepting in `main` as its tutorial does,
//! and a task for each connection; the same, accepting in a task too, which keeps to the workers
//! (`task`); or a listener and a runtime of its own for each thread, all on one port (`each`).

use std::net::SocketAddr;
use std::{io, thread};

use peers::{Args, Mode, Requests, listening};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Builder;

fn main() -> io::Result<()> {
    let args = Args::from_env();
    if args.way == "each" {
        return each(&args);
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(args.acceptors)
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.address).await?;
        listening(listener.local_addr()?);
        let accepting = accept(listener, args.mode);
        if args.way == "task" {
            tokio::spawn(accepting).await?
        } else {
            accepting.await
        }
    })
}

fn each(args: &Args) -> io::Result<()> {
    let mut address = args.address;
    let mut threads = Vec::new();
    for _ in 0..args.acceptors {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let listener = runtime.block_on(async { bind(address) })?;
        address = listener.local_addr()?; // the others bind what port 0 has become
        let mode = args.mode;
        threads.push(thread::spawn(move || {
            runtime.block_on(accept(listener, mode))
        }));
    }
    listening(address);
    for thread in threads {
        thread.join().expect("an acceptor does not panic")?;
    }
    Ok(())
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

async fn accept(listener: TcpListener, mode: Mode) -> io::Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(async move {
            if mode == Mode::Http {
                _ = answer(client).await;
            }
        });
    }
}

async fn answer(mut client: TcpStream) -> io::Result<()> {
    let mut requests = Requests::new();
    loop {
        match client.read(requests.space()).await? {
            0 => return Ok(()),
            bytes => requests.add(bytes),
        }
        while let Some(answer) = requests.take() {
            client.write_all(answer.bytes).await?;
            if answer.last {
                return Ok(());
            }
        }
    }
}
