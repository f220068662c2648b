//! The meaning of the texts that an Incus server sends: answers of its API, and frames of its event
//! stream. Pure.

pub mod answers;
pub mod frames;
