//! `reuseport compare`, as a person uses it. What it measures is its reader's to judge: no test
//! asserts a speed.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::fs;

use support::{Running, finish, program, reuseport, run, scratch, start, text, tool, wait_until};

const WAYS: [&str; 6] = [
    "single",
    "shared",
    "reuseport",
    "reuseport + hand-off",
    "reuseport + cpu",
    "cpu + hand-off",
];

/// A comparison that is short on a quiet machine.
const SHORT: [&str; 5] = ["compare", "--rounds=1", "--seconds=0.1", "--clients", "4"];

/// Runs a short comparison with these arguments too.
fn short(args: &[&str]) -> (i32, String, String) {
    patient(&[&SHORT, args].concat())
}

/// Runs a comparison. On a machine so busy that no connection ends within a turn, the turns are
/// made longer, until one does.
fn patient(args: &[&str]) -> (i32, String, String) {
    let is_seconds = |arg: &&&str| arg.starts_with("--seconds=");
    let given = args.iter().find(is_seconds).expect("--seconds=");
    let mut seconds: f64 = given["--seconds=".len()..].parse().expect("a number");
    loop {
        let longer = format!("--seconds={seconds}");
        let args = args
            .iter()
            .map(|arg| if arg == given { &longer } else { *arg });
        let done = run(&args.collect::<Vec<_>>());
        if !done.2.contains("no connection ended within its turn") || seconds > 10.0 {
            return done;
        }
        seconds *= 4.0;
    }
}

/// Each row's name and its numbers: conn/s, spread, to `shared`, p50, p99, p99.9, max, fair,
/// switches, cpu. They stand between two blank lines. A dash is no number.
fn rows(out: &str) -> Vec<(String, Vec<f64>)> {
    let table = out.split("\n\n").nth(1).expect("a table");
    let row = |line: &str| {
        let mut cells = line
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty());
        let name = cells.next().unwrap().to_owned();
        let numbers = cells.filter_map(|cell| {
            let number = cell.trim_end_matches(|c: char| " %?#".contains(c));
            match number {
                "" => None,
                "-" => Some(f64::NAN),
                number => Some(number.parse().unwrap()),
            }
        });
        (name, numbers.collect())
    };
    table.lines().skip(1).map(row).collect()
}

#[test]
fn every_way_serves_and_has_its_row() {
    for args in [&["--rounds", "2"][..], &["--rounds=1", "--acceptors", "1"]] {
        let (code, out, err) =
            patient(&[&["compare", "--seconds=0.2", "--clients=4"], args].concat());

        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        assert!(
            out.starts_with("reuseport compare --acceptors ") && out.contains("too few"),
            "{out}"
        );
        assert!(
            out.lines().nth(1).unwrap().contains(" s a turn: takes "),
            "{out}"
        );

        let rows = rows(&out);
        let names: Vec<_> = rows.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, WAYS, "{out}");

        let base = rows.iter().find(|(name, _)| name == "shared").unwrap().1[0];
        for (name, numbers) in &rows {
            assert_eq!(numbers.len(), 10, "{out}");
            let [rate, _, times, p50, p99, p999, max, fair, switches, cpu] = numbers[..] else {
                unreachable!()
            };
            // On a busy machine it may be less than a hundredth, which is printed as 0.00.
            assert!(rate > 0.0 && times >= 0.0, "{out}");
            assert!(p50 <= p99 && p99 <= p999 && p999 <= max, "{out}");
            assert!((0.0..=1.0).contains(&fair), "{out}");
            // An acceptor that always finds somebody waiting need not wait.
            assert!(switches >= 0.0 && cpu > 0.0, "{out}");
            if args.contains(&"--rounds=1") {
                let ratio = rate / base;
                assert!((times - ratio).abs() < 0.01 + (1.0 + ratio) / base, "{out}");
            }
            if name == "shared" {
                assert!((times - 1.0).abs() < 1e-9, "{out}");
            }
            if args.contains(&"--acceptors") {
                assert!((fair - 1.0).abs() < 1e-9, "one is as busy as itself: {out}");
            }
            assert_eq!(out.matches(&format!("\n{name}  ")).count(), 1, "{out}");
        }

        assert!(
            out.lines().take(9).all(|line| line.chars().count() <= 100),
            "{out}"
        );
    }
}

#[test]
fn every_way_to_receive_has_its_row() {
    let (code, out, err) = short(&["--udp"]);

    assert_eq!((code, err.as_str()), (0, ""), "{out}");

    let rows = rows(&out);
    let names: Vec<_> = rows.iter().map(|(name, _)| name.as_str()).collect();
    let ways = ["one", "shared", "reuseport", "+ cpu"];
    let all = ["udp", "batched"].map(|how| ways.map(|way| format!("{how} {way}")));
    assert_eq!(names, all.concat(), "{out}");
    for (_, numbers) in &rows {
        assert!(numbers.len() == 10 && numbers[0] > 0.0, "{out}");
    }
}

