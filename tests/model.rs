//! Random calls of the public API, from eight threads and from inside handlers, while members fail
//! and processes take over from each other: the list of members stays the kernel's, nothing hangs,
//! and no connection is lost.
//!
//! With `REUSEPORT_LONG=1` in the environment it makes 100 000 calls in 51 processes, in place of
//! 1 200 in 3.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/order.rs"]
mod order;
mod support;

use std::io::{BufRead, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;
use std::{env, thread};

use order::{Copies, listed};
use reuseport::{Connection, Group, GroupError, OtherListeners, Server, Steering};
use support::{BOUND, wait_until};

const LEFT: &str = "REUSEPORT_TEST_PROCESSES";
const CALLS_EACH: &str = "REUSEPORT_TEST_CALLS";
const LONG: &str = "REUSEPORT_LONG";
const THREADS: usize = 8;
/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;
/// A handler that waits until a change has ended, which waits for that handler, waits so long.
const GRACE: Duration = Duration::from_millis(200);

static SERVER: OnceLock<Server> = OnceLock::new();
static COPIES: OnceLock<Copies> = OnceLock::new();
/// Handlers make no calls.
static QUIET: AtomicBool = AtomicBool::new(true);
static IN_CALLS: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);
static RETIRED: AtomicUsize = AtomicUsize::new(0);
/// Of two that fail at the same moment the order is not known.
static FAILING: Mutex<usize> = Mutex::new(0);

/// Numbers by chance, from a seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// The time, which all processes have in common.
fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let [seconds, nanoseconds] = [time.tv_sec, time.tv_nsec].map(|n| u64::try_from(n).unwrap());
    SECOND * seconds + nanoseconds
}

fn handle(member: usize, connection: Connection) {
    _ = connection.send(member.to_string().as_bytes());
    drop(connection);
    IN_CALLS.fetch_add(1, SeqCst);
    let mut chance = Chance(now() | 1);
    if !QUIET.load(SeqCst) && chance.below(300) == 0 {
        call(&mut chance);
    }
    IN_CALLS.fetch_sub(1, SeqCst);
}

/// One call of the public API.
fn call(chance: &mut Chance) {
    let server = SERVER.get().unwrap();
    CALLS.fetch_add(1, SeqCst);
    let ids = listed(server);
    let any = |chance: &mut Chance| ids.get(chance.below(8)).copied().unwrap_or(9_999_999);
    let changed = match chance.below(20) {
        0..3 if ids.len() < 7 => server.add().map(drop),
        3..6 => server
            .retire(any(chance))
            .map(|_| _ = RETIRED.fetch_add(1, SeqCst)),
        6 => {
            let retired = server.retire_all(&[any(chance), any(chance)]);
            retired.map(|rows| _ = RETIRED.fetch_add(rows.len(), SeqCst))
        }
        7..9 => server.set_steering(match chance.below(4) {
            0 => Steering::Hash,
            1 => Steering::Cpu,
            2 => Steering::Except(chance.below(4)),
            _ => Steering::Random,
        }),
        9 if chance.below(10) == 0 => {
            a_member_fails(server, chance);
            Ok(())
        }
        10 => {
            _ = server.totals();
            Ok(())
        }
        11 => {
            _ = (server.stats(), server.spare_threads());
            Ok(())
        }
        _ => {
            _ = (server.members(), server.other_listeners());
            Ok(())
        }
    };
    if let Err(error @ (GroupError::Call { .. } | GroupError::UserMismatch { .. })) = changed {
        panic!("{error}");
    }
}

fn a_member_fails(server: &Server, chance: &mut Chance) {
    let mut failed = FAILING.lock().unwrap();
    if listed(server).len() < 3 || QUIET.load(SeqCst) {
        return;
    }
    let begun = now();
    if COPIES.get().unwrap().shut_down_any(chance.below(100)) {
        // One that was being retired may have left before.
        _ = server.wait_failed(Duration::from_millis(200));
        if listed(server).is_empty() {
            // The others had just left. Clients are refused until there is another one.
            _ = server.add();
        }
        println!("\nfailed {begun} {}", now());
        *failed += 1;
    }
}

