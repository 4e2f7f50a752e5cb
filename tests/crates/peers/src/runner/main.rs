//! Loads every server in turn, round by round, and compares each with ours, pair by pair.

mod load;
mod record;
mod servers;
mod stats;
mod system;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use std::{env, fs, process, thread};

use record::{Conditions, Row, Table};
use servers::{Peer, Programs, Server, Work, find, peers};
use stats::Spread;

const HELP: &str = "\
Loads comparison servers in turn and compares them with reuseport's own driver

  --rounds N       how often each server is loaded [7]
  --seconds S      for how long; wrk takes whole seconds [1]
  --acceptors N    acceptors, workers, threads of each server [the number of cores]
  --clients N      how many at a time [8]
  --only WORK      one of close, one-request, keep-alive, echo [all]
  --versus NAME    only servers whose name contains NAME, and ours [all]
  --short          one round of 0.2 s: does everything work?
  --record         writes record.md and record.svg beside the manifest
  --date DATE      which day the record is of [today]
";

struct Args {
    rounds: usize,
    duration: Duration,
    acceptors: usize,
    clients: u8,
    works: Vec<Work>,
    versus: String,
    record: bool,
    date: Option<String>,
}

impl Args {
    fn parse(mut args: impl Iterator<Item = String>) -> Option<Args> {
        let mut parsed = Args {
            rounds: 7,
            duration: Duration::from_secs(1),
            acceptors: thread::available_parallelism().map_or(2, usize::from),
            clients: 8,
            works: Work::ALL.into(),
            versus: String::new(),
            record: false,
            date: None,
        };
        while let Some(option) = args.next() {
            match option.as_str() {
                "--rounds" => parsed.rounds = args.next()?.parse().ok()?,
                "--seconds" => {
                    let seconds = args.next()?.parse().ok()?;
                    parsed.duration = Duration::try_from_secs_f64(seconds).ok()?;
                }
                "--acceptors" => parsed.acceptors = args.next()?.parse().ok()?,
                "--clients" => parsed.clients = args.next()?.parse().ok()?,
                "--only" => {
                    let name = args.next()?;
                    parsed.works.retain(|work| work.name() == name);
                }
                "--versus" => parsed.versus = args.next()?,
                "--short" => {
                    parsed.rounds = 1;
                    parsed.duration = Duration::from_millis(200);
                }
                "--record" => parsed.record = true,
                "--date" => parsed.date = Some(args.next()?),
                _ => return None,
            }
        }
        let sizes = [parsed.rounds, parsed.acceptors, parsed.clients.into()];
        (!sizes.contains(&0) && !parsed.works.is_empty()).then_some(parsed)
    }
}

fn main() {
    let Some(args) = Args::parse(env::args().skip(1)) else {
        eprint!("{HELP}");
        process::exit(2);
    };
    let load = load_average();
    let programs = Programs::build();
    let network = match system::own_network() {
        Ok(()) => "in a network namespace of its own",
        Err(error) => {
            eprintln!("no network of our own ({error}): connections in TIME_WAIT will be left");
            "in the machine's network"
        }
    };
    let tables: Vec<Table> = args
        .works
        .iter()
        .map(|work| compare(&args, &programs, *work))
        .collect();
    let conditions = Conditions {
        date: args.date.clone().unwrap_or_else(today),
        rounds: args.rounds,
        seconds: args.duration.as_secs_f64(),
        acceptors: args.acceptors,
        clients: args.clients.into(),
        network,
        load,
        versions: programs.versions(),
    };
    if args.record {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let write = |name: &str, text: String| {
            fs::write(here.join(name), text).unwrap_or_else(|error| panic!("{name}: {error}"));
        };
        write("record.md", record::markdown(&conditions, &tables));
        write("record.svg", record::chart(&conditions, &tables));
    }
    let errors: usize = tables.iter().map(Table::errors).sum();
    if errors > 0 {
        eprintln!("{errors} rows have errors");
        process::exit(1);
    }
}

/// Over the last minute.
fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn today() -> String {
    let output = process::Command::new("date").arg("+%F").output();
    let output = output.expect("date");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// One place in the order of a round.
struct Entry {
    name: String,
    peer: &'static Peer,
    rates: Vec<f64>,
    /// Seconds of CPU time that the server has used for each it has served.
    costs: Vec<f64>,
    errors: BTreeMap<String, u64>,
}

/// All rounds of one kind of work.
fn compare(args: &Args, programs: &Programs, work: Work) -> Table {
    let all = peers(work);
    let ours = all[0];
    // Ours twice: how far two runs of one program are apart is what no difference looks like.
    let mut order = vec![
        (ours.name.to_owned(), ours),
        ("the same again".to_owned(), ours),
    ];
    for peer in all.into_iter().skip(1) {
        if peer.name.contains(&args.versus) {
            order.push((peer.name.to_owned(), peer));
        }
    }
    let mut entries: Vec<Entry> = order
        .into_iter()
        .map(|(name, peer)| Entry {
            name,
            peer,
            rates: Vec::new(),
            costs: Vec::new(),
            errors: BTreeMap::new(),
        })
        .collect();
    let wrk = find("wrk");
    for round in 0..args.rounds {
        eprint!("{}, round {} of {}:", work.name(), round + 1, args.rounds);
        let count = entries.len();
        for step in 0..count {
            // Each begins a round in its turn, and every other round runs backwards.
            let step = if round % 2 == 0 {
                step
            } else {
                count - 1 - step
            };
            let entry = &mut entries[(step + round) % count];
            let rate = load_one(args, programs, work, wrk.as_deref(), entry);
            let rate = rate.map_or("-".to_owned(), |rate| format!("{rate:.0}"));
            eprint!(" {} {rate};", entry.name);
        }
        eprintln!();
    }
    let table = Table {
        work,
        rows: rows(&entries),
    };
    print!("{}", table.markdown());
    table
}

/// Starts one server, loads it, ends it. How many it has served in a second; `None`: not here.
fn load_one(
    args: &Args,
    programs: &Programs,
    work: Work,
    wrk: Option<&Path>,
    entry: &mut Entry,
) -> Option<f64> {
    let ours = matches!(work, Work::Close | Work::Echo);
    if !ours && wrk.is_none() {
        return None;
    }
    let server = Server::start(programs, entry.peer, args.acceptors, work)?;
    let seen = match wrk {
        Some(wrk) if !ours => load::wrk(wrk, server.address, args.clients, args.duration, work),
        _ if work == Work::Echo => load::echo(server.address, args.clients, args.duration),
        _ => load::close(server.address, args.clients, args.duration),
    };
    let cpu = server.stop().as_secs_f64();
    let rate = seen.rate();
    entry.rates.push(rate);
    entry.costs.push(cpu / rate / seen.seconds);
    for (what, times) in seen.errors {
        eprintln!("{}: {times} errors: {what}", entry.name);
        *entry.errors.entry(what).or_default() += times;
    }
    Some(rate)
}

fn rows(entries: &[Entry]) -> Vec<Row> {
    let ratios = |above: &[f64], below: &[f64]| {
        Spread::of(above.iter().zip(below).map(|(above, below)| above / below))
    };
    let ours = &entries[0];
    let row = |entry: &Entry| Row {
        name: entry.name.clone(),
        faster: ratios(&ours.rates, &entry.rates),
        cheaper: ratios(&entry.costs, &ours.costs),
        errors: entry.errors.clone(),
    };
    entries.iter().map(row).collect()
}
