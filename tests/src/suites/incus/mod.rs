//! Real Incus on real CephFS, as one node of a cluster.

mod failures;
mod incident;
mod joined;
mod trouble;

use crate::harness::registry::Test;

/// All tests, in the order in which they run.
pub(super) const TESTS: &[&[Test]] =
    &[incident::TESTS, joined::TESTS, failures::TESTS, trouble::TESTS];
