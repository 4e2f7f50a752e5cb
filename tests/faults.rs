//! Every call that the library makes can fail. Each fails here, at each place where it is made and
//! with each error that its manual page lists: strace puts the error in the call's place.
//!
//! strace counts each thread's calls by itself. So the step under test runs in a fresh thread that
//! makes empty calls first, until the one that is meant is the thread's fiftieth; nobody else gets
//! that far. What the step must come to stands in `ROWS`. Where a thread makes one call again and
//! again, its second fails.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "support/steps.rs"]
mod steps;
mod support;

use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Stdio;
use std::{env, mem, ptr, thread};

use reuseport::{Call, Error, Group, Steering};
use steps::*;
use support::{descriptors, wait_until};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);
/// The call of a thread that fails.
const FIFTIETH: usize = 50;

macro_rules! listed {
    ($($call:ident $traced:literal: $($errno:ident)*;)*) => {
        &[$((Call::$call, $traced, &[$(libc::$errno),*])),*]
    };
}

/// The calls, their names for strace, and the errors that their manual pages list, as far as a
/// caller of this kind can get them.
const CALLS: &[(Call, &str, &[i32])] = listed! {
    Socket "socket": EACCES EAFNOSUPPORT EINVAL EMFILE ENFILE ENOBUFS ENOMEM EPROTONOSUPPORT;
    SetSockOpt "setsockopt": EBADF EDOM EFAULT EINVAL ENOMEM ENOPROTOOPT ENOTSOCK EPERM;
    GetSockOpt "getsockopt": EBADF EFAULT EINVAL ENOPROTOOPT ENOTSOCK;
    Bind "bind": EACCES EADDRINUSE EADDRNOTAVAIL EBADF EFAULT EINVAL ENOMEM ENOTSOCK;
    Listen "listen": EADDRINUSE EBADF ENOTSOCK EOPNOTSUPP;
    Accept "accept4": EAGAIN EBADF ECONNABORTED EFAULT EHOSTDOWN EHOSTUNREACH EINTR EINVAL EMFILE
        ENETDOWN ENETUNREACH ENFILE ENOBUFS ENOMEM ENONET ENOPROTOOPT ENOSR ENOTSOCK EOPNOTSUPP
        EPERM EPROTO EPROTONOSUPPORT ESOCKTNOSUPPORT ETIMEDOUT;
    GetSockName "getsockname": EBADF EFAULT EINVAL ENOBUFS ENOTSOCK;
    Ioctl "ioctl": EBADF EFAULT EINVAL ENOTTY;
    Fcntl "fcntl": EBADF EINVAL EMFILE;
    Fstat "?fstat,?newfstatat": EBADF EFAULT ENOMEM EOVERFLOW;
    Send "sendto": EACCES EAGAIN EBADF ECONNRESET EDESTADDRREQ EFAULT EINTR EINVAL EISCONN EMSGSIZE
        ENOBUFS ENOMEM ENOTCONN ENOTSOCK EOPNOTSUPP EPIPE;
    Recv "recvfrom": EAGAIN EBADF ECONNREFUSED ECONNRESET EFAULT EINTR EINVAL ENOMEM ENOTCONN
        ENOTSOCK ETIMEDOUT;
    // Not ENOTCONN: a listener gives it once it has been shut down, and never before.
    Shutdown "shutdown": EBADF EINVAL ENOTSOCK;
    Close "close": EBADF EDQUOT EINTR EIO ENOSPC;
    SchedGetAffinity "sched_getaffinity": EFAULT EINVAL ESRCH;
    SchedSetAffinity "sched_setaffinity": EFAULT EINVAL EPERM ESRCH;
    Connect "connect": EACCES EADDRNOTAVAIL EAGAIN EBADF EFAULT EINTR EINVAL ENETUNREACH ENOTSOCK
        EPERM;
    PthreadCreate "?clone3,?clone": EAGAIN EINVAL ENOMEM ENOSPC EPERM EUSERS;
    RecvMsg "recvmsg": EAGAIN EBADF ECONNREFUSED EFAULT EINTR EINVAL ENOMEM ENOTCONN ENOTSOCK;
    RecvMmsg "recvmmsg": EAGAIN EBADF ECONNREFUSED EFAULT EINTR EINVAL ENOMEM ENOTCONN ENOTSOCK;
    SendTo "sendto": EACCES EAGAIN EBADF ECONNREFUSED EDESTADDRREQ EFAULT EINTR EINVAL EISCONN
        EMSGSIZE ENOBUFS ENOMEM ENOTCONN ENOTSOCK EOPNOTSUPP EPIPE;
    SendMmsg "sendmmsg": EACCES EAGAIN EBADF ECONNREFUSED EDESTADDRREQ EFAULT EINTR EINVAL EISCONN
        EMSGSIZE ENOBUFS ENOMEM ENOTCONN ENOTSOCK EOPNOTSUPP EPIPE;
};