#[test]
fn slow_handlers_are_slow_whatever_the_way() {
    let (code, out, err) = short(&["--slow", "100:20"]);

    assert_eq!((code, err.as_str()), (0, ""), "{out}");

    // A sleep is never shorter than asked for, so these are bounds, not speeds.
    for (name, numbers) in rows(&out) {
        assert!(
            numbers[0] <= 4.0 * 50.0 && numbers[3] >= 20.0,
            "{name}: {out}"
        );
    }
}

#[test]
fn handlers_that_compute_use_the_processor_whatever_the_way() {
    let (code, out, err) = short(&["--compute", "100:1"]);

    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    // A million steps of 5 cycles, each after the one before, take 0.3 ms at 16 GHz.
    for (name, numbers) in rows(&out) {
        assert!(numbers[9] >= 300.0, "{name}: {out}");
    }
}

#[test]
fn silent_clients_stop_all_ways_but_those_that_hand_off() {
    // One of two threads gets none of 64 with a chance below 1e-18.
    let silent = [
        "compare",
        "--rounds=1",
        "--clients=4",
        "--acceptors=2",
        "--silent=64",
    ];
    let mut seconds = 0.3;
    let out = loop {
        let turn = format!("--seconds={seconds}");
        let (code, out, err) = patient(&[&silent[..], &[&turn]].concat());
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        let rows = rows(&out);
        let mut hand_off = rows.iter().filter(|row| row.0.contains("hand-off"));
        // A busy machine may serve none within a short turn.
        if hand_off.all(|row| row.1[0] > 0.0) || seconds > 10.0 {
            break out;
        }
        seconds *= 4.0;
    };

    assert!(out.contains(" --silent 64 --rounds "), "{out}");
    for (name, numbers) in rows(&out) {
        // Steered to a CPU, they may all come to one of the two.
        if name.contains("hand-off") {
            assert!(numbers[0] > 0.0, "{name}: {out}");
        } else if !name.contains("cpu") {
            // Those that were there before all threads were taken were served.
            assert!(numbers[6] >= 1000.0 * seconds, "{name}: {out}");
        }
    }

    // Handlers that wait for a byte get it.
    let (code, out, err) = short(&["--silent=0"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(rows(&out).iter().all(|row| row.1[0] > 0.0), "{out}");
}

#[test]
fn clients_that_think_too_long_are_an_error() {
    // Each of 20 pauses ends in time with a chance of 0.0000017.
    let (code, out, err) = run(&[&SHORT[..], &["--think", "60000"]].concat());

    assert_eq!(
        (code, out.lines().count(), err.lines().count()),
        (1, 2, 1),
        "{out}{err}"
    );
    assert!(
        err.starts_with("reuseport: single: no connection ended"),
        "{err}"
    );
}

#[test]
fn conclusions_from_ten_rounds_are_two_lines() {
    let (code, out, err) = patient(&["compare", "--rounds=10", "--seconds=0.02"]);

    assert_eq!((code, err.as_str()), (0, ""), "{out}");

    let last = out.split("\n\n").nth(2).expect("conclusions");
    let lines: Vec<_> = last.lines().collect();
    assert_eq!(lines.len(), 2, "{out}");
    for (line, start) in lines.iter().zip(["Most conn/s: ", "Lowest p99: "]) {
        let rest = line.strip_prefix(start).expect(line);
        assert!(
            rest.contains("by a factor of") || rest.starts_with("the rounds tell no way from"),
            "{line}"
        );
        assert!(WAYS.iter().any(|way| rest.contains(way)), "{line}");
    }
}

#[test]
fn picture_is_well_formed_and_shows_each_row() {
    if !tool("python3") {
        return;
    }
    let path = scratch("compare-svg").join("a & b.svg");
    let path = path.to_str().unwrap();
    let (code, out, err) = short(&["--svg", path]);

    assert_eq!((code, err.as_str()), (0, ""), "{out}");

    let read = "import sys, xml.etree.ElementTree as xml\n\
                for text in xml.parse(sys.argv[1]).getroot().itertext(): print(text)";
    let python = finish(program("python3").args(["-c", read, path]));
    assert!(python.status.success(), "{python:?}");
    let words = text(&python.stdout);

    for (name, numbers) in rows(&out) {
        let rate = format!("{:.0}", numbers[0]);
        assert!(
            words.lines().any(|line| line == name) && words.lines().any(|line| line == rate),
            "{words}"
        );
    }

    let drawing = fs::read_to_string(path).unwrap();
    assert!(
        drawing.contains("<title>") && !drawing.contains("<script"),
        "{drawing}"
    );
    for line in [
        "Ways to accept connections: 4 threads each, 4 clients",
        "connections per second (more is better)",
        "p99, milliseconds (less is better)",
        "Bars and numbers: the median of 1 round. Lines: from the least to the most.",
        "@media (prefers-color-scheme: dark)",
    ] {
        assert!(drawing.contains(line), "{line}: {drawing}");
    }
    // What it needs, it has.
    let outside = drawing.matches("http").count();
    assert_eq!((outside, drawing.matches("href").count()), (1, 0));
}

#[test]
fn picture_that_cannot_be_written_is_named() {
    let (code, out, err) = short(&["--svg", "/no/such/place.svg"]);

    assert_eq!(
        (code, out.as_str(), err.lines().count()),
        (1, "", 1),
        "{err}"
    );
    assert!(
        err.starts_with("reuseport: /no/such/place.svg: No such file"),
        "{err}"
    );

    // Found out at the end: what was measured is told all the same.
    let (code, out, err) = short(&["--svg", "/dev/full"]);

    assert_eq!(
        (code, rows(&out).len(), err.lines().count()),
        (1, WAYS.len(), 1)
    );
    assert!(
        err.starts_with("reuseport: /dev/full: No space left"),
        "{err}"
    );
}

/// Arguments that are wrong, and what the message says.
const WRONG: &[(&[&str], &str)] = &[
    (
        &["--rounds", "0"],
        "--rounds needs a whole number from 1 to 1000",
    ),
    (
        &["--seconds", "0"],
        "--seconds needs a number from 0.01 to 3600",
    ),
    (&["--seconds", "NaN"], "not \"NaN\""),
    (&["--think", "-1"], "--think needs a number from 0 to 60000"),
    (
        &["--acceptors", "129"],
        "--acceptors needs a whole number from 1 to 128",
    ),
    (&["--clients=many"], "--clients needs a whole number"),
    (&["--slow", "5"], "--slow needs PERCENT:MILLISECONDS"),
    (&["--compute", "5:x"], "--compute needs PERCENT:MILLIONS"),
    (&["--slow", "101:5"], "--slow needs PERCENT:MILLISECONDS"),
    (
        &["--silent", "-1"],
        "--silent needs a whole number from 0 to",
    ),
    (
        &["--udp", "--silent", "1"],
        "unexpected argument \"--silent\": a datagram has no connection",
    ),
    (&["--svg"], "--svg needs a file after it"),
    (
        &["--serve-as", "fast"],
        "--serve-as needs the name of a way",
    ),
    (&["--addr", "[::1]:0"], "unexpected argument \"--addr\""),
];

#[test]
fn wrong_usage_is_one_line_that_names_the_argument() {
    for (args, named) in WRONG {
        let (code, out, err) = run(&[&["compare"][..], args].concat());
        assert_eq!(
            (code, out.as_str(), err.lines().count()),
            (2, "", 1),
            "{err}"
        );
        assert!(
            err.contains(named) && err.contains("reuseport compare --help"),
            "{err}"
        );
    }

    let (code, out, err) = run(&["compare", "--help"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(WAYS.iter().all(|way| out.contains(way)), "{out}");
}

#[test]
fn compare_whose_reader_leaves_ends_quietly() {
    let mut compare = start(&mut reuseport(&SHORT));

    drop(compare.stdout());
    let done = compare.into_output();
    assert_eq!((done.status.code(), text(&done.stderr)), (Some(0), ""));
}

/// A comparison that takes hours, and its servers.
fn long() -> (Running, Vec<i32>) {
    let long = start(&mut reuseport(&["compare", "--seconds", "3600"]));
    let pid = long.pid();
    let children = || -> Vec<i32> {
        let found = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let pids = found.split_whitespace().map(|pid| pid.parse().unwrap());
        pids.collect()
    };
    wait_until("all servers are there", || children().len() == WAYS.len());
    let servers = children();
    (long, servers)
}

fn signal(pid: i32, signal: i32) {
    // Once one server has ended, the comparison ends, and the others with it: some may be gone.
    // SAFETY: takes two integers. A pid is not used again within so short a time.
    _ = unsafe { libc::kill(pid, signal) };
}

/// Whether it runs: a process that nobody has waited for yet does not.
fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
    !matches!(state, None | Some("Z" | "X"))
}

#[test]
fn compare_that_is_ended_takes_its_servers_along() {
    for how in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        let (mut long, servers) = long();

        long.signal(how);

        assert!(!long.wait().success());
        wait_until("its servers have ended", || {
            !servers.iter().any(|pid| runs(*pid))
        });
    }
}

#[test]
fn server_that_ends_is_named() {
    let (long, servers) = long();
    // While they start, or while the first has its turn.
    servers.iter().for_each(|pid| signal(*pid, libc::SIGKILL));

    let done = long.into_output();

    let err = text(&done.stderr);
    assert_eq!(
        (done.status.code(), err.lines().count()),
        (Some(1), 1),
        "{err}"
    );
    let ended = err.starts_with("reuseport: the server of \"") && err.contains("\" has ended");
    assert!(ended || err.starts_with("reuseport: single: "), "{err}");
}
