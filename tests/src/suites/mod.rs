//! The tests: a folder for each suite, and in it a file for each group.

mod cephfs;
mod host;
mod incus;
mod standin;

use crate::harness::registry::{Suite, Test};

/// All tests of a suite.
pub fn of(suite: Suite) -> impl Iterator<Item = Test> {
    let tables = match suite {
        Suite::Standin => standin::TESTS,
        Suite::Cephfs => cephfs::TESTS,
        Suite::Incus => incus::TESTS,
        Suite::Host => host::TESTS,
    };
    tables.iter().flat_map(|table| table.iter().copied())
}
