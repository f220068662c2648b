//! View of the host: its mount tables, the policy's paths on it, and which mounts are pools.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::clusters;
use crate::host::mount_table::foreign;
use crate::host::roots;
use crate::model::classify;
use crate::model::classify::Classification;
use crate::model::classify::clusters::Clusters;
use crate::model::errors::chain;
use crate::model::mounts::Snapshot;
use crate::model::policy::Policy;
use crate::model::posture::assess::without_actor;
use crate::model::posture::{Troubles, trouble};

/// The host as it was last observed.
#[derive(Debug, Default)]
pub(super) struct MountView {
    pub snapshot: Snapshot,
    /// Mount tables of the namespaces that policy names, by the namespaces' inodes.
    pub foreign: BTreeMap<u32, Snapshot>,
    pub classification: Classification,
    pub resolution: roots::Resolution,
    /// Which Ceph cluster a monitor belongs to, as far as this host has shown it.
    clusters: Clusters,
}

impl MountView {
    /// Takes a mount table, and looks up the paths that policy and table name.
    pub(super) fn observe(&mut self, policy: &Policy, snapshot: Snapshot) {
        self.snapshot = snapshot;
        self.resolution = roots::resolve(policy, &self.snapshot);
        clusters::learn(&mut self.clusters, &self.snapshot, Path::new("/"));
        self.foreign = self.foreign_tables();
        self.classification = self.classify(policy, &self.snapshot, &self.foreign);
    }

    /// Looks up the inodes of the pools' roots, which only sealed pools need.
    pub(super) fn find_pool_roots(&mut self) {
        self.resolution.resolved.pool_roots =
            roots::pool_roots(&self.classification, &self.snapshot);
    }

    /// The pools by another, newer mount table. Nothing is kept of it.
    pub(super) fn classify_anew(&self, policy: &Policy, snapshot: &Snapshot) -> Classification {
        self.classify(policy, snapshot, &self.foreign_tables())
    }

    fn classify(
        &self,
        policy: &Policy,
        snapshot: &Snapshot,
        foreign: &BTreeMap<u32, Snapshot>,
    ) -> Classification {
        let all = snapshot.with_superblocks_of(foreign.values());
        classify::classify(&all, &self.effective(policy), &self.clusters)
    }

    /// The policy with its roots' links followed, as the mount table spells them.
    pub(super) fn effective(&self, policy: &Policy) -> Policy {
        policy.with_root_paths(&self.resolution.root_paths)
    }

    /// Whether another namespace's mounts are others than they were: nothing tells of that.
    pub(super) fn is_foreign_stale(&self) -> bool {
        self.foreign_tables() != self.foreign
    }

    fn foreign_tables(&self) -> BTreeMap<u32, Snapshot> {
        foreign::tables(&self.resolution.resolved.namespaces, Path::new("/proc"))
    }

    /// Notes failed reads and lookups.
    pub(super) fn note_troubles(&self, policy: &Policy, troubles: &mut Troubles) {
        troubles.set_if(trouble::MOUNT_TABLE, || {
            let problems = self.snapshot.problems();
            let first = problems.first()?;
            Some(format!("{} lines could not be read; the first: {first}", problems.len()))
        });
        troubles.set_if(trouble::UNRESOLVED, || {
            // An absent path is waited for; a present path that cannot be looked at is a gap.
            let gaps = self.resolution.problems.iter().filter(|problem| !problem.is_absence());
            let gaps: Vec<String> = gaps.map(|problem| chain(problem)).collect();
            (!gaps.is_empty()).then(|| gaps.join("; "))
        });
        troubles.set_if(trouble::NO_ACTOR, || {
            let effective = self.effective(policy);
            without_actor(&effective, &self.classification, &self.resolution.resolved)
        });
    }

    /// A root with links followed.
    pub(super) fn followed(&self, policy: &Policy, root: &Path) -> PathBuf {
        let mut roots = policy.roots().iter().zip(&self.resolution.root_paths);
        let found = roots.find(|(known, _)| known.path() == root);
        found.map_or_else(|| root.to_owned(), |(_, followed)| followed.clone())
    }

    /// Files that policy and roots depend on.
    pub(super) fn watched_paths(&self, policy_file: &Path, policy: &Policy) -> Vec<PathBuf> {
        let mut paths = vec![policy_file.to_owned()];
        for root in policy.roots() {
            paths.push(root.path().to_owned());
            for actor in root.actors() {
                paths.extend(
                    actor.cgroup().and_then(|path| roots::cgroup_directory(path, &self.snapshot)),
                );
                paths.extend(actor.executable().map(Path::to_owned));
            }
        }
        // Watching follows links, which must never hang on a dead server.
        paths.retain(|path| !roots::is_on_network(path, &self.snapshot));
        paths
    }
}
