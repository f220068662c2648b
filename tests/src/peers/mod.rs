//! Programs of other people's hosts, in small: programs that delete in ways that no command of
//! Debian does, and programs that run where no command line gets to.

pub mod auditd;
pub mod calls;
pub mod container;
pub mod disguise;
pub mod ecryptfs;
pub mod go;
pub mod holder;
pub mod incusd;
pub mod nfsd;
pub mod obedient;
pub mod own;
pub mod tracer;
pub mod uring;
