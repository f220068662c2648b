//! The kernel program's object, embedded at build time, and what identifies it.

use sha2::{Digest, Sha256};

/// The object of `guard-ebpf`. Empty if this binary was built without `cargo xtask build`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard-ebpf.o"));

/// Version of this build, with the label that tells two builds of one version apart.
pub const BUILD: &str = env!("GUARD_BUILD");

/// The embedded object; `None` if there is none.
pub fn bytes() -> Option<&'static [u8]> {
    (!OBJECT.is_empty()).then_some(OBJECT)
}

/// Identifies the programs of this build: the start of a hash of the object and the build's name.
pub fn identity() -> String {
    let mut hash = Sha256::new();
    hash.update(OBJECT);
    hash.update(BUILD);
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
