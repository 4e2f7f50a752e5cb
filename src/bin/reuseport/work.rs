//! `serve` at work: it waits for signals, and reports.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use core::time::Duration;
use std::time::Instant;
use std::{process, thread};

use reuseport::{Serve, Server};

use crate::Failure;
use crate::output::{Queued, Words, at_the_end, count, report, report_lines, so_far};
use crate::replace::replace_failed;
use crate::restart::{HandedOver, Program, notify};
use crate::signals::{Caught, Signals};

/// The servers of this process, one for each address.
pub(crate) struct Work<P: Serve> {
    servers: Vec<Server<P>>,
    words: Words,
    grace: Duration,
    /// Whether the sockets are held by another process too.
    inherited: bool,
    begun: Instant,
}

impl<P: Serve> Work<P>
where
    P::Queue: Queued,
{
    pub(crate) fn new(
        servers: Vec<Server<P>>,
        words: Words,
        grace: Duration,
        inherited: bool,
    ) -> Work<P> {
        Work {
            servers,
            words,
            grace,
            inherited,
            begun: Instant::now(),
        }
    }

    /// Serves until a signal ends it, or `program` has taken over, or a server has no member left.
    /// Members that fail are replaced.
    pub(crate) fn until_the_end(
        &self,
        signals: &Signals,
        program: &Program,
    ) -> Result<(), Failure> {
        notify("READY=1");
        let who = self.words.member;
        let lost = AtomicBool::new(false);
        thread::scope(|scope| {
            for server in &self.servers {
                let members = server.members().len();
                let (address, with) = (server.local_addr(), count(members, who));
                report(&format!(
                    "listening on {address} with {with}, pid {}",
                    process::id()
                ));
                let lost = &lost;
                scope.spawn(move || replace_failed(server, who, members, lost));
            }
            self.serve(signals, program);
            self.stop();
        });
        if lost.load(Relaxed) {
            return Err(Failure::Failed(format!("no {who} is left")));
        }
        Ok(())
    }

    fn serve(&self, signals: &Signals, program: &Program) {
        let mut wanted = false;
        loop {
            // A request to hand over is kept until the old process of this one has left.
            let timeout = wanted.then_some(RETRY_INTERVAL);
            match signals.wait(timeout) {
                Some(Caught::Report) => self.report(),
                Some(Caught::End) => break,
                Some(Caught::HandOver) | None => {
                    match program.hand_over(&self.servers, self.grace, signals) {
                        HandedOver::Yes => break,
                        HandedOver::No => wanted = false,
                        HandedOver::NotYet => wanted = true,
                    }
                }
            }
        }
    }

    fn report(&self) {
        for server in &self.servers {
            let members = server.members().into_iter();
            let members: Vec<_> = members.map(|member| (member.stats, member.queue)).collect();
            let heading = self.heading(server, "running for");
            report_lines(&so_far(&heading, self.words, &members));
        }
    }

    /// Stops all servers at the same time, so that the grace period is that of each.
    fn stop(&self) {
        let grace = self.grace;
        let all: Vec<_> = thread::scope(|scope| {
            let stop = |server| {
                let thread = thread::Builder::new();
                let stopped = thread.spawn_scoped(scope, move || Server::stop(server, grace));
                stopped.map_err(|_| server)
            };
            let stops: Vec<_> = self.servers.iter().map(stop).collect();
            let stats = stops.into_iter().map(|stop| match stop {
                Ok(thread) => thread.join().unwrap_or_default(),
                Err(server) => server.stop(grace),
            });
            stats.collect()
        });
        for (server, stats) in self.servers.iter().zip(all) {
            let heading = self.heading(server, "ended after");
            report_lines(&at_the_end(&heading, self.words, &stats, self.inherited));
        }
    }

    fn heading(&self, server: &Server<P>, state: &str) -> String {
        let (address, pid) = (server.local_addr(), process::id());
        let seconds = self.begun.elapsed().as_secs_f64();
        format!("{address}, pid {pid}, {state} {seconds:.1} s")
    }
}

/// How often a request to hand over is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
