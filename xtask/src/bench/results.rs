//! The results of one run, the table of them, and the conditions between two runs and within one.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// Instructions for one unlink in one case, or for one listing of a directory.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Row {
    pub filesystem: String,
    pub case: String,
    pub path_unlink: Option<f64>,
    pub inode_unlink: Option<f64>,
    pub whole: f64,
    /// The thread that deletes or lists, and the kernel's own threads.
    pub with_kernel: f64,
    /// Of the process that answers in the tier fanotify.
    pub responder: Option<f64>,
}

impl Row {
    /// Of all programs together.
    fn programs(&self) -> f64 {
        self.path_unlink.unwrap_or_default() + self.inode_unlink.unwrap_or_default()
    }
}

/// The same at one size of something.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Growth {
    pub axis: String,
    pub case: String,
    pub at: f64,
    pub path_unlink: Option<f64>,
    pub whole: f64,
}

/// A figure of the agent.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Agent {
    pub name: String,
    pub value: f64,
    pub unit: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Results {
    pub unlink: Vec<Row>,
    /// A committed run of before there were tiers has none.
    #[serde(default)]
    pub listing: Vec<Row>,
    pub growth: Vec<Growth>,
    pub agent: Vec<Agent>,
}

/// Our own cases start so, in every tier.
pub(super) const OURS: &str = "guard";
/// Above this ratio to the committed run a program has become slower. Counts of instructions hardly
/// vary.
const TOLERATED: f64 = 1.05;

