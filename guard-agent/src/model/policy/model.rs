//! A valid policy.

use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_common::{Mode, Tier};
use serde::{Serialize, Serializer};

use super::duration;
use super::filesystem::Filesystem;

/// No lease is longer, even if the file allows it.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3600);

/// A valid policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    pub(super) roots: Vec<Root>,
    pub(super) filesystems: Vec<Filesystem>,
    pub(super) lease: LeaseLimits,
    #[serde(serialize_with = "duration::serialize")]
    pub(super) canary_interval: Duration,
    #[serde(serialize_with = "duration::serialize")]
    pub(super) incident_interval: Duration,
    pub(super) full_records: u32,
    pub(super) allow_inactive: bool,
    pub(super) tier: TierChoice,
    pub(super) hash: String,
}

impl Policy {
    /// The guarded roots, in the order of the file. At least one.
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// All kinds of filesystems that some root guards, each once.
    pub fn filesystems(&self) -> &[Filesystem] {
        &self.filesystems
    }

    /// The kind that a mount's type in mountinfo belongs to, if some root guards it.
    pub fn filesystem(&self, fs_type: &str) -> Option<&Filesystem> {
        self.filesystems.iter().find(|filesystem| filesystem.matches(fs_type))
    }

    /// Default and longest duration of a lease.
    pub fn lease(&self) -> LeaseLimits {
        self.lease
    }

    /// Interval between canary checks.
    pub fn canary_interval(&self) -> Duration {
        self.canary_interval
    }

    /// Interval between summaries of an incident that goes on.
    pub fn incident_interval(&self) -> Duration {
        self.incident_interval
    }

    /// Number of full records of an incident before its denials are only counted.
    pub fn full_records(&self) -> u32 {
        self.full_records
    }

    /// Whether the agent keeps running although nothing can be enforced.
    pub fn allow_inactive(&self) -> bool {
        self.allow_inactive
    }

    /// Enforcement mechanism to use.
    pub fn tier(&self) -> TierChoice {
        self.tier
    }

    /// SHA-256 of the file's text, in hex.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The root of an actor set.
    pub fn root_of_actor_set(&self, actor_set: u32) -> Option<&Root> {
        self.roots.iter().find(|root| root.actor_set == actor_set)
    }

    /// The same policy with other paths for its roots: those that symbolic links lead to
    /// (see `roots`). Roots and paths are in the same order; actor sets stay.
    #[must_use]
    pub fn with_root_paths(&self, paths: &[PathBuf]) -> Self {
        let mut policy = self.clone();
        for (root, path) in policy.roots.iter_mut().zip(paths) {
            root.path.clone_from(path);
        }
        policy
    }
}

/// Enforcement mechanism that policy wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierChoice {
    /// The strongest one that proves itself.
    Auto,
    /// This one or none.
    Only(Tier),
}

impl TierChoice {
    /// The values that the file may have.
    pub(super) const ALL: [Self; 4] = [
        Self::Auto,
        Self::Only(Tier::BpfLsm),
        Self::Only(Tier::FmodRet),
        Self::Only(Tier::Fanotify),
    ];

    /// Whether policy wants, or takes, this one.
    pub fn accepts(self, tier: Tier) -> bool {
        match self {
            Self::Auto => true,
            Self::Only(only) => only == tier,
        }
    }

    /// The name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Only(tier) => tier.name(),
        }
    }
}

impl Serialize for TierChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Default and longest duration of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LeaseLimits {
    #[serde(serialize_with = "duration::serialize")]
    pub(super) default_ttl: Duration,
    #[serde(serialize_with = "duration::serialize")]
    pub(super) max_ttl: Duration,
}

impl LeaseLimits {
    /// Of a lease that does not say.
    pub fn default_ttl(self) -> Duration {
        self.default_ttl
    }

    /// No lease is longer. At most [`MAX_TTL`].
    pub fn max_ttl(self) -> Duration {
        self.max_ttl
    }
}

/// A directory below which shared filesystems are protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Root {
    pub(super) path: PathBuf,
    pub(super) default_mode: DefaultMode,
    pub(super) filesystems: Vec<String>,
    pub(super) actors: Vec<Actor>,
    pub(super) guests: Vec<String>,
    pub(super) namespaces: Vec<PathBuf>,
    pub(super) guard_truncate: bool,
    pub(super) exported: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) incus: Option<IncusNode>,
    pub(super) actor_set: u32,
}

