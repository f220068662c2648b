//! The policy: protected filesystems, and the processes that may delete in them.
//!
//! `file` reads the text, `raw` takes it apart, `validate` makes a [`Policy`] of it or names every
//! problem, `diff` compares two of them. All but `file` is pure. `plan` decides on the contents of
//! each map.
//!
//! Roots may be nested: a mount belongs to the innermost root above it that guards its kind.

pub mod diff;
pub mod duration;
mod error;
mod filesystem;
mod model;
mod preset;
mod raw;
#[cfg(test)]
mod tests;
mod validate;

pub use error::{PolicyErrors, Problem};
pub use filesystem::Filesystem;
pub use model::{
    Actor, DefaultMode, IncusNode, LeaseLimits, MAX_TTL, OnJoinFailure, Policy, Root, TierChoice,
};
pub use validate::parse;
