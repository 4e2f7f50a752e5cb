fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for arg in ["-Wl,--gc-sections,-z,norelro,--hash-style=gnu,--build-id=none,-z,noseparate-code,--no-eh-frame-hdr"] {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
}
