//! The standard library's listener: one thread for all clients, or a thread for each (`each`).

use std::net::{TcpListener, TcpStream};
use std::{io, thread};

use peers::{Args, Mode, answer, listening};

fn serve(client: TcpStream, mode: Mode) {
    if mode == Mode::Http {
        _ = answer(client);
    }
}

fn main() -> io::Result<()> {
    let args = Args::from_env();
    let listener = TcpListener::bind(args.address)?;
    listening(listener.local_addr()?);
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
