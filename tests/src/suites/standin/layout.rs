//! An agent with another layout of the maps takes over, and one with the first layout after it: no
//! deletion passes, and seals, releases, leases and totals are the same before and after. So does
//! one that was killed on its way.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use guard_agent::host::bpf::maps::describe;
use serde_json::Value;

use crate::harness::agent::{Agent, binary};
use crate::harness::attempt::{passes, rm_is_denied};
use crate::harness::fanotify::Ground;
use crate::harness::guarded::{Guarded, populate};
use crate::harness::mount::Mount;
use crate::harness::registry::{Profile, Test};
use crate::harness::scratch::Scratch;
use crate::harness::{tree, wait};
use crate::peers::own::Running;

pub(super) const TESTS: &[Test] = &[
    Test::new("layout_upgrade_and_downgrade_under_8_rm_loops_pass_nothing", || under_load(8))
        .within_seconds(900),
    Test::new("layout_upgrade_in_tier_fmod_ret_passes_nothing", || under_load(2))
        .on(Profile::NoBpf)
        .within_seconds(900),
    Test::new("layout_upgrade_in_tier_fanotify_passes_nothing", fanotify).within_seconds(500),
    Test::new("layout_start_killed_at_any_step_leaves_all_in_force", killed)
        .within_seconds(1500)
        .only_in_full(),
    Test::new("layout_that_is_not_understood_is_refused_and_nothing_changes", refused),
];

const FILES: usize = 200;

/// Three pools: one guarded, one sealed by an operator, one released for an hour.
struct Pools {
    guarded: Mount,
    sealed: Mount,
    released: Mount,
}

impl Pools {
    fn new(ground: &Guarded) -> Result<Self> {
        let [guarded, sealed, released] =
            ["guarded", "sealed", "released"].map(|name| ground.pool(name));
        let pools = Self { guarded: guarded?, sealed: sealed?, released: released? };
        ground.guardctl(&["seal", "sealed"])?;
        ground.guardctl(&["release", "released", "--ttl", "1h", "--reason", "test"])?;
        Ok(pools)
    }

    /// Everybody is denied in two of them; in the third the release goes on.
    fn hold(&self) -> Result<()> {
        rm_is_denied(&self.guarded.path().join("file0"))?;
        rm_is_denied(&self.sealed.path().join("file0"))?;
        let file = self.released.path().join("again");
        fs::write(&file, "x").context("write into the released pool")?;
        passes("a deletion in the released pool", fs::remove_file(&file))?;
        Ok(())
    }
}

/// A command with a lease that writes and deletes all the time.
struct Leased {
    guardctl: Child,
    rounds: PathBuf,
    denied: PathBuf,
    _scratch: Scratch,
}

impl Leased {
    fn start(ground: &Guarded, pool: &Path) -> Result<Self> {
        let scratch = Scratch::new("leased")?;
        let (rounds, denied) = (scratch.join("rounds"), scratch.join("denied"));
        let line = format!(
            "while :; do echo x >{0}/leased; rm {0}/leased || echo denied >>{2}; echo >>{1}; done",
            pool.display(),
            rounds.display(),
            denied.display()
        );
        let guardctl = Command::new(binary("GUARDCTL")?)
            .arg("--run-dir")
            .arg(ground.installation.run_dir())
            .args([
                "exec", "--pool", "guarded", "--reason", "test", "--ttl", "1h", "--", "sh", "-c",
                &line,
            ])
            .stdin(Stdio::null())
            .spawn()
            .context("start guardctl exec")?;
        let leased = Self { guardctl, rounds, denied, _scratch: scratch };
        leased.goes_on()?;
        Ok(leased)
    }

    fn rounds(&self) -> u64 {
        fs::metadata(&self.rounds).map_or(0, |metadata| metadata.len())
    }

    /// It deletes, and was never denied.
    fn goes_on(&self) -> Result<()> {
        let before = self.rounds();
        wait::until("the command with a lease deletes", wait::LIMIT, || {
            Ok(self.rounds() > before + 20)
        })?;
        ensure!(!self.denied.exists(), "the command with a lease was denied");
        Ok(())
    }

