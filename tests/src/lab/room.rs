//! Faults that leave no room: more than fits into each map, and the smallest ring of records.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, Result, bail, ensure};
use aya::{EbpfLoader, Pod};
use fastrand::Rng;
use guard_agent::host::bpf::Maps;
use guard_agent::host::bpf::layouts::Layouts;
use guard_agent::host::bpf::maps::{Stored, Table, Write};
use guard_agent::host::bpf::object;
use guard_common::names::{capacity, map};
use guard_common::policy::{POOL_CANARY, RAMFS_MAGIC};
use guard_common::{
    Counter, IncidentKey, IncidentValue, LAYOUT_VERSION, LeaseEntry, LeaseKey, Meta, PoolEntry,
    PoolKey,
};
use nix::sys::signal::Signal;

use super::faults::LOADED_LIMIT;
use super::ground::{Ground, SETTINGS};
use crate::harness::attempt::{denied, in_cgroup, passes, rm_is_denied};
use crate::harness::guarded::{Guarded, exit_code};
use crate::harness::mount::Mount;
use crate::harness::scratch::Scratch;
use crate::harness::{command, wait};
use crate::peers::container;
use crate::peers::own::Running;

/// Puts entries into a map until it takes no more.
fn fill<K: Pod, V: Stored<K>>(
    table: &mut Table<K, V>,
    capacity: u32,
    value: V,
    key: impl Fn(u32) -> K,
) -> Result<Vec<K>> {
    let mut made = Vec::new();
    for key in (0..=capacity).map(key) {
        match table.write(key, value, Write::Create) {
            Ok(()) => made.push(key),
            Err(error) if error.is_full() => return Ok(made),
            Err(error) => return Err(error.into()),
        }
    }
    bail!("a map for {capacity} entries has taken more")
}

/// The map of pools has no room: an agent starts and proves itself all the same, a new mount is
/// denied as one that nobody has spoken for, and the posture tells.
pub(super) fn pools_full(ground: &mut Ground, _: &mut Rng) -> Result<()> {
    ground.kill_agent()?;
    let mut maps = ground.maps()?;
    // Entries that an agent lets be: those of canaries.
    let entry = PoolEntry { magic: RAMFS_MAGIC, flags: POOL_CANARY, ..PoolEntry::default() };
    let made = fill(&mut maps.pools, capacity::POOLS, entry, |number| {
        PoolKey::superblock(0x0f00_0000 + number)
    })?;
    ground.recovers()?;
    let mount = Mount::tmpfs(ground.guarded.root().join("one-too-many"))?;
    let file = mount.path().join("file");
    fs::write(&file, "").context("write into the new mount")?;
    wait::until("the posture tells of the pool that finds no room", LOADED_LIMIT, || {
        Ok(ground.guarded.status()?["posture"].to_string().contains("maps-not-current"))
    })?;
    denied("a deletion in a pool that finds no room", fs::remove_file(&file))?;
    ground.holds()?;
    for key in made {
        maps.pools.remove(&key)?;
    }
    ground.guarded.wait_for_mode(mount.path(), "guarded")?;
    denied("a deletion in a pool that has found room", fs::remove_file(&file))?;
    drop(mount);
    wait::until("the posture is good again", LOADED_LIMIT, || {
        Ok(ground.guarded.installation.guardctl(&["status"])?.status.success())
    })
}

/// The map of leases has no room: another one is refused in plain words, and the holder of one goes
/// on.
pub(super) fn leases_full(ground: &mut Ground, _: &mut Rng) -> Result<()> {
    let tree = Path::new("/sys/fs/cgroup/guard-lab-lease");
    fs::create_dir_all(tree).context("create a cgroup")?;
    let mut maps = ground.maps()?;
    let report = ground.guarded.report(ground.pool.path())?.context("the pool is reported")?;
    let generation = report["generation"].as_u64().context("its generation")?;
    let pools = maps.pools.entries()?;
    let pool =
        pools.iter().find(|(_, entry)| entry.generation == generation).context("its entry")?;
    let entry = LeaseEntry::new(generation, u64::MAX);
    let own = LeaseKey { cgroup_id: fs::metadata(tree)?.ino(), dev: pool.0.dev, reserved: 0 };
    maps.grant(own, entry)?;
    let stranger =
        |number: u32| LeaseKey { cgroup_id: u64::MAX - u64::from(number), dev: 0, reserved: 0 };
    let made = fill(&mut maps.leases, capacity::LEASES, entry, stranger)?;

    let refused = exec(ground)?;
    let text = command::text(&refused);
    ensure!(
        exit_code(&refused)? == 6 && text.contains("as many as there may be"),
        "not refused: {text}"
    );
    let listed = ground.guarded.installation.guardctl_json(&["lease", "list"])?;
    ensure!(listed == serde_json::json!([]), "a lease that was refused is listed: {listed}");
    let file = ground.pool.path().join("leased");
    fs::write(&file, "").context("write in the pool")?;
    ensure!(in_cgroup(tree, Path::new("/bin/rm"), &file)?, "who has a lease was denied");
    ground.holds()?;

    for key in made.into_iter().chain([own]) {
        maps.leases.remove(&key)?;
    }
    fs::remove_dir(tree).context("remove the cgroup")?;
    let granted = exec(ground)?;
    ensure!(granted.status.success(), "refused with room: {}", command::text(&granted));
    Ok(())
}

