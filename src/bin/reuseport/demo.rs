//! `reuseport demo`: the server and its clients in one process.

use core::time::Duration;

use reuseport::{AcceptQueue, Group, Serve, Server, Stats};

use crate::args::Args;
use crate::client::Client;
use crate::output::{print, ratio, tally};
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
        show(&server, "receiver", connections, Client::ask)
    } else {
        let group = serve::bind(&Group::options(), &addresses, acceptors)?;
        let server = group.spawn(|acceptor, _| print(&format!("acceptor {acceptor}\n")))?;
        show(&server, "acceptor", connections, Client::visit)
    }
}

/// Has clients come, one after the other, and shows who served them.
fn show<P: Serve>(
    server: &Server<P>,
    who: &str,
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
    let rows: Vec<_> = counts
        .iter()
        .map(|count| (*count, None::<AcceptQueue>))
        .collect();
    print(&format!("\n{}", tally(who, &rows, true)));
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
         leave out one of\nthem in about {chance:.0} % of runs.\n"
    ))
}

/// About how likely it is that `balls` thrown into `bins` leave one empty. The number of empty ones
/// is nearly Poisson's, with the mean that each is missed by all.
fn chance_of_a_miss(bins: usize, balls: usize) -> f64 {
    if balls < bins {
        return 1.0;
    }
    let missed = ratio(bins - 1, bins).powi(i32::try_from(balls).unwrap_or(i32::MAX));
    1.0 - (-ratio(bins, 1) * missed).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_connections_miss_one_of_three_acceptors_in_five_percent_of_runs() {
        // Exactly: 3 (2/3)^10 - 3 (1/3)^10 = 0.052.
        assert!((chance_of_a_miss(3, 10) - 0.052).abs() < 0.002);
        assert!(chance_of_a_miss(3, 100) < 1e-16);
        assert!((chance_of_a_miss(5, 3) - 1.0).abs() < 1e-9);
    }
}
