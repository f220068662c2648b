//! `guardctl exec`: one command tree deletes while everybody else is denied; with it the permission
//! ends.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use guard_agent::cli::own_cgroup;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::attempt::{rm_is_denied, rm_passes};
use crate::harness::guarded::{Guarded, exit_code};
use crate::harness::registry::Test;
use crate::harness::{command, wait};

pub(super) const TESTS: &[Test] = &[
    Test::new("exec_lets_one_tree_through_and_ends_with_it", one_tree),
    Test::new("exec_lease_ends_with_the_command_and_not_with_what_it_started", process_ends),
    Test::new("exec_lease_goes_to_the_requesters_own_cgroup_alone", own_cgroup_alone),
    Test::new("exec_command_is_the_process_that_guardctl_was", same_process),
    Test::new("exec_lease_survives_the_agents_restart", restart),
    Test::new("exec_lease_ends_by_time_revocation_and_seal", early_ends),
];

const CGROUPS: &str = "/sys/fs/cgroup/guard-agent.exec";

fn exec(ground: &Guarded, ttl: &str, line: &str) -> Result<Command> {
    let mut command = Command::new(std::env::var_os("GUARDCTL").context("GUARDCTL is not set")?);
    command
        .arg("--run-dir")
        .arg(ground.installation.run_dir())
        .args(["exec", "--pool", "pool", "--reason", "test", "--ttl", ttl, "--", "sh", "-c", line]);
    Ok(command)
}

/// A command that runs until its standard input is closed, then removes a file and says how that
/// went.
struct Waiting {
    child: Child,
}

impl Waiting {
    fn start(ground: &Guarded, ttl: &str, file: &Path) -> Result<Self> {
        let line =
            format!("echo ready; cat >/dev/null; rm -f {} 2>/dev/null; echo $?", file.display());
        let mut command = exec(ground, ttl, &line)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start guardctl exec")?;
        let mut ready = [0; 6];
        let output = child.stdout.as_mut().context("its output")?;
        output.read_exact(&mut ready).context("wait for the command to begin")?;
        ensure!(&ready == b"ready\n", "the command said {ready:?}");
        Ok(Self { child })
    }

    /// Has it do its deletion; returns `rm`'s code.
    fn finish(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let mut said = String::new();
        // To its end: also when guardctl is gone, the command holds the other end.
        self.child.stdout.take().context("its output")?.read_to_string(&mut said)?;
        self.child.wait()?;
        Ok(said.trim().to_owned())
    }
}

fn leases(ground: &Guarded) -> Result<Vec<Value>> {
    let leases = ground.installation.guardctl_json(&["lease", "list"])?;
    leases.as_array().cloned().context("guardctl lease list printed no list")
}

/// No lease; and of all cgroups that commands have left, the next call removes the empty ones.
fn nothing_is_left(ground: &Guarded) -> Result<()> {
    wait::until("the lease is over", wait::LIMIT, || Ok(leases(ground)?.is_empty()))?;
    wait::until("the cgroups of earlier commands are gone", wait::LIMIT, || {
        ensure!(run(ground, "true")?.status.success(), "a command that does nothing failed");
        let cgroups = fs::read_dir(CGROUPS).context("list the cgroups")?.flatten();
        Ok(cgroups.filter(|entry| entry.path().is_dir()).count() <= 1)
    })?;
    wait::until("the lease of that is over", wait::LIMIT, || Ok(leases(ground)?.is_empty()))
}

fn ended(ground: &Guarded, change: &str) -> Result<()> {
    ground.wait_for_record(&format!("a lease of a command that is {change}"), |record| {
        record["kind"] == "lease"
            && record["lease"]["lease_kind"] == "command"
            && record["lease"]["change"] == change
    })?;
    Ok(())
}

fn run(ground: &Guarded, line: &str) -> Result<Output> {
    exec(ground, "5m", line)?.output().context("run guardctl exec")
}

