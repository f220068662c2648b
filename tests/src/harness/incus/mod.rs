//! A real two-node Incus cluster on one machine, with a pool on kernel CephFS.
//!
//! `machine`: the common ground of both nodes, made once for each boot. `node`: one incusd, its
//! client and its socket. `cluster`: the cluster that is joined, with a pool, files, and the
//! independent mount by which all is judged. `join`: the joiner's way in, and the faults that can
//! hit it at a step. `container`: a guest with a volume of the pool. `stage`: all of it with a
//! guard-agent, anew for each scenario. `clean`: nothing of it stays.

pub mod clean;
pub mod cluster;
pub mod container;
pub mod join;
pub mod machine;
pub mod node;
pub mod stage;

pub use container::Container;
pub use join::Step;
pub use node::Node;
pub use stage::Stage;
