//! The programs in tests/crates/minimal: as small as stated, made of nothing but what is stated,
//! and they work. The sizes for other C libraries and processors: tests/crates/minimal/sizes.
#![cfg(all(
    feature = "std",
    target_os = "linux",
    target_env = "gnu",
    target_arch = "x86_64"
))]

#[path = "support/minimal.rs"]
mod minimal;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use minimal::{PACKAGE, build, cargo, linker};
use support::{BOUND, finish, program, reserve, scratch, start, text, tool, visit, wait_until};

/// What README.md there states, with room for other compilers; `sizes` has the narrow bounds.
const BYTES: u64 = 5_700;
const SAFE_TEXT: u64 = 128;
/// What an exclusive group takes beyond `reuseport`.
const EXCLUSIVE_TEXT: u64 = 600;

/// The C program, with what `sizes` gives it.
fn c_program(linker: &[String; 2], name: &str) -> PathBuf {
    let built = scratch(name).join("c");
    let link = fs::read_to_string(format!("{PACKAGE}/link-args")).unwrap();
    let mut cc = program("cc");
    cc.args(["-Os", "-s", "-fno-asynchronous-unwind-tables", "-pthread"]);
    cc.args(["-ffunction-sections", "-fdata-sections"]);
    cc.args(linker).args(link.split_whitespace());
    cc.arg(format!("-Wl,-T,{PACKAGE}/discard.ld"));
    cc.arg(format!("{PACKAGE}/../../mirror/reuseport.c"));
    let done = finish(cc.arg("-o").arg(&built));
    assert!(done.status.success(), "{}", text(&done.stderr));
    built
}

/// What a tool prints about a program.
fn ask(tool: &[&str], about: &Path) -> String {
    let done = finish(program(tool[0]).args(&tool[1..]).arg(about));
    String::from_utf8(done.stdout).unwrap()
}

/// The size of the section `.text`.
fn code(program: &Path) -> u64 {
    let sections = ask(&["readelf", "-SW"], program);
    let row = sections
        .lines()
        .find(|row| row.contains(" .text "))
        .unwrap();
    let fields = row.split(" .text ").nth(1).unwrap().split_whitespace();
    u64::from_str_radix(fields.into_iter().nth(3).unwrap(), 16).unwrap()
}

#[test]
fn safe_program_is_as_small_as_stated() {
    let Some(linker) = linker() else { return };
    let built = build(&linker, "minimal", &[]);
    let (safe, bare) = (built.join("reuseport"), built.join("bare"));
    let c = c_program(&linker, "minimal-size");
    let bytes = |program: &Path| fs::metadata(program).unwrap().len();

    println!(
        "C {}, safe {}, bare {}",
        bytes(&c),
        bytes(&safe),
        bytes(&bare)
    );

    assert!(bytes(&safe) <= BYTES, "{} bytes", bytes(&safe));
    let readme = fs::read_to_string(format!("{PACKAGE}/README.md")).unwrap();
    let stated = [format!("{BYTES} bytes"), format!("{SAFE_TEXT} bytes")];
    assert!(
        stated.iter().all(|bound| readme.contains(bound)),
        "{stated:?}"
    );

    assert!(bytes(&safe) * 100 <= bytes(&c) * 105, "C: {}", bytes(&c));
    assert!(
        code(&safe) <= code(&bare) + SAFE_TEXT,
        "{} {}",
        code(&safe),
        code(&bare)
    );
}

#[test]
fn exclusive_group_adds_as_little_text_as_stated() {
    let Some(linker) = linker() else { return };
    let built = build(&linker, "minimal", &[]);
    let readme = fs::read_to_string(format!("{PACKAGE}/README.md")).unwrap();

    let (plain, exclusive) = (
        code(&built.join("reuseport")),
        code(&built.join("exclusive")),
    );

    println!("text: {plain}, exclusive {exclusive}");
    assert!(exclusive <= plain + EXCLUSIVE_TEXT, "{exclusive} {plain}");
    assert!(readme.contains(&format!("{EXCLUSIVE_TEXT} bytes")));
}

#[test]
fn exclusive_program_serves_and_refuses_a_second_copy() {
    let Some(linker) = linker() else { return };
    let built = build(&linker, "minimal", &[]).join("exclusive");
    let (port, reserved) = reserve();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    drop(reserved); // its port is to be exclusive
    let mut command = program(&built);
    let _first = start(command.arg(port.to_string()).stdout(Stdio::null()));
    support::wait_until_listening(port, 3);

    let second = finish(program(&built).arg(port.to_string()));

    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).ends_with(": errno  98\n"));
    (0..10).for_each(|_| assert_eq!(visit(address), ""));
}

