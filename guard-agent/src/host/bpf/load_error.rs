//! Why the programs could not be put in force.

use guard_common::LAYOUT_VERSION;
use thiserror::Error;

use super::btf::BtfError;
use super::foreign::ForeignError;
use super::maps::MapAccessError;
use super::object::ObjectError;
use super::pins::PinError;
use super::program::ProgramError;
use crate::model::errors::chain;

pub(super) const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The programs could not be put in force.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("this binary was built without the kernel program: build it with `cargo xtask build`")]
    NoObject,
    #[error(
        "read {VMLINUX_BTF}: the kernel was built without CONFIG_DEBUG_INFO_BTF, or /sys is not \
         mounted"
    )]
    NoBtf(#[source] std::io::Error),
    #[error(transparent)]
    Btf(#[from] BtfError),
    #[error("this binary's kernel program cannot be fitted to this kernel")]
    Unfit(#[from] ObjectError),
    #[error(
        "the kernel has no LSM hook `{hook}` for BPF: it needs CONFIG_BPF_LSM and \
         CONFIG_SECURITY_PATH"
    )]
    NoHook { hook: &'static str },
    #[error(
        "the kernel has no function `{function}` for the tier fmod-ret: it needs \
         CONFIG_SECURITY_PATH"
    )]
    NoFunction { function: String },
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(
        "the pinned maps in {directory} have layout {version}, and this agent (layout \
         {LAYOUT_VERSION}) cannot carry over what they hold; nothing was changed, and their \
         programs go on enforcing: start the version of guard-agent that made them, or a newer one \
         than this"
    )]
    Incompatible {
        directory: String,
        version: u32,
        #[source]
        source: Box<ForeignError>,
    },
    #[error(
        "the pinned maps in {directory}, of another layout, cannot be read; nothing was changed, \
         and their programs go on enforcing"
    )]
    Foreign {
        directory: String,
        #[source]
        source: Box<ForeignError>,
    },
    #[error(
        "the pins in {directory} are of a build that did not describe its map layout, which this \
         agent cannot carry over; nothing was changed, and their programs go on enforcing: \
         `guard-agent unload` ends them, and nothing is protected until this agent is started \
         after it"
    )]
    OlderPins { directory: String },
    #[error(
        "the pinned maps in {directory} say layout {found}, and their directory says \
         {LAYOUT_VERSION}"
    )]
    Damaged { directory: String, found: u32 },
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error(transparent)]
    Map(#[from] MapAccessError),
}

impl LoadError {
    /// The error in a line, without the verifier's words, which are for the log and for readers
    /// that ask for them.
    pub fn in_brief(&self) -> String {
        match self {
            Self::Program(ProgramError::Load { program, function, source, .. }) => {
                format!("the kernel refused to load program {program} for `{function}`: {source}")
            }
            Self::Program(ProgramError::Types { source, .. }) => {
                format!("the kernel refused the object's types: {source}")
            }
            other => chain(other).lines().next().unwrap_or_default().to_owned(),
        }
    }

    /// The verifier's own words, if it has said any.
    pub fn verifier(&self) -> Option<String> {
        match self {
            Self::Program(
                ProgramError::Load { verifier, .. } | ProgramError::Types { verifier, .. },
            ) => Some(verifier.clone()),
            _ => None,
        }
    }

    /// Whether another tier may do on this kernel.
    pub fn is_of_the_tier(&self) -> bool {
        matches!(
            self,
            Self::NoHook { .. }
                | Self::NoFunction { .. }
                | Self::NoBtf(_)
                | Self::Btf(_)
                | Self::Unfit(_)
                | Self::Program(_)
        )
    }
}