/// The list is the kernel's. Where its order is not known it is known again with one member.
fn settle(server: &Server) {
    QUIET.store(true, SeqCst);
    wait_until("no handler makes a call", || IN_CALLS.load(SeqCst) == 0);
    let mut steered = Err(GroupError::HandingOver);
    wait_until("it can be changed", || {
        steered = server.set_steering(Steering::Random);
        steered.is_ok() || steered == Err(GroupError::JoinedGroup)
    });
    while steered.is_err() && listed(server).len() > 1 {
        println!("\nthe order was unknown");
        server.retire(listed(server)[0]).unwrap();
        steered = server.set_steering(Steering::Random);
    }
    while listed(server).len() < 3 {
        server.add().unwrap();
    }
    let ours = listed(server);
    let kernels = COPIES.get().unwrap().order(server.local_addr(), ours.len());
    assert_eq!(kernels, ours);
    server.set_steering(Steering::Hash).unwrap();
    assert_eq!(server.other_listeners(), OtherListeners::None);
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn plays_the_model() {
    let [left, calls]: [usize; 2] =
        [LEFT, CALLS_EACH].map(|name| env::var(name).unwrap().parse().unwrap());
    let copies = COPIES.get_or_init(Copies::default);
    let options = copies.taken_by(Group::options().grace(GRACE));
    let group = if let Some(group) = Group::from_env().unwrap().pop() {
        copies.keep(group.sockets());
        group.with_options(options)
    } else {
        let group = options.bind(([127, 0, 0, 1], 0), 4).unwrap();
        println!("\naddress {}", group.local_addr());
        group
    };
    let server = SERVER.get_or_init(|| group.spawn(handle).unwrap());
    settle(server);
    for half in 0..2 {
        QUIET.store(false, SeqCst);
        let until = CALLS.load(SeqCst) + calls;
        thread::scope(|scope| {
            for thread in 0..THREADS as u64 {
                let mut chance = Chance((now() ^ (thread << 40)) | 1);
                scope.spawn(move || {
                    while CALLS.load(SeqCst) < until {
                        call(&mut chance);
                    }
                });
            }
            if half == 1 {
                taken_back(server);
            }
        });
        settle(server);
    }
    println!(
        "\ndone {} {} {}",
        CALLS.load(SeqCst),
        RETIRED.load(SeqCst),
        FAILING.lock().unwrap()
    );
    if left > 1 {
        let mut next = support::role("plays_the_model");
        next.env(LEFT, (left - 1).to_string())
            .env(CALLS_EACH, calls.to_string())
            .stdin(Stdio::inherit())
            .stdout(Stdio::inherit());
        let hand_over = server.hand_over(next, BOUND).unwrap();
        let mut child = hand_over.leave(BOUND).unwrap();
        println!("\nhanded over");
        assert!(child.wait().unwrap().success());
    } else {
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        server.stop(BOUND);
    }
}

/// A hand-over is begun, and dropped.
fn taken_back(server: &Server) {
    let mut idle = support::role("is_ended_by_the_old_process");
    idle.stdin(Stdio::piped()).stdout(Stdio::null());
    match server.hand_over(idle, BOUND) {
        Ok(hand_over) => {
            let begun = now();
            drop(hand_over);
            // What the new process had accepted has ended with it.
            println!("\nfailed {begun} {}", now());
        }
        Err(error) => println!("\nnot handed over: {error}"),
    }
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn is_ended_by_the_old_process() {
    let group = Group::from_env().unwrap().pop().unwrap();
    let _server = group.spawn(|_, connection| _ = connection.send(b"0"));
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// When each connection that was lost was begun, and lost, and why.
fn lose(address: SocketAddr, end: &AtomicBool, made: &AtomicUsize) -> Vec<(u64, u64, String)> {
    let mut lost = Vec::new();
    while !end.load(SeqCst) {
        let begun = now();
        let visit = || {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(BOUND))?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        };
        match visit() {
            Ok(text) if !text.is_empty() => _ = made.fetch_add(1, SeqCst),
            Ok(_) => lost.push((begun, now(), "no answer".to_owned())),
            Err(error) => lost.push((begun, now(), error.to_string())),
        }
        thread::sleep(Duration::from_millis(1));
    }
    lost
}

/// Ends the clients, also if the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn list_is_the_kernels_after_random_calls_and_nothing_is_lost() {
    let long = env::var_os(LONG).is_some();
    let (processes, calls) = if long { (51, 1000) } else { (3, 200) };
    let mut role = support::role("plays_the_model");
    role.env(LEFT, processes.to_string())
        .env(CALLS_EACH, calls.to_string())
        .stdin(Stdio::piped());
    let mut first = support::start(&mut role);
    // All inherit it; at its end the last one stops.
    let input = first.stdin();
    let mut lines = first.stdout();
    let (mut sums, mut failures, mut handed_over) = ([0; 3], Vec::new(), 0);
    let (end, made) = (AtomicBool::new(false), AtomicUsize::new(0));

    let lost: Vec<_> = thread::scope(|scope| {
        let _end = End(&end);
        let (mut ended, mut losers) = (0, Vec::new());
        while ended < processes {
            let mut line = String::new();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "all have ended");
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                ["address", address] => {
                    let address: SocketAddr = address.parse().unwrap();
                    let (end, made) = (&end, &made);
                    let clients = [(); 4].map(|()| scope.spawn(move || lose(address, end, made)));
                    losers.extend(clients);
                }
                ["failed", begun, ended] => {
                    failures.push([begun, ended].map(|time| time.parse::<u64>().unwrap()));
                }
                ["handed", "over"] => handed_over += 1,
                ["done", ref counts @ ..] => {
                    let counts = counts.iter().map(|count| count.parse::<usize>().unwrap());
                    sums.iter_mut()
                        .zip(counts)
                        .for_each(|(sum, count)| *sum += count);
                    ended += 1;
                }
                _ => {}
            }
        }
        end.store(true, SeqCst);
        losers
            .into_iter()
            .flat_map(|one| one.join().unwrap())
            .collect()
    });

    drop(input);
    assert!(first.wait().success());
    let [calls, retired, failed] = sums;
    println!(
        "{calls} calls, {retired} retirements, {failed} failures, {handed_over} hand-overs, {} \
         connections, {} of members that failed",
        made.load(SeqCst),
        lost.len()
    );
    // What waits on a listener that fails is reset, and nothing that came later.
    let by_failure = |lost: &&(u64, u64, String)| {
        let at = |[begun, ended]: &[u64; 2]| lost.0 <= *ended && lost.1 >= *begun;
        failures.iter().any(at)
    };
    let others: Vec<_> = lost.iter().filter(|one| !by_failure(one)).collect();
    assert!(others.is_empty(), "{others:?} {failures:?}");
    assert_eq!(handed_over, processes - 1);
    assert!(!long || (calls >= 100_000 && retired >= 2000 && failed > 0));
}