fn exec(ground: &Ground) -> Result<Output> {
    let pool = ground.pool.path().to_string_lossy();
    ground
        .guarded
        .installation
        .guardctl(&["exec", "--pool", &pool, "--reason", "lab", "--", "true"])
}

/// As many actors as policy may name, then all of them replaced, in a pool whose seal counts each
/// twice; one more is refused.
pub(super) fn actors_full(ground: &mut Ground, _: &mut Rng) -> Result<()> {
    const MOST: usize = 1024;
    let place = Mount::tmpfs("/run/guard-lab")?;
    for number in 0..2 * MOST {
        File::create(place.path().join(number.to_string())).context("make an executable")?;
    }
    // The actor that the invariants ask for is one of them.
    let policy = |numbers: std::ops::Range<usize>| {
        let list =
            numbers.map(|number| format!(", {{ executable = \"/run/guard-lab/{number}\" }}"));
        let settings = SETTINGS.replacen(" }]", &format!(" }}{}]", list.collect::<String>()), 1);
        ground.guarded.policy(&settings)
    };
    let (one_too_many, most, others) =
        (policy(0..MOST), policy(0..MOST - 1), policy(MOST..2 * MOST - 1));
    let installation = &ground.guarded.installation;
    let good = fs::read_to_string(installation.policy()).context("read the policy")?;
    let pool = ground.pool.path().to_string_lossy().into_owned();

    installation.write_policy(&one_too_many)?;
    wait::until("the policy is refused", LOADED_LIMIT, || {
        Ok(ground.guarded.status()?["policy"]["rejected"]
            .to_string()
            .contains("more than 1024 actors"))
    })?;
    ground.holds()?;
    ground.guarded.installation.write_policy(&most)?;
    taken(ground, MOST - 1)?;
    ground.holds()?;
    ground.guarded.guardctl(&["seal", &pool])?;
    taken(ground, 2 * (MOST - 1))?;
    ground.guarded.installation.write_policy(&others)?;
    taken(ground, 2 * (MOST - 1))?;
    rm_is_denied(&ground.pool.path().join("file0"))?;
    ground.guarded.guardctl(&["unseal", &pool])?;
    ground.holds()?;
    ground.guarded.installation.write_policy(&good)?;
    taken(ground, 0)
}

/// Waits until a policy is in force with so many executables in the kernel, and all is well.
fn taken(ground: &Ground, executables: usize) -> Result<()> {
    ground.guarded.guardctl(&["policy", "reload"])?;
    let count = ground.maps()?.actor_executables.entries()?.len();
    ensure!(count == executables, "{count} executables of {executables} are in the kernel's map");
    let reasons = ground.guarded.status()?["posture"]["reasons"].to_string();
    ensure!(!reasons.contains("maps-not-current"), "the maps are not current: {reasons}");
    Ok(())
}

/// Views of guests take no entry anywhere: in any number of them, each deletes its own files.
pub(super) fn guest_views_many(ground: &mut Ground, random: &mut Rng) -> Result<()> {
    const VIEWS: usize = 1000;
    let scratch = Scratch::new("views")?;
    let volume = ground.pool.path().join("volume");
    let file = ground.pool.path().join("file0");
    let any = random.usize(1..VIEWS - 1);
    container::in_own_namespace(|| {
        let views: Vec<Mount> = (0..VIEWS)
            .map(|number| Mount::bind(&volume, scratch.join(&number.to_string())))
            .collect::<Result<_>>()?;
        for number in [0, any, VIEWS - 1] {
            let own = views[number].path().join("guests-own");
            fs::write(&own, "").context("write in a guest's view")?;
            passes("a guest's deletion", fs::remove_file(&own))?;
        }
        denied("a deletion in the pool itself, beside the views", fs::remove_file(&file))
    })?;
    ground.holds()
}

