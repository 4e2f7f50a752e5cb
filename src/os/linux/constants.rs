//! What the kernel has, and the libc crate only for some C libraries.

#[cfg(all(feature = "std", target_env = "gnu"))]
pub(crate) use libc::SO_BINDTOIFINDEX;
#[cfg(all(feature = "std", target_os = "linux"))]
pub(crate) use libc::dup3;
#[cfg(target_env = "gnu")]
pub(crate) use libc::{SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF};
#[cfg(target_env = "gnu")]
pub(crate) use libc::{SO_INCOMING_CPU, SO_MEMINFO, SO_PEERNAME};

#[cfg(not(target_env = "gnu"))]
pub(crate) use generic::*;

/// The numbers of `asm-generic/socket.h`. The processors that have their own numbers, such as
/// SPARC, exist in Rust with GNU's library only.
#[cfg(not(target_env = "gnu"))]
mod generic {
    use core::ffi::c_int;

    pub(crate) const SO_PEERNAME: c_int = 28;
    pub(crate) const SO_INCOMING_CPU: c_int = 49;
    pub(crate) const SO_ATTACH_REUSEPORT_CBPF: c_int = 51;
    pub(crate) const SO_MEMINFO: c_int = 55;
    #[cfg(feature = "std")]
    pub(crate) const SO_BINDTOIFINDEX: c_int = 62;
    pub(crate) const SO_DETACH_REUSEPORT_BPF: c_int = 68;
}

/// `asm-generic/socket.h`, and SPARC's. Older versions of the libc crate lack it.
#[cfg(feature = "std")]
pub(crate) const SO_NETNS_COOKIE: core::ffi::c_int = if SPARC { 0x50 } else { 71 };
#[cfg(feature = "std")]
const SPARC: bool = cfg!(any(target_arch = "sparc", target_arch = "sparc64"));

/// `linux/prctl.h`.
#[cfg(feature = "std")]
pub(crate) const PR_SET_NAME: core::ffi::c_int = 15;

#[cfg(all(feature = "std", target_os = "android"))]
unsafe extern "C" {
    /// In Android's C library since API level 21.
    pub(crate) fn dup3(old: i32, new: i32, flags: i32) -> i32;
}
