//! The tier without programs where it is hard pressed: what it does not stop, mounts that come and
//! go, and many who ask at once, with an agent or a responder that is stalled or gone.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::harness::attempt::passes;
use crate::harness::fanotify::{Ground, intact};
use crate::harness::mount::{Mount, mountinfo_of};
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;
use crate::harness::{command, wait};

pub(super) const TESTS: &[Test] = &[
    Test::new("fanotify_deletions_that_are_not_stopped_are_seen", seen).only_in_full(),
    Test::new("fanotify_pool_mounted_again_unnoticed_is_marked_again", mounted_again)
        .only_in_full(),
    Test::new("fanotify_further_mount_is_marked_without_an_agent", further_mount).only_in_full(),
    Test::new("fanotify_groups_that_run_out_are_told_and_tried_again", no_more_groups)
        .only_in_full(),
    Test::new("fanotify_64_openers_and_a_stalled_agent_hang_nobody", crowd).only_in_full(),
    Test::new("fanotify_stalled_responder_is_replaced_within_the_bound", stalled_responder)
        .only_in_full(),
];

/// Removes files, then each that it is told of, and lives on until its input is closed, so that it
/// can be looked at.
struct Remover(Child);

impl Remover {
    const SCRIPT: &str = "
import os, sys
def remove(path):
    os.rmdir(path) if os.path.isdir(path) else os.remove(path)
for path in sys.argv[1:]: remove(path)
for line in sys.stdin: remove(line.strip())
";

    /// `program` is a Python, or ends as one in the directory as it has it.
    fn start(program: &str, arguments: &[&str], directory: &Path, names: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).args(["-c", Self::SCRIPT]).args(names);
        command.current_dir(directory).stdin(Stdio::piped());
        let remover = Self(command.spawn().with_context(|| format!("start {program}"))?);
        let is_gone = |name: &&str| fs::symlink_metadata(directory.join(name)).is_err();
        wait::until("all is removed", wait::LIMIT, || Ok(names.iter().all(is_gone)))?;
        Ok(remover)
    }

    fn also(&mut self, name: &str) -> Result<()> {
        let input = self.0.stdin.as_mut().context("who removes files has no input")?;
        writeln!(input, "{name}").context("tell who removes files")
    }

    fn end(mut self) -> Result<()> {
        // Its input ends with the descriptor.
        drop(self.0.stdin.take());
        let status = self.0.wait().context("wait for who removes files")?;
        ensure!(status.success(), "who removes files ended with {status}");
        Ok(())
    }
}

fn seen() -> Result<()> {
    let scratch = Scratch::new("fanotify-seen")?;
    let actor = scratch.join("actor");
    // As it calls itself: the path may have a script of some version manager.
    let python = command::run(
        "python3",
        &["-c", "import os, sys; print(os.path.realpath(sys.executable))"],
    )?;
    fs::copy(python.trim(), &actor).context("copy python3")?;
    let actors = format!("actors = [{{ executable = \"{}\" }}]", actor.display());
    let ground = Ground::new("fanotify-seen", &actors)?;
    let _agent = ground.0.installation.start()?;
    let pool = ground.0.pool("pool")?;
    let at = |name: &str| pool.path().join(name);
    let place = scratch.join("guest");
    fs::create_dir(&place)?;
    fs::create_dir(at("volume/inner"))?;
    fs::create_dir(at("empty"))?;

    // An actor, and a guest that has a part of the pool: what they delete is counted, or nobody's
    // business.
    let by_actor = Remover::start(&actor.to_string_lossy(), &[], pool.path(), &["file0", "file1"])?;
    wait::until("the actor's are counted", wait::LIMIT, || {
        Ok(ground.0.counter("allowed_actor")? == 2)
    })?;
    by_actor.end()?;
    let volume = at("volume");
    let bind = "mount --bind \"$1\" \"$2\" && umount -l \"$3\" && cd \"$2\" && shift 3 && exec \
                python3 \"$@\"";
    let (from, to, whole) =
        (volume.to_string_lossy(), place.to_string_lossy(), pool.path().to_string_lossy());
    let guest = ["-m", "--propagation", "private", "sh", "-c", bind, "sh", &from, &to, &whole];
    let mut by_guest = Remover::start("unshare", &guest, &volume, &["file0", "inner"])?;

    // Events come in their order: once this one is recorded, the earlier ones have been looked at.
    let by_stranger = Remover::start("python3", &[], pool.path(), &["file2", "empty"])?;
    let decision = ground.0.wait_for_decision("guarded", "/empty")?;
    ensure!(
        decision["operation"] == "rmdir"
            && decision["hook"] == "fanotify_delete"
            && decision["comm"] == "python3",
        "recorded as {decision}"
    );
    let decision = ground.0.wait_for_decision("guarded", "/file2")?;
    ensure!(
        decision["operation"] == "unlink" && decision["verdict"] == "would-deny",
        "recorded as {decision}"
    );
    ensure!(
        ground.0.counter("would_deny")? == 2,
        "{} deletions were seen",
        ground.0.counter("would_deny")?
    );
    by_stranger.end()?;

    // A process that has ended by then cannot be identified; the deleted file can.
    command::run("rm", &["-f", &at("volume/file1").to_string_lossy()])?;
    ground.0.wait_for_record("the deletion by rm", |record| {
        record["decision"]["path"] == "/volume/file1"
            && record["decision"]["verdict"] == "would-deny"
    })?;
    // A guest that had its volume before the pool was sealed is not stopped, and seen.
    ground.0.guardctl(&["seal", "pool"])?;
    by_guest.also("file2")?;
    ground.0.wait_for_decision("sealed", "/volume/file2")?;
    by_guest.end()
}