#[test]
fn safe_program_imports_what_the_c_program_does_and_three_more() {
    let Some(linker) = linker() else { return };
    let safe = build(&linker, "minimal", &[]).join("reuseport");
    let c = c_program(&linker, "minimal-imports");
    let imports = |program: &Path| -> BTreeSet<String> {
        let all = ask(&["nm", "-D", "--undefined-only"], program);
        let names = all
            .lines()
            .filter_map(|line| line.split_whitespace().last());
        names
            .map(|name| name.split('@').next().unwrap().to_owned())
            .collect()
    };
    let mut allowed = imports(&c);
    assert!(
        allowed.contains("perror") && allowed.contains("listen"),
        "{allowed:?}"
    );
    allowed.extend(["accept4", "__errno_location", "write"].map(String::from));

    let more: Vec<_> = imports(&safe).difference(&allowed).cloned().collect();
    assert!(more.is_empty(), "{more:?}");
}

#[test]
fn programs_contain_no_panic_formatting_or_allocator() {
    let Some(linker) = linker() else { return };
    let named = ["--config", "profile.release.strip='none'"];
    let machinery = |program: &Path| {
        let names = ask(&["nm", "-C"], program);
        assert!(names.contains(" main"), "it is stripped: {names}");
        let words = ["panic", "unwind", "personality", "::fmt", "alloc"];
        words.map(|word| names.contains(word))
    };
    let built = build(&linker, "minimal-named", &named);
    for program in ["reuseport", "bare", "http", "exclusive", "graceful"] {
        assert_eq!(machinery(&built.join(program)), [false; 5], "{program}");
    }

    // The control: where they are, they are found (an abort needs no personality).
    let controls = [&named[..], &["--features", "controls"]].concat();
    let built = build(&linker, "minimal-controls", &controls);
    assert_eq!(
        machinery(&built.join("reuseport")),
        [true, true, false, true, true]
    );
}

#[test]
fn panic_within_reach_does_not_link() {
    let Some(linker) = linker() else { return };
    // `everything` is among the programs: it calls all of the core.
    build(&linker, "minimal-linked", &["--features", "link-error"]);

    let control = ["--features", "link-error,controls"];
    let done = cargo(&linker, "minimal-linked", &control);

    assert!(!done.status.success());
    let said = text(&done.stderr);
    assert!(
        said.contains("undefined symbol: a_panic_can_be_reached"),
        "{said}"
    );
}

#[test]
fn program_serves_and_names_the_call_that_fails() {
    let Some(linker) = linker() else { return };
    let built = build(&linker, "minimal", &[]);
    for name in ["reuseport", "bare"] {
        let (port, _reserved) = reserve();
        let mut command = program(built.join(name));
        let mut child = start(command.arg(port.to_string()).stdout(Stdio::piped()));
        let address = SocketAddr::from(([127, 0, 0, 1], port));

        wait_until("it listens", || TcpStream::connect(address).is_ok());
        (0..10).for_each(|_| assert_eq!(visit(address), ""));
        let mut lines = child.stdout().lines();
        for _ in 0..10 {
            let line = lines.next().unwrap().unwrap();
            assert!(
                ["acceptor 0", "acceptor 1", "acceptor 2"].contains(&&*line),
                "{line}"
            );
        }

        // Three threads fail at once: each says so in one piece, until one has ended them all.
        let stranger = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = stranger.local_addr().unwrap().port().to_string();
        let failed = finish(program(built.join(name)).arg(port));
        assert_eq!(failed.status.code(), Some(1));
        let said = text(&failed.stderr);
        assert!(said.starts_with("bind: errno  98\n"), "{said}");
        assert!(said.lines().all(|line| line == "bind: errno  98"), "{said}");
    }
}

#[test]
fn http_program_answers_each_request() {
    let Some(linker) = linker() else { return };
    let built = build(&linker, "minimal", &[]);
    let (port, _reserved) = reserve();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let copy = || start(program(built.join("http")).arg(port.to_string()));
    let _two_copies = [copy(), copy()];
    wait_until("it listens", || TcpStream::connect(address).is_ok());

    for request in [
        vec!["GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_owned()],
        vec![
            "GET / HTTP/1.1\r\n".to_owned(),
            format!("X: {}\r\n\r", "x".repeat(9_999)),
            "\n".into(),
        ],
    ] {
        let mut client = TcpStream::connect(address).unwrap();
        client.set_nodelay(true).unwrap();
        client.set_read_timeout(Some(BOUND)).unwrap();
        for piece in request {
            client.write_all(piece.as_bytes()).unwrap();
        }

        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("Content-Length: 6\r\n"), "{head}");
        assert_eq!(body, "hello\n");
    }

    // Whoever says nothing is left after two seconds, without an answer.
    let mut silent = TcpStream::connect(address).unwrap();
    silent.set_read_timeout(Some(BOUND)).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
}

