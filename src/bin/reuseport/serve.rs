//! `reuseport serve`: the C program.

use core::net::SocketAddr;
use core::time::Duration;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::{env, process};
#[cfg(any(target_os = "linux", target_os = "android"))]
use std::{path::Path, process::Command};

use reuseport::{Group, GroupOptions, Serving, Steering};

use crate::Failure;
use crate::args::Args;
use crate::output::{explain, print, report, report_lines, tally};
use crate::signals::{Caught, Signals};
use crate::slow::Slow;

const HELP: &str = "\
Accepts and closes, and prints `acceptor N` on stdout for every connection

Usage: reuseport serve [OPTIONS]

  --addr ADDRESS     where to listen, such as 127.0.0.1:3000, [::1]:3000, localhost:3000;
                     port 0 is any free one [127.0.0.1:3000]
  --acceptors N      threads, each with its own listening socket [3]
  --backlog N        connections that may wait on each socket [as many as the kernel allows]
  --join             share the port with other servers that do, instead of claiming it
  --shared           one listening socket for all threads
  --steer HOW        hash: the kernel's own way; cpu: the receiving CPU's acceptor; random [hash]
  --pin              run each acceptor on one CPU
  --grace MS         at the end, how long to wait for handshakes and handlers at most [1000]
  --steal            idle acceptors take what waits for busy ones
  --slow P:MS        handle P percent of the connections slowly, each for MS milliseconds
  --quiet            print no connections

Under systemd it serves the listeners of its socket unit, and tells when it is ready.

SIGHUP hands the port over to a fresh start of the same program file; the new pid is on stderr.
SIGUSR1 prints what each acceptor did, and its queue, on stderr. SIGINT (Ctrl-C) and SIGTERM end
it: every connection made by then is served, and a tally comes on stderr. A second one ends it at
once.
";

pub(crate) fn run(mut args: Args) -> Result<(), Failure> {
    if args.flag("--help") || args.flag("-h") {
        print(HELP);
        return Ok(());
    }
    let acceptors = args.number("--acceptors", 1, 1024, 3)?;
    let mut options = Group::options();
    let backlog = args.value("--backlog", "a whole number from 0 up", |value| {
        value.parse().ok().filter(|n| *n >= 0)
    })?;
    if let Some(connections) = backlog {
        options = options.backlog(connections);
    }
    let steering = args.value("--steer", "hash, cpu or random", |value| match value {
        "hash" => Some(Steering::Hash),
        "cpu" => Some(Steering::Cpu),
        "random" => Some(Steering::Random),
        _ => None,
    })?;
    options = options
        .steering(steering.unwrap_or_default())
        .pin(args.flag("--pin"));
    let (join, shared) = (args.flag("--join"), args.flag("--shared"));
    let made_to_order = join || shared || steering.is_some() || backlog.is_some();
    options = options.join(join).shared(shared);
    let grace = Duration::from_millis(args.number("--grace", 0, 86_400_000, 1000)? as u64);
    options = options.steal(args.flag("--steal"));
    let slow = Slow::option(&mut args)?;
    options = options.grace(grace);
    let quiet = args.flag("--quiet");
    let addresses = args.addresses()?;
    args.finish()?;

    // Taken at the start: the file may have been replaced since, by what is to come next.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let program = env::current_exe().map_err(|error| Failure::Failed(error.to_string()))?;
    // Before the first thread, which inherits it.
    let signals = Signals::hold();
    let group = match inherited()? {
        Some(group) if group.is_inherited() && made_to_order => {
            let line = "the listeners are inherited: --join, --shared, --steer and --backlog are \
                        for those who open them";
            return Err(Failure::Usage(line.to_owned()));
        }
        Some(group) if group.listeners().len() == 1 && group.is_inherited() => {
            let group = group.with(options).share_among(acceptors);
            group.map_err(|error| Failure::Failed(explain(&error)))?
        }
        Some(group) => group.with(options),
        None => bind(&options, &addresses, acceptors)?,
    };
    let (address, acceptors) = (group.local_addr(), group.listeners().len());
    let serving = spawn(group, move |acceptor| {
        if !quiet {
            print(&format!("acceptor {acceptor}\n"));
        }
        if let Some(slow) = &slow {
            slow.handle();
        }
    })?;
    notify("READY=1");
    report(&format!(
        "listening on {address} with {acceptors} acceptors, pid {}",
        process::id()
    ));
    loop {
        match signals.wait() {
            Caught::Report => {
                let members = serving.members().into_iter();
                let rows = members.map(|member| (member.count, member.queue));
                report_lines(&tally(&rows.collect::<Vec<_>>(), false));
            }
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Caught::HandOver => match serving.hand_over(successor(&program), PATIENCE) {
                Ok(child) => {
                    notify(&format!("MAINPID={}", child.id()));
                    report(&format!("handed over to pid {}", child.id()));
                    if let (Some(signal), Ok(pid)) = (signals.pending_end(), child.id().try_into())
                    {
                        // It was meant for whoever serves.
                        // SAFETY: takes two integers; the child has not been waited for.
                        unsafe { libc::kill(pid, signal) };
                    }
                    signals.let_the_next_end_it();
                    break;
                }
                Err(error) => report(&error.to_string()),
            },
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            Caught::HandOver => report("this kernel cannot hand a port over"),
            Caught::End => break,
        }
    }
    // What waited at the end; it is served before the counts are told.
    let queues = serving.members();
    let rows = serving.stop(grace).into_iter().map(|count| {
        let member = queues
            .iter()
            .find(|member| member.count.acceptor == count.acceptor);
        (count, member.and_then(|member| member.queue))
    });
    report_lines(&tally(&rows.collect::<Vec<_>>(), true));
    Ok(())
}

/// How long a successor may take to start.
#[cfg(any(target_os = "linux", target_os = "android"))]
const PATIENCE: Duration = Duration::from_secs(10);

/// This program again, as it was called.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn successor(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(env::args_os().skip(1))
        .stdin(process::Stdio::null());
    command
}

/// The group that systemd or a predecessor has passed.
fn inherited() -> Result<Option<Group>, Failure> {
    let mut groups = Group::from_env().map_err(|error| Failure::Failed(explain(&error)))?;
    match groups.len() {
        0 | 1 => Ok(groups.pop()),
        _ => Err(Failure::Failed(
            "listeners for more than one address were passed".to_owned(),
        )),
    }
}

/// Tells systemd, where it listens for it: `sd_notify(3)`.
fn notify(state: &str) {
    let Ok(path) = env::var("NOTIFY_SOCKET") else {
        return;
    };
    let to = match path.strip_prefix('@') {
        #[cfg(target_os = "linux")]
        Some(name) => UnixAddr::from_abstract_name(name),
        _ => UnixAddr::from_pathname(path),
    };
    // If nobody listens there, nobody wants to know.
    _ = to.and_then(|to| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &to));
}

/// Binds a group to the first of `addresses` that lets it.
pub(crate) fn bind(
    options: &GroupOptions,
    addresses: &[SocketAddr],
    members: usize,
) -> Result<Group, Failure> {
    let mut failures = Vec::new();
    for address in addresses {
        match options.bind(*address, members) {
            Ok(group) => return Ok(group),
            Err(error) => failures.push(explain(&error)),
        }
    }
    Err(Failure::Failed(failures.join("; ")))
}

pub(crate) fn spawn(
    group: Group,
    each: impl Fn(usize) + Send + Sync + 'static,
) -> Result<Serving, Failure> {
    let spawned = group.spawn(move |acceptor, _| each(acceptor));
    spawned.map_err(|failure| Failure::Failed(failure.to_string()))
}
