//! The kernel program's object, embedded at build time, and what identifies it.

use sha2::{Digest, Sha256};

/// The object of `guard-ebpf`. Empty if this binary was built without `cargo xtask build`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard-ebpf.o"));

/// Set at build time to tell two builds of one version apart.
const LABEL: Option<&str> = option_env!("GUARD_BUILD_LABEL");

/// The embedded object; `None` if there is none.
pub fn bytes() -> Option<&'static [u8]> {
    (!OBJECT.is_empty()).then_some(OBJECT)
}

/// Version of this build, with its label.
pub fn build() -> String {
    match LABEL {
        Some(label) if !label.is_empty() => format!("{}+{label}", env!("CARGO_PKG_VERSION")),
        _ => env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Identifies the programs of this build: the start of a hash of the object and the build's name.
pub fn identity() -> String {
    let mut hash = Sha256::new();
    hash.update(OBJECT);
    hash.update(build());
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
