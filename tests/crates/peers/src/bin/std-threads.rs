//! The standard library's listener: one thread for all clients, a thread for each (`each`), or 64
//! that accept on it (`64`). Its UDP socket: one thread, or as many as told that share it (`each`).

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::{io, thread};

use peers::{Args, Mode, answer, echo, listening};

fn serve(client: TcpStream, mode: Mode) {
    if mode == Mode::Http {
        _ = answer(client);
    }
}

fn main() -> io::Result<()> {
    let args = Args::from_env();
    if args.mode == Mode::Echo {
        let socket = UdpSocket::bind(args.address)?;
        listening(socket.local_addr()?);
        for _ in 1..if args.way == "each" {
            args.acceptors
        } else {
            1
        } {
            let shared = socket.try_clone()?;
            thread::spawn(move || echo(&shared).expect("a socket that works"));
        }
        return echo(&socket);
    }
    let listener = TcpListener::bind(args.address)?;
    listening(listener.local_addr()?);
    let accept = || accept(&listener, &args);
    thread::scope(|scope| {
        for _ in 1..if args.way == "64" { 64 } else { 1 } {
            scope.spawn(accept);
        }
        accept()
    })
}

fn accept(listener: &TcpListener, args: &Args) -> io::Result<()> {
    let mode = args.mode;
    loop {
        let (client, _) = listener.accept()?;
        if args.way == "each" {
            thread::spawn(move || serve(client, mode));
        } else {
            serve(client, mode);
        }
    }
}
