//! What the project says of itself: sizes, layers, the README. Read from the sources.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The C program in Rust.
const C_PROGRAM: [&str; 5] = ["sys", "error", "address", "listener", "acceptors"];

/// The folders, each built on those before it, and what lies below all of them. `os` takes the data
/// types of sockets, and sockets ask `os`: there alone a circle of folders is allowed.
const LAYERS: [&str; 4] = ["socket", "group", "server", "restart"];
const BELOW: [&str; 1] = ["os"];
const CIRCLE: [&str; 2] = ["os", "socket"];

/// What tells one kernel from another.
const KERNEL_CFGS: [&str; 6] = [
    "linux_kernel",
    "target_os",
    "target_vendor",
    "balances",
    "accept4",
    "reuseport_lb",
];

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

/// The lines of code of a file: its path below the package, and each line with its number.
fn code(path: &Path, text: &str) -> (String, Vec<(usize, String)>) {
    let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().starts_with("//"));
    let lines = lines.map(|(at, line)| (at + 1, line.to_owned())).collect();
    (path.to_str().unwrap().to_owned(), lines)
}

/// The modules below the root that a file names: `crate::name`, and `crate::{name, name}`.
fn modules_named(lines: &[(usize, String)]) -> Vec<(usize, String)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut named = Vec::new();
    for (at, line) in lines {
        for (start, found) in line.match_indices("crate::") {
            let rest = &line[start + found.len()..];
            let group = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let names = group.map_or(rest, |(names, _)| names);
            let count = if group.is_some() { usize::MAX } else { 1 };
            let words = names.split(',').map(str::trim_start).take(count);
            let firsts = words.map(|word| word.split(|c| !is_part(c)).next().unwrap());
            named.extend(firsts.map(|name| (*at, name.to_owned())));
        }
    }
    named
}

/// The folder or file below `src` in which a file is.
fn layer_of(path: &str) -> &str {
    let below = path.strip_prefix("src/").unwrap();
    let first = below.split('/').next().unwrap();
    first.strip_suffix(".rs").unwrap_or(first)
}

/// Whether a file of `layer` may name `named`. Of the root that is `BALANCES` alone: what `lib.rs`
/// re-exports is named where it lives.
fn may_name(layer: &str, named: &str) -> bool {
    if named == "BALANCES" {
        return true;
    }
    let rank = |name| LAYERS.iter().position(|layer| *layer == name);
    if C_PROGRAM.contains(&layer) {
        // `os::apple` stands in for the C library where that lacks a call.
        return C_PROGRAM.contains(&named) || (layer, named) == ("sys", "os");
    }
    if CIRCLE.contains(&layer) && CIRCLE.contains(&named) {
        return true;
    }
    match (rank(layer), rank(named)) {
        _ if C_PROGRAM.contains(&named) || BELOW.contains(&named) => true,
        (Some(layer), Some(named)) => named <= layer,
        _ => !LAYERS.contains(&layer) && !BELOW.contains(&layer),
    }
}

#[test]
fn imports_of_each_layer_lead_downwards() {
    let mut seen = BTreeSet::new();
    for (path, text) in rust_files("src") {
        let (path, lines) = code(&path, &text);
        let layer = layer_of(&path);
        // The front page names all, and the command is a user of the library.
        if ["lib", "guide", "bin"].contains(&layer) {
            continue;
        }
        for (at, named) in modules_named(&lines) {
            assert!(
                may_name(layer, &named),
                "{path}:{at}: {layer} names {named}"
            );
            seen.insert((layer.to_owned(), named));
        }
    }
    for pair in [
        ("group", "socket"),
        ("server", "group"),
        ("restart", "server"),
    ] {
        let pair = (pair.0.to_owned(), pair.1.to_owned());
        assert!(
            seen.contains(&pair),
            "the reader of imports sees nothing of {pair:?}"
        );
    }
}

#[test]
fn c_program_is_at_most_900_lines_and_names_of_os_apple_alone() {
    let mut lines = 0;
    for file in C_PROGRAM {
        let path = format!("src/{file}.rs");
        let text = read(&path);
        lines += text.lines().count();
        for (at, line) in code(&Path::new(env!("CARGO_MANIFEST_DIR")).join(&path), &text).1 {
            let of_os = line.contains("crate::os") && !line.contains("crate::os::apple");
            assert!(!of_os, "{path}:{at}: names more of os than apple");
        }
    }
    assert!(lines <= 900, "{lines} lines");
}

#[test]
fn no_line_is_wider_than_100_and_no_file_longer_than_350() {
    for (path, text) in rust_files("src").into_iter().chain(rust_files("tests")) {
        let (path, _) = code(&path, &text);
        for (at, line) in text.lines().enumerate() {
            assert!(line.chars().count() <= 100, "{path}:{}", at + 1);
        }
        let most = match path.as_str() {
            path if path.starts_with("src/guide/") => 400,
            path if path.starts_with("src/") => 350,
            _ => 600,
        };
        assert!(text.lines().count() <= most, "{path} is longer than {most}");
    }
}

