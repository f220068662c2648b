//! A host with a pool that is not shared: tmpfs below a guarded root. For what does not depend on
//! the filesystem, without a cluster.

use anyhow::Result;

use super::guard::{Guard, POLICY};
use super::lab::{Lab, Name};
use super::machine::Machine;
use super::states::State;

/// The guarded root, and the pool below it.
pub const ROOT: &str = "/srv/guarded";
pub const POOL: &str = "/srv/guarded/pool";
/// The only program that may delete in the pool.
pub const ACTOR: &str = "/usr/bin/busybox";
/// Files in the pool.
pub const FILES: usize = 400;

/// The policy that guards it, in some tier.
pub fn policy(tier: &str) -> String {
    format!(
        "version = 1\n[[root]]\npath = \"{ROOT}\"\nfilesystems = [\"tmpfs\"]\nactors = [{{ \
         executable = \"{ACTOR}\" }}]\n[enforcement]\ntier = \"{tier}\"\n"
    )
}

/// One host alone with the package, the policy and a pool full of files; enforcing.
pub fn start(tier: &str) -> Result<Lab> {
    let lab = Lab::start(State::Booted, &[Name::N1])?;
    let host = lab.host(Name::N1);
    prepare(host, tier)?;
    Guard::install(host)?;
    guard(host, tier)?;
    Ok(lab)
}

/// The pool and its files.
pub fn prepare(host: &Machine, tier: &str) -> Result<()> {
    let script = format!(
        "set -e; mkdir -p {POOL}; mount -t tmpfs pool {POOL}
        for d in $(seq 1 8); do mkdir {POOL}/d$d; for f in $(seq 1 {}); do echo precious >{POOL}/d$d/f$f; done; done
        mkdir -p /root; printf %s '{}' >/root/policy.toml",
        FILES / 8,
        policy(tier)
    );
    host.run(&script).map(drop)
}

/// Puts the policy in force.
pub fn guard(host: &Machine, tier: &str) -> Result<()> {
    host.run(&format!("cp /root/policy.toml {POLICY}; systemctl restart guard-agent"))?;
    let guard = Guard::of(host);
    if tier == "fanotify" { guard.answers() } else { guard.enforces() }
}

/// Number of the files that are there, without those that a test has added. In the tier `fanotify`
/// only an actor may list them.
pub fn files(host: &Machine) -> Result<usize> {
    Ok(host.run(&format!("{ACTOR} find {POOL} -type f -name 'f*' | wc -l"))?.trim().parse()?)
}