/// What a thread calls without end: the second time it fails, and the third must be as the first.
fn repeated(call: Call) -> Option<fn(Error)> {
    match call {
        Call::Accept => Some(accepts),
        Call::RecvMsg | Call::RecvMmsg => Some(receives),
        Call::SendTo | Call::SendMmsg => Some(answers),
        _ => None,
    }
}

/// What a step comes to when one of its calls fails with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It fails with that error, and all is as it was.
    Fails,
    /// It fails with that error, but the member has left.
    FailsAfterLeaving,
    /// It fails with that error; the member stays, draining, and a later try goes on.
    FailsDraining,
    /// It fails with `bind: EADDRINUSE`, which came first.
    FailsAsInUse,
    /// At `EADDRINUSE` as [`FailsAsInUse`](Self::FailsAsInUse), otherwise as
    /// [`Fails`](Self::Fails).
    FailsOrIsInUse,
    /// At `EADDRINUSE` it looks who is there, and succeeds; otherwise as [`Fails`](Self::Fails).
    LooksIfInUse,
    /// At `EPERM` it does without what it may not do, and succeeds; otherwise as
    /// [`Fails`](Self::Fails).
    FailsUnlessForbidden,
    /// It succeeds all the same.
    Succeeds,
    /// The case is another row's.
    NotTried,
}

/// The outcomes of a step's first calls, second calls ...: each with how many calls have it.
type Outcomes = &'static [(Outcome, usize)];

/// A step, and what it comes to if one of its calls fails.
type Row = (&'static str, fn(&Fault), &'static [(Call, Outcomes)]);

/// `step(arguments): Call [Outcome times, ...] ...;`
macro_rules! rows {
    ($(
        $step:ident$(($($given:expr),*))?:
        $($call:ident [$($outcome:ident $times:literal),*])*;
    )*) => {
        &[$(
            (stringify!($step$(($($given),*))?), |fault| $step(fault$($(, $given)*)?),
             &[$((Call::$call, &[$((Outcome::$outcome, $times)),*])),*])
        ),*]
    };
}

