//! The tier without programs: permission events of fanotify, and mounts that are made read-only.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::harness::attempt::{copy_rm, failed_with, passes, rm_passes};
use crate::harness::fanotify::{Ground, intact};
use crate::harness::mount::{Mount, mountinfo_of};
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;
use crate::harness::{command, wait};

pub(super) const TESTS: &[Test] = &[
    Test::new("fanotify_guarded_stops_recursive_deletion_and_says_what_it_does_not", guarded),
    Test::new("fanotify_one_process_is_judged_anew_at_each_question", judged_anew),
    Test::new("fanotify_sealed_outlives_the_agent_and_is_restored_exactly", sealed),
    Test::new("fanotify_command_lease_writes_at_once_in_a_sealed_pool", command_lease),
    Test::new("fanotify_busy_mount_cannot_be_listed_until_it_is_sealed", busy).only_in_full(),
];

/// `rm -rf` must fail and leave every file.
fn wipe(root: &Path, pool: &Path) -> Result<()> {
    command::run_failing("rm", &["-rf", &root.to_string_lossy()])?;
    intact(pool)
}

/// Programs that wipe a directory: each must fail and leave every file.
fn wipe_all_ways(root: &Path, pool: &Path) -> Result<()> {
    let (root, place) = (root.to_string_lossy(), pool.to_string_lossy());
    let python = "import shutil, sys; shutil.rmtree(sys.argv[1])";
    for (program, arguments) in [
        ("rm", vec!["-rf", &root]),
        ("sh", vec!["-c", "rm -rf \"$1\"/*", "sh", &root]),
        ("sh", vec!["-c", "rm -rf \"$1\"/volume", "sh", &place]),
        ("find", vec![&root, "-delete"]),
        ("python3", vec!["-c", python, &place]),
        ("python3", vec!["-c", python, &root]),
    ] {
        command::run_failing(program, &arguments)?;
        intact(pool).with_context(|| format!("after {program} {}", arguments.join(" ")))?;
    }
    Ok(())
}

fn guarded() -> Result<()> {
    let scratch = Scratch::new("fanotify-actor")?;
    let actor = scratch.join("rm");
    copy_rm(&actor)?;
    let ground = Ground::new(
        "fanotify-guarded",
        &format!("actors = [{{ executable = \"{}\" }}]", actor.display()),
    )?;
    let agent = ground.0.installation.start()?;
    let pool = ground.0.pool("pool")?;
    let at = |name: &str| pool.path().join(name);

    wipe_all_ways(ground.0.root(), pool.path())?;
    let decision = ground.0.wait_for_decision("guarded", "/volume")?;
    ensure!(
        decision["tier"] == "fanotify"
            && decision["operation"] == "list"
            && decision["verdict"] == "denied",
        "recorded as {decision}"
    );
    passes("read a file", fs::read(at("file0")).map(drop))?;
    passes("write a file", fs::write(at("new"), "x"))?;

    // A deletion that it does not stop, but reports.
    passes("a single deletion of a known path", fs::remove_file(at("new")))?;
    let seen = ground.0.wait_for_decision("guarded", "/new")?;
    ensure!(
        seen["tier"] == "fanotify"
            && seen["operation"] == "unlink"
            && seen["verdict"] == "would-deny",
        "recorded as {seen}"
    );
    let posture = ground.0.status()?["posture"].clone();
    ensure!(posture["state"] == "degraded" && posture["tier"] == "fanotify", "{posture}");
    let gaps = posture["gaps"].as_array().context("the posture has no gaps")?;
    for code in ["single-deletions", "listing", "other-namespaces", "responder"] {
        ensure!(
            gaps.iter().any(|gap| gap["code"] == code),
            "{code} is not among the gaps: {posture}"
        );
    }
    let told = command::text(&ground.0.installation.guardctl(&["status"])?);
    ensure!(told.contains("not covered (single-deletions)"), "the status does not say so: {told}");

    // A guest's view bears no mark; an actor is let through; a release ends it all for a while.
    let guest = "mount --bind \"$1\" \"$2\" && ls \"$2\" >/dev/null && rm -r \"$2/guest\"";
    fs::create_dir_all(at("volume").join("guest/inner"))?;
    let (volume, place) = (at("volume"), scratch.join("guest"));
    fs::create_dir(&place)?;
    let arguments = [&*volume.to_string_lossy(), &*place.to_string_lossy()].map(str::to_owned);
    let namespace =
        ["-m", "--propagation", "private", "sh", "-c", guest, "sh", &arguments[0], &arguments[1]];
    command::run("unshare", &namespace)?;
    ensure!(!volume.join("guest").exists(), "the guest's deletion did not reach the volume");
    fs::create_dir_all(at("actors/inner"))?;
    command::run(&actor.to_string_lossy(), &["-r", &at("actors").to_string_lossy()])?;
    intact(pool.path())?;
    ground.0.guardctl(&["release", "pool", "--ttl", "10m", "--reason", "test"])?;
    rm_passes(&at("volume"))?;
    ensure!(agent.stop()?.success(), "the agent ended otherwise");
    Ok(())
}

