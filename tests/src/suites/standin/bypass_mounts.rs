//! Ways around by another path to the same superblock: namespaces, roots, handles, detached mounts
//! (see `docs/BYPASSES.md`; more in `views_standin`).

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::unistd::{UnlinkatFlags, chdir, pivot_root, unlinkat};

use crate::harness::attempt::{denied, has_content, passes, rm_is_denied};
use crate::harness::guarded::{Guarded, populate};
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;
use crate::harness::{command, machine, tree};
use crate::peers::holder::Holder;
use crate::peers::{calls, container};

pub(super) const TESTS: &[Test] = &[
    Test::new("bypass_setns_into_the_hosts_namespace", enter_the_hosts_namespace),
    Test::new("bypass_unshare_then_remount_move_or_pivot_root", unshare_and_move),
    Test::new("bypass_chroot_into_a_pool", chroot),
    Test::new("bypass_open_by_handle", open_by_handle),
    Test::new("bypass_detached_and_idmapped_mounts", detached_and_idmapped),
    Test::new("bypass_lazy_unmount_with_a_working_directory", lazy_unmount),
    Test::new("bypass_lazy_unmount_before_the_agent_has_seen_the_pool", lazy_unmount_unseen),
];

const CONTENT: &str = "content\n";

/// A guest deletes in its view, and is nobody special once it is in the host's namespace.
fn enter_the_hosts_namespace() -> Result<()> {
    let ground = Guarded::new("bypass-setns", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let volume = pool.path().join("volume");
    let host = File::open("/proc/1/ns/mnt").context("open the host's namespace")?;
    container::with_own_root(&volume, |data| {
        passes("unlink by the guest", fs::remove_file(data.join("file0")))?;
        setns(&host, CloneFlags::CLONE_NEWNS).context("enter the host's namespace")?;
        denied("unlink in the host's namespace", fs::remove_file(volume.join("file1")))?;
        denied("rmdir in the host's namespace", fs::remove_dir(&volume))
    })?;
    ensure!(tree::count(&volume)? == 9, "{} of 9 files are left", tree::count(&volume)?);
    rm_is_denied(&volume)?;
    // The other way round, by a guest's mount from outside: a documented limit.
    let guest = Holder::in_container(&volume)?;
    let by_guest =
        |path: &Path| Path::new("/proc").join(guest.pid().to_string()).join("root").join(path);
    let view = by_guest(Path::new("data"));
    passes("unlink in a guest's view, from outside", fs::remove_file(view.join("file2")))?;
    ground.guardctl(&["seal", "pool"])?;
    denied("the same, sealed", fs::remove_file(view.join("file3")))?;
    ground.guardctl(&["unseal", "pool"])?;
    // A private copy of the host's mounts is the host's view, from outside too.
    let scratch = Scratch::new("bypass-setns")?;
    let place = scratch.join("place");
    fs::create_dir(&place)?;
    let copy = Holder::in_copy(&volume, &place)?;
    for path in [place.join("file3"), volume.join("file3")] {
        let path = Path::new("/proc")
            .join(copy.pid().to_string())
            .join("root")
            .join(path.strip_prefix("/")?);
        denied("unlink in a copy of the host's mounts", fs::remove_file(path))?;
    }
    Ok(())
}

fn unshare_and_move() -> Result<()> {
    let scratch = Scratch::new("bypass-unshare")?;
    let ground = Guarded::new("bypass-unshare", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let place = scratch.join("place");
    fs::create_dir(&place)?;
    let change = |from: Option<&Path>, to: &Path, flags: MsFlags| {
        mount(from, to, None::<&str>, flags, None::<&str>).with_context(|| format!("{flags:?}"))
    };
    container::in_own_namespace(|| {
        let file = pool.path().join("file0");
        denied("unlink in a private copy", fs::remove_file(&file))?;
        change(None, pool.path(), MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOATIME)?;
        denied("unlink after a remount", fs::remove_file(&file))?;
        change(Some(pool.path()), &place, MsFlags::MS_MOVE)?;
        denied("unlink in a pool that was moved", fs::remove_file(place.join("file0")))?;
        passes("write there", fs::write(place.join("new"), "x"))?;
        let elsewhere = scratch.join("file");
        fs::write(&elsewhere, "")?;
        passes("unlink outside", fs::remove_file(elsewhere))?;
        pivot_root(&place, &place.join("volume")).context("make the pool the root")?;
        chdir("/")?;
        denied("unlink in a pool that is the root", fs::remove_file("/file0"))
    })?;
    // With a user namespace, where the process is root only to itself.
    let script = "test -e \"$1/file0\" && ! rm -f \"$1/file0\" 2>/dev/null && : >\"$1/by-another\" \
                  && echo kept";
    let path = pool.path().to_string_lossy();
    let said = command::run(
        "unshare",
        &["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", &path],
    )?;
    ensure!(said.trim() == "kept", "in a user namespace of its own: {said}");
    ensure!(tree::count(pool.path())? == 22, "{} of 22 files are left", tree::count(pool.path())?);
    // A part of the pool, bound outside every root, is the host's view where the root directory is
    // the host's.
    container::beside_the_host(&pool.path().join("volume"), |data| {
        denied("unlink in a part that was bound elsewhere", fs::remove_file(data.join("file0")))
    })?;
    // With a root directory of its own it is like a container's: a documented limit.
    container::with_own_root(&pool.path().join("volume"), |data| {
        passes("unlink in a view", fs::remove_file(data.join("file0")))
    })
}

fn chroot() -> Result<()> {
    let ground = Guarded::new("bypass-chroot", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let run = |root: &Path, line: &str| {
        let bin = root.join("bin");
        fs::create_dir_all(&bin)?;
        fs::copy("/bin/busybox", bin.join("busybox"))?;
        command::attempt("chroot", &[&*root.to_string_lossy(), "/bin/busybox", "sh", "-c", line])
    };
    let line = "/bin/busybox rm -f /file0 || echo refused; echo x >/new && /bin/busybox cat /file0";
    let inside = command::text(&run(pool.path(), line)?);
    let refused = inside.starts_with("refused\ncontent\n") && inside.contains("not permitted");
    ensure!(refused, "in the pool as the root: {inside}");
    has_content(&pool.path().join("new"), "x\n")?;
    let above = command::text(&run(
        ground.root(),
        "/bin/busybox rm -rf /pool/volume 2>&1; echo x >/own; rm /own",
    )?);
    ensure!(
        above.contains("not permitted") && tree::count(&pool.path().join("volume"))? == 10,
        "{above}"
    );
    fs::remove_dir_all(ground.root().join("bin")).context("what is below the root and in no pool")
}

/// No path leads to such a descriptor, but it has the mount that it was opened by.
fn open_by_handle() -> Result<()> {
    let ground = Guarded::new("bypass-handle", "truncate = \"guard\"")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let by = File::open(pool.path())?;
    let volume = pool.path().join("volume");
    let directory = calls::open_by_handle(&volume, &by, libc::O_RDONLY | libc::O_DIRECTORY)?;
    let unlinked = unlinkat(&directory, "file0", UnlinkatFlags::NoRemoveDir);
    denied("unlinkat in a directory by handle", unlinked.map_err(Into::into))?;
    let file = calls::open_by_handle(&volume.join("file1"), &by, libc::O_RDWR)?;
    denied("ftruncate of a file by handle", file.set_len(0))?;
    let mut text = String::new();
    passes("read by handle", (&file).read_to_string(&mut text))?;
    ensure!(text == CONTENT, "read {text:?}");
    // A guest with CAP_DAC_READ_SEARCH reaches all of the superblock by the mount of its view: a
    // documented limit.
    let beside = pool.path().join("file2");
    container::with_the_host_in_view(&volume, |data, host| {
        let by = File::open(data)?;
        let whole = host.join(pool.path().strip_prefix("/")?);
        let directory = calls::open_by_handle(&whole, &by, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let unlink =
            |name: &str| unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir).map_err(Into::into);
        passes("unlinkat by a guest, beside its volume", unlink("file2"))?;
        denied(
            "unlinkat by the guest, through the host's mount",
            fs::remove_file(whole.join("file3")),
        )
    })?;
    ground.guardctl(&["seal", "pool"])?;
    container::with_the_host_in_view(&volume, |data, host| {
        let whole = host.join(pool.path().strip_prefix("/")?);
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let directory = calls::open_by_handle(&whole, &File::open(data)?, flags)?;
        let unlinked = unlinkat(&directory, "file3", UnlinkatFlags::NoRemoveDir);
        denied("unlinkat by a guest, sealed", unlinked.map_err(Into::into))
    })?;
    ensure!(!beside.exists(), "{} is still there", beside.display());
    ensure!(tree::count(pool.path())? == 19, "{} of 19 files are left", tree::count(pool.path())?);
    Ok(())
}

/// A process that has a user namespace in which root is root. It is killed when dropped.
struct Namespace(Child);

impl Namespace {
    fn new() -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c", "echo ready; exec sleep 1000"]);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start unshare")?;
        let mut line = [0; 6];
        let stdout = child.stdout.as_mut().context("no output")?;
        stdout.read_exact(&mut line).context("wait for a user namespace")?;
        Ok(Self(child))
    }

    fn open(&self) -> Result<File> {
        File::open(format!("/proc/{}/ns/user", self.0.id())).context("open a user namespace")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn detached_and_idmapped() -> Result<()> {
    let scratch = Scratch::new("bypass-detached")?;
    let ground = Guarded::new("bypass-detached", "")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let volume = pool.path().join("volume");
    let place = scratch.join("place");
    fs::create_dir(&place)?;
    let owners = Namespace::new()?;
    let owners = owners.open()?;
    let mut maps = true;
    for source in [pool.path(), &volume] {
        for mapped in [false, true] {
            let what = format!("{}, owners mapped: {mapped}", source.display());
            let copy = calls::detached_copy(source).context("open_tree")?;
            if mapped {
                match calls::map_owners(copy.as_fd(), &owners) {
                    // tmpfs lets its owners be mapped since 6.3, CephFS since 6.7.
                    Err(error)
                        if error.raw_os_error() == Some(Errno::EINVAL as i32)
                            && machine::kernel()? == "6.1" =>
                    {
                        maps = false;
                        continue;
                    }
                    outcome => outcome.with_context(|| format!("mount_setattr: {what}"))?,
                }
            }
            let unlink =
                || unlinkat(&copy, "file1", UnlinkatFlags::NoRemoveDir).map_err(Into::into);
            denied(&format!("{what}: in no namespace"), unlink())?;
            calls::attach(copy.as_fd(), &place).context("move_mount")?;
            denied(&format!("{what}: in the host's namespace"), unlink())?;
            denied(&format!("{what}: by path"), fs::remove_file(place.join("file1")))?;
            passes(&what, fs::write(place.join("new"), "x"))?;
            nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH)
                .context("unmount the copy")?;
        }
    }
    ensure!(tree::count(pool.path())? == 22, "{} of 22 files are left", tree::count(pool.path())?);
    // A container's volume with mapped owners is a guest's view as any other.
    let attach = |place: &Path| {
        fs::create_dir_all(place)?;
        let copy = calls::detached_copy(&volume).context("open_tree")?;
        if maps {
            calls::map_owners(copy.as_fd(), &owners).context("mount_setattr")?;
        }
        calls::attach(copy.as_fd(), place).context("move_mount")
    };
    container::with_brought(attach, |data| {
        passes("unlink by a guest", fs::remove_file(data.join("file1")))
    })
}

/// The pool's entry lives as long as its superblock.
fn lazy_unmount() -> Result<()> {
    let ground = Guarded::new("bypass-lazy", "")?;
    let _agent = ground.installation.start()?;
    let mut pool = ground.pool("pool")?;
    let other = Mount::tmpfs("/var/lib/guard-standin-lazy")?;
    populate(other.path())?;
    let worker = Worker::start(&pool.path().join("volume"))?;
    let elsewhere = Worker::start(other.path())?;
    pool.unmount_lazily()?;
    drop(other);
    ensure!(worker.finish()? == "refused\ncontent\n", "it was not refused in the pool");
    ensure!(elsewhere.finish()?.is_empty(), "it was refused elsewhere");
    Ok(())
}

/// A documented limit: without an entry only the place says what is protected, and it has none any
/// more.
fn lazy_unmount_unseen() -> Result<()> {
    let ground = Guarded::new("bypass-unseen", "")?;
    let agent = ground.installation.start()?;
    agent.signal(Signal::SIGSTOP)?;
    let mut pool = ground.mount("pool")?;
    rm_is_denied(&pool.path().join("file0"))?;
    let worker = Worker::start(&pool.path().join("volume"))?;
    pool.unmount_lazily()?;
    ensure!(worker.finish()?.is_empty(), "it was refused: the documentation is wrong");
    agent.signal(Signal::SIGCONT)?;
    let seen = ground.pool("pool")?;
    rm_is_denied(&seen.path().join("file0"))
}

/// A process that works in a directory. Told to, it removes a file there, and says what is left of
/// it.
struct Worker(Child);

impl Worker {
    fn start(directory: &Path) -> Result<Self> {
        let script = "cd \"$1\" && echo ready && read -r _; if rm -f file0 2>/dev/null; then exit; \
                      fi; echo refused; cat file0";
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh"])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut worker = Self(command.spawn().context("start sh")?);
        let mut line = [0; 6];
        worker
            .0
            .stdout
            .as_mut()
            .context("no output")?
            .read_exact(&mut line)
            .context("wait for a worker")?;
        Ok(worker)
    }

    fn finish(mut self) -> Result<String> {
        drop(self.0.stdin.take());
        let mut said = String::new();
        self.0
            .stdout
            .as_mut()
            .context("no output")?
            .read_to_string(&mut said)
            .context("hear a worker")?;
        Ok(said)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
