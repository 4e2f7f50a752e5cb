//! What it takes to answer from the address that was asked: a control message in either direction.

use core::time::Duration;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use reuseport::UdpSocket;

const ROUNDS: u32 = 200;
const DATAGRAMS: u32 = 200;

/// Returns how long a datagram takes to be received and sent back, on the address of the loopback
/// device and on the wildcard: the medians of many rounds, in turn.
pub(crate) fn received_and_sent_back() -> [Duration; 2] {
    let bind = |ip| UdpSocket::bind((ip, 0)).unwrap();
    let servers = [bind(Ipv4Addr::LOCALHOST), bind(Ipv4Addr::UNSPECIFIED)];
    let client = bind(Ipv4Addr::LOCALHOST);
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for (server, times) in servers.iter().zip(&mut times) {
            let port = server.local_addr().unwrap().port();
            let mut spent = Duration::ZERO;
            let mut buffer = [0; 100];
            for _ in 0..DATAGRAMS {
                let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                client.send_to(b"question", to).unwrap();
                let begun = Instant::now();
                let received = server.recv_from(&mut buffer).unwrap();
                server.reply(&buffer[..received.len], &received).unwrap();
                spent += begun.elapsed();
                client.recv_from(&mut buffer).unwrap();
            }
            times.push(spent / DATAGRAMS);
        }
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    })
}