    fn end(mut self, ground: &Guarded) -> Result<()> {
        let leases = ground.installation.guardctl_json(&["lease", "list"])?;
        let commands =
            leases.as_array().into_iter().flatten().filter(|lease| lease["kind"] == "command");
        for lease in commands {
            ground.guardctl(&["lease", "revoke", lease["id"].as_str().context("its id")?])?;
        }
        kill_leased();
        self.guardctl.wait().context("wait for guardctl exec")?;
        Ok(())
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        // Nothing of a test that has failed runs on beside the next ones.
        kill_leased();
    }
}

/// Kills the cgroups of the commands, with all processes in them.
fn kill_leased() {
    for entry in fs::read_dir("/sys/fs/cgroup/guard-agent.exec").into_iter().flatten().flatten() {
        let _ = fs::write(entry.path().join("cgroup.kill"), "1");
    }
}

/// Facts that must be the same before and after.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    /// Generation, mode, cause and end of release, by the pool's name.
    pools: BTreeMap<String, String>,
    /// Id, kind and end.
    leases: Vec<String>,
}

fn facts(ground: &Guarded) -> Result<Facts> {
    let listed = |what: &[&str]| -> Result<Vec<Value>> {
        let list = ground.installation.guardctl_json(what)?;
        list.as_array()
            .cloned()
            .with_context(|| format!("guardctl {} printed no list", what.join(" ")))
    };
    let second = |value: &Value| value.as_str().and_then(|time| time.get(..19)).map(str::to_owned);
    let pool = |pool: Value| {
        // The clocks' offset is read anew each time: to the second it is the same.
        let ends = second(&pool["release_ends"]);
        (pool["name"].to_string(), format!("{} {} {ends:?}", pool["generation"], pool["mode"]))
    };
    let lease =
        |lease: Value| format!("{} {} {:?}", lease["id"], lease["kind"], second(&lease["ends"]));
    Ok(Facts {
        pools: listed(&["pools"])?.into_iter().map(pool).collect(),
        leases: listed(&["lease", "list"])?.into_iter().map(lease).collect(),
    })
}

/// The counters of all decisions and records, and of each pool.
fn totals(ground: &Guarded) -> Result<BTreeMap<String, u64>> {
    let status = ground.status()?;
    let counters = status["counters"].as_object().context("the status has no counters")?;
    let counted = |name: &str| {
        ["denied_", "would_", "allowed_", "records_"].iter().any(|of| name.starts_with(of))
    };
    let mut totals: BTreeMap<String, u64> = counters
        .iter()
        .filter(|(name, _)| counted(name))
        .filter_map(|(name, count)| Some((name.clone(), count.as_u64()?)))
        .collect();
    for pool in status["pools"].as_array().context("the status has no pools")? {
        for (name, count) in pool["counters"].as_object().context("a pool has no counters")? {
            let name = format!("{} {name}", pool["name"]);
            totals.insert(name, count.as_u64().context("a pool's counter")?);
        }
    }
    Ok(totals)
}

