//! What the project says of itself: sizes, wings, the README. Read from the sources.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const WING_ONE: [&str; 5] = ["sys", "error", "address", "listener", "acceptors"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn rust_files(directory: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut rest = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)];
    while let Some(directory) = rest.pop() {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("target") {
                rest.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

#[test]
fn wing_one_is_at_most_900_lines_and_names_no_other_room() {
    let mut lines = 0;
    for room in WING_ONE {
        let text = read(&format!("src/{room}.rs"));
        lines += text.lines().count();
        for (at, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().starts_with("//"))
        {
            for (_, path) in line
                .match_indices("crate::")
                .map(|(i, m)| (i, &line[i + m.len()..]))
            {
                let named = path
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next()
                    .unwrap();
                // `apple` stands in for the C library where that lacks a call.
                let allowed = WING_ONE.contains(&named) || named == "apple";
                assert!(allowed, "src/{room}.rs:{}: names {named}", at + 1);
            }
        }
    }
    assert!(lines <= 900, "{lines} lines");
}

#[test]
fn no_line_is_wider_than_100_and_no_file_longer_than_400() {
    for (path, text) in rust_files("src").into_iter().chain(rust_files("tests")) {
        for (at, line) in text.lines().enumerate() {
            assert!(line.chars().count() <= 100, "{}:{}", path.display(), at + 1);
        }
        let sitting = if path.starts_with(env!("CARGO_MANIFEST_DIR").to_owned() + "/src") {
            400
        } else {
            600
        };
        assert!(text.lines().count() <= sitting, "{}", path.display());
    }
}

#[test]
fn every_unsafe_block_says_why() {
    for (path, text) in rust_files("src") {
        let blocks = text.matches("unsafe {").count();
        let reasons = text.matches("SAFETY:").count();
        assert!(
            reasons >= blocks,
            "{}: {blocks} blocks, {reasons} reasons",
            path.display()
        );
    }
}

/// The fenced blocks of the README: what stands behind the fence, and the lines.
fn blocks(markdown: &str) -> Vec<(String, Vec<String>)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, Vec<String>)> = None;
    for line in markdown.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => open = Some((language.to_owned(), Vec::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, lines)), None) => lines.push(line.to_owned()),
            (None, None) => {}
        }
    }
    assert!(open.is_none() && !blocks.is_empty());
    blocks
}

#[test]
fn the_readmes_two_programs_are_the_mirrors() {
    let trimmed = |path: &str| -> Vec<String> {
        read(path)
            .lines()
            .map(|line| line.trim().to_owned())
            .collect()
    };
    let (c, rust) = (
        trimmed("tests/mirror/reuseport.c"),
        trimmed("tests/mirror/reuseport.rs"),
    );
    let readme = blocks(&read("README.md"));
    let block = |language: &str| {
        let found: Vec<_> = readme.iter().filter(|(l, _)| l == language).collect();
        assert_eq!(found.len(), 1, "{language}");
        &found[0].1
    };
    for (quoted, source) in [(block("c"), &c), (block("rust,ignore"), &rust)] {
        let mut rest = source.iter();
        for line in quoted {
            assert!(
                rest.any(|theirs| theirs == line.trim()),
                "not in the mirror: {line}"
            );
        }
    }
    assert_eq!(
        block("c").len(),
        block("rust,ignore").len(),
        "line beside line"
    );
}

#[test]
fn every_command_of_the_readme_is_run_by_ci() {
    let ci = read(".ci/run");
    for (language, lines) in blocks(&read("README.md")) {
        if language != "sh" {
            continue; // a command within a sentence is a long form, which nobody runs by default
        }
        for line in lines {
            let command = line.split(" #").next().unwrap().trim();
            assert!(ci.contains(command), ".ci/run does not run: {command}");
        }
    }
}

#[test]
fn libc_is_the_only_dependency() {
    let lock = read("Cargo.lock");
    let names: Vec<_> = lock
        .lines()
        .filter_map(|line| line.strip_prefix("name = "))
        .collect();
    assert_eq!(names, ["\"libc\"", "\"reuseport\""]);
}

#[test]
fn the_minimal_package_has_the_same_libc() {
    // The tests build it without a network, so what it needs must be here already.
    let libc = |lock: &str| -> String {
        let rest = lock.split_once("name = \"libc\"\n").expect("libc").1;
        rest.lines().next().expect("a version").to_owned()
    };
    let minimal = read("tests/crates/minimal/Cargo.lock");
    assert_eq!(libc(&minimal), libc(&read("Cargo.lock")));
}

#[test]
fn tests_start_processes_and_set_sysctls_in_one_place() {
    // Spelt so that these lines are none of them.
    let writes = ["fs::write", concat!("/proc", "/sys")];
    let starts = ["spawn", "output", "status"].map(|method| format!(".{method}()"));
    for (path, text) in rust_files("tests") {
        let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
        let inside = |places: &[&str]| places.iter().any(|place| path.ends_with(place));
        for (at, line) in text.lines().enumerate() {
            let place = format!("{}:{}", path.display(), at + 1);
            // The crates have no part in the tests.
            let exempt = path.starts_with("tests/crates") || inside(&["kernel.rs", "steal.rs"]);
            let starts = starts.iter().any(|start| line.contains(start));
            assert!(
                !starts || exempt || inside(&["support/process.rs"]),
                "{place}: use support::start or support::finish"
            );
            let sets = writes.iter().all(|word| line.contains(word));
            assert!(
                !sets || inside(&["support/namespace.rs", "tests/namespace.rs"]),
                "{place}: use support::role_with_sysctls"
            );
        }
    }
}

/// What both readmes must have alike: the lines of their code blocks, the words in code, how many
/// rows their tables and how many sections they have.
fn shape(readme: &str) -> (Vec<&str>, BTreeSet<&str>, usize, usize) {
    let (mut blocks, mut words, mut rows, mut sections) = (Vec::new(), BTreeSet::new(), 0, 0);
    let mut inside = false;
    for line in readme.lines() {
        if line.starts_with("```") || inside {
            blocks.push(line);
            inside ^= line.starts_with("```");
            continue;
        }
        words.extend(line.split('`').skip(1).step_by(2));
        rows += usize::from(line.starts_with('|') || line.starts_with("<t"));
        sections += usize::from(line.starts_with('#'));
    }
    (blocks, words, rows, sections)
}

#[test]
fn the_chinese_readme_keeps_step() {
    let (english, chinese) = (read("README.md"), read("README.zh-CN.md"));
    let (english, chinese) = (shape(&english), shape(&chinese));
    for (line, same) in english.0.iter().zip(&chinese.0) {
        assert_eq!(line, same);
    }
    let strange: Vec<_> = english.1.symmetric_difference(&chinese.1).collect();
    assert!(strange.is_empty(), "in one of them alone: {strange:?}");
    let counts = |of: &(Vec<_>, BTreeSet<_>, usize, usize)| (of.0.len(), of.2, of.3);
    assert_eq!(
        counts(&english),
        counts(&chinese),
        "lines of code, rows, sections"
    );
}