/// What each thread of a program calls, from `main`'s thread on: name and arguments.
fn trace(traced: &Path, directory: &Path) -> Vec<Vec<String>> {
    fs::create_dir_all(directory).unwrap();
    let (port, _reserved) = reserve();
    let mut strace = program("strace");
    strace
        .args(["-ff", "-qq", "-s", "64", "-o"])
        .arg(directory.join("thread"));
    strace
        .arg(traced)
        .arg(port.to_string())
        .stdout(Stdio::null());
    let mut running = start(&mut strace);
    support::wait_until_listening(port, 3);
    // One client after the other: in the C program one thread's flush may print another's line.
    // Of three listeners each gets one of 100 connections, with a chance of 1 - 1e-17.
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    (0..100).for_each(|_| _ = visit(address));
    let traced = support::child_of(running.pid());
    // SAFETY: takes two integers; strace has not reaped its child while it runs.
    unsafe { libc::kill(traced, libc::SIGTERM) };
    running.wait();
    let files = fs::read_dir(directory).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    // The main thread's number is the process's, and need not be the lowest.
    let main = directory.join(format!("thread.{traced}"));
    files.sort_by_key(|file| *file != main);
    let calls = |path: &PathBuf| {
        let log = fs::read_to_string(path).unwrap();
        let calls = log.lines().filter(|line| !line.starts_with(['-', '+']));
        let calls = calls.map(|line| line.split(" = ").next().unwrap().trim().to_owned());
        calls
            .map(|call| call.replace(&format!("({port})"), "(PORT)"))
            .collect()
    };
    files.iter().map(calls).collect()
}

fn name(call: &str) -> &str {
    call.split('(').next().unwrap()
}

/// The names of the main thread's calls until it waits.
fn names_until_it_waits(calls: &[String]) -> Vec<&str> {
    let names: Vec<_> = calls.iter().map(|call| name(call)).collect();
    let waits = names.iter().position(|name| *name == "futex");
    names[..waits.expect("it waits")].into()
}

/// What Rust calls where an acceptor of the C program makes `call`: two deviations, and a backlog.
fn as_rust_calls_it(call: &str) -> String {
    match name(call) {
        "socket" => call.replace("SOCK_STREAM", "SOCK_STREAM|SOCK_CLOEXEC"),
        "listen" => call.replace(", 1)", ", 2147483647)"),
        "accept" => call
            .replace("accept", "accept4")
            .replace(')', ", SOCK_CLOEXEC)"),
        _ => call.to_owned(),
    }
}

/// A call without the numbers of descriptors and acceptors, which are others in another run.
fn without_numbers(call: &str) -> String {
    let call = ["acceptor 0", "acceptor 1", "acceptor 2"]
        .iter()
        .fold(call.to_owned(), |call, line| {
            call.replace(line, "acceptor N")
        });
    let (name, arguments) = call.split_once('(').unwrap();
    format!("{name}({}", arguments.trim_start_matches(char::is_numeric))
}

/// The calls of an acceptor of the C program, in which printf makes calls of its own.
fn of_c(calls: &[String]) -> Vec<String> {
    const KEPT: [&str; 7] = [
        "socket",
        "setsockopt",
        "bind",
        "listen",
        "accept",
        "write",
        "close",
    ];
    let kept = calls.iter().filter(|call| KEPT.contains(&name(call)));
    kept.map(|call| as_rust_calls_it(call)).collect()
}

/// The calls of an acceptor of ours, behind what the C library does to begin a thread.
fn of_ours(calls: &[String]) -> Vec<String> {
    const LIBRARY: [&str; 3] = ["rseq", "set_robust_list", "rt_sigprocmask"];
    let ours = calls
        .iter()
        .skip_while(|call| LIBRARY.contains(&name(call)));
    // Of a call at whose beginning the thread is killed strace may not even learn the name.
    let finished = ours.filter(|call| !call.contains("<unfinished ...>"));
    finished.cloned().collect()
}

#[test]
fn program_makes_the_c_programs_calls_and_no_other() {
    let Some(linker) = linker() else { return };
    if !tool("strace") {
        return;
    }
    let built = build(&linker, "minimal", &[]);
    let directory = scratch("minimal-trace");
    let c = trace(&c_program(&linker, "minimal-trace-c"), &directory.join("c"));
    let ours = trace(&built.join("reuseport"), &directory.join("ours"));
    assert_eq!((c.len(), ours.len()), (4, 4), "{c:#?} {ours:#?}");

    // Of the main thread's calls the C library makes all.
    assert_eq!(names_until_it_waits(&ours[0]), names_until_it_waits(&c[0]));
    for (theirs, ours) in c[1..].iter().zip(&ours[1..]) {
        let (theirs, ours) = (of_c(theirs), of_ours(ours));
        let once = |calls: &[String]| -> Vec<_> {
            let calls = calls.iter().map(|call| without_numbers(call));
            calls.take(7).collect()
        };
        assert_eq!(once(&ours), once(&theirs));
        // From then on three calls a connection, and no other.
        for (at, call) in ours[4..].iter().enumerate() {
            let expected = ["accept4", "write", "close"][at % 3];
            assert_eq!(name(call), expected, "{ours:#?}");
        }
    }
}
