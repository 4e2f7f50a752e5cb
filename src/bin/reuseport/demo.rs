//! `reuseport demo`: the server and its clients in one process.

use core::time::Duration;

use reuseport::{AcceptQueue, Group, Serve, Server, Stats};

use crate::args::Args;
use crate::client::Client;
use crate::output::{TCP, UDP, Words, print, ratio, rows};
use crate::{Failure, serve};

pub(crate) const HELP: &str = "\
Starts acceptors, connects to them, and shows which of them the kernel chose

Usage: reuseport [demo] [OPTIONS]

  --acceptors N      threads, each with its own listening socket [3]
  --connections N    how many to make, one after the other [10]
  --addr ADDRESS     where to listen, such as 127.0.0.1:3000, [::1]:3000, localhost:3000;
                     port 0 is any free one [127.0.0.1:3000]
  --udp              receivers instead, and a datagram from as many clients
";

pub(crate) fn run(mut args: Args) -> Result<(), Failure> {
    let udp = args.flag("--udp");
    let acceptors = args.number("--acceptors", 1, 1024, 3)?;
    let connections = args.number("--connections", 1, 10_000_000, 10)?;
    let addresses = args.addresses()?;
    args.finish()?;

    if udp {
        let group = serve::bind(&Group::udp_options(), &addresses, acceptors)?;
        let server = group.spawn(|receiver, message| {
            print(&format!("receiver {receiver}\n"));
            message.reply(0);
        })?;
        show(&server, UDP, connections, Client::ask)
    } else {
        let group = serve::bind(&Group::options(), &addresses, acceptors)?;
        let server = group.spawn(|acceptor, _| print(&format!("acceptor {acceptor}\n")))?;
        show(&server, TCP, connections, Client::visit)
    }
}

/// Has clients come, one after the other, and shows which acceptor served each.
fn show<P: Serve>(
    server: &Server<P>,
    words: Words,
    connections: usize,
    visit: fn(&Client) -> Result<Duration, String>,
) -> Result<(), Failure> {
    let address = server.local_addr();
    let timeout = Duration::from_secs(10);
    let client = Client {
        addresses: vec![address],
        hold: Duration::ZERO,
        timeout,
    };
    for _ in 0..connections {
        visit(&client).map_err(|error| Failure::Failed(format!("{address}: {error}")))?;
    }
    let counts = server.stop(timeout);
    let members: Vec<_> = counts
        .iter()
        .map(|count| (*count, None::<AcceptQueue>))
        .collect();
    print(&format!("\n{}", rows(words, &members, true)));
    if let Some(note) = note(&counts, connections) {
        print(&note);
    }
    Ok(())
}

/// Says so if an acceptor had no connection: it is no fault.
fn note(counts: &[Stats], connections: usize) -> Option<String> {
    let idle = counts.iter().filter(|count| count.accepted == 0).count();
    if idle == 0 {
        return None;
    }
    let acceptors = counts.len();
    let chance = 100.0 * chance_of_a_miss(acceptors, connections);
    Some(format!(
        "\n{idle} of {acceptors} had none. The kernel's hash decides, not a rota: {connections} \
         leave out one of\nthem in {chance:.1} % of runs.\n"
    ))
}

/// How likely it is that `balls` thrown into `bins` leave one empty: the inverse of how likely they
/// come to be in all of them, one ball after the other.
fn chance_of_a_miss(bins: usize, balls: usize) -> f64 {
    // The chances that so many bins are in use.
    let mut used = vec![0.0; bins + 1];
    used[0] = 1.0;
    for _ in 0..balls {
        if 1.0 - used[bins] < 1e-9 {
            break;
        }
        for n in (1..=bins).rev() {
            used[n] = used[n] * ratio(n, bins) + used[n - 1] * ratio(bins - n + 1, bins);
        }
        used[0] = 0.0;
    }
    1.0 - used[bins]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_of_a_miss_is_exact() {
        for (bins, balls, chance) in [
            (3, 10, 1.0 - 55980.0 / 59049.0),
            (3, 3, 7.0 / 9.0),
            (2, 2, 0.5),
            (1, 1, 0.0),
            (5, 3, 1.0),
        ] {
            let found = chance_of_a_miss(bins, balls);
            assert!((found - chance).abs() < 1e-12, "{bins} {balls}: {found}");
        }
        assert!(chance_of_a_miss(1024, usize::MAX) < 1e-9);
    }
}
