//! Datagrams with tokio: a socket and a single-threaded runtime for each member. A flow, which is a
//! client's address and port, stays with one member while members neither come nor go.

use std::{error::Error, io, net, thread};

use reuseport::Group;
use tokio::net::UdpSocket;
use tokio::runtime::Builder;

fn main() -> Result<(), Box<dyn Error>> {
    let group = Group::bind_udp(recipes::address(), recipes::members())?;
    println!("listening on {}", group.local_addr());
    let mut threads = Vec::new();
    for (member, socket) in group.into_sockets().into_iter().enumerate() {
        socket.set_nonblocking(true)?;
        threads.push(thread::spawn(move || serve(member, socket.into())));
    }
    for thread in threads {
        thread.join().expect("no panic")?;
    }
    Ok(())
}

fn serve(member: usize, socket: net::UdpSocket) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let socket = UdpSocket::from_std(socket)?;
        let mut room = vec![0; 65_535];
        loop {
            // Either fails for one client, not for all.
            let answered = async {
                let (_, from) = socket.recv_from(&mut room).await?;
                let answer = format!("member {member}\n");
                socket.send_to(answer.as_bytes(), from).await
            };
            if let Err(error) = answered.await {
                eprintln!("member {member}: {error}");
            }
        }
    })
}
