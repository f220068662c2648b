//! Files that must survive a crash: replaced whole, or left as they were.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Replaces a file whole (temporary file, fsync, rename, fsync of the directory), or leaves it as
/// it was. An error names the failed operation.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), (&'static str, io::Error)> {
    let failed = |operation| move |error| (operation, error);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = File::create(&temporary).map_err(failed("create the successor of"))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed("write the successor of"))?;
    fs::rename(&temporary, path).map_err(failed("replace"))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync the directory of"))
}

/// Puts a file that cannot be understood aside, for people. Returns where it is.
pub fn set_aside(path: &Path) -> io::Result<std::path::PathBuf> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".unreadable");
    fs::rename(path, &aside)?;
    Ok(aside.into())
}
