//! The barrier on real CephFS.

mod alias;
mod allow;
mod bypass;
mod detour;
mod erase;
mod fanotify;
mod ground;
mod seal;
mod window;
mod workload;
mod workload_views;

use crate::harness::registry::Test;

/// All tests, in the order in which they run.
pub(super) const TESTS: &[&[Test]] = &[
    ground::TESTS,
    erase::TESTS,
    detour::TESTS,
    allow::TESTS,
    seal::TESTS,
    alias::TESTS,
    bypass::TESTS,
    window::TESTS,
    fanotify::TESTS,
    workload::TESTS,
    workload_views::TESTS,
];
