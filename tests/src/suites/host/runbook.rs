//! docs/RUNBOOK.md, typed line by line by an operator who has nothing else, after each kind of
//! failure. It ends with a member each time.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::harness::host::cluster::{self, MOUNTPOINT, is_intact};
use crate::harness::host::guard::Guard;
use crate::harness::host::{Lab, Name, State};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("runbook_is_followed_line_by_line_after_each_kind_of_failure", each_kind)
        .within_seconds(5400)
        .only_in_full()];
const RUNBOOK: &str = include_str!("../../../../docs/RUNBOOK.md");
/// The address that the document uses as its example.
const EXAMPLE: &str = "10.0.0.7";
/// A second address of the node's.
const OTHER_ADDRESS: &str = "10.0.3.22";
/// For one line. A join and a stop of Incus take minutes on an emulated machine.
const LINE_LIMIT: Duration = Duration::from_secs(700);
/// The document's command that removes an entry from the cluster.
const REMOVE: &str = "incus cluster remove --force NAME";

/// A failure, and the choices that the document leaves to the operator after it.
#[derive(Clone, Copy, Debug, Default)]
struct Failure<'a> {
    what: &'a str,
    /// The state that the first section's table has.
    state: &'a str,
    /// The node's directory is emptied.
    wipe: bool,
    /// The retry has another address.
    other_address: bool,
    /// An entry that is in the way in the cluster.
    entry: Option<&'a str>,
}

fn each_kind() -> Result<()> {
    let lab = Lab::start(State::Seed, &[Name::Store, Name::N1, Name::N2])?;
    let (n1, n2) = (lab.host(Name::N1), lab.host(Name::N2));
    let guard = Guard::install(n2)?;
    n2.run(&format!(
        "ip address add {OTHER_ADDRESS}/24 dev $(ip -o route show 10.0.3.0/24 | sed 's/.*dev //; \
         s/ .*//; q')"
    ))?;
    let operator = Operator { lab: &lab, guard: &guard };
    let refused = |old: &str| -> Result<()> {
        cluster::remember_old_member(n1, old, Name::N2)?;
        cluster::join(&lab, Name::N2)?.fails().map(drop)
    };

    refused("old1")?;
    let failure = Failure { what: "a known address", state: "join-failed", ..Failure::default() };
    operator.recovers(Failure { wipe: true, entry: Some("old1"), ..failure })?;

    cluster::forget_member(n1, "n2")?;
    let failure = Failure { what: "removal by force", state: "join-partial", ..Failure::default() };
    operator.recovers(Failure { wipe: true, ..failure })?;

    operator.leaves()?;
    refused("old2")?;
    let failure =
        Failure { what: "a known address, corrected", state: "join-failed", ..Failure::default() };
    operator.recovers(Failure { entry: Some("old2"), ..failure })?;

    operator.leaves()?;
    refused("old3")?;
    let failure = Failure { what: "another address", state: "join-failed", ..Failure::default() };
    operator.recovers(Failure { other_address: true, ..failure })?;
    cluster::forget_member(n1, "old3")?;

    operator.leaves()?;
    // It joins with its first address again.
    for key in ["cluster.https_address", "core.https_address"] {
        operator.line(&format!("incus config unset {key}"))?;
    }
    let mounted = format!("grep {MOUNTPOINT} /proc/1/mountinfo");
    operator.kills_a_join("the pool is mounted", &mounted)?;
    let failure =
        Failure { what: "Incus killed in the join", state: "join-failed", ..Failure::default() };
    operator.recovers(Failure { wipe: true, entry: Some("n2"), ..failure })?;

    operator.leaves()?;
    let member = "python3 -c 'import sqlite3; d = \
                  sqlite3.connect(\"file:/var/lib/incus/database/local.db?mode=ro\", uri=True); \
                  exit(not d.execute(\"SELECT count(*) FROM raft_nodes\").fetchone()[0])'";
    operator.kills_a_join("the node's database says that it is a member", member)?;
    // It may be one: then Incus, started again, goes on as a member.
    let state = guard.wait_for_state(&["joined", "join-failed", "join-partial"])?;
    println!("note: killed late: {state}");
    if state != "joined" {
        let failure =
            Failure { what: "Incus killed late in the join", state: &state, ..Failure::default() };
        operator.recovers(Failure { wipe: true, entry: Some("n2"), ..failure })?;
    }
    is_intact(&lab)
}

struct Operator<'a> {
    lab: &'a Lab,
    guard: &'a Guard<'a>,
}

/// The client's words when the daemon closes the connection.
const NO_ANSWER: &str = "unix.socket/1.0\": EOF";

