//! The files and directories of an agent.

use std::path::PathBuf;

use crate::host::paths;

/// Where everything is.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The policy file.
    #[arg(long, value_name = "FILE", default_value = paths::POLICY)]
    pub policy: PathBuf,
    /// State that survives a reboot. Not below a guarded root.
    #[arg(long, value_name = "DIR", default_value = paths::STATE_DIR)]
    pub state_dir: PathBuf,
    /// Directory of the control socket.
    #[arg(long, value_name = "DIR", default_value = paths::RUN_DIR)]
    pub run_dir: PathBuf,
    /// The audit log.
    #[arg(long, value_name = "FILE", default_value = paths::AUDIT)]
    pub audit: PathBuf,
    /// Pins of programs, maps and links; on a bpffs.
    #[arg(long, value_name = "DIR", default_value = paths::PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Take the container that this runs in for the host, as a demonstration in namespaces of its
    /// own wants it.
    #[arg(long, hide = true)]
    pub container_as_host: bool,
}
