//! Every fault of the lab once, and two of them at their full size. `cargo xtask lab` injects them
//! at random for as long as it is told.

use crate::harness::registry::Test;
use crate::lab;

pub(super) const TESTS: &[Test] = &[
    Test::new("lab_every_fault_once_and_all_holds", || lab::each_once(1))
        .within_seconds(1500)
        .only_in_full(),
    Test::new("lab_mount_table_of_fifty_thousand_lines", || lab::long_mount_table(50_000))
        .within_seconds(900)
        .only_in_full(),
    Test::new("lab_ten_thousand_mount_cycles", || lab::mount_cycles(10_000))
        .within_seconds(900)
        .only_in_full(),
];
