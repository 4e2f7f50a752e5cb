//! A listener always has a worker that accepts: what happens to the clients behind a handler that
//! blocks.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use reuseport::{Connection, Group, GroupOptions, Server, Steering, StopToken};
use support::{BOUND, steer_to_index, wait_until};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// What a client sends so that the handler waits at the gate.
const WAIT: &[u8] = b"w";
/// What a client sends so that it is answered at once.
const GO: &[u8] = b"g";

/// Holds the handlers of those clients that ask for it.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
    held: AtomicUsize,
}

impl Gate {
    fn hold(&self) {
        self.held.fetch_add(1, SeqCst);
        let open = self.open.lock().unwrap();
        let waited = self.opened.wait_timeout_while(open, BOUND, |open| !*open);
        assert!(!waited.unwrap().1.timed_out(), "nobody opened the gate");
        self.held.fetch_sub(1, SeqCst);
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn held(&self) -> usize {
        self.held.load(SeqCst)
    }

    /// The handler: reads one byte, waits at the gate if the client wants it, answers.
    fn serve(&self, member: usize, connection: &Connection) {
        _ = connection.set_read_timeout(Some(BOUND));
        let mut asked = [0];
        if connection.recv(&mut asked) != Ok(1) {
            return;
        }
        if asked == *WAIT {
            self.hold();
        }
        _ = connection.send(&[u8::try_from(member).unwrap()]);
    }
}

fn start(options: &GroupOptions, members: usize, gate: &Arc<Gate>) -> Server {
    let group = options.clone().bind(ANY_PORT, members).unwrap();
    spawn(group, gate)
}

fn spawn(group: Group, gate: &Arc<Gate>) -> Server {
    let gate = Arc::clone(gate);
    let server = group.spawn(move |member, connection| gate.serve(member, &connection));
    server.unwrap()
}

/// A client that has asked, and not been answered.
fn ask(address: SocketAddr, what: &[u8]) -> TcpStream {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    client.write_all(what).unwrap();
    client
}

/// The number of the member that answers.
#[track_caller]
fn answer(mut client: TcpStream) -> usize {
    let mut member = [0];
    client.read_exact(&mut member).expect("an answer");
    member[0].into()
}

#[track_caller]
fn is_answered(client: &TcpStream, within: Duration) -> bool {
    client.set_read_timeout(Some(within)).unwrap();
    let answered = client.peek(&mut [0]).is_ok();
    client.set_read_timeout(Some(BOUND)).unwrap();
    answered
}

/// Whether the answer is there already. The shortest time limit of a socket is a tick, or some ms.
#[track_caller]
fn has_answer(client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let answered = client.peek(&mut [0]).is_ok();
    client.set_nonblocking(false).unwrap();
    answered
}

fn accepted(server: &Server) -> usize {
    server.stats().iter().map(|stats| stats.accepted).sum()
}

/// Holds the acceptor of member 0, and has another client come for it: `rounds` times. Returns the
/// latencies of these, in rising order.
fn rounds(rounds: usize, churn: bool) -> Vec<Duration> {
    let _none = churn.then(support::no_process_starts);
    let gates: Arc<Mutex<Arc<Gate>>> = Arc::default();
    let its = Arc::clone(&gates);
    let group = Group::bind(ANY_PORT, 2).unwrap();
    let first = group.sockets()[0].as_fd().try_clone_to_owned().unwrap();
    let server = group.spawn(move |member, connection| {
        let gate = Arc::clone(&its.lock().unwrap());
        gate.serve(member, &connection);
    });
    let server = server.unwrap();
    let mut latencies = Vec::new();
    for _ in 0..rounds {
        let gate = Arc::new(Gate::default());
        *gates.lock().unwrap() = Arc::clone(&gate);
        let added = churn.then(|| server.add().unwrap());
        // Whoever comes or goes has steered the group anew.
        steer_to_index(&first, 0);
        let blocked = ask(server.local_addr(), WAIT);

        let begun = Instant::now();
        let member = answer(ask(server.local_addr(), GO));
        latencies.push(begun.elapsed());

        assert_eq!(member, 0);
        assert!(!has_answer(&blocked));
        wait_until("the handler is held", || gate.held() == 1);
        gate.open();
        answer(blocked);
        added.map(|added| server.retire(added).unwrap());
    }
    assert_eq!(accepted(&server), 2 * rounds);
    latencies.sort_unstable();
    latencies
}

fn report(what: &str, latencies: &[Duration]) {
    let count = latencies.len();
    let (median, most) = (latencies[count / 2], latencies[count - 1]);
    println!("{what}: {count} rounds, median {median:?}, most {most:?}");
    assert!(most < BOUND);
}

#[test]
fn client_behind_a_blocked_handler_1000_times_is_served() {
    let latencies = rounds(1000, false);

    report("a client behind a blocked handler", &latencies);
}

#[test]
fn client_behind_a_blocked_handler_while_members_come_and_go_is_served() {
    let latencies = rounds(100, true);

    report("with members that come and go", &latencies);
}

#[test]
fn silent_clients_as_many_as_threads_stop_it_until_one_returns() {
    let _none = support::no_process_starts();
    let gate = Arc::default();
    let server = start(&Group::options().spare_threads(3), 1, &gate);
    let mut silent: Vec<_> = (0..4).map(|_| ask(server.local_addr(), b"")).collect();
    wait_until("all threads are taken", || accepted(&server) == 4);

    let waiting = ask(server.local_addr(), GO);
    wait_until("it is counted", || server.stats()[0].starved == 1);
    assert!(!is_answered(&waiting, Duration::from_millis(300)));
    assert_eq!(server.stats()[0].starved, 1, "counted once");
    drop(silent.pop());

    assert_eq!(answer(waiting), 0);
    assert_eq!(server.spare_threads().most, 3);
}

#[test]
fn spare_threads_one_more_than_the_silent_clients_serves() {
    let _none = support::no_process_starts();
    let gate = Arc::default();
    let server = start(&Group::options().spare_threads(4), 1, &gate);
    let silent: Vec<_> = (0..4).map(|_| ask(server.local_addr(), b"")).collect();
    wait_until("all have a thread", || accepted(&server) == 4);

    assert_eq!(answer(ask(server.local_addr(), GO)), 0);
    drop(silent);
}

#[test]
fn no_spare_threads_a_client_behind_a_blocked_handler_waits() {
    let _none = support::no_process_starts();
    let gate: Arc<Gate> = Arc::default();
    let server = start(&Group::options().spare_threads(0), 1, &gate);
    let blocked = ask(server.local_addr(), WAIT);
    wait_until("the handler is held", || gate.held() == 1);

    let waiting = ask(server.local_addr(), GO);
    assert!(!is_answered(&waiting, Duration::from_millis(300)));
    gate.open();

    assert_eq!((answer(blocked), answer(waiting)), (0, 0));
    assert_eq!(server.spare_threads().most, 0);
}

#[test]
fn silent_clients_200_at_once_others_are_served_and_spares_end() {
    let gate = Arc::default();
    let server = start(&Group::options().spare_threads(300), 2, &gate);
    let silent: Vec<_> = (0..200).map(|_| ask(server.local_addr(), b"")).collect();

    for _ in 0..20 {
        answer(ask(server.local_addr(), GO));
    }
    wait_until("all are accepted", || accepted(&server) == 220);
    let most = server.spare_threads().most;
    assert!((198..=300).contains(&most), "{most}");
    drop(silent);

    wait_until("the spares have ended", || server.spare_threads().now == 0);
    answer(ask(server.local_addr(), GO));
    assert_eq!(accepted(&server), 221);
}

/// The CPUs that the calling thread may run on, and its name.
fn place() -> (Vec<usize>, String) {
    // SAFETY: the set is made of integers, for which zeros are a value.
    let mut set: libc::cpu_set_t = unsafe { core::mem::zeroed() };
    // SAFETY: the set is writable for its size; 0 is the calling thread.
    let got = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    assert_eq!(got, 0);
    // SAFETY: the number is below the size of the set.
    let is_in = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &set) };
    let name = fs::read_to_string("/proc/thread-self/comm").unwrap();
    (
        (0..1024).filter(is_in).collect(),
        name.trim_end().to_owned(),
    )
}

