//! A pool, its agent, and a deleter that never gives up.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fastrand::Rng;
use guard_agent::host::bpf::maps::Maps;

use super::faults::Fault;
use crate::harness::agent::Agent;
use crate::harness::attempt::{denied, in_cgroup, passes};
use crate::harness::guarded::Guarded;
use crate::harness::mount::Mount;
use crate::harness::{tree, wait};
use crate::peers::container;
use crate::peers::own::Running;

const ACTOR: &str = "/sys/fs/cgroup/guard-lab-actor";
pub(super) const SETTINGS: &str =
    "actors = [{ cgroup = \"/guard-lab-actor\" }]\n[audit]\nincident_interval = \"1s\"";
/// For an agent to answer or to account for all, on a machine that is loaded on purpose.
const LOADED_LIMIT: Duration = Duration::from_secs(120);

pub(super) struct Ground {
    deleter: Option<Running>,
    pub agent: Option<Agent>,
    pub pool: Mount,
    elsewhere: Mount,
    pub guarded: Guarded,
    /// Files in the pool, of which none may go.
    files: usize,
    checks: u32,
    _disk: Mount,
}

impl Ground {
    pub(super) fn new() -> Result<Self> {
        let guarded = Guarded::with_own_pins("lab", SETTINGS)?;
        fs::create_dir_all(ACTOR).context("create the actor's cgroup")?;
        // A small disk of its own for the agent's state, that can be filled.
        let installation = &guarded.installation;
        let disk = Mount::new("tmpfs", "disk", installation.state_dir(), "size=4m")?;
        let agent = installation.start()?;
        let pool = guarded.pool("pool")?;
        let elsewhere = Mount::tmpfs("/var/lib/guard-standin-lab")?;
        let files = tree::count(pool.path())?;
        let deleter = Some(Running::removing(pool.path())?);
        Ok(Self {
            deleter,
            agent: Some(agent),
            pool,
            elsewhere,
            guarded,
            files,
            checks: 0,
            _disk: disk,
        })
    }

    /// Injects a fault; the invariants hold meanwhile (it says when), and afterwards with an agent
    /// that answers.
    pub(super) fn survives(&mut self, fault: &Fault, random: &mut Rng) -> Result<()> {
        let injected = (fault.inject)(self, random).and_then(|()| self.recovers());
        injected.with_context(|| {
            let log = self.guarded.installation.log();
            let lines: Vec<&str> = log.lines().collect();
            format!(
                "{}; the end of the agent's log:\n{}",
                fault.name,
                lines[lines.len().saturating_sub(15)..].join("\n")
            )
        })
    }

    /// An agent runs and answers, as a service manager would have it, and the invariants hold.
    pub(super) fn recovers(&mut self) -> Result<()> {
        if self.agent.is_none() {
            self.agent = Some(self.guarded.installation.start()?);
        }
        wait::until("the agent knows the pool", LOADED_LIMIT, || {
            Ok(self.guarded.report(self.pool.path())?.is_some_and(|pool| pool["mode"] == "guarded"))
        })?;
        self.holds()
    }

    /// Checks the facts that must always hold.
    pub(super) fn holds(&mut self) -> Result<()> {
        denied("a deletion in the pool", fs::remove_file(self.pool.path().join("file0")))?;
        let beside = self.elsewhere.path().join("file");
        fs::write(&beside, "").context("write beside the pool")?;
        passes("a deletion beside the pool", fs::remove_file(&beside))?;
        let own = self.pool.path().join("actors-own");
        fs::write(&own, "").context("write in the pool")?;
        ensure!(in_cgroup(Path::new(ACTOR), Path::new("/bin/rm"), &own)?, "an actor was denied");
        container::with_own_root(&self.pool.path().join("volume"), |view| {
            let own = view.join("guests-own");
            fs::write(&own, "").context("write in a guest's view")?;
            passes("a guest's deletion", fs::remove_file(&own))
        })?;
        let files = tree::count(self.pool.path())?;
        ensure!(files == self.files, "LOST: {files} of {} files are there", self.files);
        if let Some(deleter) = &mut self.deleter {
            deleter.must_run()?;
        }
        self.checks += 1;
        Ok(())
    }

    /// Ends the agent with SIGKILL.
    pub(super) fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.kill()
    }

    pub(super) fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("no agent runs")
    }

    pub(super) fn maps(&self) -> Result<Maps> {
        self.guarded.installation.maps()
    }

    pub(super) fn elsewhere(&self) -> &Path {
        self.elsewhere.path()
    }

    pub(super) fn ballast(&self) -> PathBuf {
        self.guarded.installation.state_dir().join("ballast")
    }

    /// Ends the deleter; every decision is then accounted for. Returns how often was checked, and
    /// the decisions.
    pub(super) fn end(mut self) -> Result<(u32, u64)> {
        self.deleter = None;
        let mut last = String::new();
        let decisions = wait::until_some("every decision is accounted for", LOADED_LIMIT, || {
            let status = self.guarded.status()?;
            let number = |name: &str| status["reconciled"][name].as_u64().unwrap_or_default();
            last = status["reconciled"].to_string();
            let told = number("emitted") + number("aggregated") + number("lost");
            Ok((number("decisions") == told && told > 0).then_some(told))
        });
        Ok((self.checks, decisions.with_context(|| last)?))
    }
}
