//! The guide's claims, on this kernel: one test each, which tries the claim and its counter-case.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::{BOUND, run};

/// Runs the command. Where earlier tests have left as many connections in `TIME_WAIT` as the kernel
/// keeps, there is room again after a minute.
fn explain(args: &[&str]) -> (i32, String, String) {
    let mut said = run(args);
    let begun = Instant::now();
    while said.1.contains("no room for TIME_WAIT") && begun.elapsed() < 3 * BOUND {
        sleep(Duration::from_secs(1));
        said = run(args);
    }
    said
}

/// The claim holds; and in its counter-case it does not, so the measurement can tell.
#[track_caller]
fn holds(function: &str) {
    let name = function.replace('_', "-");
    let (code, out, err) = explain(&["explain", "--claim", &name]);
    if out.contains(&format!("{name}: cannot be tried here")) {
        assert_eq!(code, 0, "{out}{err}");
        return support::skip(&out);
    }
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains(&format!("{name}: holds\n")), "{out}");
    let (code, out, err) = explain(&["explain", "--claim", &name, "--counter"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains(&format!("{name}: does not hold\n")), "{out}");
    assert!(out.contains("Counter-case: "), "{out}");
}

macro_rules! claims {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })*

        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

claims! {
    membership_begins_at_listen
    listen_again_keeps_the_place
    a_failed_bind_may_go_unnoticed
    the_hash_spreads_evenly
    same_four_tuple_same_listener
    a_specific_address_beats_the_wildcard
    ipv4_wildcard_beats_dual_stack
    every_socket_needs_the_option
    a_second_program_joins_in_silence
    another_user_is_refused
    leftovers_want_the_same_option
    the_claim_keeps_others_out
    port_0_never_collides
    close_resets_the_queue
    the_last_moves_into_the_hole
    adding_loses_no_handshake
    shutdown_wakes_accept
    close_leaves_accept_asleep
    the_program_returns_an_index
    a_failing_load_is_index_0
    an_index_out_of_range_is_the_hash
    incoming_cpu_is_obeyed
    steering_needs_no_privilege
    leaving_needs_no_privilege
    a_slow_thread_keeps_its_share_waiting
    hand_off_serves_what_waits
    a_shared_listener_feeds_the_idle
    the_first_registered_epoll_wakes
    a_backlog_of_n_queues_one_more
    overflow_costs_a_second
    dropped_syns_come_every_second
    a_reset_client_is_still_accepted
    without_descriptors_it_stays_queued
    without_descriptors_accept_never_waits
    a_udp_socket_joins_at_bind
    a_udp_flow_stays
    adding_a_udp_member_moves_flows
    a_udp_program_sees_the_payload
    closing_a_udp_socket_drops_in_silence
    a_connected_udp_socket_hears_its_peer
    a_connected_udp_socket_leaves_the_group
    connected_to_itself_it_keeps_what_waits
}

/// Both of its pages.
fn guide() -> String {
    let pages = ["src/guide.rs", "src/guide/pitfalls.rs"];
    let path = |page| Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    pages
        .map(|page| fs::read_to_string(path(page)).unwrap())
        .concat()
}

#[test]
fn the_guide_the_command_and_the_tests_have_the_same_claims() {
    let (code, list, _) = run(&["explain", "--list"]);
    assert_eq!(code, 0);
    let listed: Vec<_> = list.lines().map(str::to_owned).collect();
    let tested: Vec<_> = TESTED.iter().map(|name| name.replace('_', "-")).collect();
    assert_eq!(listed, tested);
    let guide = guide();
    let named = guide.split("--claim ").skip(1).map(|rest| {
        let end = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        rest.split(end).next().unwrap().to_owned()
    });
    // `--claim NAME` stands for any.
    let named = named.filter(|name| !name.is_empty());
    assert_eq!(named.collect::<BTreeSet<_>>(), listed.into_iter().collect());
}

/// What the guide says elsewhere is proved by a test that it names: `tests/FILE.rs`.
#[test]
fn every_file_that_the_guide_names_is_there() {
    let guide = guide();
    let files = guide.split("`tests/").skip(1);
    let files: Vec<_> = files.map(|rest| rest.split('`').next().unwrap()).collect();
    assert!(!files.is_empty());
    for file in files {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests")
            .join(file);
        assert!(path.is_file(), "tests/{file}");
    }
}

#[test]
fn an_ordinary_claim_reads_well() {
    let (_, out, _) = run(&["explain", "--claim=close-resets-the-queue"]);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], "When one leaves");
    assert!(
        lines[3].starts_with("    Closing a listener resets"),
        "{out}"
    );
    assert!(
        lines[4].starts_with("    of 10 that waited, 10 were reset"),
        "{out}"
    );
    assert!(
        lines[6].starts_with("1 hold, 0 do not, 0 cannot be tried here; in "),
        "{out}"
    );
    let (code, out, err) = run(&["explain", "--claim", "the-earth-is-flat"]);
    assert_eq!(
        (code, out.as_str(), err.lines().count()),
        (2, "", 1),
        "{err}"
    );
}

#[test]
fn what_could_not_be_measured_is_a_failure() {
    let command = support::reuseport(&[]);
    let mut few = std::process::Command::new("sh");
    few.args([
        "-c",
        "ulimit -n 6; exec \"$0\" explain --claim the-hash-spreads-evenly",
    ]);
    let done = few.arg(command.get_program()).output().unwrap();
    let (out, err) = (support::text(&done.stdout), support::text(&done.stderr));
    assert_eq!(done.status.code(), Some(1), "{out}{err}");
    assert!(out.contains("could not be measured\n"), "{out}");
    assert!(out.contains("EMFILE"), "{out}");
    assert_eq!(err, "reuseport: 1 could not be measured\n");
}
