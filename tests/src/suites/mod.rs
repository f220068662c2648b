//! The tests, one file for each group, in the order in which they run.

mod allow_cephfs;
mod detour_cephfs;
mod erase_cephfs;
mod ground_cephfs;
mod ground_standin;
mod host_cephfs;
mod seal_cephfs;
mod window_cephfs;

use crate::harness::registry::{Suite, Test};

const STANDIN: &[&[Test]] = &[ground_standin::TESTS];
const CEPHFS: &[&[Test]] = &[
    ground_cephfs::TESTS,
    erase_cephfs::TESTS,
    detour_cephfs::TESTS,
    allow_cephfs::TESTS,
    seal_cephfs::TESTS,
    window_cephfs::TESTS,
];

/// All tests of a suite.
pub fn of(suite: Suite) -> impl Iterator<Item = Test> {
    let tables = match suite {
        Suite::Standin => STANDIN,
        Suite::Cephfs => CEPHFS,
    };
    tables.iter().flat_map(|table| table.iter().copied())
}
