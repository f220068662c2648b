//! A process that uses a superblock, and its ways of use.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// A superblock whose users are looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub generation: u64,
    pub dev: u32,
    /// Of its mounts, detached ones included.
    pub mount_ids: BTreeSet<u32>,
}

/// A process that uses a superblock, or something in the kernel that does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub generation: u64,
    /// 0 for the kernel.
    pub pid: u32,
    /// Its command name.
    pub command: String,
    /// The first ways that were found.
    pub via: Vec<Via>,
}

/// Way in which a process uses a superblock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Via {
    WorkingDirectory {
        path: String,
    },
    RootDirectory {
        path: String,
    },
    OpenFile {
        descriptor: u32,
        path: String,
    },
    Mapping {
        path: String,
    },
    LoopDevice {
        device: String,
        path: String,
    },
    /// An overlay that has a layer on it.
    Overlay {
        mountpoint: String,
        path: String,
    },
}

impl std::fmt::Display for Via {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::WorkingDirectory { path } => write!(out, "working directory {path}"),
            Self::RootDirectory { path } => write!(out, "root directory {path}"),
            Self::OpenFile { descriptor, path } => {
                write!(out, "open file {path} (descriptor {descriptor})")
            }
            Self::Mapping { path } => write!(out, "mapped file {path}"),
            Self::LoopDevice { device, path } => write!(out, "loop device {device} on {path}"),
            Self::Overlay { mountpoint, path } => {
                write!(out, "overlay at {mountpoint} with a layer in {path}")
            }
        }
    }
}
