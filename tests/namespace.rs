//! The tests have a network of their own, and what they start begins clean.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::fs;
use std::io::BufRead;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::time::Instant;

use support::{
    GIVEN, finish, first_namespace, namespace, own_namespace, play, play_as, program, role, skip,
    start, wait_until,
};

const NOBODY: u32 = 65534;

/// Returns whether this process has a network of its own; skips the test otherwise.
fn has_own_namespace() -> bool {
    if !own_namespace() {
        skip("no network namespace can be had");
    }
    own_namespace()
}

#[test]
fn test_process_is_alone_on_its_network() {
    if !has_own_namespace() {
        return;
    }
    assert_ne!(namespace(), first_namespace());

    let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    for device in devices.lines().skip(2) {
        let (name, counters) = device.split_once(':').unwrap();
        // The kernel may put a tunnel's device of its own there; nothing leaves by it.
        let sent = counters.split_whitespace().nth(8).unwrap();
        assert!(name.trim() == "lo" || sent == "0", "{devices}");
    }

    for ip in [
        Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::from(Ipv6Addr::LOCALHOST),
    ] {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    }
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn tells_its_namespace() {
    println!("\nnamespace {} {}", namespace(), own_namespace());
}

#[test]
fn role_stays_in_the_namespace_of_its_test() {
    let here = format!("namespace {} {}", namespace(), own_namespace());

    let said = play(&mut role("tells_its_namespace"));

    assert!(said.contains(&here), "{said}, not {here}");
}

#[test]
fn role_that_is_traced_stays_in_the_namespace_of_its_test() {
    if !support::tool("strace") {
        return;
    }
    let here = format!("namespace {} {}", namespace(), own_namespace());
    let role = role("tells_its_namespace");
    let mut strace = program("strace");
    strace.args(["-f", "-qq", "-e", "trace=unshare", "-o"]);
    strace.arg(support::scratch("namespace").join("log"));

    let said = play(strace.arg(role.get_program()).args(role.get_args()));

    assert!(said.contains(&here), "{said}, not {here}");
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn is_an_ordinary_user_with_a_namespace() {
    if !has_own_namespace() {
        return;
    }
    assert_ne!(namespace(), first_namespace());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    for line in [
        format!("Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}"),
        "CapEff:\t0000000000000000".into(),
    ] {
        assert!(status.contains(&line), "no {line}: {status}");
    }
    // What a capability in the namespace's own user namespace would allow.
    fs::write("/proc/sys/net/ipv4/tcp_syncookies", "1").expect_err("no capability is left");
}

#[test]
fn ordinary_user_has_a_namespace_and_no_capabilities() {
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        return skip("not root: all tests run as an ordinary user");
    }
    play_as(NOBODY, "is_an_ordinary_user_with_a_namespace", |role| {
        role.env_remove(GIVEN);
    });
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn reads_its_sysctl() {
    if support::has_sysctls() {
        let cookies = fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies").unwrap();
        assert_eq!(cookies.trim(), "2");
        assert_ne!(namespace(), first_namespace());
    }
}

#[test]
fn sysctl_is_set_for_one_role_alone() {
    let cookies = || fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies").unwrap();
    let before = cookies();
    assert_ne!(before.trim(), "2");

    play(&mut support::role_with_sysctls(
        "reads_its_sysctl",
        &[("ipv4/tcp_syncookies", "2")],
    ));

    assert_eq!(cookies(), before);
}

/// Plays what a shell without job control, or nohup, does to what it starts.
fn ignore_signals(ignored: bool) {
    let disposition = if ignored {
        libc::SIG_IGN
    } else {
        libc::SIG_DFL
    };
    for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: a disposition without a handler.
        unsafe { libc::signal(signal, disposition) };
    }
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn starts_processes_from_a_bad_condition() {
    ignore_signals(true);
    // SAFETY: made of integers, for which zeros are a value.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` is writable.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: `all` is readable, and the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut()) };
    support::limit_softly(libc::RLIMIT_NOFILE, 100).unwrap();
    // SAFETY: takes an integer.
    unsafe { libc::umask(0o777) };

    let told = finish(program("sh").args(["-c", "umask; env; grep Sig[BI] /proc/self/status"]));
    let told = support::text(&told.stdout);

    let lines: Vec<_> = told.lines().collect();
    let none = "0000000000000000";
    assert_eq!(lines[0], "0022", "{told}");
    assert!(
        lines.contains(&"LC_ALL=C") && !told.contains("LISTEN_FDS"),
        "{told}"
    );
    for name in ["SigBlk", "SigIgn"] {
        assert!(lines.contains(&&*format!("{name}:\t{none}")), "{told}");
    }
}

#[test]
fn process_of_a_test_in_a_bad_condition_begins_clean() {
    let mut role = role("starts_processes_from_a_bad_condition");
    play(role.env("LISTEN_FDS", "3"));
}

/// Returns whether a process runs; one that is not waited for yet does not.
fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
    !matches!(state, None | Some("Z" | "X"))
}

/// Starts a shell that starts a process and tells its pid.
fn with_a_descendant() -> (support::Running, i32) {
    let mut shell = program("sh");
    shell.args(["-c", "sleep 1000 & echo $!; wait"]);
    let mut shell = start(shell.stdout(std::process::Stdio::piped()));
    let mut line = String::new();
    shell.stdout().read_line(&mut line).unwrap();
    let descendant = line.trim().parse().unwrap();
    assert!(runs(descendant));
    (shell, descendant)
}

#[test]
fn panic_ends_what_the_test_has_started() {
    let started = std::sync::Mutex::new(0);

    let panicked = std::panic::catch_unwind(|| {
        let (shell, descendant) = with_a_descendant();
        *started.lock().unwrap() = descendant;
        drop(started.lock());
        assert_eq!(shell.pid(), -1, "a panic on purpose");
    });

    panicked.expect_err("it has panicked");
    let descendant = *started
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    wait_until("the descendant has ended", || !runs(descendant));
}

#[test]
#[ignore = "a role that another test plays in a process of its own"]
fn is_killed_with_a_child() {
    let child = start(program("sleep").arg("1000"));
    println!("\nsleeper {}", child.pid());
    // SAFETY: takes an integer, and is the end of this process.
    unsafe { libc::raise(libc::SIGKILL) };
}

#[test]
fn test_process_that_is_killed_takes_its_children_along() {
    let done = finish(&mut role("is_killed_with_a_child"));

    let child = support::word_after(support::text(&done.stdout), "sleeper ")
        .parse()
        .unwrap();
    wait_until("the child has ended", || !runs(child));
}

#[test]
fn wait_in_vain_ends_at_its_bound() {
    let begun = Instant::now();
    let waits = || {
        let mut sleep = start(program("sleep").arg("1000"));
        sleep.wait_within(std::time::Duration::from_millis(50));
    };

    std::panic::catch_unwind(waits).expect_err("it has not ended");

    assert!(begun.elapsed() < support::BOUND);
}