impl Results {
    pub(super) fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("parse the results of the benchmarks")
    }

    fn case(&self, filesystem: &str, case: &str) -> Option<&Row> {
        self.unlink.iter().find(|row| row.filesystem == filesystem && row.case == case)
    }

    /// Costs of our programs above those of the other run, and missing cases if this one
    /// `is_whole`; one line each.
    pub(super) fn slower_than(&self, baseline: &Self, is_whole: bool) -> Vec<String> {
        let mut lines = Vec::new();
        for before in baseline.unlink.iter().filter(|row| row.case.starts_with(OURS)) {
            let what = format!("{} on {}", before.case, before.filesystem);
            match self.case(&before.filesystem, &before.case) {
                None if is_whole => lines.push(format!("{what}: was not measured")),
                Some(now) if now.programs() > before.programs() * TOLERATED => lines.push(format!(
                    "{what}: {:.0} instructions in our programs, {:.0} in the committed run",
                    now.programs(),
                    before.programs()
                )),
                None | Some(_) => {}
            }
        }
        lines
    }

    /// Each bar in this run: the measure, the figure, whether it is met.
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn bars(&self) -> Vec<(&'static str, String, bool)> {
        let mut bars = Vec::new();
        let mut add = |name, figure: Option<(String, bool)>| {
            let (text, met) = figure.unwrap_or_else(|| ("not measured".to_owned(), false));
            bars.push((name, text, met));
        };
        let (nothing, empty) =
            (self.case("tmpfs", "nothing"), self.case("tmpfs", "empty BPF LSM programs"));
        let unprotected = self.case("tmpfs", "guard: kind of filesystem not guarded");
        let ratio = |ratio: f64, bar: f64| (format!("{ratio:.2}"), ratio <= bar);
        let percent = |share: f64, bar: f64| (format!("{:.2} %", 100.0 * share), share <= bar);
        add(
            "unprotected unlink: our programs ≤ 2 × empty ones",
            unprotected
                .zip(empty)
                .map(|(ours, empty)| ratio(ours.programs() / empty.programs(), 2.0)),
        );
        add(
            "unprotected unlink: our programs, without what the measuring takes, ≤ 2 % of a tmpfs \
             unlink",
            unprotected.zip(empty).zip(nothing).map(|((ours, empty), nothing)| {
                percent((ours.programs() - empty.programs()) / nothing.whole, 0.02)
            }),
        );
        let cephfs =
            self.case("cephfs", "nothing").zip(self.case("cephfs", "empty BPF LSM programs"));
        for (name, case) in [
            (
                "allowed as actor: our programs ≤ 5 % of a CephFS unlink on the client",
                "guard: pool, allowed as actor",
            ),
            (
                "allowed as guest view: our programs ≤ 5 % of a CephFS unlink on the client",
                "guard: pool, allowed as guest view",
            ),
        ] {
            let ours = self.case("cephfs", case);
            add(
                name,
                ours.zip(cephfs).map(|(ours, (nothing, empty))| {
                    percent((ours.programs() - empty.programs()) / nothing.with_kernel, 0.05)
                }),
            );
        }
        let denied = self.case("tmpfs", "guard: pool, denied, aggregated");
        add(
            "denied and aggregated: cheaper than the unlink on tmpfs that it prevents",
            denied.zip(nothing).map(|(denied, nothing)| ratio(denied.whole / nothing.whole, 1.0)),
        );
        let answering = |case: &str| {
            let rows = self.listing.iter().filter(|row| row.case == case);
            rows.filter_map(|row| row.responder).reduce(f64::max)
        };
        let instructions = |count: f64, bar: f64| (format!("{count:.0}"), count <= bar);
        add(
            "fanotify: listing a directory as actor takes the answering process ≤ 120,000 \
             instructions",
            answering("guard, fanotify: pool, allowed as actor")
                .map(|count| instructions(count, 120_000.0)),
        );
        for (name, axis) in [
            ("1 to 10,000 pools: cost grows ≤ 10 %", "pools"),
            ("1 to 10,000 actors: cost grows ≤ 10 %", "actors"),
        ] {
            add(name, self.growth_of(axis).map(|growth| percent(growth, 0.10)));
        }
        let figure = |name: &str| self.agent.iter().find(|figure| figure.name == name);
        add(
            "agent: start to enforcing ≤ 3,000 ms",
            figure("start to enforcing")
                .map(|took| (format!("{:.0} ms", took.value), took.value <= 3000.0)),
        );
        add(
            "agent: idle memory ≤ 16 MiB",
            figure("idle VmRSS")
                .map(|memory| (format!("{:.1} MiB", memory.value), memory.value <= 16.0)),
        );
        add(
            "agent: CPU for denials ≤ 5 % of the deleter's own",
            figure("the same beside the deleter's own")
                .map(|share| percent(share.value / 100.0, 0.05)),
        );
        bars
    }

    /// Growth of the dearest case of an axis from its first to its highest point.
    fn growth_of(&self, axis: &str) -> Option<f64> {
        let of_axis = || self.growth.iter().filter(|point| point.axis == axis);
        let growths = of_axis().filter(|point| point.at <= 1.0).map(|first| {
            let costs = of_axis()
                .filter(|point| point.case == first.case)
                .filter_map(|point| point.path_unlink);
            costs.fold(0.0, f64::max) / first.path_unlink.unwrap_or(f64::INFINITY) - 1.0
        });
        growths.reduce(f64::max)
    }

    /// The run as a page.
    pub(super) fn table(&self) -> String {
        let mut text = String::from(
            "# Benchmarks\n\nMade by `cargo xtask bench --bless` on Debian's 6.12 in QEMU with \
             counted instructions; what is measured is said in `tests/src/bench/mod.rs`. All in \
             one run.\n\n![Instructions for one unlink](unlink.svg)\n\n## Instructions for one \
             unlink\n\n| On | Case | Programs on path_unlink | on inode_unlink | Deleting thread | \
             with kernel threads | Answering process |\n|---|---|--:|--:|--:|--:|--:|\n",
        );
        let shown = |value: Option<f64>| {
            value.map_or_else(|| "–".to_owned(), |value| format!("{value:.0}"))
        };
        for Row { filesystem, case, path_unlink, inode_unlink, whole, with_kernel, responder } in
            &self.unlink
        {
            let (path, inode, responder) =
                (shown(*path_unlink), shown(*inode_unlink), shown(*responder));
            // Writing to a text cannot fail.
            let _ = writeln!(
                text,
                "| {filesystem} | {case} | {path} | {inode} | {whole:.0} | {with_kernel:.0} | \
                 {responder} |"
            );
        }
        text += "\nIn no figure: what other processes do, such as those that read events and \
                 records, but for the answering process of the tier fanotify, which sees each \
                 deletion afterwards. The programs of fmod-ret: both loads together.\n\n\
                 ## Instructions to list a directory\n\nThe tier fanotify asks about no unlink; it \
                 asks who opens a directory of a pool, and again each time that its names are \
                 read: here three times, or once where that is denied. Who lists waits meanwhile; \
                 what the answering process takes is not in the columns before its own, which has \
                 all that it does, also what it counts and records.\n\n| On | Case | Listing \
                 thread | with kernel threads | Answering process |\n|---|---|--:|--:|--:|\n";
        for Row { filesystem, case, whole, with_kernel, responder, .. } in &self.listing {
            let responder = shown(*responder);
            let _ = writeln!(
                text,
                "| {filesystem} | {case} | {whole:.0} | {with_kernel:.0} | {responder} |"
            );
        }
        text += "\n## Bars\n\n| Bar | This run | Met |\n|---|--:|---|\n";
        for (name, figure, met) in self.bars() {
            let _ =
                writeln!(text, "| {name} | {figure} | {} |", if met { "yes" } else { "**no**" });
        }
        text += "\n## Growth\n\n![Growth](growth.svg)\n\n| Axis | At | Case | Programs on \
                 path_unlink | Deleting thread |\n|---|--:|---|--:|--:|\n";
        for Growth { axis, case, at, path_unlink, whole } in &self.growth {
            let path = shown(*path_unlink);
            let _ = writeln!(text, "| {axis} | {at} | {case} | {path} | {whole:.0} |");
        }
        text += "\n## The agent\n\nOn a processor that does one instruction in a nanosecond.\n\n| \
                 Figure | |\n|---|--:|\n";
        for Agent { name, value, unit } in &self.agent {
            let _ = writeln!(text, "| {name} | {value:.1} {unit} |");
        }
        text
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn run(path_unlink: f64) -> Results {
        let text = format!(
            r#"{{"unlink": [
                {{"filesystem": "tmpfs", "case": "nothing", "path_unlink": null, "inode_unlink": null, "whole": 9.0, "with_kernel": 9.0}},
                {{"filesystem": "tmpfs", "case": "guard: x", "path_unlink": {path_unlink}, "inode_unlink": 50.0, "whole": 9.0, "with_kernel": 9.0}}
            ], "growth": [
                {{"axis": "pools", "case": "a", "at": 1, "path_unlink": 100.0, "whole": 9.0}},
                {{"axis": "pools", "case": "a", "at": 10000, "path_unlink": 125.0, "whole": 9.0}}
            ], "agent": []}}"#
        );
        Results::parse(&text).unwrap()
    }

    #[test]
    fn a_program_that_became_slower_is_named() {
        let baseline = run(100.0);
        assert!(
            run(107.0).slower_than(&baseline, true).is_empty(),
            "within five percent of the sum"
        );
        assert!(run(10.0).slower_than(&baseline, true).is_empty());
        let slower = run(108.0).slower_than(&baseline, true);
        assert_eq!(
            slower,
            ["guard: x on tmpfs: 158 instructions in our programs, 150 in the committed run"]
        );
        let mut shorter = run(100.0);
        shorter.unlink.pop();
        assert_eq!(shorter.slower_than(&baseline, true), ["guard: x on tmpfs: was not measured"]);
        assert!(
            shorter.slower_than(&baseline, false).is_empty(),
            "a partial run lacks what nobody asked for"
        );
        assert_eq!(run(108.0).slower_than(&baseline, false).len(), 1);
        assert!(
            run(999.0).slower_than(&shorter, true).is_empty(),
            "a new case has nothing to be compared with"
        );
    }

    #[test]
    fn what_was_not_measured_meets_no_bar() {
        let bars = run(100.0).bars();
        assert!(bars.iter().all(|(_, _, met)| !met));
        assert!(bars.iter().any(|(name, figure, _)| name.contains("pools") && figure == "25.00 %"));
    }
}
