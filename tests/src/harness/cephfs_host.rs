//! The host that the CephFS tests attack, not a test itself: an Incus directory with a pool mounted
//! in it as incusd does, an agent with the preset `incus`, and a second, independent mount of the
//! filesystem's root elsewhere, which nothing guards and by which all is judged.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::agent::{Agent, Installation};
use super::ceph::CephMount;
use super::tree::{self, Contents};
use super::{command, run, wait};

pub const ROOT: &str = "/var/lib/incus";
pub const POOLS: &str = "/var/lib/incus/storage-pools";
pub const POOL: &str = "/var/lib/incus/storage-pools/shared";
/// The files that must survive, in the pool.
pub const DATA: &str = "/var/lib/incus/storage-pools/shared/custom/default_data";
pub const FILES: usize = 1000;

pub const WITNESS: &str = "/mnt/witness";
const POOL_ON_CEPH: &str = "/pool-a";
const DATA_IN_POOL: &str = "custom/default_data";
pub const POLICY: &str = "version = 1\n[[root]]\npreset = \"incus\"\njoin = \"none\"\n";
const ACTORS: &str = "/sys/fs/cgroup/system.slice/incus.service";
/// For the agent to take note of a mount or its end, which takes it milliseconds.
const NOTICE: Duration = Duration::from_secs(60);

/// The host.
#[derive(Debug)]
pub struct Host {
    pub agent: Option<Agent>,
    pub pool: CephMount,
    witness: CephMount,
    pub installation: Installation,
    /// The pool's superblock, as the agent numbers them.
    pub generation: u64,
}

/// Starting an agent takes seconds on an emulated machine, so tests that leave it as it was share
/// one.
static SHARED: Mutex<Option<Host>> = Mutex::new(None);
/// Content on Ceph, once it was put there.
static EXPECTED: OnceLock<Contents> = OnceLock::new();

impl Host {
    /// One of the test's own, with the agent running and the pool mounted.
    pub fn new() -> Result<Self> {
        Self::with("")
    }

    /// The same with more in its policy.
    pub fn with(settings: &str) -> Result<Self> {
        // One agent at a time: the shared one goes.
        drop(SHARED.lock().unwrap_or_else(PoisonError::into_inner).take());
        let witness = CephMount::independent(WITNESS)?;
        fs::create_dir_all(ACTORS).context("make the cgroup of incus.service")?;
        furnish()?;
        put_data_on_ceph(witness.path())?;
        let installation = Installation::new("cephfs", &format!("{POLICY}{settings}"))?;
        let agent = Some(installation.start()?);
        let pool = mount_pool()?;
        let mut host = Self { agent, pool, witness, installation, generation: 0 };
        host.find_pool()?;
        host.is_intact()?;
        Ok(host)
    }

    /// The pool as the filesystem's other clients see it.
    pub fn on_ceph(&self) -> PathBuf {
        self.witness.path().join(POOL_ON_CEPH.trim_start_matches('/'))
    }

    /// Every file and directory of the data is there with its size, by the independent mount.
    pub fn is_intact(&self) -> Result<()> {
        let expected = EXPECTED.get().context("the data was never put on Ceph")?;
        let found = tree::contents(&self.on_ceph().join(DATA_IN_POOL))?;
        let files = found.values().flatten().count();
        ensure!(files == FILES, "the independent mount sees {files} of {FILES} files");
        ensure!(&found == expected, "all files are there, but not as they were");
        Ok(())
    }

    /// Mounts the pool again, as another superblock, without waiting for anything.
    pub fn mount_again(&mut self) -> Result<()> {
        self.pool = mount_pool()?;
        Ok(())
    }

    /// Waits until the agent knows the pool's new superblock, and that the old one is gone.
    pub fn find_pool(&mut self) -> Result<()> {
        let before = self.generation;
        self.generation = wait::until_some("the agent knows the pool", NOTICE, || {
            let pools = self.pools()?;
            let generations: Vec<u64> =
                pools.iter().filter_map(|pool| pool["generation"].as_u64()).collect();
            Ok(match generations[..] {
                [one] if one != before => Some(one),
                _ => None,
            })
        })?;
        Ok(())
    }

    fn pools(&self) -> Result<Vec<Value>> {
        let pools = self.ask(&["pools"])?;
        pools.as_array().cloned().context("guardctl pools printed no list")
    }

