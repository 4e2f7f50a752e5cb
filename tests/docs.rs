//! What the public items say of themselves. Read from the sources.

use std::path::{Path, PathBuf};
use std::{collections::HashSet, fs};

/// A public item that Linux and Android alone have.
struct Item {
    place: String,
    name: String,
    docs: String,
    /// The type that it is a method of.
    of: Option<String>,
}

/// The lines with their numbers, and what was open around each: how far indented, whether for Linux
/// alone, and an `impl`'s type.
fn linux_items(file: &str, text: &str, whole_file: bool) -> Vec<Item> {
    let (mut found, mut open) = (Vec::new(), Vec::<(usize, bool, Option<String>)>::new());
    let (mut docs, mut attributes) = (String::new(), String::new());
    for (at, line) in text.lines().enumerate() {
        let code = line.trim_start();
        if let Some(words) = code.strip_prefix("///") {
            docs += words;
            continue;
        }
        if code.starts_with("#[") {
            attributes += code;
            continue;
        }
        if code.is_empty() || code.starts_with("//") {
            continue;
        }
        let indent = line.len() - code.len();
        open.retain(|(outer, ..)| *outer < indent);
        let positive = attributes.replace("not(linux_kernel)", "");
        let here = positive.contains("linux_kernel") || positive.contains("target_os");
        let around = open.iter().any(|(_, linux, _)| *linux) || whole_file;
        let exported = code.strip_prefix("pub ").filter(|item| {
            let hidden = attributes.contains("doc(hidden)");
            !item.starts_with("use ") && !item.starts_with("mod ") && !hidden
        });
        if let Some(item) = exported.filter(|_| here || around) {
            let name = item.split(['(', '<', '{', ':', ';', '=']).next().unwrap();
            found.push(Item {
                place: format!("{file}:{}", at + 1),
                name: name.split_whitespace().last().unwrap().to_owned(),
                docs: docs.clone(),
                of: open.iter().find_map(|(.., of)| of.clone()),
            });
        }
        if code.ends_with('{') && !code.contains("fn ") {
            let of = code.starts_with("impl").then(|| type_of(code));
            open.push((indent, here, of));
        }
        (docs, attributes) = (String::new(), String::new());
    }
    found
}

/// `Options` of `impl<'a, P> Options<'a, P> {`.
fn type_of(code: &str) -> String {
    let mut depth = 0;
    let outside = code["impl".len()..].chars().filter(|c| {
        depth += i32::from(*c == '<');
        let outside = depth == 0;
        depth -= i32::from(*c == '>');
        outside
    });
    let outside: String = outside.collect();
    let words: Vec<_> = outside
        .split([' ', '{'])
        .filter(|w| !w.is_empty())
        .collect();
    let of = words
        .iter()
        .position(|word| *word == "for")
        .map_or(0, |at| at + 1);
    words[of].to_owned()
}

/// The items of a module and of those inside it, `module` being a path in src/ such as `os/linux`.
/// `linux`: the module is there on Linux and Android alone.
fn items_of(module: &str, linux: bool) -> Vec<Item> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = [format!("{module}.rs"), format!("{module}/mod.rs")];
    let file = files.iter().find(|file| root.join(file).is_file());
    let file = file.unwrap_or_else(|| panic!("no file for the module {module}"));
    let text = fs::read_to_string(root.join(file)).unwrap();
    let mut items = linux_items(file, &text, linux);
    let folder = match module {
        "lib" => String::new(),
        module => format!("{module}/"),
    };
    let mut attribute = "";
    for line in text.lines() {
        let declared = line.split_once("mod ").filter(|_| line.ends_with(';'));
        if let Some((_, inner)) = declared {
            let only_here = attribute.contains("linux_kernel") && !attribute.contains("not(");
            let inner = format!("{folder}{}", inner.trim_end_matches(';'));
            items.extend(items_of(&inner, linux || only_here));
        }
        attribute = line;
    }
    items
}

/// The files of modules that are exported on Linux and Android alone: `pub use a::b as c;`.
fn linux_modules() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let text = fs::read_to_string(root.join("lib.rs")).unwrap();
    let pairs = text.lines().zip(text.lines().skip(1));
    let exports = pairs.filter(|(attribute, _)| attribute.starts_with("#[cfg(linux_kernel"));
    let exports = exports.filter_map(|(_, line)| line.strip_prefix("pub use ")?.split_once(" as "));
    let files = exports.map(|(path, _)| root.join(path.replace("::", "/") + ".rs"));
    files.collect()
}

#[test]
fn item_of_linux_alone_says_so() {
    let mut items = items_of("lib", false);
    // A method of a type that is not there elsewhere needs no words of its own.
    let types = items.iter().filter(|item| item.of.is_none());
    let types: HashSet<_> = types.map(|item| item.name.clone()).collect();
    items.retain(|item| item.of.as_ref().is_none_or(|of| !types.contains(of)));

    let silent = items.iter().filter(|item| !item.docs.contains("Linux"));
    let silent: Vec<_> = silent
        .map(|item| format!("{} {}", item.place, item.name))
        .collect();
    assert!(silent.is_empty(), "{silent:#?}");

    let known = [
        "attach_program",
        "attach_syn_filter",
        "hand_over",
        "incoming_cpu",
        "queue",
        "Batch",
        "HandOver",
    ];
    for known in known {
        let seen = items.iter().any(|item| item.name == known);
        assert!(seen, "{known} was not seen");
    }
}

/// A reader of an item in such a module has come through the module's own page.
#[test]
fn module_of_linux_alone_says_so() {
    let modules = linux_modules();
    assert!(!modules.is_empty());

    for file in modules {
        let text = fs::read_to_string(&file).unwrap();
        let page = text.lines().take_while(|line| line.starts_with("//!"));
        let page: String = page.collect();
        assert!(page.contains("Linux and Android alone"), "{file:?}");
    }
}

#[test]
fn documented_and_known_targets_are_checked_by_ci() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();

    let (checked, manifest, kernels) =
        (read(".ci/platforms"), read("Cargo.toml"), read("build.rs"));
    let documented = manifest
        .split("docs.rs]")
        .nth(1)
        .unwrap()
        .split(']')
        .next()
        .unwrap();

    let known = kernels.split("KERNELS: ").nth(1).unwrap().lines().skip(1);
    let known = known
        .take_while(|line| *line != "];")
        .filter_map(|line| line.split('"').nth(1));
    let known = known.map(|kernel| match kernel {
        "macos" => "-apple-darwin",
        kernel => kernel,
    });

    let targets = documented.split('"').skip(1).step_by(2);
    let targets: Vec<_> = targets.chain(known).collect();

    assert!(targets.len() > 10, "{targets:?}");
    for target in targets {
        assert!(
            checked.contains(target),
            ".ci/platforms does not check {target}"
        );
    }
}
