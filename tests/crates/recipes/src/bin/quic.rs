//! QUIC with quinn: an endpoint and a single-threaded runtime for each member. A connection stays
//! with its member when its client moves to another address, and with its process in a restart: on
//! SIGHUP a new process takes the new connections, and this one ends when its own have ended.
//!
//! The arguments behind the number of members are the files of the certificate and of its key, PEM.
//! One more has the kernel's hash choose the members: what not to do.

use std::process::{self, Command};
use std::sync::Arc;
use std::{env, error::Error, io, net, thread, time::Duration};

use quinn::{ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, Incoming};
use quinn::{ServerConfig, TokioRuntime};
use recipes::PATIENCE;
use reuseport::{Group, Inherited, Steering};
use rustls::crypto::{SecureRandom, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use signal_hook::consts::{SIGHUP, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::runtime::Builder;
use tokio::sync::watch::{Receiver, channel};
use tokio::time::timeout;

/// At most 7: so a client's own first id, of at least 8 bytes, is never taken for one of these.
const ID_LEN: u8 = 7;

/// Makes the connection ids of one member: its routing byte, and behind it random ones.
struct Ids(u8, &'static dyn SecureRandom);

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_LEN as usize];
        self.1.fill(&mut id).expect("random bytes");
        id[0] = self.0;
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_LEN.into()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let program = env::current_exe()?; // a new release may take this path later
    let mut signals = Signals::new([SIGHUP, SIGTERM])?;
    let file = |at| env::args().nth(at).ok_or("no certificate, or no key");
    let certificate = CertificateDer::from_pem_file(file(3)?)?;
    let key = PrivateKeyDer::from_pem_file(file(4)?)?;
    let config = ServerConfig::with_single_cert(vec![certificate], key)?;
    let by_id = Steering::Quic {
        id_len: ID_LEN,
        byte: 0,
    };
    let by_hash = env::args().nth(5).is_some();
    let steering = if by_hash { Steering::Hash } else { by_id };

    let options = Group::udp_options().steering(steering);
    let group = match Inherited::from_env()?.pop() {
        Some((_, Inherited::Udp(group))) => group.with_options(options),
        _ => options.bind(recipes::address(), recipes::members())?,
    };
    let server = group.into_server()?;
    let (leave, leaves) = channel(false);
    let mut threads = Vec::new();
    for member in server.members() {
        let socket = server.socket(member.stats.id)?.into();
        let (config, leaves) = (config.clone(), leaves.clone());
        threads.push(thread::spawn(move || {
            serve(member.routing_byte, socket, config, leaves)
        }));
    }
    println!("listening on {}", server.local_addr());

    while signals.forever().next() == Some(SIGHUP) {
        let mut command = Command::new(&program);
        command.args(env::args_os().skip(1));
        let hand_over = match server.hand_over(command, PATIENCE) {
            Err(error) => {
                println!("not handed over: {error}");
                continue;
            }
            Ok(hand_over) => hand_over,
        };
        // The connections that are here still reach this process, until they end.
        leave.send(true)?;
        for thread in threads {
            thread.join().expect("no panic")?;
        }
        let child = hand_over.leave(PATIENCE)?;
        println!("handed over to pid {}", child.id());
        break;
    }
    Ok(())
}

fn serve(
    member: u8,
    socket: net::UdpSocket,
    config: ServerConfig,
    mut leaves: Receiver<bool>,
) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // It has a reset key of its own. With one key for all members, a packet that has gone
        // astray could end its connection.
        let mut ids = EndpointConfig::default();
        ids.cid_generator(move || Box::new(Ids(member, ring::default_provider().secure_random)));
        let endpoint = Endpoint::new(ids, Some(config), socket, Arc::new(TokioRuntime))?;
        loop {
            tokio::select! {
                Some(incoming) = endpoint.accept() => {
                    tokio::spawn(answer(member, incoming));
                }
                _ = leaves.changed() => break,
            }
        }
        // Clients that do not end their connection are not waited for longer than this.
        if timeout(PATIENCE, endpoint.wait_idle()).await.is_err() {
            endpoint.close(0_u32.into(), b"restart");
            endpoint.wait_idle().await;
        }
        Ok(())
    })
}

/// Answers requests, each a stream, for as long as the client has some.
async fn answer(member: u8, incoming: Incoming) -> Result<(), quinn::ConnectionError> {
    let connection = incoming.await?;
    let answer = format!("member {member} of {}", process::id());
    loop {
        let (mut send, mut receive) = connection.accept_bi().await?;
        // An error is about this stream; that of the connection comes with the next.
        _ = receive.read_to_end(4096).await;
        _ = send.write_all(answer.as_bytes()).await;
        _ = send.finish();
    }
}
