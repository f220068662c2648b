//! This machine: mount tables from `/proc`, unmounts by child processes, and the kernel's word on
//! superblocks from the pinned maps.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use guard_common::names::map;
use guard_common::{PoolEntry, PoolKey};

use super::helper::{Helper, HelperError, UnmountArgs};
use super::namespaces;
use crate::host::bpf::maps;
use crate::host::bpf::maps::Table;
use crate::model::errors::chain;
use crate::model::rollback::engine::{Host, Limits};
use crate::model::rollback::holder::{Holder, Wanted};
use crate::model::rollback::plan::Step;
use crate::model::rollback::report::UnmountOutcome;
use crate::model::rollback::table::NamespaceTable;

const PROC: &str = "/proc";
/// Interval of asking the kernel whether a superblock has ended: removing an entry wakes nobody.
const POLL_EVERY: Duration = Duration::from_millis(25);

/// Acts on this machine. Blocks: to be used in a thread of its own.
pub struct LiveHost {
    map_directory: PathBuf,
    helper: Helper,
    limits: Limits,
    pools: Option<Table<PoolKey, PoolEntry>>,
}

impl LiveHost {
    /// With the maps that are pinned in a directory.
    pub fn new(map_directory: PathBuf, helper: Helper, limits: Limits) -> Self {
        Self { map_directory, helper, limits, pools: None }
    }
}

impl Host for LiveHost {
    fn tables(&mut self) -> Result<Vec<NamespaceTable>, String> {
        namespaces::all(Path::new(PROC)).map_err(|error| chain(&error))
    }

    fn alive(&mut self) -> Result<BTreeSet<u64>, String> {
        if self.pools.is_none() {
            self.pools =
                Some(maps::table(&self.map_directory, map::POOLS).map_err(|error| chain(&error))?);
        }
        let entries =
            self.pools.as_ref().map(Table::entries).transpose().map_err(|error| chain(&error))?;
        Ok(entries.into_iter().flatten().map(|(_, entry)| entry.generation).collect())
    }

    fn unmount(&mut self, step: &Step, lazy: bool) -> UnmountOutcome {
        let (mount_id, dev, mountpoint) = (step.mount_id, step.dev, step.mountpoint.clone());
        let args = UnmountArgs { mount_id, dev, lazy, enter: false, mountpoint };
        let namespace = match enter(step.namespace) {
            Ok(namespace) => namespace,
            Err(outcome) => return outcome,
        };
        match self.helper.unmount(&args, namespace, self.limits.unmount) {
            Ok(outcome) => outcome,
            Err(HelperError::TimedOut(_)) => UnmountOutcome::TimedOut,
            Err(error) => UnmountOutcome::Failed { error: chain(&error) },
        }
    }

    fn holders(&mut self, wanted: &[Wanted]) -> Result<Vec<Holder>, String> {
        self.helper.holders(wanted, self.limits.holders).map_err(|error| chain(&error))?
    }

    fn name(&mut self, pid: u32) -> String {
        namespaces::name_of(Path::new(PROC), pid)
    }

    fn wait_for_end(&mut self, generations: &BTreeSet<u64>) -> Result<BTreeSet<u64>, String> {
        let end = Instant::now() + self.limits.end;
        loop {
            let alive = self.alive()?;
            let still: BTreeSet<u64> = generations.intersection(&alive).copied().collect();
            if still.is_empty() || Instant::now() >= end {
                return Ok(still);
            }
            sleep(POLL_EVERY);
        }
    }
}

/// The mount namespace as a file, if it is not that of this process. A process that lives in it is
/// looked for anew: the one that was seen first may have gone.
fn enter(namespace: u64) -> Result<Option<File>, UnmountOutcome> {
    let proc = Path::new(PROC);
    let own = namespaces::namespace_of(proc, std::process::id());
    if own.is_ok_and(|own| own == namespace) {
        return Ok(None);
    }
    let failed = |error: String| UnmountOutcome::Failed {
        error: format!("open the mount namespace: {error}"),
    };
    let processes = namespaces::processes(proc).map_err(|error| failed(chain(&error)))?;
    for pid in processes {
        if namespaces::namespace_of(proc, pid).ok() != Some(namespace) {
            continue;
        }
        let Ok(file) = File::open(proc.join(format!("{pid}/ns/mnt"))) else { continue };
        // The file is the namespace itself: its inode identifies it, even if the pid belongs to
        // another process by now.
        let is_it = std::os::unix::fs::MetadataExt::ino(
            &file.metadata().map_err(|error| failed(error.to_string()))?,
        );
        if is_it == namespace {
            return Ok(Some(file));
        }
    }
    // With its last process its mounts have gone, unless something else keeps it.
    Err(UnmountOutcome::Gone)
}
