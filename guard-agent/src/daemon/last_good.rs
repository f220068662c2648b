//! The last policy that was in force, kept in the state directory.

use std::io;
use std::path::{Path, PathBuf};

use crate::host::durable::replace;

/// Path of the file.
pub(super) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("policy.last-good.toml")
}

/// Replaces it.
pub(super) fn save(state_dir: &Path, text: &str) -> io::Result<()> {
    replace(&path(state_dir), text.as_bytes()).map_err(|(_, error)| error)
}

#[cfg(test)]
mod tests {
    use super::super::policy_store::PolicyStore;
    use super::*;

    #[test]
    fn a_start_with_a_wrong_policy_file_takes_the_last_good_one() {
        let directory = tempfile::tempdir().unwrap();
        let (file, state_dir) = (directory.path().join("policy.toml"), directory.path());
        std::fs::write(&file, "version = 1\n[[root]]\npreset = \"incuss\"\n").unwrap();
        let refused = PolicyStore::open(&file, state_dir);
        assert!(refused.is_err(), "nothing was kept yet");

        save(state_dir, "version = 1\n[[root]]\npreset = \"incus\"\n").unwrap();
        let loaded = PolicyStore::open(&file, state_dir).unwrap();
        assert_eq!(loaded.current.roots()[0].path(), Path::new("/var/lib/incus"));
        let rejected = loaded.rejected.expect("the problem is reported");
        assert!(rejected.errors[0].contains("policy.toml:3"), "{rejected:?}");
    }
}
