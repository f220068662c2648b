//! The faults. Each injects something, sees that the invariants hold meanwhile, and takes it away
//! again.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fastrand::Rng;
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use super::ground::Ground;
use super::{mounts, room};
use crate::harness::agent::binary;
use crate::harness::attempt::denied;
use crate::harness::wait;
use crate::peers::own::Running;

pub(super) struct Fault {
    pub name: &'static str,
    pub inject: fn(&mut Ground, &mut Rng) -> Result<()>,
}

const fn fault(name: &'static str, inject: fn(&mut Ground, &mut Rng) -> Result<()>) -> Fault {
    Fault { name, inject }
}

pub(super) const FAULTS: &[Fault] = &[
    fault("agent-killed", agent_killed),
    fault("agent-killed-while-it-starts", agent_killed_while_it_starts),
    fault("agent-stopped", agent_stopped),
    fault("agent-upgraded", agent_upgraded),
    fault("agent-out-of-memory", agent_out_of_memory),
    fault("disk-full", disk_full),
    fault("policy-garbage", policy_garbage),
    fault("socket-flooded", socket_flooded),
    fault("mount-storm", mounts::mount_storm),
    fault("thousand-mounts", mounts::thousand_mounts),
    fault("mount-cycles", mounts::some_mount_cycles),
    fault("long-mount-table", mounts::rather_long_mount_table),
    fault("pools-full", room::pools_full),
    fault("leases-full", room::leases_full),
    fault("actors-full", room::actors_full),
    fault("guest-views-many", room::guest_views_many),
    fault("incidents-full", room::incidents_full),
    fault("ring-of-one-page", room::ring_of_one_page),
    fault("clock-step", clock_step),
    fault("suspended", suspended),
    fault("deleters", deleters),
];

pub(super) const LOADED_LIMIT: Duration = Duration::from_secs(120);

fn agent_killed(ground: &mut Ground, _: &mut Rng) -> Result<()> {
    ground.kill_agent()?;
    ground.holds()
}

/// At a random point between its start and its being ready.
fn agent_killed_while_it_starts(ground: &mut Ground, random: &mut Rng) -> Result<()> {
    ground.kill_agent()?;
    for _ in 0..random.u32(1..=3) {
        let starting = ground.guarded.installation.spawn(&binary("GUARD_AGENT")?, &[])?;
        thread::sleep(Duration::from_millis(random.u64(0..1500)));
        starting.kill()?;
        ground.holds()?;
    }
    Ok(())
}

fn agent_stopped(ground: &mut Ground, _: &mut Rng) -> Result<()> {
    ground.agent()?.signal(Signal::SIGSTOP)?;
    let held = ground.holds();
    ground.agent()?.signal(Signal::SIGCONT)?;
    held
}

/// Another build takes over, and the first one again.
fn agent_upgraded(ground: &mut Ground, _: &mut Rng) -> Result<()> {
    ground.kill_agent()?;
    ground.agent = Some(ground.guarded.installation.start_upgraded()?);
    ground.holds()?;
    ground.kill_agent()
}

/// The kernel kills it, since its cgroup has no memory left.
fn agent_out_of_memory(ground: &mut Ground, _: &mut Rng) -> Result<()> {
    let cgroup = Path::new("/sys/fs/cgroup/guard-lab-small");
    let enabled = fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
    enabled.context("enable the memory controller")?;
    fs::create_dir_all(cgroup).context("create a cgroup")?;
    let pid = ground.agent()?.pid();
    fs::write(cgroup.join("cgroup.procs"), pid.to_string()).context("move the agent")?;
    fs::write(cgroup.join("memory.max"), "65536").context("limit the agent's memory")?;
    // It takes memory when it works.
    let installation = &ground.guarded.installation;
    let mut agent = ground.agent.take().context("no agent runs")?;
    let mut number = 0;
    wait::until("the kernel ends the agent", LOADED_LIMIT, || {
        number += 1;
        installation.write_policy(&format!(
            "{}\n# \
             {number}\n",
            fs::read_to_string(installation.policy())?
        ))?;
        Ok(agent.wait(Duration::ZERO).is_ok())
    })?;
    ground.holds()?;
    fs::remove_dir(cgroup).context("remove the cgroup")
}

