//! The C program and its Rust twin are one program: the same lines, the same system calls, but for
//! the deviations that the README's table lists.
#![cfg(feature = "std")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Stdio;

use support::{compile, example, program, reserve, scratch, start, tool, visit, wait_until};

fn source(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// What stands behind each `// C:` of a Rust file, in order.
fn quoted(rust: &str) -> Vec<&str> {
    rust.lines()
        .filter_map(|line| line.trim().strip_prefix("// C: "))
        .collect()
}

#[test]
fn quoted_c_lines_are_the_programs_and_in_its_order() {
    let c = source("tests/mirror/reuseport.c");
    let c: Vec<_> = c.lines().map(str::trim).collect();
    let in_order = |quoted: &[&str]| {
        let mut rest = c.iter();
        for line in quoted {
            assert!(
                rest.any(|c| c == line),
                "not in the C program, or not in this order: {line}"
            );
        }
    };

    let listener = source("src/listener.rs");
    let mirror = source("tests/mirror/reuseport.rs");
    in_order(&quoted(&listener));
    assert_eq!(
        quoted(&listener).len(),
        5,
        "socket, int, setsockopt, bind, listen"
    );

    // `main` quotes one global before its own first line.
    let (threads, main) = mirror.split_once("fn main()").unwrap();
    in_order(&quoted(threads));
    let main: Vec<_> = quoted(main)
        .into_iter()
        .filter(|line| !line.starts_with("static"))
        .collect();
    in_order(&main);

    // Every call that C checks stands in the mirror.
    for call in c.iter().filter(|line| line.contains("check(\"")) {
        assert!(
            quoted(&mirror).contains(call),
            "missing from the mirror: {call}"
        );
    }
}

/// Connects once the program listens: then no connection is refused.
fn connect(address: SocketAddr, times: usize) {
    wait_until("it listens", || TcpStream::connect(address).is_ok());
    (0..times).for_each(|_| _ = visit(address));
}

#[test]
fn c_program_and_mirror_print_their_acceptors() {
    if !tool("cc") {
        return;
    }
    let c = compile("tests/mirror/reuseport.c", &scratch("mirror-print"));

    for either in [c, example("mirror")] {
        let (port, _reserved) = reserve();
        let mut either = program(&either);

        let mut child = start(either.arg(port.to_string()).stdout(Stdio::piped()));
        connect(SocketAddr::from(([127, 0, 0, 1], port)), 10);

        let mut lines = std::io::BufRead::lines(child.stdout());
        for _ in 0..10 {
            let line = lines.next().unwrap().unwrap();
            let number = line
                .strip_prefix("acceptor ")
                .unwrap()
                .parse::<usize>()
                .unwrap();
            assert!(number < 3, "{line}");
        }
    }
}

/// The socket calls of each acceptor thread, with its descriptors named for what they are.
fn trace(traced: &Path, directory: &Path) -> Vec<Vec<String>> {
    fs::create_dir_all(directory).unwrap();
    let (port, _reserved) = reserve();
    let mut strace = program("strace");
    strace.args(["-ff", "-qq", "-s", "64", "-e", "trace=%network,close", "-o"]);
    strace
        .arg(directory.join("thread"))
        .arg(traced)
        .arg(port.to_string());
    let mut running = start(strace.stdout(Stdio::null()));
    support::wait_until_listening(port, 3);
    connect(SocketAddr::from(([127, 0, 0, 1], port)), 100);
    // The program itself is strace's child; strace ends with it.
    let traced = support::child_of(running.pid());
    // SAFETY: takes two integers; strace has not reaped its child while it runs.
    unsafe { libc::kill(traced, libc::SIGTERM) };
    running.wait();
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    files.sort();
    let logs = files.iter().map(|path| fs::read_to_string(path).unwrap());
    logs.filter_map(|log| acceptor(&log, port)).collect()
}

/// The calls of one thread: up to `listen`, and the first `accept` with its `close`.
fn acceptor(log: &str, port: u16) -> Option<Vec<String>> {
    let mut names = BTreeMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let (call, result) = line.rsplit_once(" = ")?;
        let (name, arguments) = call.trim().strip_suffix(')')?.split_once('(')?;
        let mut arguments: Vec<_> = arguments.splitn(2, ", ").map(str::to_owned).collect();
        match name {
            "socket" => _ = names.insert(result.to_owned(), "server"),
            "accept" | "accept4" => _ = names.insert(result.to_owned(), "client"),
            _ => {}
        }
        if name != "socket" {
            let name = names.get(&arguments[0])?;
            arguments[0] = String::from(*name);
        }
        let all = format!("{name}({})", arguments.join(", "));
        let all = all
            .replace("IPPROTO_IP", "0")
            .replace(&format!("({port})"), "(PORT)");
        calls.push(all);
        if name == "close" {
            return Some(calls);
        }
    }
    None
}

/// The rows of the README's table of deviations: what C calls, what Rust calls instead.
fn deviations() -> Vec<(String, String)> {
    let readme = source("README.md");
    let rows = readme
        .lines()
        .skip_while(|line| !line.starts_with("| the C program calls"));
    let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.replace("\\|", "!"));
    let cells = cells.map(|row| {
        let cells = row
            .split('|')
            .map(|cell| cell.trim().trim_matches('`').replace('!', "|"));
        let cells: Vec<_> = cells.collect();
        (cells[1].clone(), cells[2].clone())
    });
    cells.collect()
}

#[test]
fn c_program_and_mirror_make_the_same_calls_but_for_the_table() {
    if !tool("cc") || !tool("strace") {
        return;
    }
    let directory = scratch("mirror-trace");
    let c = trace(
        &compile("tests/mirror/reuseport.c", &directory),
        &directory.join("c"),
    );
    let rust = trace(&example("mirror"), &directory.join("rust"));
    // Which thread accepted at all is the kernel's choice; 100 connections miss none of three
    // with a chance of 1 - 1e-17.
    assert_eq!((c.len(), rust.len()), (3, 3), "{c:#?} {rust:#?}");

    let table = deviations();
    assert_eq!(table.len(), 2, "{table:?}");
    let expected: Vec<_> = c[0]
        .iter()
        .map(|call| {
            let row = table.iter().find(|(theirs, _)| theirs == call);
            row.map_or(call, |(_, ours)| ours).clone()
        })
        .collect();

    assert!(c.iter().all(|calls| *calls == c[0]), "{c:#?}");
    assert!(
        rust.iter().all(|calls| *calls == expected),
        "{rust:#?}\n{expected:#?}"
    );
    for (theirs, _) in &table {
        assert!(
            c[0].contains(theirs),
            "a row that C does not make: {theirs}"
        );
    }
}
