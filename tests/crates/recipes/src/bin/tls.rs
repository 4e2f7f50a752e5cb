//! rustls on the library's own acceptors: a blocking thread for each client, and TLS on the
//! connection, which reads and writes as std's streams do.

use std::io::{self, Read, Write};
use std::{error::Error, sync::Arc};

use recipes::PATIENCE;
use reuseport::{Connection, Group};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, Stream};
use socket2::SockRef;

fn main() -> Result<(), Box<dyn Error>> {
    let issued = rcgen::generate_simple_self_signed(["localhost".into()])?;
    let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der())?;
    let config = ServerConfig::builder().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(vec![issued.cert.der().clone()], key)?);

    // A slow handshake keeps its thread, and a spare thread accepts in its place.
    let group = Group::bind(recipes::address(), recipes::members())?;
    println!("listening on {}", group.local_addr());
    print!("{}", issued.cert.pem());
    io::stdout().flush()?;
    let server = group.spawn(move |member, connection| {
        if let Err(error) = answer(member, connection, &config) {
            eprintln!("member {member}: {error}");
        }
    })?;
    server.join();
    Ok(())
}

fn answer(
    member: usize,
    mut connection: Connection,
    config: &Arc<ServerConfig>,
) -> Result<(), Box<dyn Error>> {
    // The acceptor waits for its client, but not for ever.
    let socket = SockRef::from(&connection);
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;

    let mut tls = ServerConnection::new(Arc::clone(config))?;
    let mut stream = Stream::new(&mut tls, &mut connection);
    _ = stream.read(&mut [0; 4096])?; // shakes hands first
    stream.write_all(recipes::answer(member).as_bytes())?;
    // Without this the client cannot tell the end from a cut.
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(())
}
