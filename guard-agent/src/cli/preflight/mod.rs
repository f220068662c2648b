//! Is this node fit to join a cluster? Each finding has an observation and a fix. The checks are
//! pure, here and in `cluster`; `gather` reads the facts, `members` the cluster's answers,
//! `preseed` the plan for the node, `remote` asks a member, `ceph` looks at its files, `stale` has
//! an old entry removed.

mod ceph;
mod cluster;
pub mod command;
mod facts;
mod gather;
pub mod members;
pub mod preseed;
mod remote;
pub mod service;
pub mod stale;
#[cfg(test)]
mod tests;
mod version;

use std::path::Path;

use crate::host::doctor::Check;
use crate::model::address::{Address, Covered};
use crate::model::join::{Config, Daemon};
use crate::model::posture::PostureState;

pub use ceph::Missing;
pub use facts::{Agent, Facts, Leftover};
pub use gather::{Question, Source, TokenText, gather};
pub use remote::Remote;
pub use version::{Server, Version};

/// All checks.
pub fn checks(facts: &Facts) -> Vec<Check> {
    let mut checks = agent(facts);
    checks.extend([
        leftover_mounts(facts),
        membership(facts),
        certificates(facts),
        global_database(facts),
    ]);
    checks.extend([pool_directories(facts), daemon(facts)]);
    checks.extend(preseed(facts));
    checks.extend(token(facts));
    checks.extend(cluster::checks(facts));
    checks
}

const ROLLBACK: &str = "guardctl rollback";

fn agent(facts: &Facts) -> Vec<Check> {
    let name = "agent";
    let (posture, guarded) = match &facts.agent {
        Agent::Unreachable(why) => {
            let fix = "start it first: systemctl start guard-agent (a join without it is not \
                       guarded)";
            return vec![Check::fail("agent-unreachable", name, why, fix)];
        }
        Agent::Unguarded(posture) => {
            let found = format!(
                "{} is no guarded root with join = \"incus\" in its policy",
                facts.root.display()
            );
            let fix = "add [[root]] preset = \"incus\" (or path and join = \"incus\") to the \
                       policy; guardctl policy check";
            (posture, Check::fail("root-unguarded", "guarded root", found, fix))
        }
        Agent::Guards { posture, in_force } => {
            let root = facts.root.display();
            let check = match in_force {
                true => Check::ok("root-in-force", "guarded root", format!("{root} is guarded")),
                false => {
                    let found = format!(
                        "{root} is in the policy, and not in force: does the directory exist?"
                    );
                    Check::warn(
                        "root-in-force",
                        "guarded root",
                        found,
                        format!("mkdir -p {root}; guardctl status"),
                    )
                }
            };
            (posture, check)
        }
    };
    let reasons = || {
        let reasons =
            posture.reasons.iter().map(|reason| format!("{}: {}", reason.code, reason.detail));
        reasons.collect::<Vec<_>>().join("; ")
    };
    let (code, fix) = ("posture", "see guardctl status and guardctl doctor");
    let check = match posture.state {
        PostureState::Enforcing => Check::ok(code, name, "enforcing"),
        PostureState::Degraded => Check::warn(code, name, format!("degraded ({})", reasons()), fix),
        PostureState::AuditOnly => {
            let fix = "give the root another mode than observed: it denies nothing";
            Check::fail(code, name, "audit-only: nothing would be denied", fix)
        }
        PostureState::Inactive => Check::fail(code, name, format!("inactive ({})", reasons()), fix),
    };
    vec![check, guarded]
}

fn leftover_mounts(facts: &Facts) -> Check {
    let (code, name) = ("leftover-mounts", "leftover mounts");
    match &facts.leftovers {
        Err(why) => Check::fail(code, name, why, "run it as root"),
        Ok(mounts) if mounts.is_empty() => Check::ok(code, name, "none, in no mount namespace"),
        Ok(mounts) => {
            let list: Vec<String> = mounts
                .iter()
                .map(|Leftover { place, fs_type, source }| format!("{fs_type} {source} at {place}"))
                .collect();
            let fix = format!(
                "{ROLLBACK} unmounts them and proves that they are gone (Incus must be stopped)"
            );
            Check::fail(code, name, list.join("; "), fix)
        }
    }
}

