//! The ways to accept, each a server in a process of its own: what that process uses is the
//! server's alone, and none of it the clients'.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::io::{self, BufRead, BufReader, Write};
use std::process::{self, Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::{env, thread};

use reuseport::{BALANCES, Connection, Group, GroupOptions, Stats, Steering, Udp};

use crate::output::print;
use crate::slow::Slow;
use crate::{Failure, serve};

/// A way to accept.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    /// Of datagrams.
    pub(crate) udp: bool,
    /// Whether this kernel has it.
    pub(crate) here: bool,
    start: Start,
}

/// What the handlers do, whatever the way.
pub(crate) struct Handling {
    pub(crate) slow: Option<Slow>,
    pub(crate) compute: Option<Slow>,
    /// How many clients say nothing. If there is a number, a handler waits for its client's byte.
    pub(crate) silent: Option<usize>,
}

const LINUX: bool = cfg!(linux_kernel);

pub(crate) const WAYS: [Way; 14] = [
    way("single", true, single),
    way("shared", true, |n, handling| {
        group(&Group::options().shared(true).spare_threads(0), n, handling)
    }),
    way("reuseport", BALANCES, |n, handling| {
        group(&Group::options().spare_threads(0), n, handling)
    }),
    way("reuseport + hand-off", BALANCES, |n, handling| {
        group(&handling.with_spares(Group::options()), n, handling)
    }),
    way("reuseport + cpu", LINUX, |n, handling| {
        group(&by_cpu().spare_threads(0), n, handling)
    }),
    way("cpu + hand-off", LINUX, |n, handling| {
        group(&handling.with_spares(by_cpu()), n, handling)
    }),
    udp("udp one", true, |_, handling| {
        receivers(&Group::udp_options(), 1, handling)
    }),
    udp("udp shared", true, |n, handling| {
        receivers(&Group::udp_options().shared(true), n, handling)
    }),
    udp("udp reuseport", BALANCES, |n, handling| {
        receivers(&Group::udp_options(), n, handling)
    }),
    udp("udp + cpu", LINUX, |n, handling| {
        let options = Group::udp_options().steering(Steering::Cpu);
        receivers(&options.pin(true), n, handling)
    }),
    udp("batched one", LINUX, |_, handling| {
        receivers(&Group::udp_options().batch(true), 1, handling)
    }),
    udp("batched shared", LINUX, |n, handling| {
        receivers(&Group::udp_options().batch(true).shared(true), n, handling)
    }),
    udp("batched reuseport", LINUX, |n, handling| {
        receivers(&Group::udp_options().batch(true), n, handling)
    }),
    udp("batched + cpu", LINUX, |n, handling| {
        let options = Group::udp_options().batch(true);
        receivers(&options.steering(Steering::Cpu).pin(true), n, handling)
    }),
];

/// The one that the others are measured by: `shared`, of either protocol.
pub(crate) const BASE: usize = 1;

type Start = fn(usize, Handling) -> Result<Running, Failure>;

const fn way(name: &'static str, here: bool, start: Start) -> Way {
    Way {
        name,
        udp: false,
        here,
        start,
    }
}

const fn udp(name: &'static str, here: bool, start: Start) -> Way {
    Way {
        udp: true,
        ..way(name, here, start)
    }
}

impl Way {
    pub(crate) fn named(name: &str) -> Option<&'static Way> {
        WAYS.iter().find(|way| way.name == name)
    }

    /// The server's process. It says where it listens, and answers each line on stdin with what it
    /// has used and done so far. It ends once no process can ask any more, whatever is under way:
    /// it does not outlive the process that has started it.
    pub(crate) fn serve(&self, acceptors: usize, handling: Handling) -> Result<(), Failure> {
        let running = (self.start)(acceptors, handling)?;
        print(&format!("{}\n", running.address));
        for _ in io::stdin().lock().lines().map_while(Result::ok) {
            let mut answer = used();
            answer.extend((running.handled)());
            let words: Vec<_> = answer.iter().map(usize::to_string).collect();
            print(&format!("{}\n", words.join(" ")));
        }
        process::exit(0)
    }
}

/// A server in this process.
struct Running {
    address: SocketAddr,
    /// How many connections each thread has handled.
    handled: Box<dyn Fn() -> Vec<usize>>,
}

const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Each acceptor on a CPU of its own, chosen by the CPU that receives.
fn by_cpu() -> GroupOptions {
    Group::options().steering(Steering::Cpu).pin(true)
}

/// Acceptors, each of which handles what it accepts.
fn group(options: &GroupOptions, n: usize, handling: Handling) -> Result<Running, Failure> {
    let group = serve::bind(options, &[ANY_PORT], n)?;
    let server = group.spawn(move |_, connection| handling.handle(&connection))?;
    let accepted = |count: &Stats| count.accepted;
    Ok(Running {
        address: server.local_addr(),
        handled: Box::new(move || server.stats().iter().map(accepted).collect()),
    })
}

