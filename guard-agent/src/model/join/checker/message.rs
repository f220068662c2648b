//! Messages on their way to the agent in the model's world.

use crate::model::incus::frames::{FrameContent, News};
use crate::model::join::{Event, Evidence};

/// Names of this node, and of another member.
pub(super) const OWN: &str = "node2";
pub(super) const OTHER: &str = "node3";

/// A message on its way to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Message {
    /// `joins`: the node itself was joining, or had just failed to, when it was looked at.
    Evidence {
        current: bool,
        joins: bool,
        evidence: Evidence,
    },
    Frame(Frame),
    Lost,
}

/// A message of the event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Frame {
    Began,
    Ended {
        succeeded: bool,
    },
    Disabled,
    Removed,
    /// Of another member, about itself.
    Other(Other),
}

/// An event on another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Other {
    Began,
    Failed,
    Disabled,
    Removed,
}

impl Frame {
    /// As Incus sends it.
    pub(super) fn report(self) -> FrameContent {
        let failed = || News::JoinFailed { error: String::new() };
        let ended = |succeeded| News::Event(Event::JoinEnded { succeeded });
        let (sender, news) = match self {
            Self::Began => (OWN, News::Event(Event::JoinBegan)),
            Self::Ended { succeeded: false } => (OWN, failed()),
            Self::Ended { succeeded } => (OWN, ended(succeeded)),
            Self::Disabled => (OWN, News::Event(Event::ClusterDisabled)),
            Self::Removed => (OTHER, News::Removed { member: OWN.to_owned() }),
            Self::Other(Other::Began) => (OTHER, News::Event(Event::JoinBegan)),
            // One that has given up has no name any more.
            Self::Other(Other::Failed) => ("", failed()),
            Self::Other(Other::Disabled) => (OTHER, News::Event(Event::ClusterDisabled)),
            Self::Other(Other::Removed) => (OTHER, News::Removed { member: OTHER.to_owned() }),
        };
        FrameContent { news, sender: sender.to_owned() }
    }
}
