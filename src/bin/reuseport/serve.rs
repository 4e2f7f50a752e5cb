//! `reuseport serve`: the C program's job, with every option of the library.

use core::net::SocketAddr;
use core::time::Duration;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::{process, thread};

use reuseport::{Group, GroupOptions, Protocol, Serve, Server, Steering};

use crate::Failure;
use crate::args::Args;
use crate::output::{Queued, explain, print, report, report_lines, tally};
use crate::replace::replace_failed;
use crate::restart::{HandedOver, Program, notify, refuse};
use crate::signals::{Caught, Signals};
use crate::slow::Slow;

pub(crate) const HELP: &str = "\
Accepts and closes, and prints `acceptor N` on stdout for every connection

Usage: reuseport serve [OPTIONS]

  --addr ADDRESS     where to listen, such as 127.0.0.1:3000, [::1]:3000, localhost:3000;
                     port 0 is any free one [127.0.0.1:3000]
  --acceptors N      threads, each with its own listening socket [3]
  --backlog N        connections that may wait on each socket [as many as the kernel allows]
  --join             join whoever is on the port, if they are of this user and have set the option,
                     instead of claiming it
  --shared           one listening socket for all threads
  --steer HOW        hash: the kernel's own way; cpu: the receiving CPU's acceptor; random;
                     byte:K, for datagrams: the one whose number is the byte at K [hash]
  --pin              run each acceptor on one CPU
  --grace MS         at the end, how long to wait for handshakes and handlers at most [1000]
  --spare-threads N  threads that may be started beside those, for connections that wait behind
                     a handler that blocks; 0: none [512]
  --slow P:MS        handle P percent of the connections slowly, each for MS milliseconds
  --quiet            print no connections

  --udp              receive datagrams, and print `receiver N` for each
  --echo             send each datagram back
  --batch            receive and send many datagrams by one system call

SIGINT (Ctrl-C) and SIGTERM end it, and so does SIGHUP where a terminal controls it: established
connections are served first, and a table comes on stderr. A second SIGINT or SIGTERM ends it at
once.
SIGUSR1 prints what each acceptor has done, and its queue, on stderr.
SIGUSR2 hands the port over to a new process, and so does SIGHUP where no terminal controls it. That
is the file at the path by which this process was called, so that a link may be moved to the next
release before; the new pid is on stderr. Datagram sockets and systemd's listeners are not handed
over.

Under a supervisor:

  systemd            Type=notify, NotifyAccess=all, ExecReload=/bin/kill -USR2 $MAINPID
  a socket unit      serves the listeners that it passes, and ignores --addr; restart the
                     service, and systemd holds them meanwhile
  one that follows a pid (runit, s6, supervisord, docker --init)
                     takes a hand-over for the end: run two copies with --join, and restart one
                     after the other
  a container without an init
                     PID 1 does not hand over, for all other processes end with it
";

/// What was asked for, whatever the protocol.
#[allow(clippy::struct_excessive_bools)] // each is a switch of its own
struct Wanted {
    acceptors: usize,
    join: bool,
    shared: bool,
    steering: Option<Steering>,
    pin: bool,
    grace: Duration,
    slow: Option<Slow>,
    quiet: bool,
    addresses: Vec<SocketAddr>,
}

impl Wanted {
    fn parse(args: &mut Args) -> Result<Wanted, Failure> {
        Ok(Wanted {
            acceptors: args.number("--acceptors", 1, 1024, 3)?,
            join: args.flag("--join"),
            shared: args.flag("--shared"),
            steering: args.value("--steer", "hash, cpu, random or byte:K", steering)?,
            pin: args.flag("--pin"),
            grace: Duration::from_millis(args.number("--grace", 0, 86_400_000, 1000)? as u64),
            slow: Slow::option(args)?,
            quiet: args.flag("--quiet"),
            addresses: args.addresses()?,
        })
    }

    fn options<P: Protocol>(&self, options: GroupOptions<P>) -> GroupOptions<P> {
        let options = options.join(self.join).shared(self.shared).pin(self.pin);
        let steering = self.steering.unwrap_or_default();
        options.steering(steering).grace(self.grace)
    }

    /// What becomes of each connection or datagram.
    fn handle(&self, who: &str, number: usize) {
        if !self.quiet {
            print(&format!("{who} {number}\n"));
        }
        if let Some(slow) = &self.slow {
            slow.handle();
        }
    }
}

fn steering(value: &str) -> Option<Steering> {
    match value {
        "hash" => Some(Steering::Hash),
        "cpu" => Some(Steering::Cpu),
        "random" => Some(Steering::Random),
        _ => Some(Steering::Byte(value.strip_prefix("byte:")?.parse().ok()?)),
    }
}

