//! This project's driver: a blocking acceptor for each listener (`plain`); steered to the receiving
//! CPU, on which the acceptor runs (`cpu`); helping busy siblings (`steal`); or all acceptors on
//! one listener (`shared`). Of datagrams: plain, `cpu`, or many by one call (`batch`).

use std::error::Error;

use peers::{Args, Mode, answer, listening};
use reuseport::{Group, Steering};

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::from_env();
    if args.mode == Mode::Echo {
        return echo(&args);
    }
    let options = match args.way.as_str() {
        "cpu" => Group::options().steering(Steering::Cpu).pin(true),
        "steal" => Group::options().steal(true),
        "shared" => Group::options().shared(true),
        _ => Group::options(),
    };
    let group = options.bind(args.address, args.acceptors)?;
    listening(group.local_addr());
    let server = match args.mode {
        Mode::Close => group.spawn(|_, connection| drop(connection))?,
        _ => group.spawn(|_, connection| _ = answer(connection))?,
    };
    server.join();
    Ok(())
}

fn echo(args: &Args) -> Result<(), Box<dyn Error>> {
    let options = match args.way.as_str() {
        "cpu" => Group::udp_options().steering(Steering::Cpu).pin(true),
        way => Group::udp_options().batch(way == "batch"),
    };
    let group = options.bind(args.address, args.acceptors)?;
    listening(group.local_addr());
    let server = group.spawn(|_, message| {
        let length = message.payload().len();
        message.reply(length);
    })?;
    server.join();
    Ok(())
}
