//! One unlink on each filesystem: with nothing, with other watchers, and with us in every role and
//! tier. One tier asks about listings instead of unlinks: so one listing too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use guard_common::{Counter, Tier};

use super::measure::{
    Cost, May, RUNS, delete, is_loaded, listings, lowest, lowest_unlinks, make_files, measured,
    unlinks, unlinks_of,
};
use super::peers::{AuditRule, Empty, Fanotify, Monitor, Profile};
use super::results::Results;
use crate::harness::agent::{Agent, Installation};
use crate::harness::ceph::CephMount;
use crate::harness::mount::Mount;
use crate::harness::{command, wait};
use crate::peers::container;

pub(super) const ROOT: &str = "/var/lib/guard-bench";
const ELSEWHERE: &str = "/mnt/guard-bench";
/// The actors' cgroup, as the policy names it.
const ACTOR: &str = "/guard-bench";
/// Denials of an incident that get a record of their own: so many that all do, and the usual
/// number.
const ALL_RECORDED: u32 = 1000;
const FEW_RECORDED: u32 = 8;
/// With the first policy nothing is denied; it is another number, by which the next policy is told
/// from it.
const NONE_RECORDED: u32 = 1;
/// Denials in the case in which each is recorded. The ring buffer holds them all.
const RECORDED: usize = 300;
/// The shared kinds of the grounds, and one that is not here.
const KINDS: &str = "tmpfs\", \"ceph";
const OTHER_KIND: &str = "nfs";
/// Number of listings of a directory, and of names in it.
const LISTINGS: usize = 100;
const NAMES: usize = 10;
/// Number of mounts and unmounts before an unlink.
const MOUNTS: usize = 100;
/// Questions about a listing of so few names: opening, and two reads, the second of which finds the
/// end.
const QUESTIONS: usize = 3;
/// For the agent to take note of a change, on a machine that counts instructions.
pub(super) const LOADED_LIMIT: Duration = Duration::from_secs(120);

/// A filesystem: a directory outside every guarded root, and one that may become a pool.
struct Ground {
    name: &'static str,
    files: usize,
    elsewhere: PathBuf,
    /// ext4 is shared with nobody, so there is no such pool.
    pool: Option<PathBuf>,
}

/// All of them, mounted.
pub(super) struct Grounds {
    grounds: Vec<Ground>,
    _mounts: Vec<Mount>,
    _shared: Vec<CephMount>,
}

/// Each unlink comes after a change of the mounts, so that nothing holds that is kept of earlier
/// answers.
fn first_after_mounts(directory: &Path) -> Result<Cost> {
    let files = make_files(directory, MOUNTS)?;
    let mut took = (0, Duration::ZERO);
    measured(MOUNTS, May::Delete, || {
        for file in &files {
            drop(Mount::bind(Path::new(ELSEWHERE), Path::new("/run/guard-bench"))?);
            let (removed, one) = delete(std::slice::from_ref(file));
            took = (took.0 + removed, took.1 + one);
        }
        Ok(took)
    })
}

/// Our programs in force over the grounds, with an agent.
pub(super) struct Guarded {
    pub agent: Agent,
    pub installation: Installation,
    pub pool: PathBuf,
    pub elsewhere: PathBuf,
}

impl Grounds {
    pub(super) fn new() -> Result<Self> {
        let place = |parent: &str, name: &str| Path::new(parent).join(name);
        let tmpfs = (Mount::tmpfs(place(ELSEWHERE, "tmpfs"))?, Mount::tmpfs(place(ROOT, "tmpfs"))?);
        let ext4 = ext4(&place(ELSEWHERE, "ext4"))?;
        let shared = CephMount::new(place(ELSEWHERE, "cephfs"))?;
        let (outside, inside) = ("/outside", "/inside");
        for directory in [outside, inside] {
            fs::create_dir_all(shared.path().join(&directory[1..]))
                .context("create a directory on CephFS")?;
        }
        let cephfs = (shared, CephMount::as_incusd(inside, place(ROOT, "cephfs"))?);
        let grounds = vec![
            Ground {
                name: "tmpfs",
                files: 2000,
                elsewhere: tmpfs.0.path().to_owned(),
                pool: Some(tmpfs.1.path().to_owned()),
            },
            Ground { name: "ext4", files: 1000, elsewhere: ext4.path().to_owned(), pool: None },
            Ground {
                name: "cephfs",
                files: 300,
                elsewhere: cephfs.0.path().join(&outside[1..]),
                pool: Some(cephfs.1.path().to_owned()),
            },
        ];
        let (mounts, shared) = (vec![tmpfs.0, tmpfs.1, ext4], vec![cephfs.0, cephfs.1]);
        let grounds = Self { grounds, _mounts: mounts, _shared: shared };
        grounds.warm_up()?;
        Ok(grounds)
    }

