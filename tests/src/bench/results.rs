//! The figures: shown as they come, and handed over as JSON at the end.

use serde_json::{Value, json};

use super::measure::Cost;

/// Starts the line that `cargo xtask bench` reads.
const CLOSING: &str = "results: ";

#[derive(Debug)]
pub(super) struct Results {
    unlink: Vec<Value>,
    listing: Vec<Value>,
    growth: Vec<Value>,
    agent: Vec<Value>,
}

impl Results {
    pub(super) fn new() -> Self {
        println!(
            "{:<8} {:<47} {:>12} {:>12} {:>12} {:>12} {:>12}",
            "on", "case", "path_unlink", "inode_unlink", "whole", "with kernel", "responder"
        );
        Self { unlink: Vec::new(), listing: Vec::new(), growth: Vec::new(), agent: Vec::new() }
    }

    /// One case of the table: instructions an unlink.
    pub(super) fn unlink(&mut self, filesystem: &str, case: &str, cost: &Cost) {
        show(filesystem, case, cost);
        self.unlink.push(row(filesystem, case, cost));
    }

    /// One case of the table of listings: instructions to list a directory.
    pub(super) fn listing(&mut self, filesystem: &str, case: &str, cost: &Cost) {
        show(filesystem, &format!("listing, {case}"), cost);
        self.listing.push(row(filesystem, case, cost));
    }

    /// Records the growth of a case along an axis.
    pub(super) fn growth(&mut self, axis: &str, case: &str, at: usize, cost: &Cost) {
        let path = cost.path_unlink.unwrap_or_default();
        println!("{axis} = {at:>6}: {case}: path_unlink {path:.0}, whole {:.0}", cost.whole);
        self.growth.push(json!({
            "axis": axis,
            "case": case,
            "at": at,
            "path_unlink": cost.path_unlink,
            "whole": cost.whole,
        }));
    }

    /// A figure of the agent.
    pub(super) fn agent(&mut self, name: &str, value: f64, unit: &str) {
        println!("agent: {name}: {value:.1} {unit}");
        self.agent.push(json!({ "name": name, "value": value, "unit": unit }));
    }

    pub(super) fn print(&self) {
        let all = json!({ "unlink": self.unlink, "listing": self.listing, "growth": self.growth, "agent": self.agent });
        println!("{CLOSING}{all}");
    }
}

fn show(filesystem: &str, case: &str, cost: &Cost) {
    let shown =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
    let (path, inode, responder) =
        (shown(cost.path_unlink), shown(cost.inode_unlink), shown(cost.responder));
    let Cost { whole, with_kernel, .. } = cost;
    println!(
        "{filesystem:<8} {case:<47} {path:>12} {inode:>12} {whole:>12.0} {with_kernel:>12.0} \
         {responder:>12}"
    );
}

fn row(filesystem: &str, case: &str, cost: &Cost) -> Value {
    json!({
        "filesystem": filesystem,
        "case": case,
        "path_unlink": cost.path_unlink,
        "inode_unlink": cost.inode_unlink,
        "whole": cost.whole,
        "with_kernel": cost.with_kernel,
        "responder": cost.responder,
    })
}
