//! Whether this process sees the host, or a container that takes itself for one.
//!
//! From within a container PID 1 is the container's own, and so is its mount table: the host would
//! be taken for a guest, and its deletions allowed.

use std::fs;
use std::io;
use std::path::Path;

/// Link to the PID namespace of this process.
const PID_NAMESPACE: &str = "/proc/self/ns/pid";
/// Name of the host's PID namespace. Its number is the kernel's `PROC_PID_INIT_INO`, unchanged
/// since Linux 3.8.
const FIRST: &str = "pid:[4026531836]";

/// The PID namespace of this process, if it is not the host's.
pub fn foreign_pid_namespace() -> io::Result<Option<String>> {
    let link = fs::read_link(Path::new(PID_NAMESPACE))?;
    let name = link.to_string_lossy().into_owned();
    Ok((!is_hosts(&name)).then_some(name))
}

/// Whether a PID namespace is the host's, by its name.
pub fn is_hosts(pid_namespace: &str) -> bool {
    pid_namespace == FIRST
}
