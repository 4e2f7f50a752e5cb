//! The guide's claims, on this kernel: one test each, which tries the claim and its counter-case.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::{BOUND, finish, program, run};

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

    for (mode, right) in [("claim", "holds"), ("counter", "does not hold")] {
        let mut args = vec!["explain", "--claim", &name];
        if mode == "counter" {
            args.push("--counter");
        }
        let (code, out, err) = explain(&args);

        assert_eq!(code, 0, "{out}{err}");
        if let Some(why) = why_untried(&out, &name) {
            assert!(
                may_be_untried(&name, mode, why),
                "{name}, {mode}: untried, and tests/support/untried.txt does not list it: {why}"
            );
            support::skip(&out);
            continue;
        }
        assert!(out.contains(&format!("{name}: {right}\n")), "{out}");
        assert_eq!(out.contains("Counter-case: "), mode == "counter", "{out}");
    }
}

/// Why `explain` has not tried the claim: the last line of what it says of it.
fn why_untried<'a>(out: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = out.split_once(&format!("{name}: cannot be tried here\n"))?;
    let lines = rest.lines().take_while(|line| line.starts_with("    "));
    lines.last().map(str::trim)
}

/// The list of what may be left untried, which .ci/setups reads, too: each reason, and its claims.
fn untried_list() -> Vec<(String, Vec<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/untried.txt");
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let rows = lines.filter_map(|line| line.split_once(": "));
    let words = |names: &str| names.split(' ').map(str::to_owned).collect();
    rows.map(|(reason, names)| (reason.to_owned(), words(names)))
        .collect()
}

/// Whether the list lets the claim, or its counter-case, be untried for this reason.
fn may_be_untried(name: &str, mode: &str, why: &str) -> bool {
    let list = untried_list();
    let mut rows = list.iter().filter(|(reason, _)| why.starts_with(reason));
    rows.any(|(_, names)| {
        let all = names[0] == "all"; // "all but NAME..."
        let mode_alone = format!("{name}/{mode}");
        all != names.iter().any(|one| one == name || *one == mode_alone)
    })
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
    a_bound_device_is_another_group
    a_cookie_chooses_at_the_ack
    every_socket_needs_the_option
    with_reuseaddr_listen_refuses
    a_second_program_joins_in_silence
    another_user_is_refused
    fchown_changes_who_may_join
    a_namespace_has_ports_of_its_own
    leftovers_want_the_same_option
    leftovers_without_options_refuse_all
    an_outgoing_connection_takes_its_port
    the_claim_keeps_others_out
    port_0_never_collides
    close_resets_the_queue
    a_duplicate_keeps_the_member
    connect_to_nothing_ends_a_listener
    the_last_moves_into_the_hole
    adding_loses_no_handshake
    shutdown_wakes_accept
    close_leaves_accept_asleep
    the_program_returns_an_index
    a_failing_load_is_index_0
    a_fast_open_syn_has_a_payload
    an_index_out_of_range_is_the_hash
    incoming_cpu_is_obeyed
    steering_needs_no_privilege
    leaving_needs_no_privilege
    a_slow_thread_keeps_its_share_waiting
    a_shared_listener_feeds_the_idle
    hand_off_serves_what_waits
    the_first_registered_epoll_wakes
    a_backlog_of_n_queues_one_more
    somaxconn_cuts_the_backlog
    overflow_costs_a_second
    a_full_queue_drops_the_ack_too
    dropped_syns_come_every_second
    a_reset_client_is_still_accepted
    without_descriptors_it_stays_queued
    without_descriptors_accept_never_waits
    a_udp_socket_joins_at_bind
    a_udp_flow_stays
    adding_a_udp_member_moves_flows
    a_udp_program_sees_the_payload
    a_broadcast_reaches_every_udp_member
    closing_a_udp_socket_drops_in_silence
    a_connected_udp_socket_hears_its_peer
    a_connected_udp_socket_leaves_the_group
    connected_to_itself_it_keeps_what_waits
    a_quic_id_finds_its_member
    one_offset_is_no_quic_id
}

