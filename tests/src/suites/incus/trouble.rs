//! Trouble around a join: failures after it, reboots, a daemon that hangs, files that are damaged.
//! The agent answers, and no mode weakens.

use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, pipe};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::harness::incus::Stage;
use crate::harness::incus::Step;
use crate::harness::incus::cluster::{MOUNTPOINT, POOL, pool_mounts};
use crate::harness::incus::machine;
use crate::harness::registry::Test;
use crate::harness::{command, tree};

pub(super) const TESTS: &[Test] = &[
    case("late_failure_of_a_member_stays_guarded", late_failure),
    case("reboot_of_a_failed_node_with_a_deleter_at_work", reboot),
    case("hanging_daemon_and_damaged_database_weaken_nothing", hang_and_damage),
    case("replaced_daemon_is_still_the_member", replaced_daemon),
    case("agent_answers_without_metadata_servers", without_mds),
];

const fn case(name: &'static str, body: fn() -> Result<()>) -> Test {
    Test::new(name, body).within_seconds(600).only_in_full()
}

/// Time within which `guardctl status` answers during any hang.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Several looks of the agent at its node.
const SEVERAL_LOOKS: Duration = Duration::from_secs(15);

/// For a while: the agent answers at once, and the node's pools have this mode all the time. An
/// agent that waited for the things it looks at would be slow most of the time; one slow answer may
/// be the machine's.
fn answers_and_keeps(stage: &Stage, mode: &str) -> Result<()> {
    let end = Instant::now() + SEVERAL_LOOKS;
    let mut answers = Vec::new();
    while Instant::now() < end {
        let start = Instant::now();
        let node = stage.node()?;
        answers.push(start.elapsed());
        ensure!(node["mode"] == mode, "the mode became {node}");
    }
    answers.sort_unstable();
    let usual = answers[answers.len() / 2];
    ensure!(usual < ANSWER_LIMIT, "the agent answers after {:.1} s", usual.as_secs_f64());
    Ok(())
}

fn late_failure() -> Result<()> {
    let mut stage = Stage::new("late failure after joining")?;
    stage.join("node2")?.succeeds()?;
    stage.becomes(&["joined"], "guarded")?;
    machine::link(false)?;
    answers_and_keeps(&stage, "guarded").context("without a link to the cluster")?;
    stage.joiner()?.kill()?;
    answers_and_keeps(&stage, "guarded").context("with the member's daemon killed")?;
    machine::link(true)?;
    stage.start_joiner()?;
    stage.becomes(&["joined"], "guarded")?;
    stage.stop_joiner()?;
    stage.remove_directory()?;
    stage.note("link down, SIGKILL, back again, stopped, rm -rf")
}

/// Deletes all it can in the pool, over and over, from the moment that it is mounted.
struct Deleter {
    /// Closed to end it.
    stop: PipeWriter,
    thread: JoinHandle<Result<u64>>,
}

impl Deleter {
    fn start() -> Result<Self> {
        let (stopped, stop) = pipe().context("make a pipe")?;
        let work = move || delete_until(&stopped);
        let thread = thread::Builder::new().name("deleter".to_owned()).spawn(work)?;
        Ok(Self { stop, thread })
    }

    /// Ends it; returns the number of refusals.
    fn end(self) -> Result<u64> {
        drop(self.stop);
        self.thread.join().map_err(|_| anyhow!("the deleter panicked"))?
    }
}

fn delete_until(stopped: &PipeReader) -> Result<u64> {
    let table = File::open("/proc/self/mountinfo").context("open the mount table")?;
    let mut refused = 0;
    loop {
        let mounted = !pool_mounts()?.is_empty();
        let timeout = if mounted { PollTimeout::ZERO } else { PollTimeout::NONE };
        let mut changes = [
            PollFd::new(table.as_fd(), PollFlags::POLLPRI),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut changes, timeout).context("wait for a mount")?;
        if changes[1].any().unwrap_or(true) {
            return Ok(refused);
        }
        let Ok(found) = tree::contents(Path::new(MOUNTPOINT)) else { continue };
        for file in found.into_iter().filter_map(|(path, size)| size.map(|_| path)) {
            if fs::remove_file(Path::new(MOUNTPOINT).join(file)).is_err() {
                refused += 1;
            }
        }
    }
}

