//! The demonstration on the machine at hand, without a VM: the barrier with the best tier that this
//! kernel allows, on a tmpfs that stands in for a pool.
//!
//! `cargo xtask demo --native` runs it as the first process of namespaces of its own. Everything is
//! below one directory, on a tmpfs that is mounted there and nowhere else, and ends with the
//! namespaces.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::demo::{Expect, Stage};
use crate::harness::agent::binary;
use crate::harness::mount::Mount;
use crate::harness::{command, wait};

const START_LIMIT: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(20);
const FILES: usize = 200;

/// Runs in namespaces of its own.
pub fn run() -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "this makes mounts and must be the first process of its own namespaces: run `cargo xtask \
         demo --native`"
    );
    let place = Place::new()?;
    let outcome = show(&place.0);
    drop(place);
    outcome
}

/// The one directory that is made on the host; nothing is in it there.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self> {
        let path = PathBuf::from("/tmp/guard-demo");
        fs::create_dir(&path).with_context(|| {
            format!(
                "create {}: is another demonstration running? else remove it (rmdir)",
                path.display()
            )
        })?;
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Best effort; it is empty.
        let _ = fs::remove_dir(&self.0);
    }
}

fn show(place: &Path) -> Result<()> {
    let stage = Stage::new();
    let _ground = Mount::tmpfs(place)?;
    let at = |name: &str| place.join(name);
    let _pins = Mount::new("bpf", "bpf", at("bpf"), "mode=700")?;
    let root = at("incus");
    let pool = Mount::tmpfs(root.join("storage-pools/shared"))?;
    for number in 0..FILES {
        let directory = pool.path().join(format!("custom/volume{}", number % 10));
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let file = directory.join(format!("file{number}"));
        fs::write(&file, "data\n").with_context(|| format!("write {}", file.display()))?;
    }
    // Asked for by name: that lists no directory.
    let intact = || -> Result<()> {
        let named =
            |number: &usize| pool.path().join(format!("custom/volume{}/file{number}", number % 10));
        let left = (0..FILES).filter(|number| named(number).exists()).count();
        println!("{left} of {FILES} files are there\n");
        ensure!(left == FILES, "{left} of {FILES} files are left");
        Ok(())
    };

    stage.say(&format!(
        "This machine, kernel {}, in a mount namespace of its own. {} is the",
        kernel()?,
        root.display()
    ));
    stage.say(&format!(
        "guarded root; a tmpfs below it stands in for a pool with {FILES} files of a whole cluster."
    ));
    let (agent, tier) = start(&stage, place, &root)?;
    let run_dir = at("run");
    let control = |arguments: &str| format!("guardctl --run-dir {} {arguments}", run_dir.display());
    stage.run(&control("status"), expected(tier), 40)?;

    stage.say("The operator wipes the directory, and the pool is still mounted in it:");
    stage.run(&format!("rm -rf {}", root.display()), Expect::Failure, 3)?;
    intact()?;
    stage.run(&format!("rm -rf {}/storage-pools/*", root.display()), Expect::Failure, 3)?;
    stage.run(&format!("find {} -delete", root.display()), Expect::Failure, 3)?;
    let python = format!(
        "python3 -c 'import shutil; shutil.rmtree(\"{}\")' 2>&1 | tail -n 1",
        root.display()
    );
    stage.run(&python, Expect::Success, 3)?;
    intact()?;
    await_denial(&run_dir)?;
    stage.run(&control("events -n 6"), Expect::Success, 12)?;

    stage.say("Sealed, nobody can delete at all, also while no agent runs:");
    stage.run(&control("seal shared"), Expect::Success, 2)?;
    stage.run(&format!("rm -rf {}", root.display()), Expect::Failure, 2)?;
    stage.prompt("kill -9 guard-agent");
    agent.kill()?;
    stage.run(&format!("rm -rf {}", root.display()), Expect::Failure, 2)?;
    intact()?;
    let agent = start_again(&stage, place)?;
    stage.run(&control("unseal shared"), Expect::Success, 2)?;
    intact()?;

    if tier == "fanotify" {
        stage.say(
            "What this tier does not stop, as the status says: a single file whose path is known.",
        );
        let extra = pool.path().join("custom/volume0/extra");
        fs::write(&extra, "data\n").with_context(|| format!("write {}", extra.display()))?;
        stage.run(&format!("rm {}", extra.display()), Expect::Success, 2)?;
    }
    stage.say("On purpose, for a minute, with a reason:");
    stage.run(
        &control("release shared --ttl 1m --reason 'pool is retired, ticket 4711'"),
        Expect::Success,
        3,
    )?;
    stage.run(&format!("rm -rf {}/custom", pool.path().display()), Expect::Success, 2)?;
    ensure!(!pool.path().join("custom").exists(), "a release let nothing through");
    stage.run(&control("events -n 2 --kind lease"), Expect::Success, 4)?;
    agent.kill()?;
    let unload = format!(
        "guard-agent unload --pin-dir {} --state-dir {}",
        at("bpf/pins").display(),
        at("state").display()
    );
    stage.run(&unload, Expect::Success, 2)?;
    stage.close(&format!(
        "Shown with tier {tier}: rm -rf, find -delete and shutil.rmtree of the guarded root were \
         refused and lost none of {FILES} files, guarded and sealed, with and without an agent; \
         after a release the files could be deleted. Nothing of it is left on this machine."
    ));
    Ok(())
}