fn have_not_shrunk(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Result<()> {
    for (name, count) in before {
        ensure!(after.get(name) >= Some(count), "{name} was {count} and is {:?}", after.get(name));
    }
    Ok(())
}

fn reconciles(ground: &Guarded) -> Result<()> {
    let sums = ground.status()?["reconciled"].clone();
    let number = |name: &str| sums[name].as_u64().unwrap_or_default();
    let told = number("emitted") + number("aggregated") + number("lost");
    ensure!(number("decisions") == told && told > 0, "decisions and records differ: {sums}");
    Ok(())
}

fn last_change(ground: &Guarded) -> Result<String> {
    let records = ground.installation.audit_records()?;
    let changes = records.iter().filter(|record| record["kind"] == "agent");
    let last = changes.filter_map(|record| record["agent"]["change"].as_str()).next_back();
    Ok(last.context("the audit log has no record of the agent")?.to_owned())
}

fn directories(ground: &Guarded) -> Result<Vec<String>> {
    let entries = fs::read_dir(ground.installation.pin_dir()).context("list the pins")?.flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// The layout in force is the only one that has pins left; returns its version.
fn only_layout(ground: &Guarded) -> Result<u32> {
    let names = directories(ground)?;
    ensure!(names.len() == 1, "pins are left of more than one layout: {names:?}");
    Ok(ground.installation.layout()?.name.version)
}

/// Which agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Shipped,
    Other,
}

impl Which {
    fn start(self, ground: &Guarded) -> Result<Agent> {
        match self {
            Self::Shipped => ground.installation.start(),
            Self::Other => ground.installation.start_other_layout(),
        }
    }

    fn program(self) -> Result<PathBuf> {
        binary(match self {
            Self::Shipped => "GUARD_AGENT",
            Self::Other => "GUARD_AGENT_LAYOUT",
        })
    }

    fn opposite(self) -> Self {
        match self {
            Self::Shipped => Self::Other,
            Self::Other => Self::Shipped,
        }
    }
}

/// With so many `rm -rf` that begin again and again. (In the tier `fmod-ret`, with twice as many
/// programs to attach, an emulated machine has no time for eight of them.)
fn under_load(count: usize) -> Result<()> {
    let ground = Guarded::with_own_pins("layout-load", "")?;
    let mut agent = ground.installation.start()?;
    let first = only_layout(&ground)?;
    let pools = Pools::new(&ground)?;
    let trees = [&pools.guarded, &pools.sealed].map(|pool| pool.path().join("tree"));
    trees.iter().try_for_each(|tree| tree::fill(tree, FILES, 10))?;
    let leased = Leased::start(&ground, pools.guarded.path())?;
    let facts_before = facts(&ground)?;
    let mut loops = Vec::new();
    for number in 0..count {
        loops.push(Running::removing(&trees[number % 2])?);
    }
    let denials = || -> Result<u64> {
        let totals = totals(&ground)?;
        Ok(totals
            .iter()
            .filter(|(name, _)| name.starts_with("denied_"))
            .map(|(_, count)| count)
            .sum())
    };
    wait::until("the loops are denied", wait::LIMIT, || Ok(denials()? > 200))?;

    let mut versions = vec![first];
    for which in [Which::Other, Which::Shipped] {
        let before = totals(&ground)?;
        agent.kill()?;
        agent = which.start(&ground).with_context(|| format!("start the agent {which:?}"))?;
        loops.iter_mut().try_for_each(Running::must_run)?;
        versions.push(only_layout(&ground)?);
        let told = ground.status()?["agent"]["layout"].clone();
        ensure!(
            versions.last().is_some_and(|version| told == *version),
            "the status says layout {told}"
        );
        let change = last_change(&ground)?;
        ensure!(change == "upgraded", "the agent says {change}");
        have_not_shrunk(&before, &totals(&ground)?)?;
        let facts = facts(&ground)?;
        ensure!(facts == facts_before, "before: {facts_before:#?}\nafter: {facts:#?}");
        pools.hold()?;
        leased.goes_on()?;
        let before = denials()?;
        wait::until("the loops are denied by the new programs", wait::LIMIT, || {
            Ok(denials()? > before + 100)
        })?;
    }
    ensure!(versions[0] == versions[2] && versions[0] != versions[1], "layouts were {versions:?}");
    for tree in &trees {
        let left = tree::count(tree)?;
        ensure!(left == FILES, "{left} of {FILES} files are left in {}", tree.display());
    }

    // With nobody at work, the totals are the same to the last decision.
    drop(loops);
    leased.end(&ground)?;
    reconciles(&ground)?;
    let before = totals(&ground)?;
    ensure!(agent.stop()?.success(), "the agent did not end well");
    let agent = ground.installation.start_other_layout()?;
    let after = totals(&ground)?;
    ensure!(before == after, "totals before: {before:#?}\nafter: {after:#?}");
    reconciles(&ground)?;
    pools.hold()?;
    let elsewhere = Mount::tmpfs("/var/lib/guard-standin-layout")?;
    populate(elsewhere.path())?;
    passes("a deletion elsewhere", fs::remove_file(elsewhere.path().join("file0")))?;
    drop(agent);
    Ok(())
}

fn fanotify() -> Result<()> {
    let ground = Ground::new("layout-fanotify", "")?;
    let agent = ground.0.installation.start()?;
    let pools = Pools::new(&ground.0)?;
    let trees = [&pools.guarded, &pools.sealed].map(|pool| pool.path().join("volume"));
    let facts_before = facts(&ground.0)?;
    let mut loops = Vec::new();
    for number in 0..8 {
        loops.push(Running::removing(&trees[number % 2])?);
    }
    let mut agent = Some(agent);
    for which in [Which::Other, Which::Shipped] {
        let (before, responder) = (totals(&ground.0)?, ground.responder()?);
        agent.take().context("an agent runs")?.kill()?;
        agent = Some(which.start(&ground.0)?);
        ensure!(ground.responder()? != responder, "the old responder answers");
        only_layout(&ground.0)?;
        have_not_shrunk(&before, &totals(&ground.0)?)?;
        let facts = facts(&ground.0)?;
        ensure!(facts == facts_before, "before: {facts_before:#?}\nafter: {facts:#?}");
        loops.iter_mut().try_for_each(Running::must_run)?;
        for tree in &trees {
            for number in 0..10 {
                let file = tree.join(format!("file{number}"));
                fs::symlink_metadata(&file)
                    .with_context(|| format!("{} is gone", file.display()))?;
            }
        }
        let listed = fs::read_dir(pools.released.path().join("volume"));
        passes("list a directory of the released pool", listed.map(drop))?;
    }
    drop(loops);
    let agent = agent.take().context("an agent runs")?;
    ensure!(agent.stop()?.success(), "the agent did not end well");
    ground.unload()
}

/// A call of an agent's start that changes something outside of it, and the how-many-th of its kind
/// it is.
#[derive(Clone, Debug)]
struct Step {
    call: String,
    number: usize,
    line: String,
}

const TRACED: &str = "trace=bpf,mkdir,unlink,rmdir,rename";

/// Starts an agent under strace(1).
fn traced(ground: &Guarded, which: Which, arguments: &[String]) -> Result<Agent> {
    let mut command = Command::new("strace");
    command.args(["--follow-forks", "-e", TRACED]).args(arguments).arg(which.program()?);
    ground.installation.spawn_command(command, &[])
}

/// All steps of an agent's start, from a start that is let through.
fn steps(ground: &Guarded, which: Which) -> Result<Vec<Step>> {
    let scratch = Scratch::new("strace")?;
    let output = scratch.join("calls");
    let mut agent = traced(ground, which, &[format!("--output={}", output.display())])?;
    agent.wait_ready()?;
    // strace ends with the agent, which it hands the signal on to.
    agent.stop_traced()?;
    let text = fs::read_to_string(&output).context("read strace's output")?;
    let pid = text.split_whitespace().next().context("strace saw nothing")?.to_owned();
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let mut steps = Vec::new();
    for line in text.lines().filter(|line| line.starts_with(&pid)) {
        let call = line[pid.len()..].trim_start().split('(').next().unwrap_or_default().to_owned();
        if !TRACED.contains(&call) || call.is_empty() {
            continue;
        }
        let number = numbers.entry(call.clone()).or_default();
        *number += 1;
        steps.push(Step { call, number: *number, line: line.to_owned() });
    }
    let pins = ground.installation.pin_dir().to_string_lossy().into_owned();
    let marks = [
        "BPF_PROG_LOAD",
        "BPF_OBJ_PIN",
        "BPF_MAP_UPDATE_ELEM",
        "BPF_RAW_TRACEPOINT_OPEN",
        "BPF_LINK_CREATE",
    ];
    steps.retain(|step| {
        marks.iter().any(|mark| step.line.contains(mark))
            || (step.call != "bpf" && step.line.contains(&pins))
    });
    // The steps after the old layout's end are an agent's usual work.
    let last =
        steps.iter().rposition(|step| step.call == "rmdir").context("nothing was removed")?;
    steps.truncate(last + 1);
    Ok(steps)
}

/// The start of either version is killed at steps spread over all of it. Nothing passes meanwhile,
/// and the next start, of either version, ends with one layout in which all is as it was.
fn killed() -> Result<()> {
    const POINTS: usize = 10;
    let ground = Guarded::with_own_pins("layout-killed", "")?;
    let agent = ground.installation.start()?;
    let pools = Pools::new(&ground)?;
    let facts_before = facts(&ground)?;
    agent.kill()?;
    let steps = steps(&ground, Which::Other)?;
    ensure!(steps.len() > 3 * POINTS, "only {} steps: {steps:#?}", steps.len());
    let mut rm = Running::removing(&pools.guarded.path().join("volume"))?;
    let mut in_force = Which::Other;
    let mut kills = 0;
    for point in 0..POINTS {
        let step = &steps[(steps.len() - 1) * point / (POINTS - 1)];
        let what = format!("killed at step {point}: {}", step.line);
        let inject = format!("inject={}:signal=KILL:when={}", step.call, step.number);
        let arguments = ["-e".to_owned(), inject, "--output=/dev/null".to_owned()];
        let attempt = in_force.opposite();
        let mut agent = traced(&ground, attempt, &arguments)?;
        // The other version makes a call more or less: the last step may not come.
        if agent.wait_ready().is_ok() {
            agent.stop_traced()?;
            in_force = attempt;
            continue;
        }
        let status = agent.wait(wait::LIMIT).with_context(|| what.clone())?;
        ensure!(status.signal() == Some(9), "{what}: ended with {status}:\n{}", agent.log());
        drop(agent);
        kills += 1;
        pools.hold().with_context(|| what.clone())?;
        // In turn the version that was killed and the one that was in force.
        let next = if point % 2 == 0 { attempt } else { in_force };
        let agent = next.start(&ground).with_context(|| what.clone())?;
        only_layout(&ground).with_context(|| what.clone())?;
        let facts = facts(&ground)?;
        ensure!(facts == facts_before, "{what}: before: {facts_before:#?}\nafter: {facts:#?}");
        pools.hold().with_context(|| what.clone())?;
        rm.must_run()?;
        agent.kill()?;
        in_force = next;
    }
    ensure!(kills >= POINTS - 2, "killed {kills} times only");
    ensure!(tree::count(pools.guarded.path())? == 20, "files are gone");
    Ok(())
}

fn refused() -> Result<()> {
    let ground = Guarded::with_own_pins("layout-refused", "")?;
    let agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    ensure!(agent.stop()?.success(), "the agent did not end well");
    let maps = ground.installation.maps_dir()?;
    let before = directories(&ground)?;
    describe(&maps, "{\"description\":2}")?;

    let mut refused = ground.installation.spawn(&Which::Other.program()?, &[])?;
    let status = refused.wait(wait::LIMIT)?;
    let log = refused.log();
    ensure!(status.code() == Some(8), "it ended with {status}:\n{log}");
    for told in [
        "cannot carry over",
        "nothing was changed",
        "has version 2",
        "start the version of guard-agent",
    ] {
        ensure!(log.contains(told), "it does not say `{told}`:\n{log}");
    }
    ensure!(directories(&ground)? == before, "it has changed the pins");
    rm_is_denied(&pool.path().join("file0"))?;

    // Its own version needs no description.
    let _agent = ground.installation.start()?;
    ground.wait_for_mode(pool.path(), "guarded")?;
    let change = last_change(&ground)?;
    ensure!(change == "adopted", "the agent says {change}");
    rm_is_denied(&pool.path().join("file0"))
}
