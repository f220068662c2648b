//! The places of an agent's pins and files, and the reasons for which one cannot be read.

use std::io;
use std::path::{Path, PathBuf};

use crate::host::paths;

/// The pins and files of an agent that does not answer.
#[derive(Clone, Debug, clap::Args)]
pub struct Places {
    /// Without an agent: its pins, on a bpffs.
    #[arg(long, value_name = "DIR", default_value = paths::PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Without an agent: its state directory.
    #[arg(long, value_name = "DIR", default_value = paths::STATE_DIR)]
    pub state_dir: PathBuf,
    /// Without an agent: its audit log.
    #[arg(long, value_name = "FILE", default_value = paths::AUDIT)]
    pub audit: PathBuf,
}

/// The reason for which something is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Why {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: it is of layout {found}, which this guardctl does not know")]
    Layout { path: PathBuf, found: u32 },
    #[error("{path}: nothing is pinned there")]
    NoPins { path: PathBuf },
    #[error("{detail}")]
    Other { detail: String, is_forbidden: bool },
}

impl Why {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// Of an error whose cause may be that only root may do this.
    pub(super) fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut source = Some(error);
        let mut is_forbidden = false;
        while let Some(inner) = source {
            let io = inner.downcast_ref::<io::Error>();
            is_forbidden |= io.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
            source = inner.source();
        }
        Self::Other { detail: crate::model::errors::chain(error), is_forbidden }
    }

    /// Whether root could have had it.
    pub(crate) fn needs_root(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Other { is_forbidden, .. } => *is_forbidden,
            Self::Layout { .. } | Self::NoPins { .. } => false,
        }
    }
}
