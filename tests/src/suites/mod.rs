//! The tests, one file for each group, in the order in which they run.

mod ground_cephfs;
mod ground_standin;

use crate::harness::registry::{Suite, Test};

const STANDIN: &[&[Test]] = &[ground_standin::TESTS];
const CEPHFS: &[&[Test]] = &[ground_cephfs::TESTS];

/// All tests of a suite.
pub fn of(suite: Suite) -> impl Iterator<Item = Test> {
    let tables = match suite {
        Suite::Standin => STANDIN,
        Suite::Cephfs => CEPHFS,
    };
    tables.iter().flat_map(|table| table.iter().copied())
}