impl Operator<'_> {
    /// From a failure to a member.
    fn recovers(&self, failure: Failure<'_>) -> Result<()> {
        self.follows_the_document(failure).with_context(|| format!("after {}", failure.what))?;
        println!("note: the runbook after {}: joined", failure.what);
        Ok(())
    }

    fn follows_the_document(&self, failure: Failure<'_>) -> Result<()> {
        self.guard.wait_for_state(&[failure.state])?;
        let status = self.line("guardctl status")?;
        ensure!(
            status.contains(failure.state),
            "guardctl status does not say {}: {status}",
            failure.state
        );
        for block in blocks("1.")? {
            self.block(&block)?;
        }
        let corrections = blocks("3.")?;
        let [unset, wipe] = &corrections[..] else {
            anyhow::bail!("section 3 has {} blocks, not two", corrections.len())
        };
        if failure.other_address {
            self.block(unset)?;
        } else {
            blocks("2.")?.iter().try_for_each(|block| self.block(block))?;
        }
        if failure.wipe {
            self.block(wipe)?;
        }
        if let Some(name) = failure.entry {
            ensure!(RUNBOOK.contains(REMOVE), "the document no longer has {REMOVE}");
            // Nothing to remove if the cluster never took the node in.
            let n1 = self.lab.host(Name::N1);
            let removed = n1.attempt(&format!("echo yes | {}", REMOVE.replace("NAME", name)))?;
            ensure!(removed.status == 0 || name == "n2", "{REMOVE}: {}", removed.output);
        }
        self.prepares(failure.other_address)?;
        for section in ["4.", "5."] {
            for block in blocks(section)? {
                self.block(&block)?;
            }
        }
        self.guard.becomes("joined", "guarded")?;
        is_intact(self.lab)
    }

    /// The files that the document names.
    fn prepares(&self, other_address: bool) -> Result<()> {
        let mut preseed = cluster::join_preseed(self.lab, Name::N2, "n2")?;
        if other_address {
            preseed = preseed.replace(Name::N2.address(), OTHER_ADDRESS);
        }
        let token = preseed.lines().find_map(|line| line.trim().strip_prefix("cluster_token: "));
        let token = token.context("the preseed has no token")?;
        self.lab
            .host(Name::N2)
            .run(&format!(
                "cd /root; echo {token} >token.txt; cat >preseed.yaml <<'E'\n{preseed}E\n\
                 echo {} >address",
                if other_address { OTHER_ADDRESS } else { Name::N2.address() }
            ))
            .map(drop)
    }

    fn block(&self, lines: &[String]) -> Result<()> {
        lines.iter().try_for_each(|line| self.line(line).map(drop))
    }

    /// Types a line. `guardctl status` ends with 7 where something is wrong, as the document says.
    fn line(&self, line: &str) -> Result<String> {
        let (command, comment) = line.split_once('#').unwrap_or((line, ""));
        let command = command.trim();
        let n2 = self.lab.host(Name::N2);
        if comment.trim() == "on a member" {
            let (command, file) =
                command.split_once(" > ").context("a member's line without a file")?;
            let said = self.lab.host(Name::N1).run(command)?;
            return n2.run(&format!("cat >/root/{file} <<'E'\n{said}\nE"));
        }
        let address = format!("$(cat /root/address 2>/dev/null || echo {})", Name::N2.address());
        let command = command.replace(EXAMPLE, &address);
        let typed = || n2.attempt_within(&format!("cd /root; {command}"), LINE_LIMIT);
        let mut ended = typed()?;
        if ended.status != 0 && ended.output.contains(NO_ANSWER) {
            ensure!(RUNBOOK.contains(NO_ANSWER), "the document no longer tells of {NO_ANSWER:?}");
            println!("note: Incus has not answered {command:?}");
            n2.wait_for("Incus answers", Duration::from_secs(120), "timeout 20 incus query /1.0")?;
            ended = typed()?;
        }
        let tells = command == "guardctl status" && ended.status == 7;
        ensure!(
            ended.status == 0 || tells,
            "{command}: {}: {}\n{}",
            ended.status,
            ended.output.trim(),
            cluster::log(n2)
        );
        Ok(ended.output)
    }

    /// The node leaves the cluster in order, and is alone again.
    fn leaves(&self) -> Result<()> {
        cluster::leave(self.lab, Name::N2)?;
        self.guard.wait_for_state(&["left", "standalone"])?;
        let alone = "timeout 20 incus cluster list 2>&1 | grep -q \"isn't part of a cluster\"";
        self.lab
            .host(Name::N2)
            .wait_for("Incus is alone", Duration::from_secs(120), alone)
            .map(drop)
    }

    /// Starts a join, and kills Incus as soon as something holds.
    fn kills_a_join(&self, when: &str, holds: &str) -> Result<()> {
        let n2 = self.lab.host(Name::N2);
        let joining = cluster::begin_join(self.lab, Name::N2, "n2")?;
        n2.wait_for(when, Duration::from_secs(200), &format!("until {holds}; do sleep 0.1; done"))?;
        n2.run("systemctl kill --signal=KILL incus.service")?;
        joining.end(n2).map(drop)
    }
}

/// The lines of each shell block of a section, such as `2.`.
fn blocks(section: &str) -> Result<Vec<Vec<String>>> {
    let start = format!("\n## {section} ");
    let (_, text) =
        RUNBOOK.split_once(&start).with_context(|| format!("there is no section {section}"))?;
    let text = text.split("\n## ").next().unwrap_or_default();
    let blocks =
        text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let blocks: Vec<Vec<String>> = blocks
        .map(|block| block.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
        .collect();
    ensure!(!blocks.is_empty(), "section {section} has no line to type");
    Ok(blocks)
}
