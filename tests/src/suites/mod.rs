//! The tests, one file for each group, in the order in which they run.

mod actors_standin;
mod alias_cephfs;
mod alias_standin;
mod allow_cephfs;
mod audit_standin;
mod bypass_actors_standin;
mod bypass_calls_standin;
mod bypass_cephfs;
mod bypass_mounts_standin;
mod bypass_stacked_standin;
mod command_lease_standin;
mod control_standin;
mod detour_cephfs;
mod erase_cephfs;
mod exec_standin;
mod failures_incus;
mod fanotify_cephfs;
mod fanotify_standin;
mod fanotify_trouble_standin;
mod gap_standin;
mod ground_cephfs;
mod ground_standin;
mod host;
mod host_cephfs;
mod identity_parts_standin;
mod identity_standin;
mod inactive_standin;
mod incident_incus;
mod joined_incus;
mod journal_standin;
mod lab_standin;
mod layout_standin;
mod lease_standin;
mod million_standin;
mod modes_standin;
mod node_cluster_standin;
mod node_standin;
mod node_trouble_standin;
mod notify_standin;
mod policy_standin;
mod restart_standin;
mod rollback_standin;
mod seal_cephfs;
mod seal_standin;
mod silent_standin;
mod tier_standin;
mod torn_standin;
mod trouble_incus;
mod unmount_standin;
mod views_standin;
mod window_cephfs;
mod wipe_standin;
mod workload_cephfs;
mod workload_standin;
mod workload_views_cephfs;

use crate::harness::registry::{Suite, Test};

const STANDIN: &[&[Test]] = &[
    ground_standin::TESTS,
    modes_standin::TESTS,
    actors_standin::TESTS,
    alias_standin::TESTS,
    identity_parts_standin::TESTS,
    identity_standin::TESTS,
    views_standin::TESTS,
    bypass_calls_standin::TESTS,
    bypass_mounts_standin::TESTS,
    bypass_actors_standin::TESTS,
    bypass_stacked_standin::TESTS,
    gap_standin::TESTS,
    restart_standin::TESTS,
    layout_standin::TESTS,
    lease_standin::TESTS,
    command_lease_standin::TESTS,
    exec_standin::TESTS,
    inactive_standin::TESTS,
    tier_standin::TESTS,
    fanotify_standin::TESTS,
    fanotify_trouble_standin::TESTS,
    notify_standin::TESTS,
    policy_standin::TESTS,
    silent_standin::TESTS,
    audit_standin::TESTS,
    control_standin::TESTS,
    unmount_standin::TESTS,
    wipe_standin::TESTS,
    node_standin::TESTS,
    node_cluster_standin::TESTS,
    rollback_standin::TESTS,
    node_trouble_standin::TESTS,
    seal_standin::TESTS,
    journal_standin::TESTS,
    million_standin::TESTS,
    torn_standin::TESTS,
    lab_standin::TESTS,
    workload_standin::TESTS,
];
const CEPHFS: &[&[Test]] = &[
    ground_cephfs::TESTS,
    erase_cephfs::TESTS,
    detour_cephfs::TESTS,
    allow_cephfs::TESTS,
    seal_cephfs::TESTS,
    alias_cephfs::TESTS,
    bypass_cephfs::TESTS,
    window_cephfs::TESTS,
    fanotify_cephfs::TESTS,
    workload_cephfs::TESTS,
    workload_views_cephfs::TESTS,
];
const INCUS: &[&[Test]] =
    &[incident_incus::TESTS, joined_incus::TESTS, failures_incus::TESTS, trouble_incus::TESTS];

/// All tests of a suite.
pub fn of(suite: Suite) -> impl Iterator<Item = Test> {
    let tables = match suite {
        Suite::Standin => STANDIN,
        Suite::Cephfs => CEPHFS,
        Suite::Incus => INCUS,
        Suite::Host => host::TESTS,
    };
    tables.iter().flat_map(|table| table.iter().copied())
}
