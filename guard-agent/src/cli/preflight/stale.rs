//! Removes a stale entry of this node from the cluster, on an operator's word: one that the cluster
//! lists as offline, and that certainly speaks for no server that lives. A running member that is
//! removed by force goes on deleting the cluster's data, so nothing is removed on a guess.

use super::Facts;
use super::cluster::conflicting;
use super::members::Member;
use crate::model::join::Config;

/// Requests to the cluster.
pub trait Cluster {
    fn members(&mut self) -> Result<Vec<Member>, String>;
    /// Removes a member by force.
    fn remove(&mut self, name: &str) -> Result<(), String>;
}

/// Removes the entries that stand against the join, and shows it by another look at the list.
/// Returns the removed names, and the list as it is then.
pub fn remove(
    facts: &Facts,
    cluster: &mut dyn Cluster,
) -> Result<(Vec<String>, Vec<Member>), String> {
    may_remove(facts)?;
    // Not from the list that the checks were made with: an hour may lie between.
    let members = cluster.members()?;
    let stale: Vec<Member> = conflicting(facts, &members).into_iter().cloned().collect();
    for member in &stale {
        is_stale(facts, member)?;
    }
    for member in &stale {
        let name = &member.server_name;
        cluster.remove(name).map_err(|why| format!("{name} was not removed: {why}"))?;
    }
    if stale.is_empty() {
        return Ok((Vec::new(), members));
    }
    let members = cluster
        .members()
        .map_err(|why| format!("removed, but whether it is gone is not known: {why}"))?;
    let removed: Vec<String> = stale.into_iter().map(|member| member.server_name).collect();
    match members.iter().find(|member| removed.contains(&member.server_name)) {
        Some(member) => Err(format!("{} is still listed after its removal", member.server_name)),
        None => Ok((removed, members)),
    }
}

fn may_remove(facts: &Facts) -> Result<(), String> {
    match &facts.config {
        Config::Read { raft_nodes: 0, .. } | Config::Absent => {}
        Config::Read { .. } => {
            return Err(
                "this node's own database says that it is a member: it may be the one that is \
                 listed"
                    .to_owned(),
            );
        }
        Config::Unreadable { why } => {
            return Err(format!("whether this node is a member cannot be told: {why}"));
        }
    }
    match &facts.leftovers {
        Ok(mounts) if mounts.is_empty() => Ok(()),
        Ok(_) => {
            Err("pools of an earlier join are still mounted here: guardctl rollback first"
                .to_owned())
        }
        Err(why) => Err(format!("whether pools are mounted here cannot be told: {why}")),
    }
}

fn is_stale(facts: &Facts, member: &Member) -> Result<(), String> {
    let Member { server_name: name, status, .. } = member;
    if status != "Offline" {
        return Err(format!("{name} is listed as {status:?}, not as offline: it is not removed"));
    }
    // One of another name may be another server, whose address was given here by mistake.
    if *name != *facts.wanted_name() && facts.address_is_local != Some(true) {
        return Err(format!(
            "{name} has the address given, which this host has not: it may be another server"
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "stale_tests.rs"]
mod tests;