/// Check of `local.db`.
fn membership(facts: &Facts) -> Check {
    let (code, name) = ("local-database", "local database");
    match &facts.config {
        Config::Unreadable { why } => {
            let fix = "is another process writing it, or is it damaged? guardctl wipe empties the \
                       whole directory";
            Check::fail(code, name, format!("database/local.db cannot be read: {why}"), fix)
        }
        Config::Absent => Check::ok(code, name, "none: a fresh node"),
        Config::Read { raft_nodes: 0, cluster_address: None, .. } => {
            Check::ok(code, name, "no cluster address, no raft nodes")
        }
        Config::Read { raft_nodes: 0, cluster_address: Some(address), .. } => begun(facts, address),
        Config::Read { raft_nodes, .. } => {
            let found =
                format!("{raft_nodes} raft nodes: this node is a member, or a join broke off late");
            let fix = format!(
                "a member does not join again. If the cluster does not list it: there, incus \
                 cluster remove --force {}; here, guardctl wipe",
                facts.server_name
            );
            Check::fail("raft-nodes", name, found, fix)
        }
    }
}

/// A join was begun and has failed. Some versions then take the same address only.
fn begun(facts: &Facts, set: &str) -> Check {
    let (code, name) = ("cluster-address", "local database");
    let found = format!(
        "cluster.https_address is {set}, without raft nodes: a join was begun and has failed"
    );
    let again =
        format!("{ROLLBACK}, then the join can be tried again; or guardctl wipe for a fresh start");
    let unset = format!(
        "while Incus runs: incus config unset cluster.https_address; then {ROLLBACK} --stop-incus, \
         and join; or guardctl wipe for a fresh start"
    );
    let Some(address) = facts.address.as_deref().map(Address::parse) else {
        return Check::warn(code, name, found, again);
    };
    match (Address::parse(set).covers(&address), facts.version) {
        (Covered::Yes, _) => Check::warn(code, name, found, again),
        (_, Some(version)) if !version.keeps_to_set_address() => {
            Check::warn(code, name, found, again)
        }
        (covered, Some(version)) => {
            let found = format!(
                "{found}; Incus {version} joins with that address only, not with {address}"
            );
            match covered {
                Covered::No => Check::fail(code, name, found, unset),
                // Incus looks the name up.
                Covered::Yes | Covered::Unknown => Check::warn(code, name, found, unset),
            }
        }
        (_, None) => {
            let found = format!(
                "{found}; from 6.0.5, 6.15 on Incus joins with that address only, not with \
                 {address}"
            );
            Check::warn(code, name, found, unset)
        }
    }
}

fn certificates(facts: &Facts) -> Check {
    let (code, name) = ("certificates", "certificates");
    let of_cluster: Vec<&str> = facts
        .certificates
        .iter()
        .map(String::as_str)
        .filter(|file| file.starts_with("cluster."))
        .collect();
    if of_cluster.is_empty() {
        let found = if facts.certificates.is_empty() { "none" } else { "the server's own only" };
        return Check::ok(code, name, found);
    }
    let found = format!("{}: an earlier join was accepted by a cluster", of_cluster.join(", "));
    let list: Vec<String> =
        of_cluster.iter().map(|file| facts.root.join(file).display().to_string()).collect();
    let fix =
        format!("if it joins another cluster now: rm {} (with Incus stopped)", list.join(" "));
    Check::warn(code, name, found, fix)
}

fn global_database(facts: &Facts) -> Check {
    let (code, name) = ("global-database", "global database");
    match &facts.global_database {
        Err(why) => Check::warn(code, name, why, "run it as root"),
        Ok(0) => Check::ok(code, name, "empty"),
        // A standalone daemon has one of its own, which the join replaces.
        Ok(_)
            if matches!(
                facts.config,
                Config::Read { raft_nodes: 0, cluster_address: None, .. }
            ) =>
        {
            Check::ok(code, name, "that of a standalone server: the join replaces it")
        }
        Ok(files) => {
            let found = format!("{files} files in database/global that no standalone server wrote");
            Check::warn(code, name, found, "guardctl wipe, if nothing of this node is needed")
        }
    }
}