/// A weaker tier is reported by the status's exit code too.
fn expected(tier: &str) -> Expect {
    if tier == "fanotify" { Expect::Failure } else { Expect::Success }
}

fn kernel() -> Result<String> {
    Ok(command::run("uname", &["-r"])?.trim().to_owned())
}

/// Starts the agent with the best tier that works.
fn start(stage: &Stage, place: &Path, root: &Path) -> Result<(Agent, &'static str)> {
    let policy = format!(
        "version = 1\n\n[[root]]\npath = \"{}\"\nfilesystems = \
         [\"tmpfs\"]\n",
        root.display()
    );
    let file = place.join("policy.toml");
    fs::write(&file, policy).with_context(|| format!("write {}", file.display()))?;
    stage.run(&format!("cat {}", file.display()), Expect::Success, usize::MAX)?;
    let agent = start_again(stage, place)
        .context("no tier works on this machine: run `guardctl doctor`")?;
    Ok((agent, in_force(place)?))
}

/// The tier that the agent says is in force.
fn in_force(place: &Path) -> Result<&'static str> {
    let said = status(place)?;
    let tier = said["posture"]["tier"].as_str().unwrap_or_default();
    let known = ["bpf-lsm", "fmod-ret", "fanotify"].into_iter().find(|known| *known == tier);
    known.with_context(|| format!("the status names no tier: {}", said["posture"]))
}

fn status(place: &Path) -> Result<Value> {
    let run_dir = place.join("run");
    let output = command::attempt(
        &binary("GUARDCTL")?.to_string_lossy(),
        &["--run-dir", &run_dir.to_string_lossy(), "status", "--json"],
    )?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("parse the status: {}", command::text(&output)))
}

fn start_again(stage: &Stage, place: &Path) -> Result<Agent> {
    stage.prompt("guard-agent run &");
    let log = place.join("agent.log");
    let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let child = Command::new(binary("GUARD_AGENT")?)
        .args(["run", "--container-as-host"])
        .args(["--policy".as_ref(), place.join("policy.toml").as_os_str()])
        .args(["--state-dir".as_ref(), place.join("state").as_os_str()])
        .args(["--run-dir".as_ref(), place.join("run").as_os_str()])
        .args(["--audit".as_ref(), place.join("audit.jsonl").as_os_str()])
        .args(["--pin-dir".as_ref(), place.join("bpf/pins").as_os_str()])
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .context("start guard-agent")?;
    let mut agent = Agent(child);
    wait::until("the agent is up", START_LIMIT, || {
        if let Some(ended) = agent.0.try_wait()? {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("the agent ended ({ended}): {}", said.lines().last().unwrap_or_default());
        }
        Ok(status(place).is_ok_and(|said| said["posture"]["tier"].is_string()))
    })?;
    println!();
    Ok(agent)
}

fn await_denial(run_dir: &Path) -> Result<()> {
    let audit = run_dir.with_file_name("audit.jsonl");
    wait::until("the denials are in the audit log", LIMIT, || {
        let text =
            fs::read_to_string(&audit).with_context(|| format!("read {}", audit.display()))?;
        Ok(text.contains("\"comm\":\"python3\""))
    })
}

/// The running agent; it ends with the demonstration.
struct Agent(Child);

impl Agent {
    fn kill(mut self) -> Result<()> {
        self.0.kill().context("kill guard-agent")?;
        self.0.wait().context("wait for guard-agent")?;
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
