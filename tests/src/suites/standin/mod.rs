//! The barrier on filesystems that stand in for network ones: every kernel, no cluster.

mod actors;
mod alias;
mod audit;
mod bypass_actors;
mod bypass_calls;
mod bypass_mounts;
mod bypass_stacked;
mod command_lease;
mod control;
mod exec;
mod fanotify;
mod fanotify_trouble;
mod gap;
mod ground;
mod identity;
mod identity_parts;
mod inactive;
mod journal;
mod lab;
mod layout;
mod lease;
mod million;
mod modes;
mod node;
mod node_cluster;
mod node_trouble;
mod notify;
mod policy;
mod restart;
mod rollback;
mod seal;
mod silent;
mod tier;
mod torn;
mod unmount;
mod views;
mod wipe;
mod workload;

use crate::harness::registry::Test;

/// All tests, in the order in which they run.
pub(super) const TESTS: &[&[Test]] = &[
    ground::TESTS,
    modes::TESTS,
    actors::TESTS,
    alias::TESTS,
    identity_parts::TESTS,
    identity::TESTS,
    views::TESTS,
    bypass_calls::TESTS,
    bypass_mounts::TESTS,
    bypass_actors::TESTS,
    bypass_stacked::TESTS,
    gap::TESTS,
    restart::TESTS,
    layout::TESTS,
    lease::TESTS,
    command_lease::TESTS,
    exec::TESTS,
    inactive::TESTS,
    tier::TESTS,
    fanotify::TESTS,
    fanotify_trouble::TESTS,
    notify::TESTS,
    policy::TESTS,
    silent::TESTS,
    audit::TESTS,
    control::TESTS,
    unmount::TESTS,
    wipe::TESTS,
    node::TESTS,
    node_cluster::TESTS,
    rollback::TESTS,
    node_trouble::TESTS,
    seal::TESTS,
    journal::TESTS,
    million::TESTS,
    torn::TESTS,
    lab::TESTS,
    workload::TESTS,
];