/// The map of incidents has no room: what finds a place there no more is denied and counted, a
/// known incident goes on, the posture tells, and the agent makes room.
pub(super) fn incidents_full(ground: &mut Ground, _: &mut Rng) -> Result<()> {
    const TIMES: u64 = 100;
    let file = ground.pool.path().join("file0");
    let mut known = Running::unlinking(&file, u64::MAX)?;
    let pid = known.pid();
    let mut maps = ground.maps()?;
    let counted = |maps: &Maps| -> Result<u64> {
        let of_known = maps.incidents.entries()?.into_iter().filter(|(key, _)| key.tgid == pid);
        Ok(of_known.map(|(_, value)| value.count).sum())
    };
    wait::until("the peer has an incident", LOADED_LIMIT, || Ok(counted(&maps)? > 0))?;
    let audit = ground.guarded.installation.audit();
    let written = fs::metadata(&audit).context("look at the audit log")?.len();

    ground.agent()?.signal(Signal::SIGSTOP)?;
    let of_nobody = |number: u32| IncidentKey {
        generation: 0,
        start_boot_ns: number.into(),
        tgid: u32::MAX,
        dev: 0,
        reason: 0,
        verdict: 0,
    };
    let made = fill(&mut maps.incidents, capacity::INCIDENTS, IncidentValue::default(), of_nobody)?;
    let (before, count) = (maps.counters()?, counted(&maps)?);
    Running::unlinking(&file, TIMES)?.must_end_well()?;
    ground.holds()?;
    known.must_run()?;
    let after = maps.counters()?;
    for counter in [Counter::DeniedGuarded, Counter::ErrorIncidentsFull, Counter::RecordsLost] {
        let more = after[&counter] - before[&counter];
        ensure!(more >= TIMES, "{} grew by {more} in {TIMES} denials", counter.name());
    }
    ensure!(counted(&maps)? > count, "a known incident is no longer counted");
    ground.agent()?.signal(Signal::SIGCONT)?;

    wait::until("the audit log tells that the map was full", LOADED_LIMIT, || {
        let text = fs::read(&audit).context("read the audit log")?;
        let new = text.get(usize::try_from(written)?..).unwrap_or(&text);
        Ok(String::from_utf8_lossy(new).contains("\"incidents-full\""))
    })?;
    wait::until("the agent has made room", LOADED_LIMIT, || {
        let mut left = made.iter().rev().take(10).chain(made.iter().take(10));
        Ok(left.all(|key| matches!(maps.incidents.get(key), Ok(None))))
    })?;
    drop(known);
    wait::until("the posture is good again", LOADED_LIMIT, || {
        Ok(!ground.guarded.status()?["posture"].to_string().contains("incidents-full"))
    })
}

/// The ring of records has a single page: what finds no room there is denied all the same, and told
/// by its incident.
pub(super) fn ring_of_one_page(ground: &mut Ground, _: &mut Rng) -> Result<()> {
    const TIMES: u64 = 1000;
    let guarded = Guarded::with_own_pins(
        "lab-ring",
        "[audit]\nincident_interval = \"1s\"\nfull_records = \
         1024",
    )?;
    pin_maps_with_a_small_ring(guarded.installation.pin_dir())?;
    let agent = guarded.installation.start()?;
    let pool = guarded.pool("pool")?;
    let file = pool.path().join("file0");
    // With nobody to empty the ring.
    agent.signal(Signal::SIGSTOP)?;
    let peer = Running::unlinking(&file, TIMES)?;
    let pid = peer.pid();
    peer.must_end_well()?;
    agent.signal(Signal::SIGCONT)?;
    let record = guarded.wait_for_record("the incident's end", |record| {
        let incident = &record["incident"];
        record["kind"] == "incident" && incident["tgid"] == pid && incident["ended"] == true
    })?;
    let told = |name: &str| record["incident"][name].as_u64().unwrap_or_default();
    let (count, emitted, lost) = (told("count"), told("emitted"), told("lost"));
    // A record has 920 bytes.
    ensure!(
        count == TIMES && (1..=4).contains(&emitted) && emitted + lost == TIMES,
        "{}",
        record["incident"]
    );
    let status = guarded.status()?;
    ensure!(status["counters"]["error_ring_full"].as_u64() >= Some(lost), "{}", status["counters"]);
    ensure!(status["reconciled"]["lost"].as_u64() >= Some(lost), "{}", status["reconciled"]);
    // With somebody who does.
    Running::unlinking(&file, TIMES)?.must_end_well()?;
    rm_is_denied(&file)?;
    ground.holds()
}

/// Makes the maps that an agent finds and takes over, as it does those of another agent.
fn pin_maps_with_a_small_ring(pin_dir: &Path) -> Result<()> {
    let pins = Layouts::open(pin_dir)?.standing()?.own.pins;
    pins.provide()?;
    let directory = &pins.maps();
    let object = object::bytes().context(
        "the tests were built without the kernel program: build them with `cargo xtask test`",
    )?;
    let mut loader = EbpfLoader::new();
    loader.btf(None).map_max_entries(map::RECORDS, 4096);
    for name in map::ALL {
        loader.map_pin_path(name, directory.join(name));
    }
    // Its programs are not loaded by that.
    drop(loader.load(object).context("make the maps")?);
    let meta = Meta { layout_version: LAYOUT_VERSION, reserved: 0, next_generation: 1 };
    Maps::open(directory)?.meta.write(meta)?;
    Ok(pins.settle(1)?)
}
