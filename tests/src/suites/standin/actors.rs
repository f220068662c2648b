//! Processes that may delete in a guarded pool: actors by cgroup, by executable, by both.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::harness::attempt::{copy_rm, in_cgroup, rm_is_denied, rm_passes};
use crate::harness::command;
use crate::harness::guarded::Guarded;
use crate::harness::registry::Test;
use crate::harness::scratch::Scratch;

pub(super) const TESTS: &[Test] = &[Test::new("actors_delete_and_nobody_else_does", actors)];

/// The cgroup is made by the test and goes with it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Result<Self> {
        let path = Path::new("/sys/fs/cgroup").join(name);
        std::fs::create_dir_all(path.join("child"))?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(self.0.join("child"));
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn actors() -> Result<()> {
    let scratch = Scratch::new("actors")?;
    let (alone, combined, copy) =
        (scratch.join("alone"), scratch.join("combined"), scratch.join("copy"));
    for program in [&alone, &combined, &copy] {
        copy_rm(program)?;
    }
    let (named, both, other) = (
        Cgroup::new("standin-named")?,
        Cgroup::new("standin-both")?,
        Cgroup::new("standin-other")?,
    );
    let settings = format!(
        "actors = [\n{{ cgroup = \"/standin-named\" }},\n{{ executable = \"{}\" }},\n\
         {{ cgroup = \"/standin-both\", executable = \"{}\" }},\n]",
        alone.display(),
        combined.display()
    );
    let ground = Guarded::new("actors", &settings)?;
    let _agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let at = |name: &str| pool.path().join(name);
    let rm = PathBuf::from(command::run("sh", &["-c", "command -v rm"])?.trim());

    let before = ground.counter("allowed_actor")?;
    // By cgroup, also below the named one, for any program.
    ensure!(in_cgroup(&named.0, &rm, &at("file0"))?, "the actor's cgroup was denied");
    ensure!(
        in_cgroup(&named.0.join("child"), &rm, &at("file1"))?,
        "a child of the cgroup was denied"
    );
    ensure!(!in_cgroup(&other.0, &rm, &at("file2"))?, "another cgroup passed");
    // By executable, in any cgroup; its copy is another executable.
    command::run(&alone.to_string_lossy(), &["-f", &at("file3").to_string_lossy()])?;
    ensure!(in_cgroup(&other.0, &alone, &at("file4"))?, "the actor's executable was denied");
    command::run_failing(&copy.to_string_lossy(), &["-f", &at("file2").to_string_lossy()])?;
    // Both together: each half alone is nobody.
    ensure!(
        in_cgroup(&both.0, &combined, &at("file5"))?,
        "cgroup and executable together were denied"
    );
    ensure!(!in_cgroup(&both.0, &rm, &at("file6"))?, "the cgroup alone passed");
    ensure!(!in_cgroup(&other.0, &combined, &at("file6"))?, "the executable alone passed");
    rm_is_denied(&at("file6"))?;

    for (number, gone) in
        [(0, true), (1, true), (2, false), (3, true), (4, true), (5, true), (6, false)]
    {
        let file = at(&format!("file{number}"));
        ensure!(file.exists() != gone, "{} gone: {}", file.display(), !gone);
    }
    let counted = ground.counter("allowed_actor")? - before;
    ensure!(counted == 5, "5 deletions by actors, {counted} counted");
    // An actor of this root is nobody's elsewhere, and needs nothing outside.
    let outside = scratch.join("outside");
    std::fs::write(&outside, "")?;
    rm_passes(&outside)
}
