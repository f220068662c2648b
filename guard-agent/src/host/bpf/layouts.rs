//! The pin directory: one directory for each layout of the maps, and which of them speaks.
//!
//! ```text
//! <pin-dir>/layout-<version>-<fingerprint>-<token>/
//!     maps/<MAP>, programs-…/, fmod-ret-…/        see `pins`
//!     settled-<boot clock>/                       empty: an agent has proven this layout in force
//! ```
//!
//! Usually there is one. While an agent of another layout takes over there are two; the one that
//! was settled last speaks for pools, seals, releases and leases. All others are left over from
//! agents that died, and only their counters are added.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::geteuid;

use super::description::Description;
use super::pins::{PinError, Pins, io_error, remove_tree};
use guard_common::LAYOUT_VERSION;

/// The pin directory.
#[derive(Clone, Debug)]
pub struct Layouts {
    directory: PathBuf,
}

/// Name of a layout's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutName {
    /// `LAYOUT_VERSION` of the agent that made it.
    pub version: u32,
    /// `Description::fingerprint`.
    pub fingerprint: String,
    /// Tells these maps from all others of this boot: the boot clock when they were made.
    pub token: u64,
}

/// A layout that has a directory.
#[derive(Clone, Debug)]
pub struct Layout {
    pub name: LayoutName,
    pub pins: Pins,
    /// When it was settled last, on the boot clock.
    pub settled: Option<u64>,
    /// Some program of it is attached.
    pub attached: bool,
}

/// The layout that an agent starts on.
#[derive(Debug)]
pub struct Standing {
    /// Its own layout. If it does not speak, only its counters are valid.
    pub own: Layout,
    /// The layout that speaks, if that is another one.
    pub source: Option<Layout>,
    /// Layouts whose agent died before it was settled, or that another one has replaced.
    pub leftovers: Vec<Layout>,
}

impl LayoutName {
    fn own(token: u64) -> Self {
        Self { version: LAYOUT_VERSION, fingerprint: Description::own().fingerprint(), token }
    }

    /// Whether it is the layout of this program's maps.
    pub fn is_own(&self) -> bool {
        *self == Self::own(self.token)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("layout-")?.split('-');
        let (version, fingerprint, token) = (parts.next()?, parts.next()?, parts.next()?);
        let name = Self {
            version: version.parse().ok()?,
            fingerprint: fingerprint.to_owned(),
            token: u64::from_str_radix(token, 16).ok()?,
        };
        parts.next().is_none().then_some(name)
    }

    fn directory_name(&self) -> String {
        format!("layout-{}-{}-{:x}", self.version, self.fingerprint, self.token)
    }
}

impl Layouts {
    /// Opens the directory, making it if it is missing. It has to be on a bpffs.
    pub fn open(directory: &Path) -> Result<Self, PinError> {
        let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let filesystem =
            statfs(existing).map_err(|error| io_error("stat", existing)(error.into()))?;
        if filesystem.filesystem_type() != BPF_FS_MAGIC {
            return Err(PinError::NotBpffs { path: directory.to_owned() });
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(io_error("create", directory))?;
        belongs_to_us(directory)?;
        Ok(Self::at(directory))
    }

    /// The directory as it is, for callers that only read. Nothing is made.
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Every layout that has a directory.
    pub fn found(&self) -> Result<Vec<Layout>, PinError> {
        belongs_to_us(&self.directory)?;
        let mut found = Vec::new();
        for entry in
            std::fs::read_dir(&self.directory).map_err(io_error("list", &self.directory))?
        {
            let entry = entry.map_err(io_error("list", &self.directory))?;
            let name = entry.file_name();
            if let Some(name) = name.to_str().and_then(LayoutName::parse) {
                found.push(Layout::look(name, entry.path())?);
            }
        }
        Ok(found)
    }

    /// The layout that speaks.
    pub fn current(&self) -> Result<Option<Layout>, PinError> {
        let found = self.found()?;
        Ok(speaking(&found).map(|index| found[index].clone()))
    }

    /// Pins of a build from before layouts had directories of their own.
    pub fn has_older_pins(&self) -> bool {
        self.directory.join("maps").exists()
    }

    /// Finds the layout that an agent of this version starts on; makes nothing.
    pub fn standing(&self) -> Result<Standing, PinError> {
        let mut others = self.found()?;
        let mut source = None;
        if let Some(index) = speaking(&others) {
            let current = others.swap_remove(index);
            if current.name.is_own() {
                return Ok(Standing { own: current, source: None, leftovers: others });
            }
            source = Some(current);
        }
        let own = match others.iter().position(|layout| layout.name.is_own()) {
            Some(index) => others.swap_remove(index),
            None => self.fresh(),
        };
        Ok(Standing { own, source, leftovers: others })
    }

    fn fresh(&self) -> Layout {
        let name = LayoutName::own(boot_ns());
        let pins = Pins::new(self.directory.join(name.directory_name()));
        Layout { name, pins, settled: None, attached: false }
    }

    /// Removes everything, and returns when the kernel has ended the programs: nothing is enforced
    /// afterwards.
    pub fn unload(&self) -> Result<(), PinError> {
        let mut ids = Vec::new();
        for layout in self.found()? {
            ids.extend(layout.pins.retire_all()?);
        }
        if self.has_older_pins() {
            ids.extend(Pins::new(self.directory.clone()).retire_all()?);
        }
        remove_tree(&self.directory)?;
        super::pins::wait_for_the_end(ids)
    }
}

impl Layout {
    fn look(name: LayoutName, directory: PathBuf) -> Result<Self, PinError> {
        let pins = Pins::new(directory);
        let (settled, attached) = (pins.settled()?, pins.is_attached()?);
        Ok(Self { name, pins, settled, attached })
    }

