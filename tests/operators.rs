//! `serve` as operators run it: in a terminal, as PID 1, from a link to a release, under a
//! supervisor.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::FromRawFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::{io, thread};

use support::{
    BOUND, ServeProcess, child_of, finish, program, reuseport, start, tool, visit, wait_until,
    word_after,
};

const REUSEPORT: &str = env!("CARGO_BIN_EXE_reuseport");
const SERVE: [&str; 3] = ["serve", "--addr", "127.0.0.1:0"];

/// A terminal: the end at which a person sits, and the other.
struct Terminal {
    person: File,
    program: File,
}

impl Terminal {
    /// Gives a command a terminal as its standard input, which controls it. No process inherits the
    /// person's end: when it is closed, the terminal is gone.
    fn of(command: &mut Command) -> Terminal {
        // SAFETY: takes an integer.
        let fd = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: opened by the line above.
        let person = unsafe { File::from_raw_fd(fd) };
        // SAFETY: takes a descriptor.
        assert_eq!(unsafe { libc::unlockpt(fd) }, 0);
        let mut name = [0_u8; 64];
        // SAFETY: `name` is writable for its length.
        let named = unsafe { libc::ptsname_r(fd, name.as_mut_ptr().cast(), name.len()) };
        assert_eq!(named, 0);
        let name = name.split(|byte| *byte == 0).next().unwrap();
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        let program = options.open(support::text(name)).unwrap();
        command.stdin(program.try_clone().unwrap());
        let take_it = || {
            // SAFETY: takes nothing.
            unsafe { libc::setsid() };
            // SAFETY: takes integers; standard input is the terminal.
            match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: the function makes system calls alone.
        unsafe { command.pre_exec(take_it) };
        Terminal { person, program }
    }

    fn clone(&self) -> File {
        self.program.try_clone().unwrap()
    }

    /// Reads what the program writes, until it has written this.
    fn read_until(&mut self, wanted: &str) {
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains(wanted) {
            let mut more = [0; 1024];
            let length = support::bounded(&self.person).read(&mut more).unwrap();
            text.extend(&more[..length]);
        }
    }
}

/// A shell that runs these lines with `serve` as its arguments.
fn shell(lines: &str) -> Command {
    let mut shell = program("sh");
    shell.args(["-c", lines, "sh", REUSEPORT]).args(SERVE);
    shell.stdout(Stdio::null());
    shell
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: takes two integers.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

fn pid_after(said: &str, what: &str) -> i32 {
    word_after(said, what).parse().expect("a pid")
}

#[test]
fn closed_terminal_ends_the_server_and_serves_what_is_queued() {
    let mut serve = reuseport(&SERVE);
    let terminal = Terminal::of(&mut serve);
    serve.stdout(terminal.clone());
    let server = ServeProcess::from(&mut serve);
    server.signal(libc::SIGSTOP);
    let connect = |_| TcpStream::connect(server.address).unwrap();
    let clients: Vec<_> = (0..20).map(connect).collect();

    drop(terminal);
    server.signal(libc::SIGCONT);

    for mut client in clients {
        client.set_read_timeout(Some(BOUND)).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "served to its end");
    }
    let (code, _, err) = server.end();
    assert_eq!(code, Some(0), "{err}");
    assert!(!err.contains("handed over"), "{err}");
}

#[test]
fn sigusr2_in_a_terminal_hands_over_to_a_process_that_ends_with_it() {
    let mut serve = shell("\"$@\" & wait; read -r line");
    let terminal = Terminal::of(&mut serve);
    let mut server = ServeProcess::from(&mut serve);
    let address = server.address;

    signal(child_of(server.pid()), libc::SIGUSR2);

    let said = server.read_stderr_until("handed over to pid ");
    let new = pid_after(&said, "handed over to pid ");
    assert!(Path::new(&format!("/proc/{new}")).exists());
    visit(address);
    drop(terminal);
    wait_until("the new process has ended", || {
        TcpStream::connect(address).is_err()
    });
}

/// Starts a command in a terminal, waits until its progress shows `wanted`, and presses Ctrl-C.
/// Returns what it has printed. It must have ended by that signal.
fn interrupted(args: &[&str], wanted: &str) -> String {
    let mut command = reuseport(args);
    let mut terminal = Terminal::of(&mut command);
    let running = start(command.stderr(terminal.clone()));
    terminal.read_until(wanted);

    terminal.person.write_all(b"\x03").unwrap();

    let done = running.into_output();
    assert_eq!(done.status.signal(), Some(libc::SIGINT), "{done:?}");
    support::text(&done.stdout).to_owned()
}

#[test]
fn ctrl_c_has_connect_print_what_it_has_counted() {
    let server = ServeProcess::start(&["--quiet"]);
    let address = server.address.to_string();
    let many = ["--connections", "1000000000", "--concurrency", "4"];

    let out = interrupted(
        &[&["connect", "--addr", &address], &many[..]].concat(),
        "of 1000000000",
    );

    let made: usize = out.split(' ').next().unwrap().parse().unwrap();
    assert!(made > 0 && out.contains(" connections in "), "{out}");
    assert!(!out.contains("failed"), "{out}");
}

#[test]
fn ctrl_c_ends_connect_that_waits_for_an_answer() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();

