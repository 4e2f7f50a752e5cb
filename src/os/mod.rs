//! What differs between kernels.

#[cfg(not(accept4))]
pub(crate) mod apple;
#[cfg(linux_kernel)]
pub(crate) mod linux;
