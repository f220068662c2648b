//! Builds the kernel program, then the binaries that embed it; for the tests also a second agent
//! with another build label, the "upgrade", and a third one with another layout of the maps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::setup::toolchain::{self, Toolchain};
use crate::setup::{self, Use};
use crate::{progress, workspace};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Optimised, as it is shipped
    #[arg(long)]
    release: bool,
}

/// Read by `guard-agent/build.rs`.
const OBJECT_VARIABLE: &str = "GUARD_EBPF_OBJECT";
/// Baked into the kernel program and the agent.
const LABEL_VARIABLE: &str = "GUARD_BUILD_LABEL";
/// An agent that only tests run.
#[derive(Clone, Copy, Debug)]
struct Variant {
    label: &'static str,
    /// A feature of the agent and the kernel program.
    feature: Option<&'static str>,
    what: &'static str,
}

const UPGRADE: Variant =
    Variant { label: "upgrade", feature: None, what: "build the upgraded agent" };
const OTHER_LAYOUT: Variant = Variant {
    label: "layout",
    feature: Some("other-layout"),
    what: "build the agent with another map layout",
};
/// The kernel program's part of the target directory.
const KERNEL_PROGRAM: &str = "bpf";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    fn directory(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// Binaries that the tests run.
#[derive(Debug)]
pub(crate) struct TestBinaries {
    pub agent: PathBuf,
    pub control: PathBuf,
    /// The same agent with another build label.
    pub upgraded_agent: PathBuf,
    /// The same agent with another layout of the maps.
    pub layout_agent: PathBuf,
    pub tests: PathBuf,
    /// The yardsticks of the benchmarks.
    pub empty_object: PathBuf,
    pub monitor_object: PathBuf,
}

/// The command `cargo xtask build`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let profile = if arguments.release { Profile::Release } else { Profile::Dev };
    let target = workspace::target();
    build(profile, &target, None, &["guard-agent"], Report::Stream)?;
    for name in ["guard-agent", "guardctl"] {
        println!("{}", target.join(profile.directory()).join(name).display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds all that runs in the VM: the agent as shipped, its upgrades, and the tests.
pub(crate) fn for_tests() -> Result<TestBinaries> {
    let binaries = for_benchmarks()?;
    for variant in [UPGRADE, OTHER_LAYOUT] {
        build_variant(Profile::Release, &workspace::target(), variant)?;
    }
    Ok(binaries)
}

/// The same without the upgrades, which no benchmark starts: they may not be there.
pub(crate) fn for_benchmarks() -> Result<TestBinaries> {
    let profile = Profile::Release;
    let target = workspace::target();
    agent_and_tests(profile, &target)?;
    let binary = |target: &Path, name: &str| target.join(profile.directory()).join(name);
    let variant = |variant: Variant| binary(&target.join(variant.label), "guard-agent");
    let object = Toolchain::object(&target.join(KERNEL_PROGRAM), profile.directory());
    Ok(TestBinaries {
        agent: binary(&target, "guard-agent"),
        control: binary(&target, "guardctl"),
        upgraded_agent: variant(UPGRADE),
        layout_agent: variant(OTHER_LAYOUT),
        tests: binary(&target, "guard-tests"),
        empty_object: object.with_file_name("guard-ebpf-empty"),
        monitor_object: object.with_file_name("guard-ebpf-monitor"),
    })
}

/// Builds the packages' binaries into `target`: no path of this machine is in it, so that two
/// builds in two folders are the same. Returns the directory of the binaries.
pub(crate) fn for_packages(target: &Path) -> Result<PathBuf> {
    setup::ensure(&[Use::Bpf], &[])?;
    let flags = without_paths(target)?;
    // One after the other: the features that the second wants of a library are none of the agent's.
    for (what, package) in [
        ("build the agent for the packages", "guard-agent"),
        ("build what makes the man pages", "guard-manual"),
    ] {
        build_with(Profile::Release, target, None, &[package], Report::Summary(what), &flags)?;
    }
    Ok(target.join(Profile::Release.directory()))
}

/// Builds the .rpm maker, as `cargo test` does: optimising it takes minutes, and it runs for
/// seconds.
pub(crate) fn rpm_maker() -> Result<PathBuf> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--locked", "--package", "guard-rpm"]);
    progress::run("build what makes the .rpm", &mut cargo)?;
    Ok(workspace::target().join(Profile::Dev.directory()).join("guard-rpm"))
}

/// Flags of rustc that give each folder of this machine that a path may begin with a neutral name.
fn without_paths(target: &Path) -> Result<Vec<String>> {
    Ok(neutral_paths(target)?
        .iter()
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
        .collect())
}

/// Paths of sources and their output, each with its replacement. Of two that match the later one
/// counts.
fn neutral_paths(target: &Path) -> Result<Vec<(PathBuf, &'static str)>> {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
        .context("where cargo keeps its sources is not known: set CARGO_HOME")?;
    Ok(vec![
        (cargo_home, "/usr/src/cargo"),
        (workspace::root().to_owned(), "/usr/src/guard-agent"),
        (target.to_owned(), "/usr/src/guard-agent/target"),
    ])
}

/// Builds an agent beside the shipped one, in a target directory of its own.
fn build_variant(profile: Profile, target: &Path, variant: Variant) -> Result<()> {
    let own = target.join(variant.label);
    for part in [profile.directory(), KERNEL_PROGRAM] {
        seed(&target.join(part), &own.join(part))?;
    }
    build(profile, &own, Some(variant), &["guard-agent"], Report::Summary(variant.what))
}

/// Builds the programs for this machine itself; returns the directory of the binaries.
pub(crate) fn for_this_machine() -> Result<PathBuf> {
    let target = workspace::target();
    agent_and_tests(Profile::Release, &target)?;
    Ok(target.join(Profile::Release.directory()))
}

fn agent_and_tests(profile: Profile, target: &Path) -> Result<()> {
    let report = Report::Summary("build the agent and the tests");
    build(profile, target, None, &["guard-agent", "guard-tests"], report)
}

#[derive(Clone, Copy)]
enum Report {
    /// Cargo's own output, as it comes.
    Stream,
    /// One line, and cargo's output if it fails.
    Summary(&'static str),
}

impl Report {
    fn run(self, command: &mut Command) -> Result<()> {
        match self {
            Self::Summary(what) => progress::run(what, command),
            Self::Stream => {
                let status = command.status().with_context(|| format!("start {command:?}"))?;
                if status.success() { Ok(()) } else { bail!("{command:?} failed ({status})") }
            }
        }
    }
}

fn build(
    profile: Profile,
    target: &Path,
    variant: Option<Variant>,
    packages: &[&str],
    report: Report,
) -> Result<()> {
    setup::ensure(&[Use::Bpf], &[])?;
    build_with(profile, target, variant, packages, report, &[])
}

/// As [`build`], with further `flags` for rustc.
fn build_with(
    profile: Profile,
    target: &Path,
    variant: Option<Variant>,
    packages: &[&str],
    report: Report,
    flags: &[String],
) -> Result<()> {
    let object = kernel_program(profile, target, variant, report, flags)?;
    let mut cargo = workspace::cargo();
    cargo.arg("build").arg("--target-dir").arg(target).env(OBJECT_VARIABLE, object);
    if !flags.is_empty() {
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        let maps = neutral_paths(target)?;
        let maps =
            maps.iter().map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display()));
        cargo.env("CFLAGS", maps.collect::<Vec<_>>().join(" "));
    }
    for package in packages {
        cargo.args(["--package", package]);
    }
    finish(&mut cargo, profile, variant);
    report.run(&mut cargo)
}

/// Builds the kernel program and returns its object.
fn kernel_program(
    profile: Profile,
    target: &Path,
    variant: Option<Variant>,
    report: Report,
    flags: &[String],
) -> Result<PathBuf> {
    // BTF is made from debug information; v3 has the 32-bit jumps that every supported kernel
    // knows.
    const FLAGS: [&str; 6] = ["-C", "link-arg=--btf", "-C", "debuginfo=2", "-C", "target-cpu=v3"];
    let toolchain = toolchain::detect()?;
    let target = target.join(KERNEL_PROGRAM);
    let mut cargo = toolchain.cargo()?;
    cargo
        .args(["build", "--package", "guard-ebpf"])
        .args(toolchain.build_arguments())
        .arg("--target-dir")
        .arg(&target)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            FLAGS
                .iter()
                .copied()
                .chain(flags.iter().map(String::as_str))
                .collect::<Vec<_>>()
                .join("\x1f"),
        )
        // The workspace's release profile is for host binaries: small and stripped. bpf-linker does
        // its own link-time optimisation, and stripping would take the BTF away.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        // The verifier takes no unoptimised code with its calls and panics.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_DEV_OVERFLOW_CHECKS", "false")
        .env("CARGO_PROFILE_DEV_DEBUG_ASSERTIONS", "false");
    finish(&mut cargo, profile, variant);
    match report {
        Report::Stream => report.run(&mut cargo)?,
        Report::Summary(_) => Report::Summary("build the kernel program").run(&mut cargo)?,
    }
    toolchain.stripped(Toolchain::object(&target, profile.directory()))
}

fn finish(cargo: &mut Command, profile: Profile, variant: Option<Variant>) {
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    match variant {
        Some(variant) => cargo.env(LABEL_VARIABLE, variant.label),
        None => cargo.env_remove(LABEL_VARIABLE),
    };
    if let Some(feature) = variant.and_then(|variant| variant.feature) {
        cargo.args(["--features", feature]);
    }
}

/// Starts a second target directory from the output of the first one: the dependencies are the
/// same, so that only code that contains the label is built twice.
fn seed(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    let partial = to.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
    }
    let parent = to.parent().context("a target directory has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    // A copy, not links: cargo and rustc may write into the files.
    progress::capture(Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(&partial))?;
    fs::rename(&partial, to).with_context(|| format!("rename {} into place", partial.display()))
}
