//! Accepts and closes, and does nothing else: tests/costs.rs counts what that costs.
//! Usage: accepts group|handoff|hold|acceptors MEMBERS. Prints its address; ends when its stdin
//! does. With `hold` it does not close a connection before its client does.

use std::io::{Read, stdin};
use std::{env, error, process};

use reuseport::{Acceptors, Group};

fn main() -> Result<(), Box<dyn error::Error>> {
    let mut args = env::args().skip(1);
    let how = args.next().ok_or("how?")?;
    let members = args.next().ok_or("how many?")?.parse()?;
    let spares = match how.as_str() {
        "handoff" | "hold" => 512,
        _ => 0,
    };
    let options = Group::options().spare_threads(spares);
    let group = options.bind(([127, 0, 0, 1], 0), members)?;
    let address = group.local_addr();
    let (_serving, _acceptors);
    if how == "acceptors" {
        _acceptors = Acceptors::spawn(group.into_sockets(), |_, _| {})?;
    } else if how == "hold" {
        _serving = group.spawn(|_, connection| while let Ok(1..) = connection.recv(&mut [0]) {})?;
    } else {
        _serving = group.spawn(|_, _| {})?;
    }
    println!("{address}");
    stdin().read_to_end(&mut Vec::new())?;
    process::exit(0) // the end costs the same however long it has run
}
