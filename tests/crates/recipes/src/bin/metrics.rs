//! Metrics: a second server answers with the figures of the first, in the form that Prometheus
//! reads. Totals never fall when members leave.

use std::{fmt::Write, io, sync::Arc, time::Duration};

use reuseport::{Group, Server};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

fn main() -> io::Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS)?; // Ctrl-C is one of them
    let group = Group::bind(recipes::address(), recipes::members())?;
    println!("listening on {}", group.local_addr());
    let server = group.spawn(|member, connection| _ = recipes::reply(member, connection))?;
    let server = Arc::new(server);

    let metrics = Group::bind(([127, 0, 0, 1], 0), 1)?; // yours has a port that is known
    println!("metrics on {}", metrics.local_addr());
    let watched = Arc::clone(&server);
    let metrics = metrics.spawn(move |_, connection| {
        _ = recipes::respond(connection, &figures(&watched));
    })?;
    signals.forever().next();
    server.stop(Duration::from_secs(30));
    metrics.stop(Duration::from_secs(3));
    Ok(())
}

fn figures(server: &Server) -> String {
    let totals = server.totals();
    let mut text = format!(
        "accepted_total {}\nhanded_off_total {}\nmembers_failed_total {}\n",
        totals.accepted, totals.handed_off, totals.failed
    );
    for member in server.members() {
        let (id, queued) = (member.stats.id, member.queue.map_or(0, |queue| queue.len));
        _ = writeln!(text, "queued{{member=\"{id}\"}} {queued}");
    }
    text
}