fn mounted_again() -> Result<()> {
    let ground = Ground::new("fanotify-again", "")?;
    let agent = ground.0.installation.start()?;
    let mut pool = ground.0.pool("pool")?;
    ensure!(fs::read_dir(pool.path()).is_err(), "a stranger can list the pool");
    ground.0.guardctl(&["seal", "pool"])?;
    let is_sealed = || {
        Ok(mountinfo_of(&ground.0.root().join("pool"))?.iter().any(|line| line.contains(" ro,")))
    };
    ensure!(is_sealed()?, "the pool is not sealed");
    let number = |line: &String| line.split(' ').take(3).map(str::to_owned).collect::<Vec<_>>();
    let numbers =
        || Ok::<_, anyhow::Error>(mountinfo_of(&ground.0.root().join("pool"))?.first().map(number));
    let before = numbers()?;

    agent.signal(Signal::SIGSTOP)?;
    // The answering process holds the directory for a moment.
    wait::until("the pool is unmounted", wait::LIMIT, || Ok(pool.unmount().is_ok()))?;
    let pool = ground.0.mount("pool")?;
    let after = numbers()?;
    ensure!(
        before == after,
        "the kernel gave the mount other numbers, so that nothing is shown: {before:?}, {after:?}"
    );
    // No agent is needed for this much.
    wait::until("it is marked again", wait::LIMIT, || Ok(fs::read_dir(pool.path()).is_err()))?;
    agent.signal(Signal::SIGCONT)?;
    wait::until("it is sealed again", wait::LIMIT, is_sealed)
}

fn further_mount() -> Result<()> {
    let scratch = Scratch::new("fanotify-further")?;
    let ground = Ground::new("fanotify-further", "")?;
    let agent = ground.0.installation.start()?;
    let pool = ground.0.pool("pool")?;
    agent.kill()?;
    let further = Mount::bind(&pool.path().join("volume"), scratch.join("further"))?;
    wait::until("a further mount is marked", wait::LIMIT, || {
        Ok(fs::read_dir(further.path()).is_err())
    })?;
    // A mount that is no pool stays as it is.
    let other = Mount::tmpfs(scratch.join("other"))?;
    passes("list another mount", fs::read_dir(other.path()).map(drop))?;
    ensure!(fs::read_dir(further.path()).is_err(), "it is marked no more");
    intact(pool.path())
}

/// Number of groups a user may have. Restored when dropped.
struct MaxGroups(String);

impl MaxGroups {
    const PATH: &str = "/proc/sys/fs/fanotify/max_user_groups";

    fn set(count: &str) -> Result<Self> {
        let before =
            fs::read_to_string(Self::PATH).context("read how many groups a user may have")?;
        fs::write(Self::PATH, count).context("set how many groups a user may have")?;
        Ok(Self(before))
    }
}

impl Drop for MaxGroups {
    fn drop(&mut self) {
        // Best effort: without it the next agent says what is missing.
        let _ = fs::write(Self::PATH, &self.0);
    }
}

fn no_more_groups() -> Result<()> {
    let scratch = Scratch::new("fanotify-groups")?;
    let limit = MaxGroups::set("1")?;
    // Those of the tests before end with their processes.
    let group = |flags| Fanotify::init(InitFlags::FAN_CLASS_NOTIF | flags, EventFFlags::O_RDONLY);
    wait::until("there is no other group", wait::LIMIT, || Ok(group(InitFlags::empty()).is_ok()))?;
    // FAN_REPORT_MNT. Without it (before Linux 6.15) the mount table is read, which nothing limits.
    let has_mount_events = group(InitFlags::from_bits_retain(0x4000)).is_ok();
    let ground = Ground::new("fanotify-groups", "")?;
    let agent = ground.0.installation.start()?;
    let pool = ground.0.pool("pool")?;
    // The one group is that which answers.
    ensure!(fs::read_dir(pool.path()).is_err(), "a stranger can list the pool");
    wait::until("the posture says what is missing", wait::LIMIT, || {
        let posture = ground.0.status()?["posture"].clone();
        let reasons = posture["reasons"].as_array().context("the posture has no reasons")?;
        let has = |code: &str| {
            let says_why =
                |reason: &Value| reason["detail"].to_string().contains(Errno::EMFILE.desc());
            reasons.iter().any(|reason| reason["code"] == code && says_why(reason))
        };
        Ok(has("deletions-unseen") && has("mounts-unmarked") == has_mount_events)
    })?;
    drop(limit);
    wait::until("all is well again", wait::LIMIT, || Ok(ground.reasons()? == ["tier-fanotify"]))?;
    command::run("rm", &["-f", &pool.path().join("file0").to_string_lossy()])?;
    ground.0.wait_for_record("the deletion", |record| record["decision"]["path"] == "/file0")?;
    agent.kill()?;
    let further = Mount::bind(&pool.path().join("volume"), scratch.join("further"))?;
    wait::until("a further mount is marked", wait::LIMIT, || {
        Ok(fs::read_dir(further.path()).is_err())
    })
}

