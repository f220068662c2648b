//! Protected files and denied processes, in cases that a superblock's mount alone does not tell.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::harness::attempt::{copy_rm, denied, passes, rm_is_denied, rm_passes};
use crate::harness::guarded::{Guarded, populate};
use crate::harness::mount::Mount;
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;
use crate::harness::{command, wait};
use crate::peers::container;

pub(super) const TESTS: &[Test] = &[
    Test::new("identity_other_mounts_of_a_pool_that_came_without_an_agent", without_an_agent),
    Test::new("identity_a_visitor_is_free_at_home", visitor),
    Test::new("identity_guests_have_whole_pools_in_their_own_views", guests),
    Test::new("identity_a_pool_in_a_daemons_own_namespace_is_known", own_namespace),
    Test::new("identity_an_executable_with_another_ones_inode_is_no_actor", inode_used_again),
];

/// A pool that nobody has an entry for, bound elsewhere, as a whole and in part.
fn without_an_agent() -> Result<()> {
    let ground = Guarded::new("homeless", "")?;
    let scratch = Scratch::new("homeless")?;
    ground.installation.start()?.stop()?;
    let pool = ground.mount("pool")?;
    let volume = pool.path().join("volume");
    let part = Mount::bind(&volume, scratch.join("part"))?;
    let whole = Mount::bind(pool.path(), scratch.join("whole"))?;
    // One that belongs elsewhere, of the same kind.
    let elsewhere = Mount::tmpfs(scratch.join("elsewhere"))?;
    populate(elsewhere.path())?;
    let unharmed = || -> Result<()> {
        rm_is_denied(&part.path().join("file1"))?;
        rm_is_denied(&whole.path().join("file1"))?;
        denied(
            "rename over, by another mount",
            fs::rename(part.path().join("file1"), part.path().join("file2")),
        )?;
        rm_is_denied(&pool.path().join("file1"))
    };
    unharmed()?;
    rm_passes(&elsewhere.path().join("file1"))?;
    // A guest of a pool that will be guarded goes on.
    container::with_own_root(&volume, |data| {
        passes("unlink by a guest", fs::remove_file(data.join("file3")))
    })?;

    // Below a root whose pools are sealed nobody deletes, by any mount.
    ground.installation.write_policy(&ground.policy("mode = \"sealed\""))?;
    let agent = ground.installation.start()?;
    ground.wait_for_mode(pool.path(), "sealed")?;
    agent.stop()?;
    let pool = ground.mount("later")?;
    let volume = pool.path().join("volume");
    let part = Mount::bind(&volume, scratch.join("later"))?;
    rm_is_denied(&part.path().join("file1"))?;
    container::with_own_root(&volume, |data| {
        denied(
            "unlink by a guest of a pool that will be sealed",
            fs::remove_file(data.join("file3")),
        )
    })?;
    rm_passes(&elsewhere.path().join("file2"))
}

/// A filesystem of the host's, of which a container has a directory below the root.
fn visitor() -> Result<()> {
    let ground = Guarded::new("visitor", "")?;
    let scratch = Scratch::new("visitor")?;
    let home = Mount::tmpfs(scratch.join("home"))?;
    populate(home.path())?;
    let volume = home.path().join("volume");
    let disk = ground.root().join("disk");
    let at_home = |file: &str| rm_passes(&home.path().join(file));
    {
        let bound = Mount::bind(&volume, &disk)?;
        ground.installation.start()?.stop()?;
        rm_is_denied(&bound.path().join("file0")).context("classified")?;
        at_home("file0")?;
    }
    // Mounted without an agent.
    let mut bound = Mount::bind(&volume, &disk)?;
    rm_is_denied(&bound.path().join("file1")).context("unclassified")?;
    at_home("file1")?;
    passes("unlink of the same file at home", fs::remove_file(volume.join("file1")))?;
    let agent = ground.installation.start()?;
    let report = ground.report(&disk)?.context("the agent does not know the visitor")?;
    let shown = report["mountpoints"].as_array().map_or(0, Vec::len);
    ensure!(shown == 1, "{shown} mounts of it are protected: {report}");
    rm_is_denied(&bound.path().join("file2"))?;
    denied("rename over below the root", fs::rename(disk.join("file2"), disk.join("file3")))?;
    at_home("file2")?;
    // The container that has it deletes in it.
    container::with_own_root(&volume, |data| {
        passes("unlink in the container", fs::remove_file(data.join("file4")))
    })?;
    ground.guardctl(&["seal", &disk.to_string_lossy()])?;
    ground.wait_for_mode(&disk, "sealed")?;
    rm_is_denied(&bound.path().join("file2"))?;
    at_home("file3")?;
    bound.unmount()?;
    rm_passes(&volume)?;
    agent.stop()?;
    rm_passes(&home.path().join("file4"))
}

