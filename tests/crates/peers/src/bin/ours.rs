//! This project's driver: a blocking acceptor for each listener (`plain`); steered to the receiving
//! CPU, on which the acceptor runs (`cpu`); helping busy siblings (`steal`); or all acceptors on
//! one listener (`shared`).

use std::error::Error;

use peers::{Args, Mode, answer, listening};
use reuseport::{Group, Steering};

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::from_env();
    let options = match args.way.as_str() {
        "cpu" => Group::options().steering(Steering::Cpu).pin(true),
        "steal" => Group::options().steal(true),
        "shared" => Group::options().shared(true),
        _ => Group::options(),
    };
    let group = options.bind(args.address, args.acceptors)?;
    listening(group.local_addr());
    let serving = match args.mode {
        Mode::Close => group.spawn(|_, connection| drop(connection))?,
        Mode::Http => group.spawn(|_, connection| _ = answer(connection))?,
    };
    serving.join();
    Ok(())
}
