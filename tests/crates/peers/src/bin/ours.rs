//! This project's driver: a thread for each listener (`plain`); steered to the receiving CPU, on
//! which the thread runs (`cpu`); with spare threads for handlers that block (`hand-off`); with
//! both (`cpu-hand-off`); or all threads on one listener, with spares (`shared`). Of datagrams:
//! plain,
//! `cpu`, or many by one call (`batch`).

use std::error::Error;

use peers::{Args, Mode, answer, listening};
use reuseport::{Group, Steering};

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::from_env();
    if args.mode == Mode::Echo {
        return echo(&args);
    }
    let by_cpu = Group::options().steering(Steering::Cpu).pin(true);
    let options = match args.way.as_str() {
        "cpu" => by_cpu.spare_threads(0),
        "cpu-hand-off" => by_cpu,
        "hand-off" => Group::options(),
        "shared" => Group::options().shared(true),
        _ => Group::options().spare_threads(0),
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