const ROWS: &[Row] = rows! {
    binds_a_listener:
        Socket [Fails 1] SetSockOpt [Fails 1] Bind [Fails 1] Listen [Fails 1]
        Close [Succeeds 1];
    binds_with_options:
        Socket [Fails 1] SetSockOpt [Fails 4] Bind [Fails 1] Listen [Fails 1];
    asks_where:
        GetSockName [Fails 1];
    asks_how_many_wait:
        GetSockOpt [Fails 1];
    sets_nonblocking:
        Ioctl [Fails 1];
    talks:
        Send [Fails 1] Recv [NotTried 1, Fails 1];
    spawns_acceptors:
        Ioctl [Fails 3] PthreadCreate [Fails 3];
    binds_a_group(Group::options()):
        Socket [Fails 3] SetSockOpt [Fails 2, Succeeds 2, Fails 7] Bind [NotTried 1, Fails 2]
        Listen [Fails 3] GetSockName [Fails 1] Fstat [Succeeds 1] SchedGetAffinity [Succeeds 1];
    binds_a_group(Group::options().steering(Steering::Cpu)):
        SetSockOpt [Fails 2, Succeeds 2, Fails 8] SchedGetAffinity [Fails 1];
    binds_a_group(Group::options().shared(true)):
        Socket [Fails 1] SetSockOpt [Fails 1] Bind [Fails 1] Listen [Fails 1] Fcntl [Fails 2];
    claims_a_free_port:
        Bind [LooksIfInUse 1];
    claims_over_leftovers(Ipv4Addr::LOCALHOST):
        Socket [Fails 2, Succeeds 4] SetSockOpt [Fails 3] Bind [LooksIfInUse 1, Fails 1]
        Listen [FailsOrIsInUse 1] Fstat [FailsAsInUse 2, Succeeds 1] Send [Succeeds 4]
        Recv [Succeeds 4] GetSockName [Fails 1];
    claims_over_leftovers(Ipv6Addr::LOCALHOST):
        GetSockOpt [FailsAsInUse 1, Succeeds 1, FailsAsInUse 1, Succeeds 2];
    adds_to_a_group(Group::options()):
        Socket [Fails 1] SetSockOpt [Fails 2] Bind [Fails 1] Listen [Fails 1];
    adds_to_a_group(Group::options().steering(Steering::Random)):
        SetSockOpt [Fails 3];
    adds_to_a_group(Group::options().shared(true)):
        Fcntl [Fails 1];
    steers_a_group(Steering::Cpu):
        SetSockOpt [Fails 1];
    steers_a_group(Steering::Hash):
        SetSockOpt [Fails 1];
    spawns(Group::options()):
        Ioctl [Fails 3] PthreadCreate [Fails 4];
    spawns(Group::options().pin(true)):
        SchedGetAffinity [Fails 3] SchedSetAffinity [Fails 6] PthreadCreate [Fails 4];
    adds(Group::options()):
        Socket [Fails 1] SetSockOpt [Fails 3] Bind [Fails 1] Listen [Fails 1]
        PthreadCreate [Fails 1];
    adds(Group::options().steering(Steering::Random)):
        SetSockOpt [Fails 3];
    adds(Group::options().pin(true)):
        SchedGetAffinity [Fails 1] SchedSetAffinity [Fails 2];
    adds(Group::options().shared(true)):
        Fcntl [Fails 1] PthreadCreate [Fails 1];
    retires([1]):
        SetSockOpt [Fails 1, FailsUnlessForbidden 1, Succeeds 1, FailsAfterLeaving 1]
        Socket [Succeeds 1] Send [Succeeds 1] Recv [Succeeds 1]
        GetSockOpt [Succeeds 20, FailsDraining 1]
        Shutdown [FailsDraining 1]
        Close [Succeeds 2];
    retires([0, 2]):
        SetSockOpt [Fails 1, FailsUnlessForbidden 2, Succeeds 3, FailsAfterLeaving 1]
        GetSockOpt [Succeeds 21, FailsDraining 1, Succeeds 4, FailsDraining 1]
        Shutdown [FailsDraining 2];
    steers(Steering::Cpu):
        SetSockOpt [Fails 1];
    steers(Steering::Hash):
        SetSockOpt [Fails 1];
    binds_a_group(Group::udp_options()):
        Socket [Fails 3] SetSockOpt [Fails 1, Succeeds 2, Fails 9] Bind [Fails 3]
        GetSockName [Fails 1] Fstat [Succeeds 1] SchedGetAffinity [Succeeds 1];
    binds_a_group(Group::udp_options().steering(Steering::Byte(0))):
        SetSockOpt [NotTried 12, Fails 1];
    spawns_receivers:
        Ioctl [Fails 3] PthreadCreate [Fails 3];
    adds_a_receiver:
        Socket [Fails 1] SetSockOpt [Fails 4] Bind [Fails 1] PthreadCreate [Fails 1];
    retires_receivers([1]):
        SetSockOpt [Succeeds 2, FailsAfterLeaving 1] Connect [Succeeds 1] Shutdown [Succeeds 1]
        Socket [Succeeds 2] Recv [Succeeds 2];
    retires_receivers([0, 2]):
        SetSockOpt [Succeeds 5, FailsAfterLeaving 1] Connect [Succeeds 2] Shutdown [Succeeds 2];
    stops_receivers:
        SetSockOpt [Succeeds 6] Connect [Succeeds 3] Shutdown [Succeeds 3];
    stops:
        SetSockOpt [Succeeds 6] Socket [Succeeds 1] Send [Succeeds 1] Recv [Succeeds 1]
        GetSockOpt [Succeeds 4] Shutdown [Succeeds 3];
};

