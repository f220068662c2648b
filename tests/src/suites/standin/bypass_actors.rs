//! Ways around by being taken for an actor, or by using one (see `docs/BYPASSES.md`; who is an
//! actor: `actors_standin`).

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::harness::attempt::{denied, has_content, passes, rm_is_denied};
use crate::harness::guarded::Guarded;
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;
use crate::harness::{command, wait};
use crate::peers::disguise::By;
use crate::peers::obedient::Obedient;
use crate::peers::tracer::Traced;
use crate::peers::{disguise, uring};

pub(super) const TESTS: &[Test] = &[
    Test::new("bypass_executable_of_an_actor_replaced_or_copied", executable),
    Test::new("bypass_process_moved_into_an_actors_cgroup", cgroup),
    Test::new("bypass_descriptor_passed_by_an_actor", descriptor),
    Test::new("bypass_actor_under_ptrace", ptrace),
    Test::new("bypass_executable_set_by_prctl", set_by_prctl),
    Test::new("bypass_polled_ring_of_an_actor", polled_ring),
];

/// A root whose actor is a copy of this program.
struct Actor {
    scratch: Scratch,
    ground: Guarded,
}

impl Actor {
    fn new(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        copy_program(&scratch.join("actor"))?;
        copy_program(&scratch.join("other"))?;
        let settings = format!(
            "truncate = \"guard\"\nactors = [{{ executable = \"{}\" }}]",
            scratch.join("actor").display()
        );
        let ground = Guarded::new(name, &settings)?;
        Ok(Self { scratch, ground })
    }

    fn actor(&self) -> Result<Obedient> {
        Obedient::start(&self.scratch.join("actor"))
    }

    fn other(&self) -> Result<Obedient> {
        Obedient::start(&self.scratch.join("other"))
    }
}

fn copy_program(to: &Path) -> Result<()> {
    let own = std::env::current_exe().context("where is this program?")?;
    fs::copy(&own, to).with_context(|| format!("copy {} to {}", own.display(), to.display()))?;
    Ok(())
}

fn executable() -> Result<()> {
    let host = Actor::new("bypass-executable")?;
    let _agent = host.ground.installation.start()?;
    let pool = host.ground.pool("pool")?;
    let at = |name: &str| pool.path().join(name);
    let mut old = host.actor()?;
    passes("unlink by the actor", old.unlink(&at("file0"))?)?;
    denied("unlink by a copy", host.other()?.unlink(&at("file1"))?)?;
    // A copy in memory, as malware runs; its executable has no path.
    let memory = memfd_create::<CStr>(c"actor", MFdFlags::MFD_CLOEXEC).context("memfd_create")?;
    let memory = File::from(memory);
    io::copy(&mut File::open(host.scratch.join("actor"))?, &mut &memory).context("fill it")?;
    let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd()));
    let reading = File::open(&path).context("open it for reading")?;
    drop(memory);
    let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), reading.as_raw_fd()));
    denied("unlink by a copy in memory", Obedient::start(&path)?.unlink(&at("file1"))?)?;
    // Another program under the actor's name, from its place outside: the one that runs there from
    // now on is meant.
    let new = host.scratch.join("new");
    copy_program(&new)?;
    fs::rename(&new, host.scratch.join("actor")).context("replace the actor's executable")?;
    wait::until("the new executable is an actor", Duration::from_secs(60), || {
        Ok(host.actor()?.unlink(&at("file2"))?.is_ok())
    })?;
    denied("unlink by the process of the old one", old.unlink(&at("file1"))?)?;
    passes("unlink by the new one", host.actor()?.unlink(&at("file3"))?)?;
    // The same file by another name is the same executable.
    let link = host.scratch.join("link");
    fs::hard_link(host.scratch.join("actor"), &link).context("link the actor's executable")?;
    passes(
        "unlink by a link to the actor's executable",
        Obedient::start(&link)?.unlink(&at("file4"))?,
    )?;
    passes("unlink outside", host.other()?.unlink(&link)?)?;
    host.ground.guardctl(&["seal", "pool"])?;
    denied("unlink by the actor, sealed", host.actor()?.unlink(&at("file1"))?)?;
    has_content(&at("file1"), "content\n")
}