/// For shells: whether a directory can be listed, by the shell's own process.
const LISTS: &str = "lists() { for name in \"$1\"/*; do [ \"$name\" != \"$1/*\" ]; return; done; }";
/// Stranger, actor by its executable, stranger: one process all the while.
const BY_EXECUTABLE: &str = r#"
    eval "$LISTS"; lists "$POOL" && exit 1
    exec "$ACTOR" -c 'eval "$LISTS"; lists "$POOL" || exit 2; exec sh -c "eval \"\$LISTS\"; lists \"\$POOL\" && exit 3; exit 0"'
"#;
/// The same by its cgroup; then in one of the same name and place, which is another.
const BY_CGROUP: &str = r#"
    eval "$LISTS"; own=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)
    lists "$POOL" && exit 1
    echo $$ >"$CGROUP/cgroup.procs" && lists "$POOL" || exit 2
    echo $$ >"$own/cgroup.procs" && ! lists "$POOL" || exit 3
    echo $$ >"$CGROUP/cgroup.procs" && lists "$POOL" || exit 4
    echo $$ >"$own/cgroup.procs" && rmdir "$CGROUP" && mkdir "$CGROUP" || exit 5
    echo $$ >"$CGROUP/cgroup.procs" && ! lists "$POOL" || exit 6
"#;

/// A process's identity at one question says nothing of that at the next.
fn judged_anew() -> Result<()> {
    let scratch = Scratch::new("fanotify-anew")?;
    let (actor, cgroup) = (scratch.join("sh"), Path::new("/sys/fs/cgroup/fanotify-anew"));
    let shell = command::run("sh", &["-c", "readlink -f \"$(command -v sh)\""])?;
    fs::copy(shell.trim(), &actor).with_context(|| format!("copy {}", shell.trim()))?;
    fs::create_dir_all(cgroup).with_context(|| format!("create {}", cgroup.display()))?;
    let actors = format!(
        "actors = [{{ executable = \"{}\" }}, {{ cgroup = \"/fanotify-anew\" }}]",
        actor.display()
    );
    let ground = Ground::new("fanotify-anew", &actors)?;
    let agent = ground.0.installation.start()?;
    let pool = ground.0.pool("pool")?;
    let exit_code = |script: &str| -> Result<Option<i32>> {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("LISTS", LISTS).env("POOL", pool.path());
        let status =
            command.env("ACTOR", &actor).env("CGROUP", cgroup).status().context("start sh")?;
        Ok(status.code())
    };
    let code = exit_code(BY_EXECUTABLE)?;
    ensure!(code == Some(0), "by its executable it was judged wrongly at step {code:?}");
    // The answering process sees by itself that the cgroup is another one: the agent cannot tell
    // it.
    agent.signal(Signal::SIGSTOP)?;
    let code = exit_code(BY_CGROUP);
    agent.signal(Signal::SIGCONT)?;
    let code = code?;
    ensure!(code == Some(0), "by its cgroup it was judged wrongly at step {code:?}");
    let enters = "eval \"$LISTS\"; echo $$ >\"$CGROUP/cgroup.procs\" && lists \"$POOL\"";
    wait::until("policy means the new cgroup", wait::LIMIT, || Ok(exit_code(enters)? == Some(0)))?;
    fs::remove_dir(cgroup).with_context(|| format!("remove {}", cgroup.display()))
}

/// Mount options as the table has them, of the mounts of a place.
fn options(path: &Path) -> Result<Vec<String>> {
    let field = |line: &String| line.split(' ').nth(5).unwrap_or_default().to_owned();
    Ok(mountinfo_of(path)?.iter().map(field).collect())
}

/// The mount table does: an agent that answers its own change with another would never end.
fn comes_to_rest() -> Result<()> {
    let table = fs::File::open("/proc/self/mountinfo").context("open the mount table")?;
    wait::until("the mount table comes to rest", wait::LIMIT, || {
        let mut changed = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
        Ok(poll(&mut changed, PollTimeout::from(500_u16)).context("watch the mount table")? == 0)
    })
}

