//! axum, a runtime and a listener for each member. `src/control.rs` replaces members, restarts and
//! stops; axum's graceful shutdown begins when the member has left.

use std::future::pending;
use std::net::SocketAddr;
use std::{io, net, time::Duration};

use axum::{Router, body::Bytes, routing::any, serve::Listener};
use recipes::PATIENCE;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch::{Sender, channel};
use tokio::{runtime::Builder, time::sleep};

/// axum, told to shut down, drops the clients that it has accepted and that have sent nothing yet.
/// They have so long to begin. Whoever has not finished within [`PATIENCE`] is given up.
const GRACE: Duration = Duration::from_secs(1);

fn main() -> io::Result<()> {
    recipes::control::run(serve)
}

fn serve(member: usize, listener: net::TcpListener) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let told = async move |body: Bytes| format!("member {member}: {} bytes\n", body.len());
    let app = Router::new().fallback(any(told));
    runtime.block_on(async {
        let (closed, is_closed) = channel(false);
        let listener = Member {
            listener: TcpListener::from_std(listener)?,
            closed,
        };
        let after = |time| {
            let mut is_closed = is_closed.clone();
            async move {
                _ = is_closed.wait_for(|closed| *closed).await;
                sleep(time).await;
            }
        };
        let server = axum::serve(listener, app).with_graceful_shutdown(after(GRACE));
        tokio::select! {
            served = server => served,
            () = after(PATIENCE) => Ok(()),
        }
    })
}

/// A listener that tells when its member has left the group: `EINVAL`. axum alone would take that
/// for an error that passes.
struct Member {
    listener: TcpListener,
    closed: Sender<bool>,
}

impl Listener for Member {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        match self.listener.accept().await {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.closed.send_replace(true);
                pending().await
            }
            Err(_) => Listener::accept(&mut self.listener).await,
            Ok(accepted) => accepted,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
