//! axum, a runtime and a listener for each member. `src/control.rs` replaces members, restarts and
//! stops; axum's graceful shutdown begins when the member has left.

use std::future::pending;
use std::net::SocketAddr;
use std::{io, net, time::Duration};

use axum::{Router, body::Bytes, routing::any, serve::Listener};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot::{Sender, channel};
use tokio::{runtime::Builder, time::sleep};

/// axum, told to shut down, drops the clients that it has accepted and that have sent nothing yet.
/// They have so long to begin.
const GRACE: Duration = Duration::from_secs(1);

fn main() -> io::Result<()> {
    recipes::control::run(serve)
}

fn serve(member: usize, listener: net::TcpListener) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let told = async move |body: Bytes| format!("member {member}: {} bytes\n", body.len());
    let app = Router::new().fallback(any(told));
    runtime.block_on(async {
        let (closed, is_closed) = channel();
        let listener = Member {
            listener: TcpListener::from_std(listener)?,
            closed: Some(closed),
        };
        let shutdown = async {
            _ = is_closed.await;
            sleep(GRACE).await;
        };
        axum::serve(listener, app)
            .with_graceful_shutdown(shutdown)
            .await
    })
}

/// A listener that tells when its member has left the group: `EINVAL`. axum alone would take that
/// for an error that passes.
struct Member {
    listener: TcpListener,
    closed: Option<Sender<()>>,
}

impl Listener for Member {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        match self.listener.accept().await {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                _ = self.closed.take().map(|closed| closed.send(()));
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
