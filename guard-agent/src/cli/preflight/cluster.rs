//! The node against the cluster to be joined: names, addresses, versions, members. Pure.

use super::facts::Facts;
use super::members::Member;
use super::version::Server;
use crate::host::doctor::Check;
use crate::model::address::{Address, Covered};

/// All checks that need to know something of the cluster, or of the addresses with which this node
/// joins it.
pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let mut checks: Vec<Check> = [wildcard(facts), local_address(facts), core_address(facts)]
        .into_iter()
        .flatten()
        .collect();
    checks.extend(stale(facts));
    checks.extend(members(facts));
    checks.extend(version(facts));
    checks.extend(ceph(facts));
    checks
}

/// A member's address is reached by all others: Incus takes none that stands for several.
fn wildcard(facts: &Facts) -> Option<Check> {
    let address = Address::parse(facts.address.as_deref()?);
    let found =
        format!("{address} stands for all addresses of this host: Incus refuses it for a member");
    let fix = "give the one address by which the other members reach this node";
    address.is_wildcard().then(|| Check::fail("address-wildcard", "server address", found, fix))
}

fn local_address(facts: &Facts) -> Option<Check> {
    let address = facts.address.as_deref().filter(|_| facts.address_is_local == Some(false))?;
    let address = Address::parse(address);
    let found = format!("no interface of this host has {address}: Incus cannot listen there");
    let fix = "give the address by which the other members reach this node, or bring its interface \
               up";
    Some(Check::warn("address-foreign", "server address", found, fix))
}

/// `core.https_address` against the address with which the node is to join.
fn core_address(facts: &Facts) -> Option<Check> {
    let (code, name) = ("core-address", "core.https_address");
    let core = Address::parse(facts.core_address.as_deref()?);
    let address = Address::parse(facts.address.as_deref()?);
    let copied = facts.version.is_some_and(|version| version.copies_core_address());
    Some(match core.covers(&address) {
        Covered::Yes if core.is_wildcard() && copied => {
            let found = format!(
                "it is {core}, which this version of Incus takes over as the member's address, and \
                 then refuses"
            );
            let fix = format!(
                "incus config set core.https_address={address} (or to 6.0.5, 6.14 or later)"
            );
            Check::fail(code, name, found, fix)
        }
        Covered::Yes => Check::ok(code, name, format!("{core} covers {address}")),
        Covered::No | Covered::Unknown => Check::ok(
            code,
            name,
            format!("{core} does not cover {address}: Incus will listen there as well"),
        ),
    })
}

/// Result of a requested removal of stale entries.
fn stale(facts: &Facts) -> Option<Check> {
    let (code, name) = ("stale-member", "stale member");
    Some(match facts.stale.as_ref()? {
        Ok(removed) if removed.is_empty() => Check::ok(code, name, "none: nothing was removed"),
        Ok(removed) => {
            Check::ok(code, name, format!("removed from the cluster: {}", removed.join(", ")))
        }
        Err(why) => {
            let fix = "look at incus cluster list; what is certainly dead: incus cluster remove \
                       --force NAME, on a member";
            Check::fail(code, name, why, fix)
        }
    })
}

/// Members that stand against the join by name or address.
pub(super) fn conflicting<'m>(facts: &Facts, members: &'m [Member]) -> Vec<&'m Member> {
    let address = facts.address.as_deref().map(Address::parse);
    let is_same = |member: &&Member| {
        member.server_name == *facts.wanted_name()
            || address.as_ref().is_some_and(|own| member.address() == *own)
    };
    members.iter().filter(is_same).collect()
}

/// Name and address against the list of members, and the state of the others.
fn members(facts: &Facts) -> Vec<Check> {
    let (code, name) = ("members", "cluster members");
    let members = match &facts.members {
        None => {
            let fix = "on a member: incus cluster list --format json > FILE; then --members FILE \
                       here (or --remote NAME)";
            let found = "not asked: conflicts of name and address were not looked for";
            return vec![Check::warn(code, name, found, fix)];
        }
        Some(Err(why)) => return vec![Check::fail(code, name, why, "give --members FILE instead")],
        Some(Ok(members)) => members,
    };
    let mut checks = Vec::new();
    let wanted = facts.wanted_name();
    if let Some(member) = members.iter().find(|member| member.server_name == *wanted) {
        let found = format!("a member is called {wanted} already (at {})", member.address());
        checks.push(Check::fail("name-conflict", name, found, remove(member)));
    }
    let address = facts.address.as_deref().map(Address::parse);
    if let Some(address) = &address
        && let Some(member) = members.iter().find(|member| member.address() == *address)
    {
        let found = format!(
            "{} has the address {address} already: such a join fails after it has mounted the \
             pools",
            member.server_name
        );
        checks.push(Check::fail("address-conflict", name, found, remove(member)));
    }
    checks.extend(condition(&conflicting(facts, members), members));
    if !checks.is_empty() {
        return checks;
    }
    let found = match address {
        Some(address) => format!("{}: none is called {wanted} or has {address}", members.len()),
        None => {
            format!(
                "{}: none is called {wanted} (addresses were not compared: give --address)",
                members.len()
            )
        }
    };
    vec![Check::ok(code, name, found)]
}