/// All of its pages.
fn guide() -> String {
    let pages = ["mod.rs", "traffic.rs", "beyond.rs", "pitfalls.rs"];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guide");
    let path = |page| folder.join(page);
    pages
        .map(|page| fs::read_to_string(path(page)).unwrap())
        .concat()
}

#[test]
fn guide_command_and_tests_have_the_same_claims() {
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

/// The list names claims that exist, and no reason twice.
#[test]
fn list_of_untried_names_claims_alone() {
    let list = untried_list();

    let reasons: BTreeSet<_> = list.iter().map(|(reason, _)| reason).collect();
    assert_eq!(reasons.len(), list.len());
    for (reason, names) in &list {
        let skipped = if names[0] == "all" { 2 } else { 0 };
        for word in &names[skipped..] {
            let (name, mode) = word.split_once('/').unwrap_or((word, "claim"));
            let function = name.replace('-', "_");
            assert!(TESTED.contains(&function.as_str()), "{reason}: {word}");
            assert!(["claim", "counter"].contains(&mode), "{reason}: {word}");
        }
    }
}

/// A reason lets only those claims be untried that need what is missing.
#[test]
fn claim_that_the_list_does_not_name_may_not_be_untried() {
    let cookies = "net.ipv4.tcp_syncookies is 2: the kernel remembers no handshake";
    let no_bpf = "steering is refused: setsockopt: EPERM";
    let lo_down = "the network interface lo is down";

    assert!(may_be_untried(
        "adding-loses-no-handshake",
        "claim",
        cookies
    ));
    assert!(!may_be_untried("a-udp-flow-stays", "claim", cookies));
    assert!(may_be_untried("a-udp-flow-stays", "counter", no_bpf));
    assert!(!may_be_untried("a-udp-flow-stays", "claim", no_bpf));
    assert!(may_be_untried("a-udp-flow-stays", "claim", lo_down));
    assert!(!may_be_untried("port-0-never-collides", "claim", lo_down));
    assert!(!may_be_untried("a-udp-flow-stays", "claim", "no reason"));
}

#[test]
fn explain_isolated_does_not_see_the_machines_set_up() {
    let claims = ["--claim", "adding-loses-no-handshake"];
    let command = support::reuseport(&[]);
    let mut machine = program("unshare");
    machine.args(["--net", "sh", "-c"]);
    machine.arg("sysctl -qw net.ipv4.tcp_syncookies=2; ip link set lo up; exec \"$@\"");
    machine.arg("sh").arg(command.get_program());
    machine.args(["explain", "--isolated"]).args(claims);
    if !support::tool("unshare") || !support::tool("ip") || !support::tool("sysctl") {
        return;
    }

    let done = finish(&mut machine);

    let (out, err) = (support::text(&done.stdout), support::text(&done.stderr));
    if err.starts_with("unshare: ") {
        return support::skip(err);
    }
    assert_eq!(done.status.code(), Some(0), "{out}{err}");
    assert!(out.contains("no-handshake: holds\n"), "{out}{err}");
}

/// What the guide says elsewhere is proved by a test that it names: `tests/FILE.rs`.
#[test]
fn file_that_the_guide_names_is_there() {
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
fn explain_of_one_claim_reads_well() {
    let (_, out, _) = run(&["explain", "--claim=close-resets-the-queue"]);

    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], "Leaving a group");
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
fn claim_that_could_not_be_measured_is_a_failure() {
    let command = support::reuseport(&[]);
    let mut few = program("sh");
    few.args([
        "-c",
        "ulimit -n 6; exec \"$0\" explain --claim the-hash-spreads-evenly",
    ]);

    let done = finish(few.arg(command.get_program()));

    let (out, err) = (support::text(&done.stdout), support::text(&done.stderr));
    assert_eq!(done.status.code(), Some(1), "{out}{err}");
    assert!(out.contains("could not be measured\n"), "{out}");
    assert!(out.contains("EMFILE"), "{out}");
    assert_eq!(err, "reuseport: 1 could not be measured\n");
}
