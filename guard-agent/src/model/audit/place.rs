//! The pool that a line of the audit log is about. Pure.

use serde::{Deserialize, Serialize};

/// A pool id as it is written: sixteen hexadecimal digits.
pub fn pool_id_text(pool_id: u64) -> String {
    format!("{pool_id:016x}")
}

/// `s_dev` as `major:minor`.
pub fn device_text(dev: u32) -> String {
    format!("{}:{}", dev >> 20, dev & 0xf_ffff)
}

/// The pool that a line is about. Everything is null for a superblock without an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Sixteen hexadecimal digits.
    pub pool_id: Option<String>,
    /// The pool's name.
    pub pool: Option<String>,
    pub mountpoint: Option<String>,
    pub generation: Option<u64>,
}