fn remove(member: &Member) -> String {
    let (name, status) = (&member.server_name, &member.status);
    match status.as_str() {
        "Offline" => format!(
            "is it this node's own old entry ({status})? --remote NAME --remove-stale-member \
             removes it; or on a member: incus cluster remove --force {name}"
        ),
        _ => format!(
            "is it this node's own old entry ({status})? then on a member: incus cluster remove \
             --force {name}; never while its incusd runs"
        ),
    }
}

/// Whether the cluster can take a member now. (That it has a majority is shown by its list.) Those
/// that stand against the join are spoken of already.
fn condition(conflicting: &[&Member], members: &[Member]) -> Vec<Check> {
    let name = "cluster members";
    let names = |status: &str| {
        let some = members
            .iter()
            .filter(|member| member.status == status && !conflicting.contains(member));
        some.map(|member| member.server_name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let mut checks = Vec::new();
    let blocked = names("Blocked");
    if !blocked.is_empty() {
        let found = format!(
            "the cluster is being upgraded (Blocked: {blocked}): it takes no member until all have \
             one version"
        );
        checks.push(Check::fail(
            "members-blocked",
            name,
            found,
            "upgrade the rest of the cluster first",
        ));
    }
    let offline = names("Offline");
    if !offline.is_empty() {
        let found = format!("offline: {offline}");
        checks.push(Check::warn(
            "members-offline",
            name,
            found,
            "bring them back, or remove those that are gone for good",
        ));
    }
    checks
}

/// Every member must have the joining server's database schema and number of API extensions.
fn version(facts: &Facts) -> Option<Check> {
    let (code, name) = ("version", "incus version");
    let cluster = match facts.cluster.as_ref()? {
        Ok(server) => server,
        Err(why) => {
            return Some(Check::warn(
                code,
                name,
                why,
                "compare it by hand: incus version, on both",
            ));
        }
    };
    let Server { version, api_extensions } = cluster;
    let Some(own) = facts.version else {
        let found = format!("the cluster has {version}, and this host's is not known");
        return Some(Check::warn(code, name, found, "install the same version of incus here"));
    };
    let (found, is_same) = match facts.api_extensions {
        Some(extensions) => (
            format!(
                "{own} with {extensions} API extensions here, {version} with {api_extensions} in \
                 the cluster"
            ),
            own == *version && extensions == *api_extensions,
        ),
        None => (format!("{own} here, {version} in the cluster"), own == *version),
    };
    let fix = "install the cluster's version here: such a join fails after it has mounted the \
               pools";
    Some(if is_same {
        Check::ok(code, name, found)
    } else {
        Check::fail("version-differs", name, found, fix)
    })
}

/// Files with which Incus mounts the cluster's pools.
fn ceph(facts: &Facts) -> Option<Check> {
    let (code, name) = ("ceph", "ceph");
    let missing = match facts.ceph.as_ref()? {
        Ok(missing) => missing,
        Err(why) => {
            return Some(Check::warn(
                code,
                name,
                why,
                "see that /etc/ceph has configuration and keyring",
            ));
        }
    };
    if missing.is_empty() {
        return Some(Check::ok(code, name, "configuration and keyring of every pool are there"));
    }
    let list: Vec<String> =
        missing.iter().map(|missing| format!("{}: {}", missing.pool, missing.what)).collect();
    let fix = "copy them from a member to /etc/ceph: without them the join fails at the pool";
    let check =
        if missing.iter().any(|missing| missing.is_certain) { Check::fail } else { Check::warn };
    Some(check(code, name, &list.join("; "), fix))
}
