//! The type of a test, and the selection of tests.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::suites;

/// A test ends, or is reported as hanging, within this time unless it says otherwise. Emulated
/// machines are an order of magnitude slower than real ones.
const USUAL_LIMIT: Duration = Duration::from_secs(240);

/// The environment of a suite's tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// tmpfs in place of a shared filesystem.
    Standin,
    /// Real CephFS through the kernel client.
    Cephfs,
    /// A real Incus cluster of two nodes on real CephFS.
    Incus,
    /// Real hosts: Debian 13 with systemd and our package, each in a machine of its own; runs
    /// beside them.
    Host,
}

impl Suite {
    pub fn name(self) -> &'static str {
        match self {
            Self::Standin => "standin",
            Self::Cephfs => "cephfs",
            Self::Incus => "incus",
            Self::Host => "host",
        }
    }
}

/// The machine that a test needs. `cargo xtask test` boots one for each profile in use and knows
/// the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Debian as it is.
    Default,
    /// `bpf` is not in the list of active LSMs.
    NoBpf,
    /// The kernel is locked down for confidentiality, so that it takes no programs.
    LockedDown,
    /// One processor and counted instructions, for measurements.
    Icount,
}

impl Profile {
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::NoBpf => "no-bpf",
            Self::LockedDown => "locked-down",
            Self::Icount => "icount",
        }
    }
}

/// One test. A test that cannot do its work fails with the reason; there is no skipping.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    pub name: &'static str,
    pub profile: Profile,
    pub limit: Duration,
    /// Only with `--full`: it takes long, and the code that it tests is rarely touched.
    pub only_in_full: bool,
    /// On real hosts: only where they begin with this version of Incus, such as `6.0`.
    pub incus: Option<&'static str>,
    pub body: fn() -> Result<()>,
}

impl Test {
    /// A test of the default profile with the usual time limit.
    pub const fn new(name: &'static str, body: fn() -> Result<()>) -> Self {
        Self {
            name,
            profile: Profile::Default,
            limit: USUAL_LIMIT,
            only_in_full: false,
            incus: None,
            body,
        }
    }

    /// The same on another machine.
    pub const fn on(self, profile: Profile) -> Self {
        Self { profile, ..self }
    }

    /// The same, but only with `--full`.
    pub const fn only_in_full(self) -> Self {
        Self { only_in_full: true, ..self }
    }

    /// The same, but only on hosts with this version of Incus.
    pub const fn only_with_incus(self, version: &'static str) -> Self {
        Self { incus: Some(version), ..self }
    }

    /// The same with another time limit.
    pub const fn within_seconds(self, seconds: u64) -> Self {
        Self { limit: Duration::from_secs(seconds), ..self }
    }
}

/// Which tests to run.
#[derive(Clone, Debug)]
pub struct Selection {
    pub suite: Suite,
    pub profile: Option<Profile>,
    pub full: bool,
    /// Those whose name contains one of these, or is one of them; all if there is none.
    pub filters: Vec<String>,
    pub exact: bool,
}

impl Selection {
    /// The selected tests, in the order of their tables.
    pub fn tests(&self) -> Vec<Test> {
        let wanted = |test: &Test| {
            let name = format!("{}::{}", self.suite.name(), test.name);
            let matches = |filter: &String| {
                if self.exact { test.name == filter } else { name.contains(filter) }
            };
            self.filters.is_empty() || self.filters.iter().any(matches)
        };
        suites::of(self.suite)
            .filter(|test| self.profile.is_none_or(|profile| profile == test.profile))
            .filter(|test| self.full || !test.only_in_full)
            .filter(wanted)
            .collect()
    }
}
