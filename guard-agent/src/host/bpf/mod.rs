//! Everything that talks to the kernel's BPF: offsets, loading, pins, typed maps, the canary.
//!
//! It acts and reports; `classify` and `plan` decide which pools to protect.

pub mod apply;
mod attach;
pub mod btf;
pub mod canary;
mod carry;
pub mod description;
pub mod foreign;
#[cfg(test)]
mod kept_model;
pub mod layouts;
pub mod load;
pub mod load_error;
pub mod logs;
pub mod maps;
pub mod object;
pub mod offsets;
pub mod pins;
mod program;
mod program_calls;
mod sys;
mod tree;

pub use canary::CanaryError;
pub use load::Programs;
pub use load_error::LoadError;
pub use maps::{MapAccessError, Maps};