    /// Once before it counts: caches fill, and CephFS takes its capabilities.
    fn warm_up(&self) -> Result<()> {
        for ground in &self.grounds {
            unlinks(&ground.elsewhere, ground.files, May::Delete)?;
        }
        for (_, pool) in self.pools() {
            let directory = listed(pool);
            fs::create_dir_all(&directory)
                .with_context(|| format!("create {}", directory.display()))?;
            make_files(&directory, NAMES)?;
            listings(&directory, LISTINGS, May::Delete)?;
        }
        Ok(())
    }

    /// Those that may become pools.
    fn pools(&self) -> impl Iterator<Item = (&Ground, &Path)> {
        self.grounds.iter().filter_map(|ground| Some((ground, ground.pool.as_deref()?)))
    }

    /// Lists a directory of each pool.
    fn listed(&self, results: &mut Results, case: &str, may: May) -> Result<()> {
        for (ground, pool) in self.pools() {
            let cost = lowest(|| listings(&listed(pool), LISTINGS, may))
                .with_context(|| format!("{case}: listings on {}", ground.name))?;
            results.listing(ground.name, case, &cost);
        }
        Ok(())
    }

    /// The same case on each.
    fn everywhere(&self, results: &mut Results, case: &str) -> Result<()> {
        for ground in &self.grounds {
            let cost = lowest_unlinks(&ground.elsewhere, ground.files)
                .with_context(|| format!("{case} on {}", ground.name))?;
            results.unlink(ground.name, case, &cost);
        }
        Ok(())
    }

    /// Measures the cases without us.
    pub(super) fn without_us(&self, results: &mut Results) -> Result<()> {
        self.everywhere(results, "nothing")?;
        self.listed(results, "nothing", May::Delete)?;
        let empty = Empty::load()?;
        self.everywhere(results, "empty BPF LSM programs")?;
        drop(empty);
        let places: Vec<_> = self.grounds.iter().map(|ground| ground.elsewhere.as_path()).collect();
        let watch = Fanotify::watch(&places)?;
        self.everywhere(results, "fanotify: FAN_DELETE with names")?;
        watch.end()?;
        let monitor = Monitor::load()?;
        self.everywhere(results, "BPF monitor that resolves each path")?;
        monitor.end()?;
        let profile = Profile::load(ROOT)?;
        let protected = Path::new(ROOT).join("protected");
        fs::write(&protected, "").with_context(|| format!("write {}", protected.display()))?;
        profile.worn(|| {
            ensure!(fs::remove_file(&protected).is_err(), "the AppArmor profile protects nothing");
            self.everywhere(results, "AppArmor profile that protects a tree")
        })?;
        fs::remove_file(&protected).context("remove what the profile has protected")
    }

    /// Last: once audited, the kernel goes on to look at each system call of each new task.
    pub(super) fn audited(&self, results: &mut Results) -> Result<()> {
        unloaded()?;
        let rule = AuditRule::add()?;
        self.everywhere(results, "audit rule on unlink, rename, rmdir")?;
        rule.remove()
    }