/// A cgroup for programs to run in; it goes with the test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Result<Self> {
        let path = Path::new("/sys/fs/cgroup").join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }

    /// Its file of processes, for a place where it cannot be seen.
    fn door(&self) -> Result<File> {
        OpenOptions::new()
            .write(true)
            .open(self.0.join("cgroup.procs"))
            .context("open cgroup.procs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its last process may not be reaped.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Whether a process in a cgroup can remove a file.
fn removes(door: &File, file: &Path) -> Result<bool> {
    let status = Command::new("sh")
        .args(["-c", "echo $$ >&0 && exec rm -f \"$1\" </dev/null 2>/dev/null", "sh"])
        .arg(file)
        .stdin(Stdio::from(door.try_clone().context("clone a descriptor")?))
        .status()
        .context("start sh")?;
    Ok(status.success())
}

fn guests() -> Result<()> {
    let (pods, others) = (Cgroup::new("standin-pods")?, Cgroup::new("standin-others")?);
    let (pod, other) = (pods.door()?, others.door()?);
    let ground = Guarded::new("guests", "guests = [\"/standin-pods\"]")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    // On the host a pod's processes are nobody: a plugin that cleans up there is the incident.
    ensure!(!removes(&pod, &pool.path().join("file0"))?, "a guest's cgroup deleted on the host");
    container::with_the_hosts_programs(pool.path(), |data| {
        ensure!(
            !removes(&other, &data.join("file1"))?,
            "a stranger deleted in a container that has the whole pool"
        );
        ensure!(
            removes(&pod, &data.join("file1"))?,
            "a guest was denied in its own view of the whole pool"
        );
        Ok(())
    })?;
    // A plugin of the node's sees the root's own directory: that is the host, in whatever
    // namespace.
    container::with_a_tree(ground.root(), |data| {
        let pool = data.join("pool");
        ensure!(pool.join("file2").exists(), "the pool is not mounted in the container");
        ensure!(!removes(&pod, &pool.join("file2"))?, "a guest deleted below the root");
        Ok(())
    })?;
    ensure!(
        !pool.path().join("file1").exists() && pool.path().join("file0").exists(),
        "another file went"
    );
    rm_is_denied(&pool.path().join("file2"))
}

/// A daemon that mounts its pools where only it sees them, as LXD's snap does.
fn own_namespace() -> Result<()> {
    let scratch = Scratch::new("own-namespace")?;
    let place = Mount::tmpfs(scratch.join("place"))?;
    let (pin, actor, disk) =
        (place.path().join("ns"), scratch.join("daemon"), scratch.join("bound"));
    fs::create_dir(&disk)?;
    copy_rm(&actor)?;
    let make = format!(
        "mount --make-private {0} && touch {1} && unshare --mount={1} --propagation private true",
        place.path().display(),
        pin.display()
    );
    command::run("sh", &["-c", &make])?;
    let settings = format!(
        "namespaces = [\"{}\"]\nactors = [{{ executable = \"{}\" }}]",
        pin.display(),
        actor.display()
    );
    let ground = Guarded::new("own-namespace", &settings)?;
    let pool = ground.root().join("own");
    fs::create_dir(&pool)?;
    let inside = |script: &str| -> Result<bool> {
        let enter = format!("--mount={}", pin.display());
        let output = command::attempt("nsenter", &[&enter, "sh", "-c", script])?;
        Ok(output.status.success())
    };
    let shown = |what: &str| format!("{what} {}", pool.display());
    let mounts = format!(
        "mount -t tmpfs own {0} && touch {0}/a {0}/b {0}/c && mount --bind {0} {1}",
        pool.display(),
        disk.display()
    );
    ensure!(inside(&mounts)?, "the daemon could not mount its pool");
    let held = Held(
        Command::new("nsenter")
            .arg(format!("--mount={}", pin.display()))
            .args(["sleep", "1000"])
            .spawn()?,
    );
    let agent = ground.installation.start()?;
    wait::until("the agent knows the daemon's pool", wait::LIMIT, || {
        Ok(ground.report(&pool)?.is_some())
    })?;
    ensure!(!pool.join("a").exists(), "the host sees the daemon's pool");
    ensure!(
        !inside(&format!("{}/a", shown("rm")))?,
        "a stranger in the daemon's namespace deleted"
    );
    ensure!(
        !inside(&format!("rm {}/a", disk.display()))?,
        "a stranger deleted by another mount there"
    );
    ensure!(
        inside(&format!("{} -f {}/a", actor.display(), pool.display()))?,
        "the daemon was denied"
    );
    ground.guardctl(&["seal", &pool.to_string_lossy()])?;
    ground.wait_for_mode(&pool, "sealed")?;
    ensure!(
        !inside(&format!("{} -f {}/b && test ! -e {1}/b", actor.display(), pool.display()))?,
        "the daemon deleted in its sealed pool"
    );
    agent.stop()?;
    drop(held);
    command::run("umount", &[&pin.to_string_lossy()]).map(drop)
}

/// A process that keeps its namespace alive.
struct Held(std::process::Child);

impl Drop for Held {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// ext4 gives the inode number of a file that is gone to the next one.
fn inode_used_again() -> Result<()> {
    let scratch = Scratch::new("inode")?;
    let image = scratch.join("image");
    let line = format!(
        "set -e; modprobe -a loop ext4; truncate -s 64M {0}; mkfs.ext4 -q {0}; losetup --find \
         --show {0}",
        image.display()
    );
    let device = command::run("sh", &["-c", &line])?.trim().to_owned();
    let disk = Mount::new("ext4", &device, scratch.join("disk"), "")?;
    let actor = disk.path().join("actor");
    let rm = command::run("sh", &["-c", "readlink -f \"$(command -v rm)\""])?.trim().to_owned();
    fs::copy(&rm, &actor).context("copy rm")?;
    let ino = fs::metadata(&actor)?.ino();
    let ground =
        Guarded::new("inode", &format!("actors = [{{ executable = \"{}\" }}]", actor.display()))?;
    let agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let runs = |program: &Path, file: &str| -> Result<bool> {
        let target = pool.path().join(file);
        Ok(Command::new(program).arg("-f").arg(target).stderr(Stdio::null()).status()?.success())
    };
    ensure!(runs(&actor, "file0")?, "the actor was denied");
    agent.stop()?;
    ensure!(runs(&actor, "file1")?, "the actor was denied without an agent");
    fs::remove_file(&actor)?;
    command::run("sync", &["-f", &disk.path().to_string_lossy()])?;
    let stranger =
        (0..100).map(|number| disk.path().join(format!("stranger{number}"))).find(|path| {
            fs::copy(&rm, path).is_ok()
                && fs::metadata(path).is_ok_and(|metadata| metadata.ino() == ino)
        });
    let stranger = stranger.context("ext4 has not given the inode number out again")?;
    ensure!(!runs(&stranger, "file2")?, "a stranger with the actor's inode number deleted");
    // In its own place again, the file that policy means is an actor as soon as an agent has
    // looked.
    fs::copy(&rm, &actor).context("copy rm")?;
    ensure!(
        !runs(&actor, "file2")?,
        "another file at the actor's place deleted before it was looked at"
    );
    let _agent = ground.installation.start()?;
    ensure!(runs(&actor, "file2")?, "the actor was denied");
    drop(disk);
    command::run("losetup", &["--detach", &device]).map(drop)
}