    /// Asks the agent through guardctl. If it does not answer, what it is doing is of interest.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        self.installation.guardctl_json(arguments).map_err(|error| {
            let log = self.agent.as_ref().map(Agent::log).unwrap_or_default();
            error.context(format!("the agent's log:\n{log}\nprocesses:\n{}", run::kernel_stacks()))
        })
    }

    /// guardctl's report on the pool's present superblock.
    pub fn report(&self) -> Result<Value> {
        let own = |pool: &Value| pool["generation"].as_u64() == Some(self.generation);
        self.pools()?.into_iter().find(own).context("guardctl pools does not show the pool")
    }

    /// `denied`, `allowed` or `would_deny` of the pool.
    pub fn counted(&self, what: &str) -> Result<u64> {
        self.report()?["counters"][what]
            .as_u64()
            .with_context(|| format!("the pool has no count {what}"))
    }

    /// One of the kernel program's counters.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let status = self.ask(&["status"])?;
        status["counters"][name].as_u64().with_context(|| format!("no counter {name} in {status}"))
    }

    /// Runs guardctl, which must succeed.
    pub fn direct(&self, arguments: &[&str]) -> Result<String> {
        let output = self.installation.guardctl(arguments)?;
        let text = command::text(&output);
        ensure!(output.status.success(), "guardctl {}: {}", arguments.join(" "), text.trim());
        Ok(text)
    }

    /// Makes an attempt on the data. It must have been denied at least so many times (else it was
    /// no attempt), and nothing may be missing.
    pub fn withstands<T>(&self, at_least: usize, attempt: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.counted("denied")?;
        let result = attempt()?;
        self.is_intact()?;
        let denied = self.counted("denied")? - before;
        ensure!(denied >= at_least as u64, "denied {denied} times, expected {at_least} or more");
        Ok(result)
    }

    /// A directory in the pool with a few files, beside the data.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = self.pool.path().join(name);
        tree::fill(&path, 12, 4)?;
        Ok(path)
    }

    /// Removes the files that a test has left in the pool, through the mount that nothing guards.
    pub fn clear(&self, name: &str) -> Result<()> {
        let path = self.on_ceph().join(name);
        fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))
    }
}

/// Runs a test on the shared host, in guarded mode. A host on which a test failed is not used
/// again.
pub fn on_guarded(test: impl FnOnce(&mut Host) -> Result<()>) -> Result<()> {
    let shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut host = match shared {
        Some(host) => host,
        None => Host::new()?,
    };
    furnish()?;
    let mode = host.report()?["mode"].clone();
    ensure!(mode == "guarded", "the pool is {mode}");
    test(&mut host)?;
    host.is_intact()?;
    *SHARED.lock().unwrap_or_else(PoisonError::into_inner) = Some(host);
    Ok(())
}

/// The same in sealed mode.
pub fn on_sealed(test: impl FnOnce(&mut Host) -> Result<()>) -> Result<()> {
    on_guarded(|host| {
        host.direct(&["seal", "shared"])?;
        test(host)?;
        host.direct(&["unseal", "shared"])?;
        Ok(())
    })
}

/// Runs a shell command in the cgroup of the storage daemon, as a descendant of it.
pub fn as_actor(line: &str) -> Result<String> {
    let line = format!("echo 0 >{ACTORS}/cgroup.procs && sh -c '{line}; exit $?'");
    command::run("sh", &["-c", &line])
}

/// Makes the other content of an Incus directory.
pub fn furnish() -> Result<()> {
    for directory in ["database/global", "containers", "storage-pools"] {
        let path = Path::new(ROOT).join(directory);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    }
    fs::write(Path::new(ROOT).join("database/local.db"), "x").context("write local.db")
}

fn mount_pool() -> Result<CephMount> {
    fs::create_dir_all(POOL).with_context(|| format!("create {POOL}"))?;
    CephMount::as_incusd(POOL_ON_CEPH, POOL)
}

/// Fills the pool by the independent mount, unless all is there.
fn put_data_on_ceph(witness: &Path) -> Result<()> {
    let pool = witness.join(POOL_ON_CEPH.trim_start_matches('/'));
    let data = pool.join(DATA_IN_POOL);
    if let Some(expected) = EXPECTED.get() {
        if data.exists() && &tree::contents(&data)? == expected {
            return Ok(());
        }
        fs::remove_dir_all(&pool).with_context(|| format!("remove {}", pool.display()))?;
    }
    tree::fill(&data, FILES, 20)?;
    let contents = tree::contents(&data)?;
    let _ = EXPECTED.set(contents.clone());
    if EXPECTED.get() != Some(&contents) {
        bail!("the data is not the same as the first time");
    }
    Ok(())
}