/// Whether a line stands in a function's body: what encloses it is no item that holds items.
fn is_in_a_body(lines: &[(usize, String)], index: usize) -> bool {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let own = indent(&lines[index].1);
    let mut before = lines[..index].iter().rev().map(|(_, line)| line.as_str());
    let outer = before.find(|line| !line.trim().is_empty() && indent(line) < own);
    let holds_items = |line: &str| {
        let mut words = line.split_whitespace();
        let word = words
            .find(|word| !word.starts_with("pub"))
            .unwrap_or_default();
        let item = word.split('<').next().unwrap_or_default();
        ["impl", "mod", "trait", "struct", "enum", "where", "{"].contains(&item)
    };
    outer.is_some_and(|line| !holds_items(line))
}

#[test]
fn kernels_are_told_apart_at_the_walls() {
    let mut outside = Vec::new();
    for (path, text) in rust_files("src") {
        let (path, lines) = code(&path, &text);
        if ["os", "sys", "error", "bin", "guide"].contains(&layer_of(&path)) {
            continue;
        }
        for (index, (at, line)) in lines.iter().enumerate() {
            let has_cfg =
                line.contains("cfg(") || line.contains("cfg!(") || line.contains("cfg_attr(");
            if has_cfg && KERNEL_CFGS.iter().any(|name| line.contains(name)) {
                assert!(
                    !is_in_a_body(&lines, index),
                    "{path}:{at}: in a function body"
                );
                outside.push(format!("{path}:{at}"));
            }
        }
    }
    assert!(!outside.is_empty(), "the reader of cfgs sees none");
    assert!(outside.len() <= 20, "{}: {outside:#?}", outside.len());
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
        let is_it = |lines: &[String]| lines.iter().any(|line| line.contains("socket("));
        let mut found = readme.iter().collect::<Vec<_>>();
        found.retain(|(l, lines)| l == language && is_it(lines));
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
fn top_level_holds_what_the_card_names() {
    let allowed = [
        ".ci .gitignore CHANGELOG.md Cargo.lock Cargo.toml LICENSE-APACHE LICENSE-MIT",
        "README.md README.zh-CN.md build.rs src tests",
    ];
    let allowed: BTreeSet<_> = allowed.iter().flat_map(|line| line.split(' ')).collect();

    // What is built or written beside them is not the repository's.
    let mut git = std::process::Command::new("git");
    git.args(["-C", env!("CARGO_MANIFEST_DIR"), "ls-files"]);
    let files = String::from_utf8(support::finish(&mut git).stdout).unwrap();
    let names = files.lines().filter_map(|file| file.split('/').next());
    let others: BTreeSet<_> = names.filter(|name| !allowed.contains(name)).collect();

    assert!(others.is_empty(), "{others:?}");
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
            let exempt = path.starts_with("tests/crates") || inside(&["kernel.rs"]);
            let starts = starts.iter().any(|start| line.contains(start));
            assert!(
                !starts || exempt || inside(&["support/process.rs"]),
                "{place}: use support::start or support::finish"
            );
            let sets = writes.iter().all(|word| line.contains(word));
            let own = [
                "support/namespace.rs",
                "support/wire.rs",
                "tests/namespace.rs",
            ];
            assert!(
                !sets || inside(&own),
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

/// The words of docs and comments, without what stands in backticks.
fn words_of_comments(text: &str) -> Vec<String> {
    let comments = text.lines().filter_map(|line| {
        let (code, comment) = line.split_once("//")?;
        // Elsewhere two slashes stand in a string.
        (code.trim().is_empty() || code.ends_with("; ")).then_some(comment)
    });
    let prose = comments.map(|comment| comment.split('`').step_by(2).collect::<String>());
    let letters = |c: char| !c.is_alphabetic();
    let words = prose.map(|prose| prose.to_lowercase());
    let words = words.map(|prose| prose.split(letters).map(str::to_owned).collect::<Vec<_>>());
    words.flatten().filter(|word| !word.is_empty()).collect()
}

/// A kernel, a worker or a client acts, and has a name. At most one such word in 2000 remains.
#[test]
fn docs_and_comments_name_the_thing_that_acts() {
    let vague =
        "who whoever whom nobody anybody somebody stranger strangers told tell tells want wants";
    let vague: BTreeSet<_> = vague.split(' ').collect();
    let (mut all, mut found) = (0, Vec::new());
    for (path, text) in rust_files("src") {
        let words = words_of_comments(&text);
        all += words.len();
        let few = words.iter().filter(|word| vague.contains(word.as_str()));
        found.extend(few.map(|word| format!("{}: {word}", path.display())));
    }
    assert!(all > 10_000, "the reader of comments sees {all} words");
    assert!(
        found.len() * 2000 <= all,
        "{} in {all}: {found:#?}",
        found.len()
    );
}
