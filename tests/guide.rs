//! The guide's pictures and length, and the README's first program. Read from the sources.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The files of the guide that end in `extension`, in the order of their names.
fn files(extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("src/guide")).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|it| it == extension));
    files.sort();
    files
}

/// Checks a picture as XML: elements are closed in order, attributes are quoted, and no character
/// stands bare that begins a tag or an entity. Comments and declarations are not used.
fn well_formed(xml: &str) -> Result<(), String> {
    let mut open: Vec<&str> = Vec::new();
    let mut elements = 0;
    let mut rest = xml.trim();
    while !rest.is_empty() {
        let (text, tag) = rest.split_once('<').unwrap_or((rest, ""));
        if text.contains(['&', '>']) || (open.is_empty() && !text.is_empty()) {
            return Err(format!("stray text: {text:?}"));
        }
        let Some((tag, behind)) = tag.split_once('>') else {
            return Err(format!("no end of the tag <{tag}"));
        };
        rest = behind;
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Err(format!("</{name}> closes another element"));
            }
            continue;
        }
        let (tag, is_empty) = tag
            .strip_suffix('/')
            .map_or((tag, false), |tag| (tag, true));
        let name = tag.split(' ').next().unwrap_or_default();
        attributes(&tag[name.len()..]).map_err(|why| format!("<{tag}>: {why}"))?;
        if open.is_empty() && elements > 0 {
            return Err(format!("<{name}> is a second root"));
        }
        elements += 1;
        if !is_empty {
            open.push(name);
        }
    }
    if !open.is_empty() || elements == 0 {
        return Err(format!("left open: {open:?}"));
    }
    Ok(())
}

/// Checks ` name="value"`, as many of them as there are.
fn attributes(text: &str) -> Result<(), String> {
    let mut rest = text;
    while !rest.is_empty() {
        let inner = rest.strip_prefix(' ').ok_or("no space before it")?;
        let (name, value) = inner.split_once("=\"").ok_or("no quote")?;
        let is_name = |c: char| c.is_ascii_alphabetic() || c == '-' || c == ':';
        if name.is_empty() || !name.chars().all(is_name) {
            return Err(format!("no name: {name:?}"));
        }
        let (value, behind) = value.split_once('"').ok_or("no closing quote")?;
        if value.contains(['<', '&']) {
            return Err(format!("stray character: {value:?}"));
        }
        rest = behind;
    }
    Ok(())
}

#[test]
fn every_picture_is_well_formed_and_can_stand_in_a_page() {
    let pictures = files("svg");
    assert!(pictures.len() >= 5, "{pictures:?}");
    for picture in pictures {
        let text = fs::read_to_string(&picture).unwrap();
        let name = picture.file_name().unwrap().to_str().unwrap();

        assert_eq!(well_formed(&text), Ok(()), "{name}");
        // Markdown ends HTML at an empty line, and a page shares its styles.
        assert!(!text.contains("\n\n"), "{name}");
        for class in text.split("class=\"").skip(1) {
            let classes = class.split('"').next().unwrap().split(' ');
            classes.for_each(|class| assert!(class.starts_with("rp-"), "{name}: {class}"));
        }
        // Light and dark, and read aloud.
        for part in [
            "currentColor",
            "prefers-color-scheme: dark",
            "<title>",
            "<desc>",
        ] {
            assert!(text.contains(part), "{name} has no {part}");
        }
    }
}

#[test]
fn every_picture_is_shown_and_in_the_package() {
    let pages: String = files("rs")
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let package = read("Cargo.toml");
    assert!(package.contains("\"/src/guide/*.svg\""));
    for picture in files("svg") {
        let name = picture.file_name().unwrap().to_str().unwrap();
        let shown = format!("include_str!(\"{name}\")");
        assert_eq!(pages.matches(&shown).count(), 1, "{name}");
    }
}

#[test]
fn a_mistake_in_a_picture_is_found() {
    let wrong = [
        "",
        "<svg>",
        "<svg></svg><svg></svg>",
        "<svg><g></svg></g>",
        "<svg width=1></svg>",
        "<svg width=\"1\"height=\"1\"></svg>",
        "<svg>a & b</svg>",
        "<svg><text>a</text",
    ];

    for picture in wrong {
        assert!(well_formed(picture).is_err(), "{picture}");
    }
    assert_eq!(well_formed("<svg a=\"1\" b=\"2\"><g/>text</svg>\n"), Ok(()));
}

/// A list states facts: each of its items names the test, or the source.
#[test]
fn every_item_of_the_guides_lists_names_its_proof() {
    let sources = [
        "explain --claim",
        "`tests/",
        "(measured",
        "commit ",
        "RFC ",
        "(7)",
        "(2)",
        "(8)",
        ".rst",
        "follows from", // arithmetic
        "Handlers that never block.",
    ];
    let mut items = 0;
    for page in ["src/guide/mod.rs", "src/guide/traffic.rs"] {
        let text = read(page);
        let lines = text.lines().map(|line| line.strip_prefix("//! "));
        let mut item = String::new();
        for line in lines.chain([None]) {
            let begins = line.is_some_and(|line| line.starts_with("- "));
            let goes_on = line.is_some_and(|line| line.starts_with("  ")) && !item.is_empty();
            if !goes_on && !item.is_empty() {
                let proved = sources.iter().any(|source| item.contains(source));
                assert!(proved, "{page}: no test or source: {item}");
                (item, items) = (String::new(), items + 1);
            }
            if begins || goes_on {
                item += line.unwrap_or_default();
            }
        }
    }
    assert!(items > 40, "{items}");
}

/// At 238 words a minute, the mean of adults (Brysbaert 2019), code and diagrams included.
#[test]
fn the_guide_can_be_read_in_half_an_hour() {
    let pages = files("rs");

    let words = pages.iter().map(|page| {
        let text = fs::read_to_string(page).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("//!"));
        lines
            .map(|line| line.split_whitespace().count())
            .sum::<usize>()
    });

    let words: usize = words.sum();
    assert!((3000..=7140).contains(&words), "{words}");
}

#[test]
fn the_readmes_server_is_the_recipe() {
    let recipe = read("tests/crates/recipes/src/bin/ctrl_c.rs");
    let (_, program) = recipe.split_once("\n\n").unwrap();

    assert!(program.contains("fn main()"));
    assert!(read("README.md").contains(program));
}