fn cgroup() -> Result<()> {
    const CGROUP: &str = "/sys/fs/cgroup/standin-bypass";
    fs::create_dir_all(CGROUP).context("make the actor's cgroup")?;
    let scratch = Scratch::new("bypass-cgroup")?;
    let program = scratch.join("program");
    copy_program(&program)?;
    let ground = Guarded::new("bypass-cgroup", "actors = [{ cgroup = \"/standin-bypass\" }]")?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let at = |name: &str| pool.path().join(name);
    let mut process = Obedient::start(&program)?;
    denied("unlink", process.unlink(&at("file0"))?)?;
    // A user who may not move processes is no actor.
    let script = "echo $$ >\"$1/cgroup.procs\"";
    let as_nobody = ["--reuid", "65534", "--clear-groups", "sh", "-c", script, "sh", CGROUP];
    let said = command::run_failing("setpriv", &as_nobody)?;
    ensure!(said.contains("Permission denied"), "a user's move failed otherwise: {said}");
    // Root may move them: a documented limit.
    let move_to =
        |cgroup: &str| fs::write(format!("{cgroup}/cgroup.procs"), process.pid().to_string());
    move_to(CGROUP).context("move it into the actor's cgroup")?;
    let inside = process.unlink(&at("file0"))?;
    ground.guardctl(&["seal", "pool"])?;
    denied("unlink in the actor's cgroup, sealed", process.unlink(&at("file1"))?)?;
    ground.guardctl(&["unseal", "pool"])?;
    let move_to =
        |cgroup: &str| fs::write(format!("{cgroup}/cgroup.procs"), process.pid().to_string());
    move_to("/sys/fs/cgroup").context("move it out again")?;
    passes("unlink in the actor's cgroup", inside)?;
    denied("unlink after it was moved out", process.unlink(&at("file1"))?)?;
    drop(process);
    rm_is_denied(&at("file1"))?;
    fs::remove_dir(CGROUP).context("remove the actor's cgroup")
}

/// The process that uses a descriptor decides, not the one that has opened it.
fn descriptor() -> Result<()> {
    let host = Actor::new("bypass-descriptor")?;
    let _agent = host.ground.installation.start()?;
    let pool = host.ground.pool("pool")?;
    let mut actor = host.actor()?;
    let directory = actor.open(&pool.path().join("volume"))?;
    let unlink =
        |name: &str| unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir).map_err(Into::into);
    denied("unlinkat in the actor's directory", unlink("file0"))?;
    let file = actor.open(&pool.path().join("file1"))?;
    denied("ftruncate of the actor's file", file.set_len(0))?;
    has_content(&pool.path().join("file1"), "content\n")?;
    passes("unlink by the actor", actor.unlink(&pool.path().join("volume/file0"))?)?;
    passes("truncate by the actor", actor.truncate(&pool.path().join("file1"))?)?;
    // A directory that the actor has opened outside is nothing special either.
    fs::write(host.scratch.join("file"), "")?;
    let outside = actor.open(host.scratch.path())?;
    let unlinked = unlinkat(&outside, "file", UnlinkatFlags::NoRemoveDir);
    passes("unlinkat outside", unlinked.map_err(Into::into))
}

/// A documented limit: an actor obeys its controller.
fn ptrace() -> Result<()> {
    let host = Actor::new("bypass-ptrace")?;
    let _agent = host.ground.installation.start()?;
    let pool = host.ground.pool("pool")?;
    let victim = pool.path().join("file0");
    // As long as the victim's name, and there is nothing.
    let harmless = pool.path().join("fileX");
    let redirected = |mut process: Obedient| -> Result<io::Result<()>> {
        let traced = Traced::attach(process.pid())?;
        process.begin("unlink", &harmless)?;
        traced.redirect_unlink(&victim)?;
        drop(traced);
        process.outcome()
    };
    // The tracer keeps its identity, and so does the traced process.
    denied("unlink by another under ptrace", redirected(host.other()?)?)?;
    denied("unlink by the tracer", fs::remove_file(&victim))?;
    host.ground.guardctl(&["seal", "pool"])?;
    denied("unlink by the actor under ptrace, sealed", redirected(host.actor()?)?)?;
    host.ground.guardctl(&["unseal", "pool"])?;
    passes("unlink by the actor under ptrace", redirected(host.actor()?)?)?;
    ensure!(!victim.exists(), "{} is still there", victim.display());
    Ok(())
}

