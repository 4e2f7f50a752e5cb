//! tokio, shorter than `tokio.rs`: a runtime for each member, which greets its clients.

use reuseport::Group;
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};
use std::{io, net, thread, time::Duration};
use tokio::{io::AsyncWriteExt, net::TcpListener, runtime::Builder, task::JoinSet, time::sleep};

fn main() -> io::Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS)?; // Ctrl-C is one of them
    let server = Group::bind(recipes::address(), recipes::members())?.into_server()?;
    println!("listening on {}", server.local_addr());
    let mut threads = Vec::new();
    for member in server.members() {
        let listener = server.listener(member.stats.id)?.into();
        threads.push(thread::spawn(move || serve(listener)));
    }
    signals.forever().next();
    server.stop(Duration::from_secs(30)); // the loops below end once their queues are empty
    let mut ends = threads.into_iter().map(thread::JoinHandle::join);
    ends.try_for_each(|end| end.expect("no panic"))
}

fn serve(listener: net::TcpListener) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (listener, mut clients) = (TcpListener::from_std(listener)?, JoinSet::new());
        loop {
            while clients.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((mut client, _)) => {
                    clients.spawn(async move { client.write_all(b"hello\n").await });
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break, // it has left
                Err(_) => sleep(Duration::from_millis(50)).await, // no descriptor, for example
            }
        }
        while clients.join_next().await.is_some() {}
        Ok(())
    })
}
