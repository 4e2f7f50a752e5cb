//! `reuseport serve`: the C program's job, with every option of the library.

use core::net::SocketAddr;
use core::time::Duration;
use std::sync::Arc;

use reuseport::{Group, GroupOptions, Inherited, Protocol, Steering, Udp};

use crate::Failure;
use crate::args::Args;
use crate::output::{TCP, UDP, explain, print};
use crate::restart::Program;
use crate::signals::Signals;
use crate::slow::Slow;
use crate::work::Work;

pub(crate) const HELP: &str = "\
Accepts and closes, and prints `acceptor N` on stdout for every connection

Usage: reuseport serve [OPTIONS]

  --addr ADDRESS     where to listen, such as 127.0.0.1:3000, [::1]:3000, localhost:3000;
                     port 0 is any free one; --addr may be given several times
                     [127.0.0.1:3000]
  --only-v6          leave IPv4 alone on an IPv6 wildcard address, such as [::]:3000
  --acceptors N      threads, each with its own listening socket [3]
  --backlog N        connections that may wait on each socket [as many as the kernel allows]
  --join             join whoever is on the port, if they are of this user and have set the option,
                     instead of claiming it
  --shared           one listening socket for all threads
  --steer HOW        hash: the kernel's own way; cpu: the receiving CPU's acceptor; random;
                     byte:K, for datagrams: the one whose number is the byte at K [hash]
  --pin              run each acceptor on one CPU
  --grace MS         at the end, how long to wait for handshakes and handlers at most [3000]
  --spare-threads N  threads that may be started beside those, for connections that wait behind
                     a handler that blocks; 0: none [512]
  --slow P:MS        handle P percent of the connections slowly, each for MS milliseconds
  --quiet            print no connections

  --udp              receive datagrams, and print `receiver N` for each
  --echo             send each datagram back
  --batch            receive and send many datagrams by one system call

It sends nothing: `reuseport connect` counts what was served, and `curl 127.0.0.1:3000` ends with
`Empty reply from server` (exit code 52), which means the same.

SIGINT (Ctrl-C) and SIGTERM end it, and so does SIGHUP where a terminal controls it: established
connections are served first, and a table comes on stderr. A second SIGINT or SIGTERM ends it at
once.
SIGUSR1 prints what each acceptor has done, and its queue, on stderr.
SIGUSR2 hands the port over to a new process, and so does SIGHUP where no terminal controls it. That
is the file at the path by which this process was called, so that a link may be moved to the next
release before; the new pid is on stderr. The sockets of systemd are not handed over.

Under a supervisor:

  systemd            Type=notify, NotifyAccess=all, ExecReload=/bin/kill -USR2 $MAINPID
  a socket unit      serves the sockets that it passes, and ignores --addr; restart the
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
    only_v6: bool,
    /// For each `--addr`, what its name stands for.
    addresses: Vec<Vec<SocketAddr>>,
}

impl Wanted {
    fn parse(args: &mut Args) -> Result<Wanted, Failure> {
        let wanted = Wanted {
            acceptors: args.number("--acceptors", 1, 1024, 3)?,
            join: args.flag("--join"),
            shared: args.flag("--shared"),
            steering: args.value("--steer", "hash, cpu, random or byte:K", steering)?,
            pin: args.flag("--pin"),
            grace: Duration::from_millis(args.number("--grace", 0, 86_400_000, 3000)? as u64),
            slow: Slow::option(args)?,
            quiet: args.flag("--quiet"),
            only_v6: args.flag("--only-v6"),
            addresses: args.all_addresses()?,
        };
        if wanted.only_v6 && !wanted.addresses.iter().any(|choice| is_v6(choice)) {
            let line = "--only-v6 needs an IPv6 address, such as [::]:3000".to_owned();
            return Err(Failure::Usage(line));
        }
        Ok(wanted)
    }

    fn options<P: Protocol>(&self, options: GroupOptions<P>) -> GroupOptions<P> {
        let options = options.join(self.join).shared(self.shared).pin(self.pin);
        let steering = self.steering.unwrap_or_default();
        options.steering(steering).grace(self.grace)
    }

    /// Binds a group to each address.
    fn bind<P: Protocol>(&self, options: &GroupOptions<P>) -> Result<Vec<Group<P>>, Failure> {
        let bind_one = |choice: &Vec<SocketAddr>| {
            let mut options = options.clone();
            if self.only_v6 && is_v6(choice) {
                options = options.only_v6(true);
            }
            bind(&options, choice, self.acceptors)
        };
        self.addresses.iter().map(bind_one).collect()
    }

    /// Takes the groups that were passed to this process, or binds those that were asked for.
    fn take_or_bind<P: Protocol>(
        &self,
        passed: Vec<Group<P>>,
        options: &GroupOptions<P>,
        made_to_order: bool,
    ) -> Result<Vec<Group<P>>, Failure> {
        let mut groups = Vec::new();
        for group in passed {
            let is_inherited = group.is_inherited();
            if is_inherited && made_to_order {
                let line = "the listeners are inherited: --join, --shared, --steer and --backlog \
                            are for those who open them";
                return Err(Failure::Usage(line.to_owned()));
            }
            let is_single = group.sockets().len() == 1 && is_inherited;
            let group = group.with_options(options.clone());
            groups.push(if is_single {
                group.share_among(self.acceptors)?
            } else {
                group
            });
        }
        if groups.is_empty() {
            groups = self.bind(options)?;
        }
        Ok(groups)
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

fn is_v6(choice: &[SocketAddr]) -> bool {
    choice.iter().all(SocketAddr::is_ipv6)
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
    let groups = wanted.take_or_bind(Group::from_env()?, &options, made_to_order)?;
    let (grace, inherited) = (wanted.grace, groups[0].is_inherited());
    let wanted = Arc::new(wanted);
    let spawn = |group: Group| {
        let wanted = Arc::clone(&wanted);
        group.spawn(move |acceptor, _| wanted.handle("acceptor", acceptor))
    };
    let servers = groups.into_iter().map(spawn).collect::<Result<_, _>>()?;
    let work = Work::new(servers, TCP, grace, inherited);
    work.until_the_end(&signals, &program)
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
    let program = Program::of_this_process();
    let signals = Signals::of_a_server();
    let mut passed = Vec::new();
    for (_, inherited) in Inherited::from_env()? {
        let Inherited::Udp(group) = inherited else {
            let line = "listeners are inherited, and they are no datagram sockets".to_owned();
            return Err(Failure::Usage(line));
        };
        passed.push(group);
    }
    let made_to_order = wanted.join || wanted.shared || wanted.steering.is_some();
    let groups = wanted.take_or_bind(passed, &options, made_to_order)?;
    let inherited = groups[0].is_inherited();
    let grace = wanted.grace;
    let wanted = Arc::new(wanted);
    let spawn = |group: Group<Udp>| {
        let wanted = Arc::clone(&wanted);
        group.spawn(move |receiver, message| {
            wanted.handle("receiver", receiver);
            if echo {
                let len = message.payload().len();
                message.reply(len);
            }
        })
    };
    let servers = groups.into_iter().map(spawn).collect::<Result<_, _>>()?;
    let work = Work::new(servers, UDP, grace, inherited);
    work.until_the_end(&signals, &program)
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
            Err(error) => failures.push(explain(&error, P::HAS_PAYLOAD)),
        }
    }
    Err(Failure::Failed(failures.join("; ")))
}
