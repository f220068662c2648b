//! Default paths. Each has a command-line option.

/// The policy file.
pub const POLICY: &str = "/etc/guard-agent/policy.toml";
/// State that survives a reboot.
pub const STATE_DIR: &str = "/var/lib/guard-agent";
/// The control socket's directory.
pub const RUN_DIR: &str = "/run/guard-agent";
/// The audit log.
pub const AUDIT: &str = "/var/log/guard-agent/audit.jsonl";
/// Pins of programs, maps and links. Must be on a bpffs.
pub const PIN_DIR: &str = "/sys/fs/bpf/guard-agent";
/// Name of the control socket in the run directory.
pub const SOCKET_NAME: &str = "control.sock";
/// Name of the running agent's lock in the state directory.
pub const LOCK_NAME: &str = "agent.lock";
/// Name of the nodes' journals' directory in the state directory.
pub const NODES_NAME: &str = "nodes";
