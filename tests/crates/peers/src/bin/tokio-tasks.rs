//! tokio: one listener on the runtime with many threads, accepting in `main` as its tutorial does,
//! and a task for each connection; the same, accepting in a task too, which keeps to the workers
//! (`task`); or a listener and a runtime of its own for each thread, all on one port (`each`).
//! Datagrams: tasks that share one socket, as many as told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::{io, thread};

use peers::{Args, Mode, Requests, listening};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
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
        if args.mode == Mode::Echo {
            return echo(&args).await;
        }
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

async fn echo(args: &Args) -> io::Result<()> {
    let socket = Arc::new(UdpSocket::bind(args.address).await?);
    listening(socket.local_addr()?);
    let task = |_| tokio::spawn(send_back(Arc::clone(&socket)));
    let tasks: Vec<_> = (0..args.acceptors).map(task).collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn send_back(socket: Arc<UdpSocket>) -> io::Result<()> {
    let mut buffer = vec![0; 65_535];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        socket.send_to(&buffer[..length], from).await?;
    }
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
