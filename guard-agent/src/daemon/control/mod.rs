//! The agent's side of the control socket.

pub mod access;
mod connection;
pub mod server;
pub mod shared;
pub mod socket;

pub use access::{Access, Peer};
pub use server::Server;
pub use shared::{Command, ServerOptions};
pub use socket::SocketError;
