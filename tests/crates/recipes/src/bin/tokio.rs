//! tokio, a single-threaded runtime for each member: no task and no connection ever changes its
//! thread. The group stays under control: `src/control.rs` replaces members, restarts and stops.

use std::{io, net, time::Duration};

use recipes::PATIENCE;
use reuseport::{AcceptAction, Call, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const PAUSE: Duration = Duration::from_millis(50);

fn main() -> io::Result<()> {
    recipes::control::run(serve)
}

fn serve(member: usize, listener: net::TcpListener) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // It belongs to the runtime that is running: so here, not in `main`.
        let listener = TcpListener::from_std(listener)?;
        let mut clients = JoinSet::new();
        loop {
            while clients.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((client, _)) => _ = clients.spawn(timeout(PATIENCE, answer(member, client))),
                Err(error) => match accept_action(&error) {
                    AcceptAction::Retry | AcceptAction::WouldBlock => {}
                    // The tasks go on, and give their descriptors back.
                    AcceptAction::BackOff => sleep(PAUSE).await,
                    // The member has left, and its queue is empty.
                    AcceptAction::Closed => break,
                    AcceptAction::Fatal => return Err(error),
                },
            }
        }
        while clients.join_next().await.is_some() {}
        Ok(())
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
