//! The demonstration: what an operator would see. (Now only the ground it stands on.)

use anyhow::Result;

use crate::harness::ceph::CephMount;
use crate::harness::command;

/// Runs in the VM, with a Ceph cluster beside it.
pub fn run() -> Result<()> {
    let pool = CephMount::new("/mnt/demo")?;
    println!("$ df {}", pool.path().display());
    println!("{}", command::run("df", &["-h", &pool.path().to_string_lossy()])?);
    Ok(())
}
