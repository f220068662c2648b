//! The control socket: JSON lines between `guardctl` and the agent.
//!
//! `protocol`, `refusal`, `report` and `pool_name` are pure. `server` (with `connection`, `access`
//! and `socket`) is the agent's side, `client` is `guardctl`'s.

pub mod access;
pub mod client;
mod connection;
pub mod pool_name;
pub mod protocol;
pub mod refusal;
pub mod report;
pub mod server;
pub mod shared;
pub mod socket;

pub use access::{Access, Peer};
pub use client::{Client, ClientError};
pub use protocol::{PROTOCOL, Reply, Request, Response};
pub use refusal::{Refusal, RefusalReport};
pub use report::StatusReport;
pub use server::Server;
pub use shared::{Command, ServerOptions};
pub use socket::SocketError;