fn pool_directories(facts: &Facts) -> Check {
    let (code, name) = ("pool-directories", "pool directories");
    match &facts.pool_directories {
        Err(why) => Check::warn(code, name, why, "run it as root"),
        Ok(directories) if directories.is_empty() => Check::ok(code, name, "none"),
        Ok(directories) => {
            let (full, empty): (Vec<_>, Vec<_>) =
                directories.iter().partition(|(_, has_content)| *has_content);
            let names = |list: &[&(String, bool)]| {
                list.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
            };
            let pools = facts.root.join("storage-pools");
            if full.is_empty() {
                let found = format!("empty and not mounted: {}", names(&empty));
                return Check::warn(
                    code,
                    name,
                    found,
                    format!("rmdir {}/NAME: a join makes them anew", pools.display()),
                );
            }
            let found = format!("not mounted, with something in them: {}", names(&full));
            let fix = format!(
                "look into {} before a mount hides it: local data, or what was written while a \
                 pool was not mounted",
                pools.display()
            );
            Check::warn(code, name, found, fix)
        }
    }
}

fn daemon(facts: &Facts) -> Check {
    let (code, name) = ("daemon", "incus daemon");
    match &facts.daemon {
        Daemon::Unknown => {
            Check::warn(code, name, "could not be told whether it runs", "run it as root")
        }
        Daemon::Stopped => Check::ok(code, name, "stopped: the join starts it"),
        Daemon::Running { incarnation, age_seconds } => Check::ok(
            code,
            name,
            format!("running (process {}, for {age_seconds} s)", incarnation.pid),
        ),
    }
}

fn preseed(facts: &Facts) -> Option<Check> {
    let (code, name) = ("preseed", "preseed");
    let preseed = match facts.preseed.as_ref()? {
        Ok(preseed) => preseed,
        Err(why) => {
            let fix = "correct it: Incus would not read it either, and nothing of it was checked";
            return Some(Check::fail(code, name, why, fix));
        }
    };
    if !preseed.joins() {
        let found = "neither cluster_token nor cluster_address: Incus would make a new cluster of \
                     it";
        return Some(Check::fail(
            code,
            name,
            found,
            "on a member: incus cluster add NAME; its token goes in",
        ));
    }
    if preseed.server_address.is_none() {
        let found = "no server_address: Incus refuses such a join";
        return Some(Check::fail(code, name, found, "add cluster: server_address: ADDRESS:8443"));
    }
    let place =
        preseed.inside.as_deref().map(|place| format!(" (inside: {place})")).unwrap_or_default();
    Some(Check::ok(code, name, format!("asks for a join{place}")))
}

fn token(facts: &Facts) -> Option<Check> {
    let (code, name) = ("token", "join token");
    let fix = "make a new one on a member: incus cluster add NAME";
    Some(match facts.token.as_ref()? {
        Err(why) => Check::fail(code, name, why, fix),
        Ok(token) => match token.expires_at {
            Some(expires) if expires.0 <= facts.now.0 => Check::fail(
                "token-expired",
                name,
                format!("it has expired at {:.0}", expires.0),
                fix,
            ),
            expires => {
                let until = expires
                    .map_or("without end".to_owned(), |expires| format!("until {:.0}", expires.0));
                let (server, addresses) = (&token.server_name, token.addresses.join(", "));
                Check::ok(code, name, format!("for {server}, {until}, by {addresses}"))
            }
        },
    })
}

/// The directory in which Incus makes its temporary mounts is named like this.
const TEMPORARY: &str = "incus_cephfs_";

/// Whether a mountpoint is one of those that Incus makes for a moment, with the whole filesystem in
/// it.
pub fn is_temporary(mountpoint: &Path) -> bool {
    mountpoint.components().any(|part| part.as_os_str().to_string_lossy().starts_with(TEMPORARY))
}
