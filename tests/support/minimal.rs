//! Builds the package tests/crates/minimal.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::{finish, program, skip, text, tool};

pub const PACKAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/crates/minimal");

/// The linker that comes with Rust, or `None` where the tests cannot be run.
pub fn linker() -> Option<[String; 2]> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let libdir = finish(program(rustc).args(["--print", "target-libdir"])).stdout;
    let directory = Path::new(text(&libdir).trim()).join("../bin/gcc-ld");
    if !directory.join("ld.lld").is_file() {
        skip("no rust-lld");
        return None;
    }
    let found = ["cc", "nm", "readelf"].iter().all(|name| tool(name));
    found.then(|| [format!("-B{}", directory.display()), "-fuse-ld=lld".into()])
}

/// Builds the package in a target directory of its own.
pub fn cargo(linker: &[String; 2], directory: &str, args: &[&str]) -> Output {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(directory);
    let flags = linker.each_ref().map(|arg| format!("'-Clink-arg={arg}'"));
    let mut cargo = program(env!("CARGO"));
    cargo
        .current_dir(PACKAGE)
        .args(["build", "--release", "--locked", "--offline"]);
    cargo.arg("--target-dir").arg(directory).args(args);
    cargo.args(["--target", "x86_64-unknown-linux-gnu", "--config"]);
    cargo.arg(format!("build.rustflags=[{}]", flags.join(",")));
    // These would displace the package's own.
    cargo
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    finish(&mut cargo)
}

/// Where the programs are.
#[track_caller]
pub fn build(linker: &[String; 2], directory: &str, args: &[&str]) -> PathBuf {
    let done = cargo(linker, directory, args);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(directory);
    directory.join("x86_64-unknown-linux-gnu/release")
}