    /// Measures the cases with us, with the programs of a tier.
    pub(super) fn with_us(&self, tier: Tier, results: &mut Results) -> Result<()> {
        let (installation, _agent) = start(tier)?;
        self.everywhere(results, &ours(tier, "kind of filesystem not guarded"))?;
        // First every denial is a record of its own: incidents that have counted much would get
        // none.
        set_policy(&installation, &policy(tier, KINDS, "guarded", ALL_RECORDED), ALL_RECORDED)?;
        for (Ground { name, files, elsewhere, .. }, pool) in self.pools() {
            guarded(pool)?;
            let mut add = |case, cost: Cost| results.unlink(name, &ours(tier, case), &cost);
            add("outside every root", lowest_unlinks(elsewhere, *files)?);
            add("pool, allowed as actor", as_actor(&actors(), || lowest_unlinks(pool, *files))?);
            add("outside every root, the first after a mount", first_after_mounts(elsewhere)?);
            add("pool, allowed as actor, the first after a mount", {
                as_actor(&actors(), || first_after_mounts(pool))?
            });
            add("pool, allowed as guest view", as_guest(pool, *files)?);
            add("pool, denied, recorded", unlinks(pool, RECORDED, May::NotDelete)?);
        }
        set_policy(&installation, &policy(tier, KINDS, "guarded", FEW_RECORDED), FEW_RECORDED)?;
        for (Ground { name, files, .. }, pool) in self.pools() {
            let cost = unlinks(pool, *files, May::NotDelete)?;
            results.unlink(name, &ours(tier, "pool, denied, aggregated"), &cost);
        }
        Ok(())
    }

    /// Our programs of the strongest tier, with a pool on tmpfs that is guarded.
    pub(super) fn guarded(&self) -> Result<Guarded> {
        let tier = Tier::BpfLsm;
        let (installation, agent) = start(tier)?;
        set_policy(&installation, &policy(tier, KINDS, "guarded", FEW_RECORDED), FEW_RECORDED)?;
        let pool = self.grounds[0].pool.clone().context("tmpfs has a pool")?;
        guarded(&pool)?;
        // The incident has its records from here on: denials are aggregated.
        unlinks(&pool, 2 * FEW_RECORDED as usize, May::NotDelete)?;
        Ok(Guarded { agent, installation, pool, elsewhere: self.grounds[0].elsewhere.clone() })
    }

    /// Measures the cases with us without programs: a single unlink is not asked about, listing a
    /// pool's directory is.
    pub(super) fn without_programs(&self, results: &mut Results) -> Result<()> {
        let tier = Tier::Fanotify;
        let (installation, agent) = start(tier)?;
        self.everywhere(results, &ours(tier, "kind of filesystem not guarded"))?;
        set_policy(&installation, &policy(tier, KINDS, "guarded", FEW_RECORDED), FEW_RECORDED)?;
        let mut made = Vec::new();
        for (Ground { name, files, elsewhere, .. }, pool) in self.pools() {
            wait::until("the pool is guarded", LOADED_LIMIT, || Ok(fs::read_dir(pool).is_err()))?;
            let mut add = |case, cost: Cost| results.unlink(name, &ours(tier, case), &cost);
            add("outside every root", lowest_unlinks(elsewhere, *files)?);
            add("pool, allowed: not asked about", lowest_unlinks(pool, *files)?);
            made.push((name, pool, make_files(pool, *files)?));
        }
        let maps = installation.maps()?;
        let allowed = || -> Result<u64> {
            Ok(maps.counters()?.get(&Counter::AllowedActor).copied().unwrap_or(0))
        };
        let before = allowed()?;
        as_actor(&actors(), || {
            self.listed(results, &ours(tier, "pool, allowed as actor"), May::Delete)
        })?;
        // They are counted in the process that answers, and written down a little later.
        let asked = (QUESTIONS * LISTINGS * RUNS * self.pools().count()) as u64;
        wait::until("each question is counted", LOADED_LIMIT, || {
            let counted = allowed()? - before;
            ensure!(counted <= asked, "{counted} answers are counted for {asked} questions");
            Ok(counted == asked)
        })?;
        self.listed(results, &ours(tier, "pool, denied, aggregated"), May::NotDelete)?;
        installation.write_policy(&policy(tier, KINDS, "sealed", FEW_RECORDED))?;
        for (name, pool, files) in made {
            wait::until("the pool is sealed", LOADED_LIMIT, || {
                Ok(fs::write(pool.join("probe"), "").is_err())
            })?;
            let cost = unlinks_of(&files, May::NotDelete)?;
            results.unlink(name, &ours(tier, "pool, sealed: mounted read-only"), &cost);
        }
        agent.kill()?;
        installation.unload()
    }
}