/// The call that is to fail.
struct Fault {
    call: Call,
    errno: i32,
    /// Which of the step's calls, from 1 on.
    nth: usize,
    /// What the step must come to.
    outcome: Outcome,
    /// How many such calls a thread makes before it begins.
    earlier: usize,
}

impl Fault {
    /// Runs a step in whose midst the call fails, and judges what became of it.
    #[track_caller]
    fn strike<T: Send>(&self, step: impl FnOnce() -> Result<T, Error> + Send) -> Option<T> {
        let before = descriptors("self");
        let in_a_thread = || {
            let empty = FIFTIETH - self.nth - self.earlier;
            (0..empty).for_each(|_| _ = empty_call(self.call));
            step()
        };
        let done = thread::scope(|scope| scope.spawn(in_a_thread).join());
        let done = done.expect("a step that does not panic");
        let injected = match (self.call, self.errno) {
            // The C library knows but one reason.
            (Call::PthreadCreate, libc::ENOMEM) => libc::EAGAIN,
            (_, errno) => errno,
        };
        let in_use = Error::new(Call::Bind, libc::EADDRINUSE);
        let expected = match self.outcome {
            Outcome::LooksIfInUse if self.errno == libc::EADDRINUSE => None,
            // An interrupted call is made again.
            Outcome::FailsAsInUse if (self.call, self.errno) == (Call::Recv, libc::EINTR) => None,
            Outcome::FailsUnlessForbidden if self.errno == libc::EPERM => None,
            Outcome::FailsOrIsInUse if self.errno == libc::EADDRINUSE => Some(in_use),
            Outcome::FailsAsInUse => Some(in_use),
            Outcome::Succeeds | Outcome::NotTried => None,
            Outcome::Fails
            | Outcome::FailsAfterLeaving
            | Outcome::FailsDraining
            | Outcome::LooksIfInUse
            | Outcome::FailsUnlessForbidden
            | Outcome::FailsOrIsInUse => Some(Error::new(self.call, injected)),
        };
        match done {
            Ok(result) => {
                assert_eq!(expected, None, "it succeeded");
                Some(result)
            }
            Err(error) => {
                // Without the option that it names.
                assert_eq!(expected, Some(Error::new(error.call(), error.errno())));
                let left = usize::from(self.outcome == Outcome::FailsAfterLeaving);
                wait_until("it has left no descriptors", || {
                    descriptors("self") <= before - left
                });
                None
            }
        }
    }
}

