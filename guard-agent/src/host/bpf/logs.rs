//! The kernel program's own diagnostics (aya-log), into `tracing`.

use std::fmt;
use std::path::Path;

use aya::programs::{ProgramError, ProgramInfo};
use aya_log::EbpfLogger;
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::host::reactor;

/// The diagnostics cannot be read. Enforcement does not depend on them.
#[derive(Debug, Error)]
pub enum LogError {
    #[error("look up the pinned program")]
    Program(#[from] ProgramError),
    #[error("find the kernel program's log")]
    Log(#[from] aya_log::Error),
    #[error("watch the kernel program's log")]
    Io(#[from] std::io::Error),
}

/// Reads the diagnostics of a pinned program; every load shares one map of them.
pub struct KernelLog(AsyncFd<EbpfLogger<&'static dyn log::Log>>);

impl fmt::Debug for KernelLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KernelLog")
    }
}

impl KernelLog {
    /// Finds the log of a pinned program.
    pub fn open(program: &Path) -> Result<Self, LogError> {
        let id = ProgramInfo::from_pin(program)?.id();
        let logger = EbpfLogger::init_from_id(id)?;
        Ok(Self(reactor::watch(logger, Interest::READABLE)?))
    }

    /// Waits for diagnostics and writes them to the log.
    pub async fn forward(&mut self) -> std::io::Result<()> {
        let mut ready = self.0.readable_mut().await?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
        Ok(())
    }
}