    let out = interrupted(
        &["connect", "--addr", &address, "--timeout", "86400000"],
        "1 of 10",
    );

    assert!(out.starts_with("0 connections in "), "{out}");
}

#[test]
fn ctrl_c_has_compare_print_the_complete_rounds() {
    let out = interrupted(
        &["compare", "--seconds=0.05", "--rounds", "1000"],
        "round 3 of 1000",
    );

    assert!(
        out.contains(", 1000 rounds, 0.05 s a turn: takes "),
        "{out}"
    );
    let table = out.split("\n\n").nth(1).unwrap();
    assert!(
        table.lines().count() > 4 && table.contains("\nsingle "),
        "{out}"
    );
    assert!(out.contains("rounds are too few to conclude from"), "{out}");
}

#[test]
fn ctrl_c_before_a_round_is_complete_ends_compare_with_a_line() {
    let mut compare = reuseport(&["compare", "--seconds", "3600"]);
    let mut terminal = Terminal::of(&mut compare);
    let running = start(compare.stderr(terminal.clone()));
    terminal.read_until("round 1 of");

    terminal.person.write_all(b"\x03").unwrap();

    terminal.read_until("reuseport: no round is complete");
    assert_eq!(running.into_output().status.signal(), Some(libc::SIGINT));
}

#[test]
fn sighup_that_nohup_ignores_stays_ignored() {
    let mut server = ServeProcess::from(&mut shell("trap '' HUP; exec \"$@\""));

    // The kernel delivers the lower first.
    server.signal(libc::SIGHUP);
    server.signal(libc::SIGUSR1);

    let said = server.read_stderr_until("acceptor 2");
    server.signal(libc::SIGTERM);
    let (code, _, more) = server.end();
    assert_eq!(code, Some(0));
    assert!(!(said + &more).contains("handed over"));
}

/// Runs `unshare` with these options, or skips the test where this machine refuses them.
fn unshare(options: &[&str]) -> Option<Command> {
    if !tool("unshare") {
        return None;
    }
    let command = || {
        let mut command = program("unshare");
        command.args(options);
        command
    };
    let tried = finish(command().arg("true"));
    if tried.status.success() {
        return Some(command());
    }
    support::skip(&format!("unshare: {}", support::text(&tried.stderr)));
    None
}

#[test]
fn hand_over_by_pid_1_is_refused_and_ends_nothing() {
    let Some(mut serve) = unshare(&["--pid", "--fork", "--mount-proc", "--kill-child"]) else {
        return;
    };
    let mut server = ServeProcess::from(serve.arg(REUSEPORT).args(SERVE).stdout(Stdio::null()));
    let inside = child_of(server.pid());

    for asking in [libc::SIGHUP, libc::SIGUSR2] {
        signal(inside, asking);
        server.read_stderr_until("not handed over: this process is PID 1 of its PID namespace");
    }

    visit(server.address);
    signal(inside, libc::SIGTERM);
    assert_eq!(server.end().0, Some(0));
}

/// Releases in directories of their own, and the link `current`.
struct Releases(PathBuf);

impl Releases {
    fn new(name: &str) -> Releases {
        let releases = Releases(support::scratch(name));
        releases.install("v1");
        releases
    }

    fn install(&self, release: &str) {
        fs::create_dir_all(self.0.join(release)).unwrap();
        support::copy(REUSEPORT, self.0.join(release).join("reuseport"));
        _ = fs::remove_file(self.0.join("current"));
        symlink(release, self.0.join("current")).unwrap();
    }

    fn called(&self) -> PathBuf {
        self.0.join("current/reuseport")
    }

    /// The release that a process runs.
    fn of(pid: i32) -> String {
        let file = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        let release = file.parent().and_then(Path::file_name).unwrap();
        release.to_string_lossy().into_owned()
    }
}

#[test]
fn moved_link_starts_the_new_release_though_the_old_one_is_removed() {
    for by_path in [false, true] {
        let releases = Releases::new("releases");
        let called = releases.called();
        let mut serve = if by_path {
            let mut serve = program("reuseport");
            serve.env("PATH", called.parent().unwrap());
            serve
        } else {
            program(&called)
        };
        let mut server = ServeProcess::from(serve.args(SERVE).stdout(Stdio::null()));
        let mut pid = server.pid();
        assert_eq!(Releases::of(pid), "v1");

        for (old, new) in [("v1", "v2"), ("v2", "v3")] {
            releases.install(new);
            fs::remove_dir_all(releases.0.join(old)).unwrap();
            pid = server.hand_over(pid);
            assert_eq!(Releases::of(pid), new, "by path: {by_path}");
        }

        visit(server.address);
        signal(pid, libc::SIGKILL);
    }
}