    /// Removes its own loads and its settled mark: it is begun again.
    pub fn begin_again(&self) -> Result<(), PinError> {
        self.pins.unsettle()?;
        self.pins.retire_all().map(drop)
    }
}

/// Fails if another user may write into the directory. A bpffs is often open to all users (mode
/// 1777), and the first of them to come can make any directory there. Fail closed: the pins of such
/// a directory prove nothing.
fn belongs_to_us(directory: &Path) -> Result<(), PinError> {
    let about = directory.symlink_metadata().map_err(io_error("look at", directory))?;
    let (owner, mode) = (about.uid(), about.mode() & 0o7777);
    if about.is_dir() && (owner == 0 || owner == geteuid().as_raw()) && mode & 0o022 == 0 {
        return Ok(());
    }
    Err(PinError::Foreign { path: directory.to_owned(), owner, mode })
}

/// Now, on the boot clock in nanoseconds.
pub fn boot_ns() -> u64 {
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// The layout whose pools, seals and leases hold: the one that was settled last. Where none was,
/// the first of those that enforce: its agent died before it had proven it. Pure.
fn speaking(found: &[Layout]) -> Option<usize> {
    let settled = (0..found.len()).filter(|index| found[*index].settled.is_some());
    let attached = (0..found.len()).filter(|index| found[*index].attached);
    settled
        .max_by_key(|index| found[*index].settled)
        .or_else(|| attached.min_by_key(|index| found[*index].name.token))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn layout(token: u64, settled: Option<u64>, attached: bool) -> Layout {
        let name = LayoutName { version: 1, fingerprint: "00c0ffee".into(), token };
        Layout { pins: Pins::new(PathBuf::from("/nowhere")), name, settled, attached }
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_not_ours() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("guard-agent");
        let refused = |directory: &Path| match belongs_to_us(directory) {
            Err(PinError::Foreign { mode, .. }) => Some(mode),
            other => other.map(|()| None).unwrap(),
        };
        std::fs::create_dir(&directory).unwrap();
        for (mode, is_refused) in [(0o700, false), (0o755, false), (0o775, true), (0o1777, true)] {
            std::fs::set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
            assert_eq!(refused(&directory), is_refused.then_some(mode), "{mode:o}");
        }
        let link = place.path().join("link");
        std::os::unix::fs::symlink(place.path(), &link).unwrap();
        assert!(refused(&link).is_some(), "a link is somebody's word");
    }

    #[test]
    fn a_name_comes_back_as_it_was() {
        let name = LayoutName::own(0x1_0000_0001);
        assert_eq!(LayoutName::parse(&name.directory_name()), Some(name.clone()));
        assert!(name.is_own());
        assert!(!LayoutName { version: name.version + 1, ..name }.is_own());
        for wrong in ["maps", "layout-x-00-1", "layout-1-00", "layout-1-00-1-2", "programs-00-1"] {
            assert_eq!(LayoutName::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_one_settled_last_speaks_and_else_the_first_that_enforces() {
        assert_eq!(speaking(&[]), None);
        assert_eq!(speaking(&[layout(1, None, false)]), None);
        assert_eq!(speaking(&[layout(1, Some(5), false), layout(2, None, true)]), Some(0));
        assert_eq!(speaking(&[layout(1, Some(5), true), layout(2, Some(6), true)]), Some(1));
        assert_eq!(speaking(&[layout(2, None, true), layout(1, None, true)]), Some(1));
    }
}
