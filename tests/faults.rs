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
use std::process::{Command, Stdio};
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
    Shutdown "shutdown": EBADF EINVAL ENOTCONN ENOTSOCK;
    Close "close": EBADF EDQUOT EINTR EIO ENOSPC;
    SchedGetAffinity "sched_getaffinity": EFAULT EINVAL ESRCH;
    SchedSetAffinity "sched_setaffinity": EFAULT EINVAL EPERM ESRCH;
    Connect "connect": EACCES EADDRNOTAVAIL EAGAIN EBADF EFAULT EINTR EINVAL ENETUNREACH ENOTSOCK
        EPERM;
    EventFd "eventfd2": EINVAL EMFILE ENFILE ENODEV ENOMEM;
    Dup "dup3": EBADF EBUSY EINTR EINVAL EMFILE;
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

macro_rules! rows {
    ($($step:ident$(($($given:expr),*))?: $($call:ident $marks:literal)*;)*) => {
        &[$(
            (stringify!($step$(($($given),*))?), |fault| $step(fault$($(, $given)*)?),
             &[$((Call::$call, $marks)),*])
        ),*]
    };
}

/// A step, and what becomes of it if the first, the second … of its calls fails.
type Row = (&'static str, fn(&Fault), &'static [(Call, &'static str)]);

/// `E`: it fails with that error, and all is as it was. `L`: it fails with that error, but the
/// member has left. `U`: it fails with `bind: EADDRINUSE`, which came first. `o`: it succeeds all
/// the same. `V`: as `U` at `EADDRINUSE`, else as `E`. `C`: as `E`, but at `EADDRINUSE` it looks
/// who is there, and succeeds. `F`: as `E`, but it does without what it is not permitted. `.`: not
/// tried.
const ROWS: &[Row] = rows! {
    binds_a_listener: Socket "E" SetSockOpt "E" Bind "E" Listen "E" Close "o";
    binds_with_options: Socket "E" SetSockOpt "EEEE" Bind "E" Listen "E";
    asks_where: GetSockName "E";
    asks_how_many_wait: GetSockOpt "E";
    sets_nonblocking: Ioctl "E";
    talks: Send "E" Recv ".E";
    spawns_acceptors: Ioctl "EEE" PthreadCreate "EEE";
    binds_a_group(Group::options()): Socket "EEE" SetSockOpt "EEooEEEEEEE" Bind ".EE" Listen "EEE"
        GetSockName "E" Fstat "o" SchedGetAffinity "o";
    binds_a_group(Group::options().steering(Steering::Cpu)): SetSockOpt "EEooEEEEEEEE"
        SchedGetAffinity "E";
    binds_a_group(Group::options().shared(true)): Socket "E" SetSockOpt "E" Bind "E" Listen "E"
        Fcntl "EE";
    claims_a_free_port: Bind "C";
    claims_over_leftovers(Ipv4Addr::LOCALHOST): Socket "EEUUUU" SetSockOpt "EEE" Bind "CE"
        Listen "V" Fstat "UUo" Send "UUUU" Recv "UUUU" GetSockName "E";
    claims_over_leftovers(Ipv6Addr::LOCALHOST): GetSockOpt "UU";
    adds_to_a_group(Group::options()): Socket "E" SetSockOpt "EE" Bind "E" Listen "E";
    adds_to_a_group(Group::options().steering(Steering::Random)): SetSockOpt "EEE";
    adds_to_a_group(Group::options().shared(true)): Fcntl "E";
    steers_a_group(Steering::Cpu): SetSockOpt "E";
    steers_a_group(Steering::Hash): SetSockOpt "E";
    spawns(Group::options()): Ioctl "EEE" PthreadCreate "EEE";
    spawns(Group::options().pin(true)): SchedGetAffinity "EEE" SchedSetAffinity "EEEEEE"
        PthreadCreate "EEE";
    adds(Group::options()): Socket "E" SetSockOpt "EEE" Bind "E" Listen "E" PthreadCreate "E";
    adds(Group::options().steering(Steering::Random)): SetSockOpt "EEE";
    adds(Group::options().pin(true)): SchedGetAffinity "E" SchedSetAffinity "EE";
    adds(Group::options().shared(true)): Fcntl "E" PthreadCreate "E";
    retires([1]): SetSockOpt "EFL" Socket "oo" Send "oo" Recv "oo" GetSockOpt "o"
        Shutdown "o" Close "ooo";
    retires([0, 2]): SetSockOpt "EFFL" GetSockOpt "oo" Shutdown "oo";
    steers(Steering::Cpu): SetSockOpt "E";
    steers(Steering::Hash): SetSockOpt "E";
    binds_a_group(Group::udp_options()): Socket "EEE" SetSockOpt "EooEEEEE" Bind "EEE"
        GetSockName "E" Fstat "o" SchedGetAffinity "o";
    binds_a_group(Group::udp_options().steering(Steering::Byte(0))): SetSockOpt "........E";
    spawns_receivers: Ioctl "EEE" PthreadCreate "EEE" EventFd "E";
    adds_a_receiver: Socket "E" SetSockOpt "EE" Bind "E" PthreadCreate "E";
    retires_receivers([1]): SetSockOpt "ooL" Connect "o" Shutdown "o" Dup "o";
    retires_receivers([0, 2]): SetSockOpt "ooL" Connect "oo" Shutdown "oo" Dup "oo";
    stops_receivers: Connect "ooo" Shutdown "ooo" Dup "ooo";
    stops: SetSockOpt "ooo" Socket "oo" Send "oo" Recv "oo" GetSockOpt "ooo" Shutdown "ooo";
};

/// The call that is to fail.
struct Fault {
    call: Call,
    errno: i32,
    /// Which of the step's calls, from 1 on.
    nth: usize,
    /// What the step must come to.
    mark: char,
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
        let expected = match self.mark {
            'C' if self.errno == libc::EADDRINUSE => None,
            // An interrupted call is made again.
            'U' if (self.call, self.errno) == (Call::Recv, libc::EINTR) => None,
            'F' if self.errno == libc::EPERM => None,
            'V' if self.errno == libc::EADDRINUSE => Some(in_use),
            'E' | 'L' | 'C' | 'F' | 'V' => Some(Error::new(self.call, injected)),
            'U' => Some(in_use),
            _ => None,
        };
        match done {
            Ok(result) => {
                assert_eq!(expected, None, "it succeeded");
                Some(result)
            }
            Err(error) => {
                assert_eq!(expected, Some(error));
                let left = usize::from(self.mark == 'L');
                assert!(
                    descriptors("self") <= before - left,
                    "it has left descriptors"
                );
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
            Call::EventFd => libc::eventfd(0, -1).into(),
            Call::Dup => libc::dup3(NONE, NONE, 0).into(),
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
    let mut injected = 0;
    if let Some(step) = repeated(call) {
        println!("\n{} fails with {errno}", call.name());
        return step(Error::new(call, errno));
    }
    let mut earlier = 0;
    if call == Call::SchedGetAffinity {
        // The standard library or C's may ask for it when a thread begins; see how often.
        let empty = || {
            (1..=FIFTIETH)
                .find(|_| !empty_call(call))
                .expect("one has failed")
        };
        earlier = FIFTIETH - thread::scope(|scope| scope.spawn(empty).join()).unwrap();
        injected += 1;
    }
    for (name, step, calls) in ROWS {
        let marks = calls.iter().filter(|row| row.0 == call);
        let cases = marks.flat_map(|row| (1..).zip(row.1.chars()));
        for (nth, mark) in cases.filter(|case| case.1 != '.') {
            println!(
                "\n{name}: the {nth}. {} fails with {errno}: {mark}",
                call.name()
            );
            let before = descriptors("self");
            let fault = Fault {
                call,
                errno,
                nth,
                mark,
                earlier,
            };
            let played = thread::scope(|scope| scope.spawn(|| step(&fault)).join());
            played.expect("the step");
            if call != Call::Close {
                wait_until("its descriptors are closed", || {
                    descriptors("self") == before
                });
            }
            injected += 1;
        }
    }
    println!("\ninjected {injected}");
}

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
    let (_, traced, errnos) = CALLS[at];
    // Some steps need leftovers: here is the time to wait until the kernel has room for them.
    support::leftovers(ANY_PORT.into());
    let scratch = support::scratch(&format!("faults-{}", call.name()));
    for (number, errno) in errnos.iter().enumerate() {
        let when = repeated(call).map_or(FIFTIETH, |_| 2);
        let (log, said) = (
            scratch.join(format!("{errno}")),
            scratch.join(format!("{errno}.out")),
        );
        let role = support::role("has_a_call_fail");
        let mut strace = Command::new("strace");
        strace
            .args([
                "-f",
                "--seccomp-bpf",
                "-qq",
                "-e",
                &format!("trace={traced}"),
                "-o",
            ])
            .arg(&log);
        strace.args(["-e", &format!("inject={traced}:error={errno}:when={when}")]);
        strace.arg(role.get_program()).args(role.get_args());
        strace
            .env("CALL", at.to_string())
            .env("ERRNO", number.to_string());
        let out = File::create(&said).unwrap();
        strace
            .stdin(Stdio::null())
            .stderr(out.try_clone().unwrap())
            .stdout(out);
        let mut strace = strace.spawn().unwrap();
        wait_until("the role is played", || {
            strace.try_wait().unwrap().is_some()
        });
        let said = fs::read_to_string(said).unwrap();
        assert!(strace.wait().unwrap().success(), "{said}");
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
    eventfd_fails EventFd
    dup_fails Dup
    pthread_create_fails PthreadCreate
    recvmsg_fails RecvMsg
    recvmmsg_fails RecvMmsg
    sendto_fails SendTo
    sendmmsg_fails SendMmsg
}
