//! Puts a file descriptor under tokio's reactor.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Types of which every value owns one descriptor and never changes it.
///
/// # Safety
/// `as_raw_fd` returns the same open descriptor for as long as the value lives.
pub unsafe trait OwnsDescriptor: AsRawFd {}

// SAFETY: each owns its descriptor, sets it once, and closes it when it is dropped.
unsafe impl OwnsDescriptor for std::fs::File {}
// SAFETY: as above.
unsafe impl OwnsDescriptor for std::os::fd::OwnedFd {}
// SAFETY: as above.
unsafe impl<T: std::borrow::Borrow<aya::maps::MapData>> OwnsDescriptor for aya::maps::RingBuf<T> {}
// SAFETY: as above.
unsafe impl<T: log::Log> OwnsDescriptor for aya_log::EbpfLogger<T> {}

/// Watches a descriptor. Must be called within a tokio runtime.
pub fn watch<T: OwnsDescriptor>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the trait's promise is the one that this call asks for.
    unsafe { AsyncFd::register_with_interest(inner, interest) }.map_err(io::Error::from)
}
