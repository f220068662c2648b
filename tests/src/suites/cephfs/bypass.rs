//! Ways around on real CephFS: destruction without deleting, another mount of the same filesystem,
//! the other client (see `docs/BYPASSES.md`; more in `detour_cephfs`, `seal_cephfs` and
//! `alias_cephfs`).

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::harness::attempt::{
    denied, failed_with, has_content, passes, rm_is_denied, rm_passes, truncate,
};
use crate::harness::ceph::CephMount;
use crate::harness::cephfs_host::{Host, POLICY, POOLS, on_guarded, on_sealed};
use crate::harness::registry::Test;
use crate::harness::{command, wait};
use crate::peers::calls;

pub(super) const TESTS: &[Test] = &[
    Test::new("bypass_writing_quotas_and_layouts_on_cephfs", no_deletion),
    Test::new("bypass_another_mount_of_the_same_cephfs", another_mount),
    Test::new("bypass_ceph_fuse_beside_the_kernel_client", ceph_fuse),
];

const ON_CEPH: &str = "/pool-a";

/// Documented limits, even in a sealed pool.
fn no_deletion() -> Result<()> {
    on_sealed(|host| {
        let place = host.scratch("limits")?;
        let at = |name: &str| place.join(name);
        let seen = |name: &str| host.on_ceph().join("limits").join(name);
        let file = File::options().write(true).open(at("d0/e0/f0"))?;
        passes("write", (&file).write_all(b"!"))?;
        file.sync_all()?;
        has_content(&seen("d0/e0/f0"), "!\n")?;
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        passes("fallocate, a hole", fallocate(&file, hole, 0, 2).map_err(Into::into))?;
        file.sync_all()?;
        has_content(&seen("d0/e0/f0"), "\0\0")?;
        let collapsed = fallocate(&file, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 1);
        failed_with("fallocate, collapse", collapsed.map_err(Into::into), Errno::EOPNOTSUPP)?;

        passes("a quota", calls::set_attribute(&at("d1"), "ceph.quota.max_files", "1"))?;
        let beyond = fs::write(at("d1/more"), "x");
        ensure!(
            beyond.is_err(),
            "the quota forbids nothing: it was to be shown that it only forbids"
        );
        passes(
            "a directory's layout",
            calls::set_attribute(&at("d2"), "ceph.dir.layout.stripe_count", "1"),
        )?;
        // CephFS itself changes no layout of a file that has content.
        let relaid =
            calls::set_attribute(&at("d0/e0/f1"), "ceph.file.layout.object_size", "8388608");
        failed_with("the layout of a file with content", relaid, Errno::ENOTEMPTY)?;
        for name in ["d1/e1", "d2/e2"] {
            ensure!(seen(name).exists(), "{name} is gone");
        }
        // The same files cannot be deleted or cut short.
        host.withstands(2, || {
            denied("unlink", fs::remove_file(at("d0/e0/f0")))?;
            denied("truncate", truncate(&at("d0/e0/f1")))
        })?;
        host.clear("limits")
    })
}

fn another_mount() -> Result<()> {
    on_guarded(|host| {
        // Below the root it is a pool as well, from its first moment, with the options of the first
        // or with others.
        let place = Path::new(POOLS).join("again");
        for as_the_first in [true, false] {
            let mut again = if as_the_first {
                CephMount::as_incusd(ON_CEPH, &place)?
            } else {
                CephMount::of(ON_CEPH, &place, "noshare")?
            };
            rm_is_denied(&again.path().join("custom"))?;
            host.is_intact()?;
            again.mount().unmount()?;
        }
        // Outside it is nobody's, in guarded mode: a documented limit.
        let scratch = host.scratch("reached")?;
        rm_is_denied(&scratch.join("d0"))?;
        let outside = CephMount::of(ON_CEPH, "/mnt/outside", "noshare")?;
        rm_passes(&outside.path().join("reached"))?;
        only_one_pool(host)
    })
}

/// The other mounts have gone.
fn only_one_pool(host: &Host) -> Result<()> {
    wait::until("the agent knows one pool", wait::LIMIT, || {
        Ok(host.ask(&["pools"])?.as_array().is_some_and(|pools| pools.len() == 1))
    })
}

/// A pool mounted by ceph-fuse; ended by unmounting.
struct Fuse<'a>(&'a Path);

impl<'a> Fuse<'a> {
    fn mount(path: &'a Path) -> Result<Self> {
        command::run("modprobe", &["fuse"])?;
        fs::create_dir_all(path)?;
        let configuration = std::env::var("CEPH_CONF").context("CEPH_CONF is not set")?;
        let place = path.to_string_lossy();
        command::run(
            "ceph-fuse",
            &["-c", &configuration, "-n", "client.admin", "-r", ON_CEPH, &place],
        )?;
        let mounted = Self(path);
        ensure!(path.join("custom").exists(), "ceph-fuse does not show the pool");
        Ok(mounted)
    }
}

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        // Best effort: it goes with the machine.
        let _ = nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Guarded like any other kind if policy names it; the preset `incus` does not.
fn ceph_fuse() -> Result<()> {
    on_guarded(|host| {
        host.scratch("by-fuse")?;
        let place = Path::new(POOLS).join("fuse");
        let fuse = Fuse::mount(&place)?;
        let at = |name: &str| place.join("by-fuse").join(name);
        rm_passes(&at("d0"))?;
        let both = POLICY.replace("join =", "filesystems = [\"ceph\", \"fuse.ceph-fuse\"]\njoin =");
        host.installation.write_policy(&both)?;
        host.direct(&["policy", "reload"])?;
        rm_is_denied(&at("d1"))?;
        rm_is_denied(&place.join("custom"))?;
        passes("write by ceph-fuse", fs::write(at("new"), "x"))?;
        host.is_intact()?;
        drop(fuse);
        host.installation.write_policy(POLICY)?;
        host.direct(&["policy", "reload"])?;
        only_one_pool(host)?;
        host.clear("by-fuse")
    })
}