#[test]
fn spare_of_a_pinned_member_runs_on_its_cpu_under_its_name() {
    let _none = support::no_process_starts();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let gate: Arc<Gate> = Arc::default();
    let (its, held) = (Arc::clone(&seen), Arc::clone(&gate));
    let options = Group::options().steering(Steering::Cpu).pin(true);
    let group = options.bind(ANY_PORT, 2).unwrap();
    let server = group.spawn(move |member, connection| {
        let (cpus, name) = place();
        its.lock().unwrap().push((member, cpus, name));
        held.serve(member, &connection);
    });
    let server = server.unwrap();

    let clients: Vec<_> = (0..16).map(|_| ask(server.local_addr(), WAIT)).collect();
    wait_until("all are held", || gate.held() == 16);
    gate.open();
    clients.into_iter().for_each(|client| _ = answer(client));

    let allowed = place().0;
    for (member, cpus, name) in seen.lock().unwrap().iter() {
        assert_eq!(*cpus, [allowed[member % allowed.len()]]);
        assert_eq!(*name, format!("acceptor-{member}"));
    }
    assert!(server.spare_threads().most >= 14);
}

#[test]
fn shared_socket_has_a_spare_only_when_all_are_blocked() {
    let _none = support::no_process_starts();
    let gate: Arc<Gate> = Arc::default();
    let server = start(&Group::options().shared(true), 2, &gate);

    let first = ask(server.local_addr(), WAIT);
    wait_until("one is held", || gate.held() == 1);
    thread::sleep(Duration::from_millis(100));
    let handed_off = |server: &Server| -> usize {
        let stats = server.stats();
        stats.iter().map(|stats| stats.handed_off).sum()
    };
    assert_eq!(handed_off(&server), 0, "the other one accepts");
    let second = ask(server.local_addr(), WAIT);
    wait_until("both are held", || gate.held() == 2);
    answer(ask(server.local_addr(), GO));

    assert!(handed_off(&server) >= 1);
    gate.open();
    answer(first);
    answer(second);
}

