//! What hand-off costs at saturation, and a server with spare threads when it has nothing to do.

use std::fs;
use std::io::BufRead;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::support::{self, program, scratch, start, tool, visit, wait_until};
use super::{TRIES, Table, accepts};

/// Futex calls a connection that the workers may make at saturation.
pub(crate) const MOST_WAKES: f64 = 0.02;

/// Futex calls a connection by the workers of a server with spare threads, while clients connect as
/// fast as they can: the monitor is awake. strace stops the threads for nothing but these calls.
/// Where a busy machine takes the CPU from a worker that is in its handler, it counts as blocked;
/// so this is the least of some tries.
pub(crate) fn wakes_at_saturation(table: &mut Table) -> Option<f64> {
    if !tool("strace") {
        table.row(
            "futex calls a connection at saturation",
            "skipped: no strace",
        );
        return None;
    }
    let accepts = accepts();
    let mut least = f64::INFINITY;
    for _ in 0..TRIES {
        let logs = scratch("costs-wakes");
        let mut strace = program("strace");
        strace.args([
            "-ff",
            "-qq",
            "--seccomp-bpf",
            "-e",
            "trace=futex,prctl",
            "-o",
        ]);
        strace.arg(logs.join("thread"));
        let made = saturate(strace.arg(&accepts).args(["handoff", "2"]), |_| {}).0;
        let logs = fs::read_dir(logs).unwrap();
        let logs = logs.map(|log| fs::read_to_string(log.unwrap().path()).unwrap());
        let workers = logs.filter(|log| log.contains("PR_SET_NAME, \"acceptor-"));
        let workers: Vec<_> = workers.collect();
        assert!(workers.len() >= 2, "both are traced");
        let futexes: usize = workers
            .iter()
            .map(|log| log.matches("futex(").count())
            .sum();
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let wakes = futexes as f64 / made as f64;
        least = least.min(wakes);
        if least <= MOST_WAKES {
            break;
        }
    }
    table.row(
        "futex calls a connection by the workers at saturation",
        format!("{least:.4}"),
    );
    Some(least)
}

/// How often the monitor looks in a millisecond at saturation.
pub(crate) fn monitor_at_saturation(table: &mut Table) -> f64 {
    let mut command = program(accepts());
    let (mut used, mut looks) = (0.0, 0.0);
    let (made, took) = saturate(command.args(["handoff", "2"]), |pid| {
        for task in tasks(pid) {
            let read = |file| fs::read_to_string(task.join(file)).unwrap_or_default();
            if read("comm").trim() != "monitor" {
                continue;
            }
            let nanoseconds = read("schedstat");
            let nanoseconds = nanoseconds.split(' ').next().unwrap_or_default();
            used = nanoseconds.parse::<f64>().unwrap_or(f64::NAN) / 1e9;
            looks = switches(&task);
        }
    });
    assert!(looks > 0.0, "there is a monitor");
    let seconds = took.as_secs_f64();
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let rate = made as f64 / seconds;
    table.row(
        format!("the monitor's share of one core at {rate:.0} connections a second"),
        format!(
            "{:.2} %, {:.0} looks a second",
            100.0 * used / seconds,
            looks / seconds
        ),
    );
    looks / seconds / 1000.0
}

/// Has eight clients connect to `accepts` as fast as they can, then calls `look` with the pid of
/// what was started. Returns how many connections they made, and how long it took.
fn saturate(accepts: &mut Command, look: impl FnOnce(i32)) -> (usize, Duration) {
    const EACH: usize = 2500;
    let accepts = accepts.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = start(accepts);
    let mut line = String::new();
    let mut stdout = running.stdout();
    stdout.read_line(&mut line).unwrap();
    let address = line.trim().parse().expect("an address");
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..EACH).for_each(|_| _ = visit(address)));
        }
    });
    let took = begun.elapsed();
    look(running.pid());
    drop(running.stdin());
    running.wait();
    (8 * EACH, took)
}

fn tasks(pid: i32) -> Vec<PathBuf> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().map(|task| task.path()).collect()
}

/// How often a thread has gone to sleep.
fn switches(task: &Path) -> f64 {
    let status = fs::read_to_string(task.join("status")).unwrap_or_default();
    let mut lines = status.lines();
    let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.map_or(0.0, |count| count.trim().parse().unwrap())
}

/// The system calls in ten seconds of a server that has nothing to do, and of one that has a
/// hundred clients who say nothing. Before, each had the time to end its spare threads.
pub(crate) fn calls_when_idle() -> Option<[Vec<String>; 2]> {
    if !tool("strace") {
        return None;
    }
    let accepts = accepts();
    Some(thread::scope(|scope| {
        let measured = [("idle", 0), ("held", 100)];
        let measured = measured.map(|(name, clients)| {
            let accepts = &accepts;
            scope.spawn(move || calls_beside(accepts, name, clients))
        });
        measured.map(|thread| thread.join().expect("measured"))
    }))
}

/// Their row of the table.
pub(crate) fn tell_when_idle(table: &mut Table, calls: Option<&[Vec<String>; 2]>) {
    const WHAT: &str = "system calls in 10 s of an idle server, and of one with 100 connections";
    let told = calls.map(|calls| format!("{} and {}", calls[0].len(), calls[1].len()));
    table.row(WHAT, told.unwrap_or_else(|| "skipped: no strace".into()));
}

const TEN_SECONDS: Duration = Duration::from_secs(10);

fn calls_beside(accepts: &Path, name: &str, clients: usize) -> Vec<String> {
    let logs = scratch(&format!("costs-{name}"));
    let mut strace = program("strace");
    strace
        .args(["-ff", "-qq", "-ttt", "-o"])
        .arg(logs.join("thread"));
    strace.arg(accepts).args(["hold", "2"]);
    let mut running = start(strace.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut line = String::new();
    let mut stdout = running.stdout();
    stdout.read_line(&mut line).unwrap();
    let address: SocketAddr = line.trim().parse().expect("an address");
    let connect = |_| TcpStream::connect(address).unwrap();
    let clients: Vec<_> = (0..clients).map(connect).collect();
    let pid = support::child_of(running.pid());
    // The main thread, the monitor, and who accepts.
    wait_until("all are served", || tasks(pid).len() >= clients.len() + 4);
    // A spare thread ends when it has had nothing to do for five seconds: then nothing happens for
    // ten, or never.
    let all = || -> f64 { tasks(pid).iter().map(|task| switches(task)).sum() };
    let (started, mut begun, mut before) = (Instant::now(), Instant::now(), all());
    while begun.elapsed() < TEN_SECONDS && started.elapsed() < 4 * TEN_SECONDS {
        sleep(Duration::from_millis(50));
        let after = all();
        if after.total_cmp(&before).is_ne() {
            (begun, before) = (Instant::now(), after);
        }
    }
    let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let ended = ended.as_secs_f64();
    let begun = ended - TEN_SECONDS.as_secs_f64();
    drop(clients);
    drop(running.stdin());
    running.wait();
    let mut calls = Vec::new();
    for log in fs::read_dir(logs).unwrap() {
        let log = fs::read_to_string(log.unwrap().path()).unwrap();
        let during = |line: &&str| {
            let at = line.split(' ').next().and_then(|at| at.parse::<f64>().ok());
            at.is_some_and(|at| (begun..ended).contains(&at))
        };
        calls.extend(log.lines().filter(during).map(str::to_owned));
    }
    calls
}