fn reboot() -> Result<()> {
    let mut stage = Stage::new("reboot of a failed node")?;
    stage.join_killed_at("node2", Step::Mounted)?;
    stage.becomes(&["join-failed"], "sealed")?;
    // As after a reboot: the agent and the mounts are gone.
    let agent = stage.agent.take().context("the agent runs")?;
    agent.stop()?;
    umount2(MOUNTPOINT, MntFlags::empty()).with_context(|| format!("unmount {MOUNTPOINT}"))?;

    stage.agent = Some(stage.installation.start()?);
    let deleter = Deleter::start()?;
    stage.start_joiner()?;
    ensure!(!pool_mounts()?.is_empty(), "incusd did not mount the pool again");
    stage.becomes(&["join-failed"], "sealed")?;
    let refused = deleter.end()?;
    stage.is_intact()?;
    ensure!(refused > 0, "the deleter met no file");
    stage.stop_joiner()?;
    stage.remove_directory()?;
    stage.note(&format!("agent first, incusd mounts again, a deleter was refused {refused} times"))
}

fn hang_and_damage() -> Result<()> {
    let mut stage = Stage::new("hanging daemon, damaged database")?;
    stage.join_killed_at("node2", Step::Mounted)?;
    stage.becomes(&["join-failed"], "sealed")?;
    stage.start_joiner()?;
    stage.joiner()?.signal(Signal::SIGSTOP)?;
    answers_and_keeps(&stage, "sealed").context("with incusd stopped by a signal")?;
    stage.joiner()?.kill()?;
    fs::write("/var/lib/incus/database/local.db", "this is no database")
        .context("damage local.db")?;
    answers_and_keeps(&stage, "sealed").context("with a damaged local.db")?;
    stage.remove_directory()?;
    stage.note("SIGSTOP, local.db damaged, rm -rf")
}

fn replaced_daemon() -> Result<()> {
    const DAEMON: &str = "/usr/libexec/incus/incusd";
    let mut stage = Stage::new("replaced daemon")?;
    stage.join("node2")?.succeeds()?;
    stage.becomes(&["joined"], "guarded")?;
    let new = format!("{DAEMON}.new");
    fs::copy(DAEMON, &new).with_context(|| format!("copy {DAEMON}"))?;
    fs::rename(&new, DAEMON).with_context(|| format!("replace {DAEMON}"))?;
    answers_and_keeps(&stage, "guarded").context("with the running daemon's file replaced")?;
    stage.joiner()?.stop()?;
    stage.start_joiner()?;
    stage.becomes(&["joined"], "guarded")?;
    let joiner = stage.joiner()?;
    joiner.client(&["storage", "volume", "create", POOL, "after"])?;
    joiner.client(&["storage", "volume", "delete", POOL, "after"])?;
    stage.is_intact()?;
    stage.note("incusd replaced and restarted, a volume made and deleted")
}

fn without_mds() -> Result<()> {
    let filesystem = std::env::var("CEPH_FS").context("CEPH_FS")?;
    let stage = Stage::new("no metadata server")?;
    stage.join("node2")?.succeeds()?;
    stage.becomes(&["joined"], "guarded")?;
    command::run("ceph", &["fs", "fail", &filesystem])?;
    let kept = answers_and_keeps(&stage, "guarded").context("without metadata servers");
    command::run("ceph", &["fs", "set", &filesystem, "joinable", "true"])?;
    kept?;
    stage.is_intact()?;
    stage.note("metadata servers failed and came back")
}
