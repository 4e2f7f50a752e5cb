//! The linker's arguments. They belong to a program: a library's would reach everybody's.

use std::env::var;

/// Each is explained in README.md. `sizes` gives the C program the same.
const LINK: &str = include_str!("link-args");

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link-args");
    println!("cargo::rerun-if-changed=discard.ld");
    let here = var("CARGO_MANIFEST_DIR").unwrap();
    for argument in LINK.split_whitespace() {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/discard.ld");
    // Without `std`, nobody else names the C library where it is linked statically.
    let is_static = var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|all| all.contains("crt-static"));
    let libraries: &[&str] = match var("CARGO_CFG_TARGET_ENV").as_deref() {
        Ok("musl") => &["-Wl,-Bstatic,--no-dynamic-linker", "-lc"],
        Ok("gnu") if is_static => &[
            "-Wl,-Bstatic,--start-group",
            "-lgcc_eh",
            "-lgcc",
            "-lc",
            "-Wl,--end-group",
        ],
        _ => &[],
    };
    for library in libraries {
        println!("cargo::rustc-link-arg-bins={library}");
    }
}