pub(crate) fn run(mut args: Args) -> Result<(), Failure> {
    if args.flag("--udp") {
        return run_udp(args);
    }
    args.unwanted(&["--echo", "--batch"], "it goes with --udp");
    args.unwanted(&["--steal"], "--spare-threads N has taken its place");
    let spare_threads = args.number("--spare-threads", 0, 100_000, 512)?;
    let mut options = Group::options().spare_threads(spare_threads);
    let backlog = args.value("--backlog", "a whole number from 0 up", |value| {
        value.parse().ok().filter(|n| *n >= 0)
    })?;
    if let Some(connections) = backlog {
        options = options.backlog(connections);
    }
    let wanted = Wanted::parse(&mut args)?;
    args.finish()?;
    let options = wanted.options(options);
    let made_to_order =
        wanted.join || wanted.shared || wanted.steering.is_some() || backlog.is_some();

    let program = Program::of_this_process();
    // Before the first thread, which inherits it.
    let signals = Signals::of_a_server();
    let group = match inherited()? {
        Some(group) if group.is_inherited() && made_to_order => {
            let line = "the listeners are inherited: --join, --shared, --steer and --backlog are \
                        for those who open them";
            return Err(Failure::Usage(line.to_owned()));
        }
        Some(group) if group.sockets().len() == 1 && group.is_inherited() => {
            group.with_options(options).share_among(wanted.acceptors)?
        }
        Some(group) => group.with_options(options),
        None => bind(&options, &wanted.addresses, wanted.acceptors)?,
    };
    let grace = wanted.grace;
    let server = group.spawn(move |acceptor, _| wanted.handle("acceptor", acceptor))?;
    work(&server, "acceptor", &signals, grace, |server| {
        program.hand_over(server, grace, &signals)
    })
}

fn run_udp(mut args: Args) -> Result<(), Failure> {
    args.unwanted(
        &["--spare-threads", "--backlog"],
        "it does not go with --udp",
    );
    let echo = args.flag("--echo");
    let options = Group::udp_options().batch(args.flag("--batch"));
    let wanted = Wanted::parse(&mut args)?;
    args.finish()?;
    let options = wanted.options(options);
    let signals = Signals::of_a_server();
    if inherited()?.is_some() {
        let line = "listeners are inherited, and they are no datagram sockets".to_owned();
        return Err(Failure::Usage(line));
    }
    let group = bind(&options, &wanted.addresses, wanted.acceptors)?;
    let grace = wanted.grace;
    let server = group.spawn(move |receiver, message| {
        wanted.handle("receiver", receiver);
        if echo {
            let len = message.payload().len();
            message.reply(len);
        }
    })?;
    work(&server, "receiver", &signals, grace, |_| {
        refuse("datagram sockets cannot be handed over")
    })
}

/// Serves until a signal ends it, or `hand_over` has, or no member is left.
fn work<P: Serve>(
    server: &Server<P>,
    who: &str,
    signals: &Signals,
    grace: Duration,
    hand_over: impl Fn(&Server<P>) -> HandedOver,
) -> Result<(), Failure>
where
    P::Queue: Queued,
{
    notify("READY=1");
    let members = server.members().len();
    report(&format!(
        "listening on {} with {members} {who}{}, pid {}",
        server.local_addr(),
        if members == 1 { "" } else { "s" },
        process::id()
    ));
    let lost = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| replace_failed(server, who, members, &lost));
        serve(server, who, signals, grace, hand_over);
    });
    if lost.load(Relaxed) {
        return Err(Failure::Failed(format!("no {who} is left")));
    }
    Ok(())
}

/// Serves until a signal ends it, or `hand_over` has; then stops the server.
fn serve<P: Serve>(
    server: &Server<P>,
    who: &str,
    signals: &Signals,
    grace: Duration,
    hand_over: impl Fn(&Server<P>) -> HandedOver,
) where
    P::Queue: Queued,
{
    let mut wanted = false;
    loop {
        // A request to hand over is kept until the old process of this one has left.
        let timeout = wanted.then_some(RETRY_INTERVAL);
        match signals.wait(timeout) {
            Some(Caught::Report) => {
                let members = server.members().into_iter();
                let rows = members.map(|member| (member.stats, member.queue));
                report_lines(&tally(who, &rows.collect::<Vec<_>>(), false));
            }
            Some(Caught::End) => break,
            Some(Caught::HandOver) | None => match hand_over(server) {
                HandedOver::Yes => break,
                HandedOver::No => wanted = false,
                HandedOver::NotYet => wanted = true,
            },
        }
    }
    // The queues at the end: what waits there is served before the counts are reported.
    let queues = server.members();
    let rows = server.stop(grace).into_iter().map(|stats| {
        let member = queues.iter().find(|member| member.stats.id == stats.id);
        (stats, member.and_then(|member| member.queue))
    });
    report_lines(&tally(who, &rows.collect::<Vec<_>>(), true));
}

/// How often a request to hand over is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// The group that systemd or a predecessor has passed.
fn inherited() -> Result<Option<Group>, Failure> {
    let mut groups = Group::from_env()?;
    match groups.len() {
        0 | 1 => Ok(groups.pop()),
        _ => Err(Failure::Failed(
            "listeners for more than one address were passed".to_owned(),
        )),
    }
}

/// Binds a group to the first of `addresses` that lets it.
pub(crate) fn bind<P: Protocol>(
    options: &GroupOptions<P>,
    addresses: &[SocketAddr],
    members: usize,
) -> Result<Group<P>, Failure> {
    let mut failures = Vec::new();
    for address in addresses {
        match options.bind(*address, members) {
            Ok(group) => return Ok(group),
            Err(error) => failures.push(explain(&error)),
        }
    }
    Err(Failure::Failed(failures.join("; ")))
}