/// A client behind a blocked handler of a group with one member is served.
#[track_caller]
fn hands_off(group: Group) {
    let _none = support::no_process_starts();
    let gate: Arc<Gate> = Arc::default();
    let server = spawn(group, &gate);
    let blocked = ask(server.local_addr(), WAIT);
    wait_until("the handler is held", || gate.held() == 1);

    for _ in 0..10 {
        answer(ask(server.local_addr(), GO));
    }

    assert_eq!(gate.held(), 1);
    gate.open();
    answer(blocked);
    assert_eq!(server.stop(BOUND)[0].accepted, 11);
}

#[test]
fn inherited_listener_that_is_polled_hands_off() {
    use std::os::unix::process::CommandExt;
    let listener = TcpListener::bind(SocketAddr::from(ANY_PORT)).unwrap();
    let fd = listener.as_raw_fd();
    let mut role = support::role("serves_an_inherited_listener");
    role.env("LISTEN_FDS", "1");
    let pass = move || {
        // SAFETY: takes two integers, and may be called between `fork` and `exec`.
        unsafe { libc::dup2(fd, 3) };
        // Also where it has that number already.
        // SAFETY: as above.
        match unsafe { libc::fcntl(3, libc::F_SETFD, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the hook makes two system calls, and nothing else.
    unsafe { role.pre_exec(pass) };

    support::play(&mut role);
}

#[test]
#[ignore = "played in a process of its own, which has a listener from its start"]
fn serves_an_inherited_listener() {
    // SAFETY: nobody else in this process looks at the environment now.
    unsafe { std::env::set_var("LISTEN_PID", std::process::id().to_string()) };
    let mut groups = Group::from_env().unwrap();
    let group = groups.pop().expect("a listener");
    assert!(group.is_inherited());

    hands_off(group);
}

#[test]
fn listener_that_was_bound_already_hands_off() {
    let std = TcpListener::bind(SocketAddr::from(ANY_PORT)).unwrap();

    hands_off(Group::from_listeners(vec![std.into()]).unwrap());
}

#[test]
fn joined_group_hands_off() {
    hands_off(Group::options().join(true).bind(ANY_PORT, 1).unwrap());
}

/// A handler's state: not `Send`. It notes the thread on which it is made, used and dropped.
struct State {
    member: usize,
    thread: thread::ThreadId,
    handled: Rc<Cell<usize>>,
    dropped: Arc<AtomicUsize>,
}

impl Drop for State {
    fn drop(&mut self) {
        if self.thread == thread::current().id() {
            self.dropped.fetch_add(self.handled.get(), SeqCst);
        }
    }
}

#[test]
fn spawn_with_one_state_a_thread_is_dropped_where_it_was_made() {
    let _none = support::no_process_starts();
    let (made, dropped) = (Arc::<AtomicUsize>::default(), Arc::default());
    let gate: Arc<Gate> = Arc::default();
    let (count, held, end) = (Arc::clone(&made), Arc::clone(&gate), Arc::clone(&dropped));
    let server = Group::bind(ANY_PORT, 2).unwrap().spawn_with(move |member| {
        count.fetch_add(1, SeqCst);
        let state = State {
            member,
            thread: thread::current().id(),
            handled: Rc::default(),
            dropped: Arc::clone(&end),
        };
        let gate = Arc::clone(&held);
        move |connection: Connection, _: &StopToken| {
            assert_eq!(state.thread, thread::current().id());
            state.handled.set(state.handled.get() + 1);
            gate.serve(state.member, &connection);
        }
    });
    let server = server.unwrap();

    let clients: Vec<_> = (0..12).map(|_| ask(server.local_addr(), WAIT)).collect();
    wait_until("all are held", || gate.held() == 12);
    gate.open();
    clients.into_iter().for_each(|client| _ = answer(client));
    let stats = server.stop(BOUND);

    assert!(made.load(SeqCst) >= 12, "one for each thread");
    assert!(stats.iter().all(|stats| stats.panicked == 0));
    assert_eq!(dropped.load(SeqCst), 12, "each on its thread");
}

#[test]
fn retire_while_a_handler_is_blocked_loses_nothing() {
    let _none = support::no_process_starts();
    let gate: Arc<Gate> = Arc::default();
    let options = Group::options().grace(BOUND);
    let group = options.bind(ANY_PORT, 2).unwrap();
    steer_to_index(&group.sockets()[0], 0);
    let server = spawn(group, &gate);
    let blocked = ask(server.local_addr(), WAIT);
    answer(ask(server.local_addr(), GO));
    let waiting: Vec<_> = (0..20).map(|_| ask(server.local_addr(), GO)).collect();
    wait_until("the handler is held", || gate.held() == 1);

    let retired = thread::scope(|scope| {
        let retired = scope.spawn(|| server.retire(0));
        waiting.into_iter().for_each(|client| _ = answer(client));
        gate.open();
        retired.join().unwrap().unwrap()
    });

    answer(blocked);
    assert_eq!((retired.accepted, retired.reset), (22, 0));
    assert!(!retired.running);
}

#[test]
fn stop_while_a_handler_is_blocked_resets_nothing() {
    let _none = support::no_process_starts();
    let gate: Arc<Gate> = Arc::default();
    let server = start(&Group::options(), 1, &gate);
    let blocked: Vec<_> = (0..3).map(|_| ask(server.local_addr(), WAIT)).collect();
    let waiting: Vec<_> = (0..20).map(|_| ask(server.local_addr(), GO)).collect();
    wait_until("the handlers are held", || gate.held() == 3);

    let stats = thread::scope(|scope| {
        let stats = scope.spawn(|| server.stop(BOUND));
        waiting.into_iter().for_each(|client| _ = answer(client));
        gate.open();
        stats.join().unwrap()
    });

    blocked.into_iter().for_each(|client| _ = answer(client));
    assert_eq!((stats[0].accepted, stats[0].reset), (23, 0));
    assert!(!stats[0].running);
}

#[test]
fn accepted_after_much_hand_off_is_exact() {
    const CLIENTS: usize = 4;
    const EACH: usize = 200;
    let _none = support::no_process_starts();
    let slow = |_: usize, connection: Connection| {
        thread::sleep(Duration::from_millis(3));
        _ = connection.send(b"x");
    };
    let server = Group::bind(ANY_PORT, 2).unwrap().spawn(slow).unwrap();
    let address = server.local_addr();

    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| (0..EACH).for_each(|_| _ = answer(ask(address, b""))));
        }
    });
    let stats = server.stop(BOUND);

    let sum = |of: fn(&reuseport::Stats) -> usize| stats.iter().map(of).sum::<usize>();
    assert_eq!(sum(|stats| stats.accepted), CLIENTS * EACH);
    assert!(sum(|stats| stats.handed_off) > 10, "{stats:?}");
    assert_eq!(sum(|stats| stats.reset), 0);
}

