//! A real two-node Incus cluster on one machine, with a pool on kernel CephFS.
//!
//! `machine`: what both nodes stand on, made once for each boot. `node`: one incusd, its client and its
//! socket. `join`: the joiner's way in, and what can be done to it at a step. `stage`: a cluster with a
//! pool, files in it, a guard-agent and the independent mount by which all is judged; it is made anew for
//! each scenario, and everything of it goes with it.

pub mod join;
pub mod machine;
pub mod node;
pub mod stage;

pub use join::Step;
pub use node::Node;
pub use stage::Stage;
