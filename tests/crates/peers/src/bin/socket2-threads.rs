//! The C program with socket2: a thread for each socket, all on one port.

use std::net::{TcpListener, UdpSocket};
use std::{io, thread};

use peers::{Args, Mode, answer, echo, listening};
use socket2::{Domain, Socket, Type};

fn main() -> io::Result<()> {
    let args = Args::from_env();
    let mut address = args.address;
    let mut acceptors = Vec::new();
    for _ in 0..args.acceptors {
        let kind = match args.mode {
            Mode::Echo => Type::DGRAM,
            Mode::Close | Mode::Http => Type::STREAM,
        };
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        if args.mode == Mode::Echo {
            let socket = UdpSocket::from(socket);
            address = socket.local_addr()?;
            acceptors.push(thread::spawn(move || echo(&socket)));
            continue;
        }
        socket.listen(4096)?;
        let listener = TcpListener::from(socket);
        address = listener.local_addr()?; // the others bind what port 0 has become
        let mode = args.mode;
        acceptors.push(thread::spawn(move || accept(&listener, mode)));
    }
    listening(address);
    for acceptor in acceptors {
        acceptor.join().expect("an acceptor does not panic")?;
    }
    Ok(())
}

fn accept(listener: &TcpListener, mode: Mode) -> io::Result<()> {
    loop {
        let (client, _) = listener.accept()?;
        if mode == Mode::Http {
            _ = answer(client);
        }
    }
}
