//! The control socket: JSON lines between `guardctl` and the agent.
//!
//! `protocol`, `refusal`, `report` and `pool_name` are pure. `server` (with `connection`, `access`
//! and `socket`) is the agent's side, `client` is `guardctl`'s.

pub mod pool_name;
pub mod protocol;
pub mod refusal;
pub mod report;

pub use protocol::{PROTOCOL, Reply, Request, Response};
pub use refusal::{Refusal, RefusalReport};
pub use report::StatusReport;
