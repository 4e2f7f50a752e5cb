//! What the one kernel of Linux and Android has, and the libc crate for Linux alone.

#[cfg(all(feature = "std", target_os = "linux"))]
pub(crate) use libc::dup3;
#[cfg(target_os = "linux")]
pub(crate) use libc::{SO_INCOMING_CPU, SO_MEMINFO};

// The numbers of asm-generic/socket.h, which every processor has that Android runs on.
#[cfg(target_os = "android")]
pub(crate) const SO_INCOMING_CPU: core::ffi::c_int = 49;
#[cfg(target_os = "android")]
pub(crate) const SO_MEMINFO: core::ffi::c_int = 55;

#[cfg(all(feature = "std", target_os = "android"))]
unsafe extern "C" {
    /// In Android's C library since API level 21.
    pub(crate) fn dup3(old: i32, new: i32, flags: i32) -> i32;
}
