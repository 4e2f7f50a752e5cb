//! Datagrams with a state for each flow, of a protocol without connection ids: a connected socket
//! for each live flow (Linux 6.13). The kernel gives it all datagrams of its client, whatever the
//! group does. So flows stay with their process when on SIGHUP a new one takes the new flows; this
//! one ends when its own have ended.
//!
//! The members receive no more than the first datagrams of flows. The answer to the first leaves
//! when the flow has its socket, so a client that waits for it never meets another process. The
//! group is not steered by CPU, byte or connection id: a flow's socket is a member from its `bind`
//! to its `connect`, and the indexes change.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::{self, Command};
use std::sync::{Arc, Mutex, mpsc};
use std::{env, error::Error, io, thread};

use recipes::PATIENCE;
use reuseport::{Group, GroupError, HandOverError, Inherited, UdpSocket};
use signal_hook::consts::{SIGHUP, SIGTERM};
use signal_hook::iterator::Signals;
use socket2::SockRef;

#[derive(Clone)]
struct Flows {
    /// Where the group is bound: to one address, on which all clients ask.
    address: SocketAddr,
    /// The state of each flow: here, how many datagrams it has sent.
    counts: Arc<Mutex<HashMap<SocketAddr, usize>>>,
    /// Dropped with the last flow.
    _lives: mpsc::Sender<()>,
}

impl Flows {
    /// Answers a datagram: the first of a flow by a socket of its own.
    fn receive(&self, by: &UdpSocket, from: SocketAddr) -> io::Result<()> {
        let mut counts = self.counts.lock().expect("no panic");
        let count = counts.entry(from).or_default();
        *count += 1;
        let (count, answer) = (*count, format!("{count} of {}", process::id()));
        drop(counts);
        if count > 1 {
            return Ok(by.send_to(answer.as_bytes(), from)?);
        }
        let flow = UdpSocket::bind(self.address)?;
        flow.connect(from)?;
        SockRef::from(&flow).set_read_timeout(Some(PATIENCE))?;
        flow.send(answer.as_bytes())?;
        let flows = self.clone();
        thread::spawn(move || flows.serve(&flow, from));
        Ok(())
    }

    /// Until the client says so, has gone, or has been silent for too long.
    fn serve(&self, flow: &UdpSocket, client: SocketAddr) {
        let mut buffer = [0; 1500];
        while let Ok(received) = flow.recv_from(&mut buffer) {
            if buffer.starts_with(b"bye") && received.from == client {
                break;
            }
            // Other clients' datagrams may have come before it was connected.
            self.answer(flow, received.from);
        }
        self.counts.lock().expect("no panic").remove(&client);
    }

    fn answer(&self, by: &UdpSocket, from: SocketAddr) {
        if let Err(error) = self.receive(by, from) {
            eprintln!("{from}: {error}");
            self.counts.lock().expect("no panic").remove(&from);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let program = env::current_exe()?; // a new release may take this path later
    let mut signals = Signals::new([SIGHUP, SIGTERM])?;
    let group = match Inherited::from_env()?.pop() {
        Some((_, Inherited::Udp(group))) => group,
        _ => Group::bind_udp(recipes::address(), recipes::members())?,
    };
    let (lives, ended) = mpsc::channel();
    let flows = Flows {
        address: group.local_addr(),
        counts: Arc::default(),
        _lives: lives,
    };
    let server = group.spawn(move |_, datagram| {
        flows.answer(datagram.socket(), datagram.peer_addr());
    })?;
    println!("listening on {}", server.local_addr());

    if signals.forever().next() == Some(SIGHUP) {
        let hand_over = loop {
            let mut command = Command::new(&program);
            command.args(env::args_os().skip(1));
            match server.hand_over(command, PATIENCE) {
                // A flow's socket is bound, and not yet connected.
                Err(HandOverError::Group(GroupError::JoinedGroup)) => thread::yield_now(),
                result => break result?,
            }
        };
        let child = hand_over.leave(PATIENCE)?;
        println!("handed over to pid {}", child.id());
        drop(server);
        // It fails when the last flow has ended.
        _ = ended.recv();
    }
    Ok(())
}