/// The command with a lease lists and deletes; others do neither, and the mounts are sealed again
/// when it ends.
fn command_lease() -> Result<()> {
    let ground = Ground::new("fanotify-lease", "")?;
    let _agent = ground.0.installation.start()?;
    let pool = ground.0.pool("pool")?;
    let exec = |line: &str| {
        ground
            .0
            .installation
            .guardctl(&["exec", "--pool", "pool", "--reason", "test", "--", "sh", "-c", line])
    };
    let rm = |name: &str| format!("rm -rf {}", pool.path().join(name).display());
    wipe(ground.0.root(), pool.path())?;
    let output =
        exec(&format!("{} && mkdir {}", rm("volume"), pool.path().join("volume").display()))?;
    ensure!(output.status.success(), "guarded: {}", command::text(&output));
    for number in 0..10 {
        passes("make a file", fs::write(pool.path().join(format!("volume/file{number}")), "x"))?;
    }
    ground.0.guardctl(&["seal", "pool"])?;
    ensure!(options(pool.path())?[0].starts_with("ro"), "sealed, and writable");
    let output = exec(&rm("volume/file0"))?;
    ensure!(output.status.success(), "sealed: {}", command::text(&output));
    wait::until("the mount is sealed again", wait::LIMIT, || {
        Ok(options(pool.path())?[0].starts_with("ro"))
    })?;
    failed_with("without a lease", fs::remove_file(pool.path().join("file0")), Errno::EROFS)
}

fn sealed() -> Result<()> {
    let scratch = Scratch::new("fanotify-sealed")?;
    let ground = Ground::new("fanotify-sealed", "")?;
    let agent = ground.0.installation.start()?;
    let pool = ground.0.pool("pool")?;
    // A second mount of it, which was read-only before.
    let second = Mount::bind(pool.path(), scratch.join("second"))?;
    command::run("mount", &["-o", "remount,bind,ro", &second.path().to_string_lossy()])?;
    let before = (options(pool.path())?, options(second.path())?);
    ensure!(
        before.0[0].starts_with("rw") && before.1[0].starts_with("ro"),
        "the mounts begin as {before:?}"
    );

    let seals = ground.0.installation.state_dir().join("seals.json");
    ground.0.guardctl(&["seal", "pool"])?;
    ensure!(
        options(pool.path())?[0].starts_with("ro"),
        "sealed, and writable: {:?}",
        options(pool.path())?
    );
    ensure!(fs::read_to_string(&seals)?.contains("pool"), "what it was before is not on disk");
    comes_to_rest()?;
    wipe_all_ways(ground.0.root(), pool.path())?;
    let refused =
        |what| failed_with(what, fs::remove_file(pool.path().join("file0")), Errno::EROFS);
    refused("a single deletion")?;
    passes("list a sealed pool", fs::read_dir(pool.path()).map(drop))?;

    agent.kill()?;
    ensure!(options(pool.path())?[0].starts_with("ro"), "writable without an agent");
    refused("a single deletion without an agent")?;
    wipe(ground.0.root(), pool.path())?;

    let agent = ground.0.installation.start()?;
    ground.0.wait_for_mode(pool.path(), "sealed")?;
    refused("a single deletion after the restart")?;
    wait::until("there is the new agent's responder, and it alone", wait::LIMIT, || {
        Ok(ground.responder().is_ok())
    })?;
    ground.0.guardctl(&["unseal", "pool"])?;
    wait::until("the mounts are what they were", wait::LIMIT, || {
        Ok((options(pool.path())?, options(second.path())?) == before)
    })?;
    passes("write after leaving the mode", fs::write(pool.path().join("new"), "x"))?;
    wait::until("nothing is recorded any more", wait::LIMIT, || {
        Ok(!fs::read_to_string(&seals)?.contains("mount_id"))
    })?;
    // Guarded again, without a moment between.
    wipe(ground.0.root(), pool.path())?;
    ground.0.guardctl(&["seal", "pool"])?;
    agent.kill()?;
    ground.unload()?;
    ensure!(
        (options(pool.path())?, options(second.path())?) == before,
        "unload leaves the mounts sealed"
    );
    rm_passes(&pool.path().join("volume"))
}

fn busy() -> Result<()> {
    let ground = Ground::new("fanotify-busy", "")?;
    let _agent = ground.0.installation.start()?;
    let pool = ground.0.pool("pool")?;
    let writer = fs::File::options().append(true).open(pool.path().join("file0"))?;
    ground.0.guardctl(&["seal", "pool"])?;
    ensure!(options(pool.path())?[0].starts_with("rw"), "read-only with a file open for writing");
    ensure!(ground.reasons()?.contains(&"mounts-not-sealed".to_owned()), "{:?}", ground.reasons()?);
    wipe(ground.0.root(), pool.path())?;
    ground.0.wait_for_decision("sealed", "/")?;
    drop(writer);
    wait::until("it is sealed once nobody writes", wait::LIMIT, || {
        Ok(options(pool.path())?[0].starts_with("ro"))
    })?;
    wait::until("the posture says so", wait::LIMIT, || {
        Ok(!ground.reasons()?.contains(&"mounts-not-sealed".to_owned()))
    })
}