impl Root {
    /// Absolute, without `.` and `..`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mode of its pools where nobody says otherwise.
    pub fn default_mode(&self) -> DefaultMode {
        self.default_mode
    }

    /// Names of the kinds ([`Filesystem::name`]) that are guarded below it.
    pub fn filesystems(&self) -> &[String] {
        &self.filesystems
    }

    /// Whether this kind is guarded below it.
    pub fn guards(&self, filesystem: &Filesystem) -> bool {
        self.filesystems.iter().any(|name| name == filesystem.name())
    }

    /// The processes that may delete in its guarded pools.
    pub fn actors(&self) -> &[Actor] {
        &self.actors
    }

    /// Cgroups (v2), each with everything below it, that may delete in their own guest view, also
    /// where that shows a whole superblock. Nowhere else: through the host's view they are as
    /// anybody.
    pub fn guests(&self) -> &[String] {
        &self.guests
    }

    /// Mount namespaces besides PID 1's that are the host's view: those of daemons that have their
    /// own, such as `/run/snapd/ns/lxd.mnt`. Paths of nsfs files.
    pub fn namespaces(&self) -> &[PathBuf] {
        &self.namespaces
    }

    /// Truncation is decided like deletion in guarded mode too.
    pub fn guard_truncate(&self) -> bool {
        self.guard_truncate
    }

    /// Its pools are exported: kernel threads may delete in guarded mode.
    pub fn exported(&self) -> bool {
        self.exported
    }

    /// The Incus whose join into a cluster gives its pools their modes, if one is followed.
    pub fn incus(&self) -> Option<&IncusNode> {
        self.incus.as_ref()
    }

    /// Names its set of actors in the maps. Made of the path, not of the place in the file: it
    /// stays the same when roots are added, removed or reordered, so that no pool ever meets
    /// another's actors.
    pub fn actor_set(&self) -> u32 {
        self.actor_set
    }
}

/// An Incus daemon that is followed. Its directory (`INCUS_DIR`) is the root's path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IncusNode {
    pub(super) socket: Option<PathBuf>,
    pub(super) unit: String,
    pub(super) on_join_failure: OnJoinFailure,
}

impl IncusNode {
    /// Its Unix socket, if policy names one: else it is the one that its daemon listens on.
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Name of its systemd unit.
    pub fn unit(&self) -> &str {
        &self.unit
    }

    /// Path of the cgroup in which the unit runs it.
    pub fn cgroup(&self) -> String {
        format!("/system.slice/{}", self.unit)
    }

    /// The agent's own action after a failed join.
    pub fn on_join_failure(&self) -> OnJoinFailure {
        self.on_join_failure
    }
}

/// The agent's own action after a failed join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnJoinFailure {
    /// Keeps the pools sealed, and waits for an operator.
    Hold,
    /// Unmounts the join's remains.
    Rollback,
}

/// The mode of a root's pools where nobody says otherwise. `released` is never a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefaultMode {
    Sealed,
    Guarded,
    Observed,
}

impl DefaultMode {
    /// The names in the file.
    pub const NAMES: [&'static str; 3] = ["sealed", "guarded", "observed"];

    /// The kernel's mode.
    pub fn mode(self) -> Mode {
        match self {
            Self::Sealed => Mode::Sealed,
            Self::Guarded => Mode::Guarded,
            Self::Observed => Mode::Observed,
        }
    }
}

/// Processes that may delete. With both set, both must match; with one set, it alone suffices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Actor {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cgroup: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) executable: Option<PathBuf>,
}

impl Actor {
    /// Path of a cgroup (v2) such as `/system.slice/incus.service`; processes below it match.
    pub fn cgroup(&self) -> Option<&str> {
        self.cgroup.as_deref()
    }

    /// Path of an executable in the host's mount namespace.
    pub fn executable(&self) -> Option<&Path> {
        self.executable.as_deref()
    }

    /// Whether it needs its cgroup and its executable together.
    pub fn is_combined(&self) -> bool {
        self.cgroup.is_some() && self.executable.is_some()
    }
}
