//! What does each kernel do with several listening sockets on one port? One table; every `cfg` of this crate
//! comes out of it. Nothing is probed: the target's name decides, so a cross build decides alike.

/// `balances`: connections are spread among the sockets. Without it, one socket gets them all.
/// `reuseport_lb`: it balances under another name, `SO_REUSEPORT_LB`.
/// `linux_kernel`: steering, queue lengths and the list of sockets can be had from the kernel.
/// `accept4`: `accept4` and `SOCK_CLOEXEC` exist.
const KERNELS: &[(&str, &[&str])] = &[
    ("linux", &["balances", "linux_kernel", "accept4"]), // since 3.9
    ("android", &["balances", "linux_kernel", "accept4"]),
    ("freebsd", &["balances", "reuseport_lb", "accept4"]), // since 12.0
    ("dragonfly", &["balances", "accept4"]),               // since 3.6
    ("netbsd", &["accept4"]),
    ("openbsd", &["accept4"]),
    ("macos", &[]),
    ("ios", &[]),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for cfg in ["balances", "reuseport_lb", "linux_kernel", "accept4"] {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
    }
    let target = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    match KERNELS.iter().find(|(name, _)| *name == target) {
        Some((_, cfgs)) => cfgs
            .iter()
            .for_each(|cfg| println!("cargo::rustc-cfg={cfg}")),
        None => println!(
            "cargo::error=reuseport does not know what the kernel of `{target}` does with SO_REUSEPORT; \
             it runs on: {}",
            KERNELS
                .iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}