/// A documented limit: by its executable alone everybody is an actor who may take that for his own.
fn set_by_prctl() -> Result<()> {
    const NOBODY: u32 = 65534;
    const CGROUP: &str = "/sys/fs/cgroup/standin-prctl";
    let host = Actor::new("bypass-prctl")?;
    let _agent = host.ground.installation.start()?;
    let pool = host.ground.pool("pool")?;
    let at = |name: &str| pool.path().join(name);
    let (program, actor) = (host.scratch.join("other"), host.scratch.join("actor"));
    // Files whose permissions let a user delete them.
    chown(pool.path().join("volume"), Some(NOBODY), Some(NOBODY))
        .context("give a user a directory")?;
    let as_user = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "unshare",
        "--user",
        "--map-root-user",
    ];
    let by_root =
        |what: &Path, file: &str| disguise::unlink(&[], &program, By::ExeFile, what, &at(file));
    let by_user =
        |what: &Path, file: &str| disguise::unlink(&as_user, &program, By::Map, what, &at(file));
    denied("unlink as it is", host.other()?.unlink(&at("file0"))?)?;
    // In the disguise of a program that is no actor.
    let third = host.scratch.join("third");
    copy_program(&third)?;
    denied("unlink by root in another disguise", by_root(&third, "file0")?)?;
    denied("unlink by a user in another disguise", by_user(&third, "volume/file0")?)?;
    host.ground.guardctl(&["seal", "pool"])?;
    denied("unlink by root as the actor, sealed", by_root(&actor, "file0")?)?;
    denied("unlink by a user as the actor, sealed", by_user(&actor, "volume/file0")?)?;
    host.ground.guardctl(&["unseal", "pool"])?;
    has_content(&at("volume/file0"), "content\n")?;
    passes("unlink by root as the actor", by_root(&actor, "file0")?)?;
    passes("unlink by a user as the actor", by_user(&actor, "volume/file0")?)?;
    // It helps no one where the cgroup has to match too.
    fs::create_dir_all(CGROUP).context("make the actor's cgroup")?;
    let both = format!(
        "actors = [{{ executable = \"{}\", cgroup = \"/standin-prctl\" }}]",
        host.scratch.join("actor").display()
    );
    host.ground.installation.write_policy(&host.ground.policy(&both))?;
    host.ground.guardctl(&["policy", "reload"])?;
    denied("unlink by a user as the actor, outside its cgroup", by_user(&actor, "volume/file1")?)?;
    fs::remove_dir(CGROUP).context("remove the actor's cgroup")
}

/// A documented limit: the thread that polls a ring is its owner's, even if another process fills
/// the ring.
fn polled_ring() -> Result<()> {
    let host = Actor::new("bypass-ring")?;
    let _agent = host.ground.installation.start()?;
    let pool = host.ground.pool("pool")?;
    let at = |name: &str| pool.path().join(name);
    let (mut actor, mut other) = (host.actor()?, host.other()?);
    let in_polled_ring_of = |owner: &mut Obedient, name: &str| -> Result<io::Result<()>> {
        let (ring, name) = owner.ring(true, &at(name))?;
        // SAFETY: the ring is polled.
        Ok(unsafe { uring::unlink_in(ring, true, name) }?.map_err(Into::into))
    };
    denied("unlink in another's polled ring", in_polled_ring_of(&mut other, "file0")?)?;
    // In a ring that is not polled, the submitting process acts, by names of its own.
    let (ring, _) = actor.ring(false, &at("file0"))?;
    let own_name = CString::new(at("file0").as_os_str().as_encoded_bytes())?;
    // SAFETY: the name lives as long as this function.
    let submitted = unsafe { uring::unlink_in(ring, false, own_name.as_ptr()) }?;
    denied("unlink in the actor's ring, by who submits", submitted.map_err(Into::into))?;
    host.ground.guardctl(&["seal", "pool"])?;
    denied("unlink in the actor's polled ring, sealed", in_polled_ring_of(&mut actor, "file0")?)?;
    has_content(&at("file0"), "content\n")?;
    host.ground.guardctl(&["unseal", "pool"])?;
    passes("unlink in the actor's polled ring", in_polled_ring_of(&mut actor, "file0")?)?;
    ensure!(!at("file0").exists(), "file0 is still there");
    Ok(())
}