#[test]
fn name_of_another_file_starts_the_running_one() {
    for name in ["/bin/sh", "sh", "no-such-program", ""] {
        let releases = Releases::new("names");
        let mut serve = program(releases.called());
        serve.arg0(name).args(SERVE).stdout(Stdio::null());
        let mut server = ServeProcess::from(&mut serve);
        releases.install("v2");

        let new = server.hand_over(server.pid());

        assert_eq!(Releases::of(new), "v1", "called {name:?}");
        signal(new, libc::SIGKILL);
    }
}

#[test]
fn lack_of_the_program_is_said_at_the_hand_over_alone() {
    let releases = Releases::new("removed");
    let mut serve = program(releases.called());
    let mut server = ServeProcess::from(serve.args(SERVE).stdout(Stdio::null()));
    fs::remove_dir_all(releases.0.join("v1")).unwrap();

    server.signal(libc::SIGHUP);

    let called = releases.called();
    let line = format!(
        "not handed over: starting {}: No such file",
        called.display()
    );
    server.read_stderr_until(&line);
    visit(server.address);
}

#[test]
fn server_without_proc_serves_and_hands_over() {
    let Some(mut serve) = unshare(&["--mount"]) else {
        return;
    };
    let lines = "mount -t tmpfs none /proc && exec \"$@\"";
    serve.args(["sh", "-c", lines, "sh", REUSEPORT]).args(SERVE);
    let mut server = ServeProcess::from(serve.stdout(Stdio::null()));

    let new = server.hand_over(server.pid());

    visit(server.address);
    signal(new, libc::SIGKILL);
}

/// A supervisor that follows one pid, and starts the program again when that ends.
fn supervised(address: &str) -> ServeProcess {
    let mut supervisor = program("sh");
    let lines = "while :; do \"$@\" & wait $!; done";
    supervisor.args(["-c", lines, "sh", REUSEPORT, "serve", "--quiet"]);
    ServeProcess::from(supervisor.args(["--join", "--addr", address]))
}

#[test]
fn two_joined_copies_under_supervisors_are_restarted_without_a_loss() {
    let mut first = supervised("127.0.0.1:0");
    let mut second = supervised(&first.address.to_string());
    let (address, done) = (first.address, AtomicBool::new(false));

    let visits = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut visits = 0;
            while !done.load(SeqCst) {
                visit(address);
                visits += 1;
            }
            visits
        });
        for copy in [&mut first, &mut second] {
            signal(child_of(copy.pid()), libc::SIGTERM);
            copy.read_stderr_until("listening on ");
        }
        done.store(true, SeqCst);
        load.join().expect("every visit is served")
    });

    assert!(visits > 0);
}

#[test]
fn sockets_of_several_units_are_served_and_left_to_the_service_manager() {
    if !tool("systemd-socket-activate") || !support::own_namespace() {
        return support::skip("no systemd-socket-activate, or no namespace with ports of its own");
    }
    // It takes no port 0. In a namespace where no other process is, no other takes these meanwhile.
    let free = ["127.0.0.1:0", "[::1]:0"].map(|address| TcpListener::bind(address).unwrap());
    let [v4, v6] = free.map(|listener| listener.local_addr().unwrap());
    let mut activate = program("systemd-socket-activate");
    for address in [v4, v6] {
        activate.args(["-l", &address.to_string()]);
    }
    activate.args([REUSEPORT, "serve", "--quiet"]);
    let mut systemd = start(activate.stdout(Stdio::null()).stderr(Stdio::piped()));
    let mut stderr = systemd.stderr();
    support::read_until(&mut stderr, &format!("Listening on {v6}"));

    // The first to come has the program started.
    (0..5).for_each(|_| _ = visit(v6));
    (0..3).for_each(|_| _ = visit(v4));
    systemd.signal(libc::SIGTERM);

    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    let kept = "; what is queued is left to the holder of the socket\n";
    for (address, count) in [(v4, 3), (v6, 5)] {
        assert!(
            said.contains(&format!("listening on {address} with 3 acceptors")),
            "{said}"
        );
        let line = said
            .lines()
            .find(|line| line.contains(&format!("{address}, pid ")));
        let line = line.unwrap().to_owned() + "\n";
        assert!(
            line.ends_with(&format!(": {count} connections{kept}")),
            "{said}"
        );
    }
}
