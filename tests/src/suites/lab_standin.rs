//! Every fault of the lab once. `cargo xtask lab` injects them at random for as long as it is told.

use crate::harness::registry::Test;
use crate::lab;

pub const TESTS: &[Test] = &[Test::new("lab_every_fault_once_and_all_holds", || lab::each_once(1))
    .within_seconds(600)
    .only_in_full()];