/// Waits until nobody but actors deletes in a pool.
fn guarded(pool: &Path) -> Result<()> {
    wait::until("the pool is guarded", LOADED_LIMIT, || {
        let probe = pool.join("probe");
        fs::write(&probe, "").context("write a probe")?;
        Ok(fs::remove_file(&probe).is_err())
    })
}

/// The directory of a pool that is listed.
fn listed(pool: &Path) -> PathBuf {
    pool.join("listed")
}

/// A case of ours. The strongest tier is not named.
fn ours(tier: Tier, case: &str) -> String {
    match tier {
        Tier::BpfLsm => format!("guard: {case}"),
        Tier::FmodRet | Tier::Fanotify => format!("guard, {}: {case}", tier.name()),
    }
}

/// Waits until the kernel has let go of our programs.
fn unloaded() -> Result<()> {
    wait::until("our programs are gone", LOADED_LIMIT, || Ok(!is_loaded("guard_")))
}

/// An agent in a tier, which guards nothing here, and the cgroup of its actors.
fn start(tier: Tier) -> Result<(Installation, Agent)> {
    unloaded()?;
    fs::create_dir_all(actors()).context("create the actors' cgroup")?;
    let installation =
        Installation::new("bench", &policy(tier, OTHER_KIND, "guarded", NONE_RECORDED))?;
    let agent = installation.start()?;
    let posture = installation.status()?["posture"].clone();
    ensure!(posture["tier"] == tier.name(), "the tier is not {}: {posture}", tier.name());
    Ok((installation, agent))
}

/// Writes a policy, and waits until it is in force: its number of records tells.
fn set_policy(installation: &Installation, text: &str, full_records: u32) -> Result<()> {
    installation.write_policy(text)?;
    let maps = installation.maps()?;
    wait::until("the policy is in force", LOADED_LIMIT, || {
        Ok(maps.config.read()?.full_records == full_records)
    })
}

/// Runs `work` in the actors' cgroup.
pub(super) fn as_actor<T>(cgroup: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let own = fs::read_to_string("/proc/self/cgroup").context("read the own cgroup")?;
    let own = Path::new("/sys/fs/cgroup").join(own.trim().trim_start_matches("0::/"));
    enter(cgroup)?;
    let done = work();
    enter(&own)?;
    done
}

fn enter(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("enter {}", cgroup.display()))
}

/// The cgroup that the policy names.
pub(super) fn actors() -> PathBuf {
    Path::new("/sys/fs/cgroup").join(&ACTOR[1..])
}

/// As a container sees it: a part of the pool, bound into a mount namespace of its own.
fn as_guest(pool: &Path, files: usize) -> Result<Cost> {
    let volume = pool.join("volume");
    fs::create_dir_all(&volume).context("create a volume")?;
    let made = make_files(&volume, files)?;
    let mut counted = (0, Duration::ZERO);
    measured(made.len(), May::Delete, || {
        container::with_own_root(&volume, |place| {
            let files: Vec<_> = (0..files).map(|number| place.join(format!("f{number}"))).collect();
            counted = delete(&files);
            Ok(())
        })?;
        Ok(counted)
    })
}

fn policy(tier: Tier, filesystems: &str, mode: &str, full_records: u32) -> String {
    format!(
        "version = 1\n[enforcement]\ntier = \"{}\"\n[audit]\nfull_records = \
         {full_records}\n[[root]]\npath = \"{ROOT}\"\nfilesystems = [\"{filesystems}\"]\nmode = \
         \"{mode}\"\nactors = [{{ cgroup = \"{ACTOR}\" }}]\n",
        tier.name()
    )
}

/// ext4 on a file in memory.
fn ext4(place: &Path) -> Result<Mount> {
    let image = "/run/guard-bench.ext4";
    let line = format!(
        "set -e; modprobe -a loop ext4; truncate -s 256M {image}; mkfs.ext4 -q {image}; losetup \
         --find --show {image}"
    );
    let device = command::run("sh", &["-c", &line])?;
    Mount::new("ext4", device.trim(), place, "")
}