#[test]
fn stop_and_failed_spawn_leave_no_thread() {
    support::play(&mut support::role("has_no_thread_left"));
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
#[ignore = "played in a process of its own: it counts threads, and forbids them"]
fn has_no_thread_left() {
    let before = threads();
    let gate: Arc<Gate> = Arc::default();
    let server = start(&Group::options(), 2, &gate);
    let clients: Vec<_> = (0..8).map(|_| ask(server.local_addr(), WAIT)).collect();
    wait_until("all are held", || gate.held() == 8);
    gate.open();
    clients.into_iter().for_each(|client| _ = answer(client));
    server.stop(BOUND);
    wait_until("no thread is left", || threads() == before);

    // Servers that stop while their monitor goes to sleep.
    thread::scope(|scope| {
        for tens in 0..10 {
            let gate = &gate;
            scope.spawn(move || {
                for round in 10 * tens..10 * (tens + 1) {
                    let server = start(&Group::options(), 1, gate);
                    thread::sleep(Duration::from_micros(20_000 + 100 * round));
                    server.stop(BOUND);
                }
            });
        }
    });
    wait_until("no thread is left", || threads() == before);
}

/// A user that no other process has: the limit of threads is a user's.
const LONELY: u32 = 54_321;

#[test]
fn monitor_that_cannot_start_gives_the_group_back() {
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } == 0 {
        support::play_as(LONELY, "has_no_thread_for_the_monitor", |_| {});
    } else {
        support::skip("it takes root to act as another user");
    }
}

#[test]
#[ignore = "played in a process of its own: it limits the threads"]
fn has_no_thread_for_the_monitor() {
    let gate: Arc<Gate> = Arc::default();
    let group = Group::bind(ANY_PORT, 2).unwrap();
    let before = threads();
    let most = libc::rlim_t::try_from(before + 2).unwrap();
    let usual = support::limit_softly(libc::RLIMIT_NPROC, most).unwrap();

    let held = Arc::clone(&gate);
    let failure = group.spawn(move |member, connection| held.serve(member, &connection));
    let failure = failure.unwrap_err();

    let none = reuseport::Error::new(reuseport::Call::PthreadCreate, libc::EAGAIN);
    assert_eq!(failure.error(), none);
    let group = failure.into_group();
    assert_eq!(group.sockets().len(), 2);
    wait_until("no thread is left", || threads() == before);
    // Without spare threads there is no monitor.
    let options = Group::options().spare_threads(0);
    let server = spawn(group.with_options(options), &gate);
    answer(ask(server.local_addr(), GO));
    drop(server);
    support::limit_softly(libc::RLIMIT_NPROC, usual).unwrap();
}