/// A call that does nothing, but is counted. Whether it succeeds.
fn empty_call(call: Call) -> bool {
    const NONE: i32 = 1_000_000; // no descriptor
    let (null, mut stat) = (ptr::null_mut(), mem::MaybeUninit::uninit());
    let mut set = mem::MaybeUninit::<libc::cpu_set_t>::uninit();
    let size = size_of::<libc::cpu_set_t>();
    #[allow(clippy::multiple_unsafe_ops_per_block)] // one of them
    // SAFETY: no such descriptor is open, so each of its calls fails before it looks any further;
    // `set` and `stat` are writable, and what is null is refused for its size.
    let result = unsafe {
        match call {
            Call::Socket => libc::socket(-1, 0, 0).into(),
            Call::SetSockOpt => libc::setsockopt(NONE, 0, 0, null, 0).into(),
            Call::GetSockOpt => libc::getsockopt(NONE, 0, 0, null, ptr::null_mut()).into(),
            Call::Bind => libc::bind(NONE, ptr::null(), 0).into(),
            Call::Listen => libc::listen(NONE, 0).into(),
            Call::GetSockName => libc::getsockname(NONE, ptr::null_mut(), ptr::null_mut()).into(),
            Call::Ioctl => libc::ioctl(NONE, libc::FIONBIO, null).into(),
            Call::Fcntl => libc::fcntl(NONE, libc::F_GETFD).into(),
            Call::Fstat => libc::fstat(NONE, stat.as_mut_ptr()).into(),
            Call::Send => libc::send(NONE, null, 0, 0) as libc::c_long,
            Call::Recv => libc::recv(NONE, null, 0, 0) as libc::c_long,
            Call::Shutdown => libc::shutdown(NONE, 0).into(),
            Call::Connect => libc::connect(NONE, ptr::null(), 0).into(),
            Call::Close => libc::close(NONE).into(),
            Call::SchedGetAffinity => libc::sched_getaffinity(0, size, set.as_mut_ptr()).into(),
            Call::SchedSetAffinity => libc::sched_setaffinity(0, 0, ptr::null()).into(),
            // A thread without its creator's memory is refused, and so is a size of 0.
            Call::PthreadCreate => {
                libc::syscall(libc::SYS_clone3, null, 0) | libc::syscall(libc::SYS_clone, 0x10000)
            }
            _ => panic!("{call:?} has no row"),
        }
    };
    result != -1
}

/// How many such calls a thread makes before its first line: the standard library or C's may ask
/// for its CPUs.
fn earlier_calls(call: Call) -> usize {
    if call != Call::SchedGetAffinity {
        return 0;
    }
    let empty = || {
        let mut numbers = 1..=FIFTIETH;
        numbers.find(|_| !empty_call(call)).expect("one has failed")
    };
    FIFTIETH - thread::scope(|scope| scope.spawn(empty).join()).unwrap()
}

/// Plays a step in whose midst a call fails, and sees that no descriptor is left.
fn play(name: &str, step: fn(&Fault), fault: &Fault) {
    let Fault {
        call,
        errno,
        nth,
        outcome,
        ..
    } = *fault;
    println!(
        "\n{name}: the {nth}. {} fails with {errno}: {outcome:?}",
        call.name()
    );
    let before = descriptors("self");

    let played = thread::scope(|scope| scope.spawn(|| step(fault)).join());

    played.expect("the step");
    if call != Call::Close {
        wait_until("its descriptors are closed", || {
            descriptors("self") == before
        });
    }
}

/// Plays all rows of one call, with one error.
#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn has_a_call_fail() {
    let given = |name| {
        env::var(name)
            .expect("from `fails`")
            .parse::<usize>()
            .expect("a number")
    };
    let (call, _, errnos) = CALLS[given("CALL")];
    let errno = errnos[given("ERRNO")];
    if let Some(step) = repeated(call) {
        println!("\n{} fails with {errno}", call.name());
        return step(Error::new(call, errno));
    }

    let earlier = earlier_calls(call);
    let mut injected = usize::from(call == Call::SchedGetAffinity);
    for (name, step, calls) in ROWS {
        let ours = calls.iter().filter(|row| row.0 == call);
        let outcomes = ours.flat_map(|row| row.1.iter());
        let each = outcomes.flat_map(|(outcome, times)| std::iter::repeat_n(*outcome, *times));
        let cases = (1..).zip(each);
        for (nth, outcome) in cases.filter(|case| case.1 != Outcome::NotTried) {
            let fault = Fault {
                call,
                errno,
                nth,
                outcome,
                earlier,
            };
            play(name, *step, &fault);
            injected += 1;
        }
    }
    println!("\ninjected {injected}");
}