/// Starts so many listings of a directory at once.
fn listings(count: usize, program: &Path, directory: &Path) -> Result<Vec<Child>> {
    (0..count)
        .map(|_| {
            Command::new(program)
                .arg(directory)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .with_context(|| format!("start {}", program.display()))
        })
        .collect()
}

/// Number of them that succeeded. A hang is found by the test's limit.
fn succeeded(children: Vec<Child>) -> Result<usize> {
    let mut count = 0;
    for mut child in children {
        count += usize::from(child.wait().context("wait for a listing")?.success());
    }
    Ok(count)
}

fn crowd() -> Result<()> {
    let scratch = Scratch::new("fanotify-crowd")?;
    let actor = scratch.join("ls");
    let host =
        PathBuf::from(command::run("sh", &["-c", "readlink -f \"$(command -v ls)\""])?.trim());
    fs::copy(&host, &actor).with_context(|| format!("copy {}", host.display()))?;
    let ground = Ground::new(
        "fanotify-crowd",
        &format!("actors = [{{ executable = \"{}\" }}]", actor.display()),
    )?;
    let agent = ground.0.installation.start()?;
    let pool = ground.0.pool("pool")?;
    let volume = pool.path().join("volume");
    for stalled in [false, true] {
        if stalled {
            agent.signal(Signal::SIGSTOP)?;
        }
        let strangers = listings(64, &host, &volume)?;
        let actors = listings(16, &actor, &volume)?;
        let guest = "mount --bind \"$1\" \"$2\" && exec ls \"$2\"";
        let (from, to) = (volume.to_string_lossy(), scratch.path().to_string_lossy());
        let namespace = ["-m", "--propagation", "private", "sh", "-c", guest, "sh", &from, &to];
        command::run("unshare", &namespace).context("a guest was held up")?;
        let (strangers, actors) = (succeeded(strangers)?, succeeded(actors)?);
        ensure!(
            strangers == 0,
            "{strangers} of 64 strangers could list the pool (agent stalled: {stalled})"
        );
        ensure!(
            actors == 16,
            "{actors} of 16 actors could list the pool (agent stalled: {stalled})"
        );
    }
    agent.signal(Signal::SIGCONT)?;
    let counted = ground.0.counter("denied_guarded")?;
    ensure!(counted == 128, "{counted} of 128 denials were counted");
    ensure!(ground.reasons()? == ["tier-fanotify"], "{:?}", ground.reasons()?);
    Ok(())
}

fn stalled_responder() -> Result<()> {
    let ground = Ground::new("fanotify-stalled", "[canary]\ninterval = \"1h\"")?;
    let agent = ground.0.installation.start()?;
    let pool = ground.0.pool("pool")?;
    let volume = pool.path().join("volume");
    let is_replaced = || Ok(ground.reasons()?.contains(&"responder-replaced".to_owned()));

    // With nobody to replace it: the kernel lets waiting processes go.
    agent.signal(Signal::SIGSTOP)?;
    let first = ground.responder()?;
    kill(first, Signal::SIGSTOP).context("stop the responder")?;
    let waiting = listings(1, Path::new("ls"), &volume)?;
    let place = format!("/proc/{}/wchan", waiting[0].id());
    wait::until("it waits for an answer", wait::LIMIT, || {
        Ok(fs::read_to_string(&place).context("read where it waits")?.contains("fanotify"))
    })?;
    kill(first, Signal::SIGKILL).context("kill the responder")?;
    ensure!(
        succeeded(waiting)? == 1,
        "the kernel's answer for a responder that is gone is to allow"
    );
    agent.signal(Signal::SIGCONT)?;
    wait::until("the posture says so", wait::LIMIT, is_replaced)?;
    wait::until("listing is denied again", wait::LIMIT, || Ok(fs::read_dir(&volume).is_err()))?;

    // With an agent that ends it at the bound: the kernel allows it, or the next one answers;
    // nobody hangs.
    let second = ground.responder()?;
    kill(second, Signal::SIGSTOP).context("stop the responder")?;
    succeeded(listings(1, Path::new("ls"), &volume)?)?;
    wait::until("another responder answers", wait::LIMIT, || {
        Ok(ground.responder().is_ok_and(|pid| pid != second))
    })?;
    wait::until("listing is denied again", wait::LIMIT, || Ok(fs::read_dir(&volume).is_err()))?;
    // Without an agent it goes on answering.
    agent.kill()?;
    ensure!(fs::read_dir(&volume).is_err(), "listing is allowed without an agent");
    intact(pool.path())
}