/// Receivers, each of which answers what it receives.
fn receivers(
    options: &GroupOptions<Udp>,
    n: usize,
    handling: Handling,
) -> Result<Running, Failure> {
    let group = serve::bind(options, &[ANY_PORT], n)?;
    let server = group.spawn(move |_, message| {
        handling.take_long();
        let len = message.payload().len();
        message.reply(len);
    })?;
    let accepted = |count: &Stats| count.accepted;
    Ok(Running {
        address: server.local_addr(),
        handled: Box::new(move || server.stats().iter().map(accepted).collect()),
    })
}

/// One thread accepts, and hands the connections to workers through a channel.
fn single(workers: usize, handling: Handling) -> Result<Running, Failure> {
    let (hand, queue) = mpsc::channel::<Connection>();
    let (queue, handling) = (Arc::new(Mutex::new(queue)), Arc::new(handling));
    let handled: Arc<[AtomicUsize]> = (0..workers).map(|_| AtomicUsize::new(0)).collect();
    for worker in 0..workers {
        let (queue, handling, handled) = (queue.clone(), handling.clone(), handled.clone());
        let work = move || {
            let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            while let Ok(connection) = next() {
                handled[worker].fetch_add(1, Relaxed);
                handling.handle(&connection);
            }
        };
        let spawned = thread::Builder::new().spawn(work);
        spawned.map_err(|error| Failure::thread(&error))?;
    }
    let group = serve::bind(&Group::options(), &[ANY_PORT], 1)?;
    let server = group.spawn(move |_, connection| _ = hand.send(connection))?;
    Ok(Running {
        address: server.local_addr(),
        handled: Box::new(move || {
            _ = &server; // which ends when it is dropped
            handled.iter().map(|count| count.load(Relaxed)).collect()
        }),
    })
}

impl Handling {
    fn handle(&self, connection: &Connection) {
        if self.silent.is_some() {
            // A client that is gone has said nothing either.
            _ = connection.recv(&mut [0]);
        }
        self.take_long();
    }

    fn take_long(&self) {
        for slow in [&self.slow, &self.compute].into_iter().flatten() {
            slow.handle();
        }
    }

    /// The words of the command line that make it.
    pub(crate) fn options(&self) -> Vec<String> {
        let [slow, compute] =
            [&self.slow, &self.compute].map(|slow| slow.as_ref().map(Slow::to_string));
        let silent = self.silent.as_ref().map(usize::to_string);
        let options = [
            ("--slow", slow),
            ("--compute", compute),
            ("--silent", silent),
        ];
        let words = |(name, value): (&str, Option<_>)| Some([name.to_owned(), value?]);
        options.into_iter().filter_map(words).flatten().collect()
    }

    /// As many threads as the silent clients keep, beside those that there are by default.
    fn with_spares(&self, options: GroupOptions) -> GroupOptions {
        options.spare_threads(512 + self.silent.unwrap_or_default())
    }
}

/// This process's microseconds of processor time, and its context switches.
fn used() -> Vec<usize> {
    // SAFETY: `rusage` is made of integers, for which zeros are a value.
    let mut usage: libc::rusage = unsafe { core::mem::zeroed() };
    // It cannot fail: the pointer is good, and so is the number.
    // SAFETY: `usage` is writable.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let [user, system] = [usage.ru_utime, usage.ru_stime].map(|time| {
        let seconds = usize::try_from(time.tv_sec).unwrap_or_default();
        seconds * 1_000_000 + usize::try_from(time.tv_usec).unwrap_or_default()
    });
    let switches = usage.ru_nvcsw + usage.ru_nivcsw;
    vec![user + system, usize::try_from(switches).unwrap_or_default()]
}

/// A server in a process of its own. It ends with this value.
pub(crate) struct Server {
    pub(crate) way: &'static Way,
    pub(crate) address: SocketAddr,
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Server {
    pub(crate) fn start(
        way: &'static Way,
        acceptors: usize,
        handling: &Handling,
    ) -> Result<Server, Failure> {
        let failed = |error: io::Error| Failure::Failed(format!("{}: {error}", way.name));
        let mut command = Command::new(env::current_exe().map_err(failed)?);
        command.args(["compare", "--serve-as", way.name]);
        command.args(["--acceptors", &acceptors.to_string()]);
        command.args(handling.options());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (Some(ask), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are pipes")
        };
        let mut server = Server {
            way,
            address: ANY_PORT,
            child,
            ask,
            answers: BufReader::new(answers),
        };
        let address = server.answer()?.trim().parse();
        server.address = address.map_err(|_| server.has_ended())?;
        Ok(server)
    }

    /// What it has used and done so far: microseconds of processor time, context switches, and
    /// the connections that each thread has handled.
    pub(crate) fn used(&mut self) -> Result<Vec<usize>, Failure> {
        // If it has ended, so have the answers.
        _ = self.ask.write_all(b"\n");
        let answer = self.answer()?;
        let numbers = answer.split_whitespace().map(str::parse);
        numbers
            .collect::<Result<_, _>>()
            .map_err(|_| self.has_ended())
    }

    fn answer(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(1..) => Ok(line),
            _ => Err(self.has_ended()),
        }
    }

    /// What it had to say of that stands on stderr already.
    fn has_ended(&self) -> Failure {
        Failure::Failed(format!("the server of \"{}\" has ended", self.way.name))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