/// How many processes play at a time: they wait for the kernel most of the time.
const AT_A_TIME: usize = 4;

/// Plays the rows of `call` under strace, in a process for each error.
#[track_caller]
fn fails(call: Call) {
    if !support::tool("strace") {
        return;
    }
    let at = CALLS
        .iter()
        .position(|row| row.0 == call)
        .expect("its errors");
    // Some steps need leftovers: here is the time to wait until the kernel has room for them.
    support::leftovers(ANY_PORT.into());
    let scratch = support::scratch(&format!("faults-{}", call.name()));
    let numbers: Vec<_> = (0..CALLS[at].2.len()).collect();
    for numbers in numbers.chunks(AT_A_TIME) {
        thread::scope(|scope| {
            for number in numbers {
                scope.spawn(|| fails_with(at, *number, &scratch));
            }
        });
    }
}

/// Plays the rows of one call with one error, given by their numbers in [`CALLS`].
fn fails_with(at: usize, number: usize, scratch: &Path) {
    let (call, traced, errnos) = CALLS[at];
    let errno = errnos[number];
    let when = repeated(call).map_or(FIFTIETH, |_| 2);
    let log = scratch.join(format!("{errno}"));
    let said = scratch.join(format!("{errno}.out"));
    let role = support::role("has_a_call_fail");
    let mut strace = support::program("strace");
    strace.args(["-f", "--seccomp-bpf", "-qq", "-e"]);
    strace.args([&format!("trace={traced}"), "-o"]).arg(&log);
    strace.args(["-e", &format!("inject={traced}:error={errno}:when={when}")]);
    strace.arg(role.get_program()).args(role.get_args());
    strace.env("CALL", at.to_string());
    strace.env("ERRNO", number.to_string());
    let out = File::create(&said).unwrap();
    strace.stderr(out.try_clone().unwrap());
    strace.stdin(Stdio::null()).stdout(out);

    let ended = support::start(&mut strace).wait_within(support::LONG);

    let said = fs::read_to_string(said).unwrap();
    assert!(ended.success(), "{said}");
    let log = fs::read_to_string(log).unwrap();
    let lines = log.lines().filter(|line| line.contains("(INJECTED)"));
    let said = lines.clone().fold(said, |all, line| all + "\n" + line);
    let injected = lines.count();
    let told = said.lines().find_map(|line| line.strip_prefix("injected "));
    match told {
        // Counting descriptors makes some of the calls too, and so may other threads.
        Some(told) => assert!(injected >= told.parse().unwrap(), "{injected}: {said}"),
        // Of the group's threads one at least, and the one that calls by itself.
        None => assert!(
            repeated(call).is_some() && injected >= 2,
            "{injected}: {said}"
        ),
    }
}

macro_rules! each {
    ($($test:ident $call:ident)*) => { $(
        #[test]
        fn $test() {
            fails(Call::$call);
        }
    )* };
}

each! {
    socket_fails Socket
    setsockopt_fails SetSockOpt
    getsockopt_fails GetSockOpt
    bind_fails Bind
    listen_fails Listen
    accept_fails Accept
    getsockname_fails GetSockName
    ioctl_fails Ioctl
    fcntl_fails Fcntl
    fstat_fails Fstat
    send_fails Send
    recv_fails Recv
    shutdown_fails Shutdown
    close_fails Close
    sched_getaffinity_fails SchedGetAffinity
    sched_setaffinity_fails SchedSetAffinity
    connect_fails Connect
    pthread_create_fails PthreadCreate
    recvmsg_fails RecvMsg
    recvmmsg_fails RecvMmsg
    sendto_fails SendTo
    sendmmsg_fails SendMmsg
}
