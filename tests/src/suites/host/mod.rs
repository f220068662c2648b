//! Real hosts: our packages, as they are shipped. These tests run beside the hosts, not on them.

mod commands;
mod cost;
mod healthy;
mod incident;
mod members;
mod operations;
mod own_pool;
mod reboot;
mod rolling;
mod runbook;
mod sequences;
mod silent;
mod tools;
mod transaction;
mod upgrade;

use crate::harness::registry::Test;

pub(super) const TESTS: &[&[Test]] = &[
    incident::TESTS,
    healthy::TESTS,
    members::TESTS,
    reboot::TESTS,
    rolling::TESTS,
    runbook::TESTS,
    sequences::TESTS,
    transaction::TESTS,
    tools::TESTS,
    commands::TESTS,
    upgrade::TESTS,
    operations::TESTS,
    own_pool::TESTS,
    silent::TESTS,
    cost::TESTS,
];
