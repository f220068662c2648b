//! Ways around by another call: deletion and truncation are denied in any form, and beside them
//! other calls go on (see `docs/BYPASSES.md`).

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::libc;

use crate::harness::attempt::{
    denied, exchange, failed_with, has_content, passes, rm_is_denied, truncate, truncate_open,
};
use crate::harness::guarded::Guarded;
use crate::harness::registry::Test;
use crate::harness::{machine, tree};
use crate::peers::{calls, uring};

pub(super) const TESTS: &[Test] = &[
    Test::new("bypass_rename_with_every_flag", rename_flags),
    Test::new("bypass_io_uring_renames_and_truncates", io_uring),
    Test::new("bypass_writing_over_a_file_is_no_deletion", writing),
    Test::new("bypass_core_dump_over_a_file", core_dump),
];

const CONTENT: &str = "content\n";

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> std::io::Result<()> {
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)?)
}

fn rename_flags() -> Result<()> {
    let ground = Guarded::new("bypass-rename", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let at = |name: &str| pool.path().join(name);
    for flags in [RenameFlags::empty(), RenameFlags::RENAME_WHITEOUT] {
        denied(&format!("{flags:?}, over a file"), rename(&at("file0"), &at("file1"), flags))?;
    }
    denied("exchange of two files", exchange(&at("file0"), &at("file1")))?;
    denied("exchange of a file and a directory", exchange(&at("file0"), &at("volume")))?;
    denied("exchange into a directory", exchange(&at("volume/file0"), &at("file1")))?;
    fs::create_dir(at("empty"))?;
    denied("over a directory", rename(&at("volume"), &at("empty"), RenameFlags::empty()))?;
    // The kernel itself replaces nothing here.
    let kept = rename(&at("file0"), &at("file1"), RenameFlags::RENAME_NOREPLACE);
    failed_with("RENAME_NOREPLACE, over a file", kept, Errno::EEXIST)?;
    ensure!(tree::count(pool.path())? == 20, "{} of 20 files are left", tree::count(pool.path())?);

    passes("RENAME_NOREPLACE", rename(&at("file2"), &at("new2"), RenameFlags::RENAME_NOREPLACE))?;
    passes("RENAME_WHITEOUT", rename(&at("file3"), &at("new3"), RenameFlags::RENAME_WHITEOUT))?;
    passes("of a directory", rename(&at("empty"), &at("moved"), RenameFlags::empty()))?;
    passes("to itself", rename(&at("file4"), &at("file4"), RenameFlags::empty()))?;
    // Both stay: the kernel leaves two names of one file alone.
    fs::hard_link(at("file5"), at("link5"))?;
    passes(
        "to another name of the same file",
        rename(&at("file5"), &at("link5"), RenameFlags::empty()),
    )?;
    rm_is_denied(&at("link5"))?;
    for name in ["new2", "new3", "file4", "file5", "link5"] {
        has_content(&at(name), CONTENT)?;
    }
    rm_is_denied(&at("new2"))
}

fn io_uring() -> Result<()> {
    let ground = Guarded::new("bypass-uring", "truncate = \"guard\"")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let at = |name: &str| pool.path().join(name);
    fs::create_dir(at("empty"))?;
    let io = |outcome: Result<(), Errno>| Ok(outcome?);
    denied("unlinkat", io(uring::unlink(&[at("file0")])?.remove(0)))?;
    denied("unlinkat of a directory", io(uring::rmdir(&at("empty"))?))?;
    denied("renameat over a file", io(uring::rename(&at("file0"), &at("file1"), 0)?))?;
    let swapped = uring::rename(&at("file0"), &at("volume"), libc::RENAME_EXCHANGE)?;
    denied("renameat, exchange", io(swapped))?;
    denied("openat, O_TRUNC", io(uring::open(&at("file0"), libc::O_TRUNC)?))?;
    denied(
        "openat, O_TRUNC and O_CREAT",
        io(uring::open(&at("file0"), libc::O_TRUNC | libc::O_CREAT)?),
    )?;
    match uring::truncate(&at("file0"))? {
        // Kernels before 6.9 have no such operation.
        Err(Errno::EINVAL) if machine::kernel()? == "6.1" => {}
        outcome => denied("ftruncate", io(outcome))?,
    }
    has_content(&at("file0"), CONTENT)?;
    ensure!(tree::count(pool.path())? == 20, "{} of 20 files are left", tree::count(pool.path())?);

    passes("openat for writing", io(uring::open(&at("file0"), 0)?))?;
    passes("renameat to a new name", io(uring::rename(&at("file0"), &at("new"), 0)?))?;
    has_content(&at("new"), CONTENT)?;
    let outside = ground.root().join("outside");
    fs::write(&outside, CONTENT)?;
    passes("openat, O_TRUNC, outside", io(uring::open(&outside, libc::O_TRUNC)?))?;
    has_content(&outside, "")?;
    // Without `truncate = "guard"` it is sealed mode that denies truncation.
    ground.installation.write_policy(&ground.policy(""))?;
    ground.guardctl(&["policy", "reload"])?;
    passes("openat, O_TRUNC, guarded", io(uring::open(&at("file2"), libc::O_TRUNC)?))?;
    ground.guardctl(&["seal", "pool"])?;
    denied("openat, O_TRUNC, sealed", io(uring::open(&at("file1"), libc::O_TRUNC)?))?;
    denied("unlinkat, sealed", io(uring::unlink(&[at("file1")])?.remove(0)))?;
    has_content(&at("file1"), CONTENT)?;
    passes("unlinkat outside", io(uring::unlink(&[outside])?.remove(0)))
}

/// A documented limit, even in a sealed pool: content is written over, and no name and no size
/// goes.
fn writing() -> Result<()> {
    let ground = Guarded::new("bypass-writing", "mode = \"sealed\"")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let at = |name: &str| pool.path().join(name);
    let open = |name: &str| File::options().read(true).write(true).open(at(name));
    let all_of = |name: &str, text: &str| has_content(&at(name), text);

    passes("write", open("file0").and_then(|mut file| file.write_all(b"destroy\n")))?;
    all_of("file0", "destroy\n")?;
    passes("pwrite", open("file1").and_then(|file| file.write_all_at(b"destroy\n", 0)))?;
    all_of("file1", "destroy\n")?;
    passes("write through a mapping", calls::write_through_memory(&open("file2")?, b"destroy\n"))?;
    all_of("file2", "destroy\n")?;
    let copied =
        passes("copy_file_range", calls::copy(&open("file0")?, &open("file3")?, CONTENT.len()))?;
    ensure!(copied == CONTENT.len(), "copy_file_range copied {copied} bytes");
    all_of("file3", "destroy\n")?;
    let length = CONTENT.len() as libc::off_t;
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    passes("fallocate, a hole", Ok(fallocate(open("file4")?, hole, 0, length)?))?;
    all_of("file4", "\0\0\0\0\0\0\0\0")?;
    // Neither tmpfs nor CephFS can do these: they would be writes.
    for flags in [FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, FallocateFlags::FALLOC_FL_ZERO_RANGE] {
        let outcome = fallocate(open("file5")?, flags, 0, length);
        failed_with(
            &format!("fallocate, {flags:?}"),
            outcome.map_err(Into::into),
            Errno::EOPNOTSUPP,
        )?;
    }

    denied("truncate", truncate(&at("file0")))?;
    denied("ftruncate", truncate_open(&at("file0")))?;
    denied("truncate to more", nix::unistd::truncate(&at("file0"), 4096).map_err(Into::into))?;
    rm_is_denied(&at("file0"))?;
    ensure!(tree::count(pool.path())? == 20, "{} of 20 files are left", tree::count(pool.path())?);
    Ok(())
}

/// The kernel's name pattern of core dumps. Restored when dropped.
struct CorePattern(String);

const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

impl CorePattern {
    fn set(pattern: &str) -> Result<Self> {
        let before = fs::read_to_string(CORE_PATTERN).context("read the core pattern")?;
        fs::write(CORE_PATTERN, pattern).context("write the core pattern")?;
        Ok(Self(before))
    }
}

impl Drop for CorePattern {
    fn drop(&mut self) {
        // Best effort: nothing else here dumps core.
        let _ = fs::write(CORE_PATTERN, &self.0);
    }
}

/// The kernel unlinks an old core file first, and opens none that is still there.
fn core_dump() -> Result<()> {
    let _pattern = CorePattern::set("file%e")?;
    let ground = Guarded::new("bypass-core", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let (old, fresh) = (pool.path().join("filesh"), pool.path().join("volume"));
    fs::write(&old, CONTENT)?;
    // The kernel dumps into no file that others may read.
    fs::set_permissions(&old, Permissions::from_mode(0o600))?;
    let crash = |directory: &Path| -> Result<()> {
        let line = "ulimit -c unlimited && cd \"$1\" && kill -SEGV $$";
        let status = Command::new("sh")
            .args(["-c", line, "sh"])
            .arg(directory)
            .status()
            .context("start sh")?;
        ensure!(!status.success(), "sh did not crash");
        Ok(())
    };
    let dumped = |directory: &Path| -> Result<bool> {
        let file = directory.join("filesh");
        Ok(fs::read(&file)
            .with_context(|| format!("read {}", file.display()))?
            .starts_with(b"\x7fELF"))
    };
    crash(pool.path())?;
    has_content(&old, CONTENT).context("guarded")?;
    ground.wait_for_decision("guarded", "/filesh")?;
    ground.guardctl(&["seal", "pool"])?;
    crash(pool.path())?;
    has_content(&old, CONTENT).context("sealed")?;
    // A new one is made all the same, and stays empty while the pool is sealed: its truncation is
    // denied.
    crash(&fresh)?;
    has_content(&fresh.join("filesh"), "")?;
    ground.guardctl(&["unseal", "pool"])?;
    fs::rename(fresh.join("filesh"), fresh.join("empty"))?;
    crash(&fresh)?;
    ensure!(dumped(&fresh)?, "nothing was dumped in a guarded pool");
    for _ in ["a new one", "over an old one"] {
        crash(ground.root())?;
        ensure!(dumped(ground.root())?, "nothing was dumped outside: does this shell dump core?");
    }
    fs::remove_file(ground.root().join("filesh")).context("remove the core file outside")
}
