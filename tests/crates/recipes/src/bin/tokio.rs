//! tokio, a single-threaded runtime for each listener: no task and no connection ever changes its
//! thread.

use std::{error, io, net, thread, time::Duration};

use recipes::PATIENCE;
use reuseport::{AcceptAction, Call, Error, Group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};

const PAUSE: Duration = Duration::from_millis(50);

fn main() -> Result<(), Box<dyn error::Error>> {
    let group = Group::bind(recipes::address(), recipes::members())?;
    println!("listening on {}", group.local_addr());
    let mut threads = Vec::new();
    for (member, listener) in group.into_sockets().into_iter().enumerate() {
        // The runtime asks its poller before it accepts, and an accept must not wait all the same:
        // the client may be gone by then.
        listener.set_nonblocking(true)?;
        threads.push(thread::spawn(move || serve(member, listener.into())));
    }
    for thread in threads {
        thread.join().expect("no panic")?;
    }
    Ok(())
}

fn serve(member: usize, listener: net::TcpListener) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // It belongs to the runtime that is running: so here, not in `main`.
        let listener = TcpListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                Ok((client, _)) => _ = tokio::spawn(timeout(PATIENCE, answer(member, client))),
                Err(error) => match accept_action(&error) {
                    AcceptAction::Retry | AcceptAction::WouldBlock => {}
                    // The tasks go on, and give their descriptors back.
                    AcceptAction::BackOff => sleep(PAUSE).await,
                    AcceptAction::Closed | AcceptAction::Fatal => return Err(error),
                },
            }
        }
    })
}

fn accept_action(error: &io::Error) -> AcceptAction {
    Error::new(Call::Accept, error.raw_os_error().unwrap_or_default()).accept_action()
}

async fn answer(member: usize, mut client: TcpStream) -> io::Result<()> {
    // Read first: a socket that is closed with bytes unread resets, and the answer may be lost.
    _ = client.read(&mut [0; 4096]).await?;
    client.write_all(recipes::answer(member).as_bytes()).await
}