fn one_tree() -> Result<()> {
    let ground = Guarded::new("exec", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let at = |name: &str| pool.path().join(name);

    let waiting = Waiting::start(&ground, "5m", &at("file0"))?;
    rm_is_denied(&at("file0"))?;
    ensure!(leases(&ground)?.len() == 1, "the lease is not listed");
    ensure!(waiting.finish()? == "0" && !at("file0").exists(), "the command was denied");
    nothing_is_left(&ground)?;
    ground.wait_for_decision("lease", "/file0")?;
    ended(&ground, "granted")?;
    ended(&ground, "ended")?;

    // From its first instruction, with its children, also in a sealed pool.
    ground.guardctl(&["seal", "pool"])?;
    let output =
        run(&ground, &format!("sh -c 'rm {}' && cat /proc/self/cgroup", at("file1").display()))?;
    ensure!(output.status.success() && !at("file1").exists(), "{}", command::text(&output));
    ensure!(command::text(&output).contains("/guard-agent.exec/"), "{}", command::text(&output));
    rm_is_denied(&at("file2"))?;
    ground.guardctl(&["unseal", "pool"])?;

    // Processes that it leaves behind are denied when the command has ended.
    let fifo = at("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    let line = format!("(cat {}; rm {}) >/dev/null 2>&1 &", fifo.display(), at("file3").display());
    ensure!(exit_code(&run(&ground, &line)?)? == 0, "the shell failed");
    wait::until("the lease is over", wait::LIMIT, || Ok(leases(&ground)?.is_empty()))?;
    fs::write(&fifo, "go")?;
    nothing_is_left(&ground)?;
    ensure!(at("file3").exists(), "what the command left behind was let through");

    ensure!(exit_code(&run(&ground, "exit 7")?)? == 7, "another exit code than the command's");
    let guardctl = ["exec", "--pool", "pool", "--reason", "test", "--", "/no/such/command"];
    ensure!(
        exit_code(&ground.installation.guardctl(&guardctl)?)? == 127,
        "a command that is not there"
    );
    let guardctl = ["exec", "--pool", "pool", "--reason", " ", "--", "true"];
    ensure!(exit_code(&ground.installation.guardctl(&guardctl)?)? == 6, "a lease without a reason");

    let terminated = Waiting::start(&ground, "5m", &at("file4"))?;
    kill(Pid::from_raw(i32::try_from(terminated.child.id())?), Signal::SIGTERM)?;
    let mut child = terminated.child;
    let status = child.wait()?;
    ensure!(
        status.signal() == Some(Signal::SIGTERM as i32),
        "SIGTERM did not reach the command: {status}"
    );
    nothing_is_left(&ground)?;
    rm_is_denied(&at("file4"))
}

fn process_ends() -> Result<()> {
    let ground = Guarded::new("exec-ended", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let mut waiting = Waiting::start(&ground, "5m", &pool.path().join("file0"))?;
    rm_is_denied(&pool.path().join("file0"))?;
    ensure!(leases(&ground)?.len() == 1, "the lease is not listed");
    // Its input stays open, so that its child (`cat`) runs on in its cgroup.
    let input = waiting.child.stdin.take();
    waiting.child.kill()?;
    waiting.child.wait()?;
    ended(&ground, "ended")?;
    ensure!(leases(&ground)?.is_empty(), "the lease outlives the command");
    rm_is_denied(&pool.path().join("file0"))?;
    drop(input);
    nothing_is_left(&ground)
}

/// Runs `line` in a new cgroup, whose path is `$0`; guardctl there believes that it has made it
/// itself.
fn in_new_cgroup(ground: &Guarded, line: &str) -> Result<Output> {
    let cgroup = Path::new("/sys/fs/cgroup/guard-tests-exec");
    fs::create_dir(cgroup).context("make a cgroup")?;
    let guardctl = std::env::var("GUARDCTL").context("GUARDCTL is not set")?;
    let run_dir = ground.installation.run_dir();
    let output = Command::new("sh")
        .args(["-c", &format!("echo 0 >$0/cgroup.procs; {line}")])
        .arg(cgroup)
        .args([guardctl.as_ref(), "--run-dir".as_ref(), run_dir.as_os_str()])
        .args(["exec", "--pool", "pool", "--reason", "test", "--"])
        .env(own_cgroup::MARK, "")
        .output()
        .context("run a shell")?;
    wait::until("the cgroup is empty", wait::LIMIT, || {
        Ok(fs::read_to_string(cgroup.join("cgroup.procs"))?.is_empty())
    })?;
    fs::remove_dir(cgroup)?;
    Ok(output)
}

fn own_cgroup_alone() -> Result<()> {
    let ground = Guarded::new("exec-alone", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let at = |name: &str| pool.path().join(name);

    // The test's own cgroup holds strangers, and so does one with a process beside it.
    let mut shared = exec(&ground, "5m", &format!("rm {}", at("file0").display()))?;
    let output = shared.env(own_cgroup::MARK, "").output()?;
    let refused = |output: &Output| -> Result<()> {
        let text = command::text(output);
        ensure!(exit_code(output)? == 6 && text.contains("is not the requester's alone"), "{text}");
        ensure!(at("file0").exists() && leases(&ground)?.is_empty(), "a lease was granted");
        Ok(())
    };
    refused(&output)?;
    let beside =
        format!("sleep 60 & \"$@\" rm {}; code=$?; kill $!; exit $code", at("file0").display());
    refused(&in_new_cgroup(&ground, &beside)?)?;
    // Alone, it may, and nobody in another cgroup.
    let alone = format!("exec \"$@\" rm {}", at("file0").display());
    let output = in_new_cgroup(&ground, &alone)?;
    ensure!(output.status.success() && !at("file0").exists(), "{}", command::text(&output));
    wait::until("the lease is over", wait::LIMIT, || Ok(leases(&ground)?.is_empty()))?;
    rm_is_denied(&at("file1"))
}

/// Without the parts that differ between any two calls: the pid, and the C library's own signals
/// (32, 33).
fn comparable(text: &str, pid: u32) -> String {
    let line = |line: &str| match line
        .split_once(":\t")
        .map(|(name, set)| (name, u64::from_str_radix(set, 16)))
    {
        Some((name, Ok(set))) => format!("{name}: {:08x}\n", set & 0x7fff_ffff),
        _ => format!("{line}\n"),
    };
    text.replace(&pid.to_string(), "PID").lines().map(line).collect()
}

/// Exit code, signals, descriptors, environment, working directory and process id are those of a
/// direct call.
fn same_process() -> Result<()> {
    let ground = Guarded::new("exec-same", "")?;
    let _agent = ground.installation.start()?;
    let _pool = ground.pool("pool")?;
    let line = "echo $$; pwd; tr '\\0' '\\n' </proc/$$/environ | sort; grep -E '^Sig(Blk|Ign|Cgt)' \
                /proc/$$/status";
    let prepared = |mut command: Command| -> Result<(u32, String)> {
        command
            .current_dir("/tmp")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("WORD", "two words");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let pid = child.id();
        Ok((pid, command::text(&child.wait_with_output()?)))
    };
    let mut direct = Command::new("sh");
    direct.args(["-c", line]);
    let ((direct_pid, direct), (pid, text)) =
        (prepared(direct)?, prepared(exec(&ground, "5m", line)?)?);
    let (expected, found) = (comparable(&direct, direct_pid), comparable(&text, pid));
    ensure!(
        found == expected && found.starts_with("PID\n/tmp\n"),
        "directly:\n{expected}\nwith a lease:\n{found}"
    );

    let output = run(&ground, "kill -TERM $$")?;
    ensure!(output.status.signal() == Some(Signal::SIGTERM as i32), "ended with {}", output.status);
    Ok(())
}

fn restart() -> Result<()> {
    let ground = Guarded::new("exec-restart", "")?;
    let agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let waiting = Waiting::start(&ground, "5m", &pool.path().join("file0"))?;
    drop(agent);
    let _agent = ground.installation.start()?;
    ensure!(leases(&ground)?.len() == 1, "the new agent does not know the lease");
    rm_is_denied(&pool.path().join("file0"))?;
    ensure!(waiting.finish()? == "0", "the command was denied after the restart");
    nothing_is_left(&ground)
}

fn early_ends() -> Result<()> {
    let ground = Guarded::new("exec-ends", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let file = pool.path().join("file0");

    let waiting = Waiting::start(&ground, "3s", &file)?;
    ended(&ground, "expired")?;
    ensure!(waiting.finish()? == "1" && file.exists(), "let through after its time");

    let waiting = Waiting::start(&ground, "5m", &file)?;
    let id = leases(&ground)?.first().and_then(|lease| lease["id"].as_str().map(str::to_owned));
    ground.guardctl(&["lease", "revoke", &id.context("the lease's id")?])?;
    ended(&ground, "revoked")?;
    ensure!(waiting.finish()? == "1" && file.exists(), "let through after the revocation");

    let waiting = Waiting::start(&ground, "5m", &file)?;
    ground.guardctl(&["seal", "pool"])?;
    ensure!(leases(&ground)?.is_empty(), "the lease outlives the seal");
    ensure!(waiting.finish()? == "1" && file.exists(), "let through after the seal");
    ground.guardctl(&["unseal", "pool"])?;

    // A release beside it goes its own way.
    let waiting = Waiting::start(&ground, "5m", &file)?;
    ground.guardctl(&["release", "pool", "--ttl", "5m", "--reason", "test"])?;
    ensure!(leases(&ground)?.len() == 2, "the release replaced the command's lease");
    ensure!(waiting.finish()? == "0", "the command was denied");
    rm_passes(&pool.path().join("file1"))?;
    Ok(())
}