/// Nothing can be written into the state directory: a seal is in force all the same, the posture
/// tells, and what could not be written is, once there is room.
fn disk_full(ground: &mut Ground, _: &mut Rng) -> Result<()> {
    let ballast = ground.ballast();
    {
        let mut file = File::create(&ballast).context("create the ballast")?;
        let block = [0; 4096];
        while file.write_all(&block).is_ok() {}
    }
    let pool = ground.pool.path().to_string_lossy().into_owned();
    ground.guarded.guardctl(&["seal", &pool])?;
    let troubled =
        || -> Result<bool> { Ok(ground.guarded.status()?.to_string().contains("state-file")) };
    let told = troubled();
    let held =
        denied("a deletion on a full disk", fs::remove_file(ground.pool.path().join("file0")));
    fs::remove_file(&ballast).context("remove the ballast")?;
    held?;
    ensure!(told?, "the posture does not tell of the full disk");
    wait::until("the state is written", LOADED_LIMIT, || Ok(!troubled()?))?;
    ground.kill_agent()?;
    ground.agent = Some(ground.guarded.installation.start()?);
    ground.guarded.wait_for_mode(ground.pool.path(), "sealed")?;
    ground.guarded.guardctl(&["unseal", &pool])?;
    Ok(())
}

/// Up to a megabyte of random bytes in the policy's place: the policy in force stays.
fn policy_garbage(ground: &mut Ground, random: &mut Rng) -> Result<()> {
    let installation = &ground.guarded.installation;
    let good = fs::read_to_string(installation.policy()).context("read the policy")?;
    let mut bytes = vec![0; random.usize(1..1_000_000)];
    random.fill(&mut bytes);
    fs::write(installation.policy(), &bytes).context("write garbage")?;
    wait::until("the garbage is refused", LOADED_LIMIT, || {
        Ok(!ground.guarded.status()?["policy"]["rejected"].is_null())
    })?;
    ground.holds()?;
    ground.guarded.installation.write_policy(&good)?;
    wait::until("the good policy is taken", LOADED_LIMIT, || {
        Ok(ground.guarded.status()?["policy"]["rejected"].is_null())
    })
}

/// Connections that say nothing, or garbage without end.
fn socket_flooded(ground: &mut Ground, random: &mut Rng) -> Result<()> {
    let socket = ground.guarded.installation.run_dir().join("control.sock");
    let mut connections = Vec::new();
    for _ in 0..random.usize(50..200) {
        let mut connection = UnixStream::connect(&socket).context("connect to the agent")?;
        connection.set_nonblocking(true)?;
        let mut bytes = vec![0; random.usize(0..4096)];
        random.fill(&mut bytes);
        // The agent may have hung up already.
        let _ = connection.write(&bytes);
        connections.push(connection);
    }
    ground.holds()?;
    let mut byte = [0];
    connections.retain_mut(|connection| !matches!(connection.read(&mut byte), Ok(0)));
    drop(connections);
    wait::until("the agent answers again", LOADED_LIMIT, || {
        Ok(ground.guarded.installation.guardctl(&["status"])?.status.success())
    })
}

/// The wall clock jumps by up to a year, to and fro.
fn clock_step(ground: &mut Ground, random: &mut Rng) -> Result<()> {
    let step = random.i64(-31_536_000..31_536_000);
    let jump = |by: i64| -> Result<()> {
        let now = clock_gettime(ClockId::CLOCK_REALTIME).context("read the clock")?;
        let then = TimeSpec::new(now.tv_sec() + by, now.tv_nsec());
        clock_settime(ClockId::CLOCK_REALTIME, then).context("set the clock")
    };
    jump(step)?;
    let held = ground.recovers();
    jump(-step)?;
    held
}

/// The kernel suspends: every process stands still for the five seconds that a test of it lasts,
/// and a release ends meanwhile. (The VM's root is on 9p, which does not outlive the suspension of
/// its device.)
fn suspended(ground: &mut Ground, _: &mut Rng) -> Result<()> {
    const TTL: Duration = Duration::from_secs(4);
    let pool = ground.guarded.pool("suspended")?;
    ground.guarded.guardctl(&[
        "release",
        &pool.path().to_string_lossy(),
        "--ttl",
        "4s",
        "--reason",
        "lab",
    ])?;
    let now =
        || clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).context("read the clock");
    let before = now()?;
    fs::write("/sys/power/pm_test", "freezer").context("ask for a test of suspending")?;
    let suspended = fs::write("/sys/power/state", "mem").context("suspend");
    fs::write("/sys/power/pm_test", "none").context("ask for no test of suspending")?;
    suspended?;
    let took = now()?.saturating_sub(before);
    ensure!(took >= TTL, "the suspension took only {took:?}");
    denied(
        "a deletion after a release that ended meanwhile",
        fs::remove_file(pool.path().join("file0")),
    )?;
    ground.holds()?;
    ground.guarded.wait_for_mode(pool.path(), "guarded")
}

/// Many processes that delete at the same time, each an incident of its own.
fn deleters(ground: &mut Ground, random: &mut Rng) -> Result<()> {
    let count = random.usize(2..8);
    let running: Vec<_> =
        (0..count).map(|_| Running::removing(ground.pool.path())).collect::<Result<_>>()?;
    for _ in 0..5 {
        ground.holds()?;
    }
    drop(running);
    let own = ground.elsewhere().join("own");
    fs::write(&own, "").context("write beside the pool")?;
    fs::remove_file(own).context("remove it")
}
