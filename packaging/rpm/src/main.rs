//! Makes the .rpm from the tree of files that the .deb holds, so that both hold the same. Run by
//! `cargo xtask dist`.
//!
//! Time and builder are not taken from the machine: the same tree gives the same bytes.

#![forbid(unsafe_code)]

mod place;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use place::{Kind, Place};
use rpm::{BuildConfig, CompressionType, Dependency, FileOptions, PackageBuilder};

const NAME: &str = "guard-agent";
/// rpm's own finder of the libraries that a binary needs; in its package on every distribution.
const FIND_REQUIRES: &str = "/usr/lib/rpm/find-requires";

#[derive(Parser)]
struct Arguments {
    /// The tree that the .deb holds
    #[arg(long)]
    tree: PathBuf,
    /// Licences of all that is in it, as an SPDX expression
    #[arg(long)]
    license: String,
    /// Licence texts to add
    #[arg(long)]
    license_file: Vec<PathBuf>,
    /// Description of the package, as in the .deb
    #[arg(long)]
    description: PathBuf,
    /// Changes of this version, a line each
    #[arg(long)]
    changes: PathBuf,
    #[arg(long)]
    version: String,
    #[arg(long)]
    release: String,
    #[arg(long)]
    summary: String,
    #[arg(long)]
    packager: String,
    /// Time of the sources, in seconds since 1970
    #[arg(long)]
    date: u32,
    /// The package to write
    output: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guard-rpm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let text =
        |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let mut package = PackageBuilder::new(
        NAME,
        &arguments.version,
        &arguments.license,
        std::env::consts::ARCH,
        &arguments.summary,
    );
    package
        .using_config(
            BuildConfig::v4().source_date(arguments.date).compression(CompressionType::Gzip),
        )
        .release(&arguments.release)
        .description(text(&arguments.description)?.trim_end())
        .packager(&arguments.packager)
        .build_host("localhost")
        .add_changelog_entry(
            format!("{} - {}-{}", arguments.packager, arguments.version, arguments.release),
            text(&arguments.changes)?.trim_end(),
            arguments.date,
        )
        .post_install_script(include_str!("../post.sh"))
        .pre_uninstall_script(include_str!("../preun.sh"))
        .post_uninstall_script(include_str!("../postun.sh"))
        // The scriptlets run its commands.
        .requires(Dependency::any("systemd"))
        .requires(Dependency::any("logrotate"));
    add_files(&mut package, arguments)?;
    let built = package.build().context("put the package together")?;
    built
        .write_file(&arguments.output)
        .with_context(|| format!("write {}", arguments.output.display()))
}

fn add_files(package: &mut PackageBuilder, arguments: &Arguments) -> Result<()> {
    let mut binaries = Vec::new();
    for directory in place::OWN_DIRECTORIES {
        package.with_dir_entry(FileOptions::dir(directory).permissions(0o755))?;
    }
    for source in files(&arguments.tree)? {
        let below = source.strip_prefix(&arguments.tree).context("a file is in its tree")?;
        let below = below.to_str().context("file names are UTF-8")?;
        let Some(place) = place::of(below) else { continue };
        if place.kind == Kind::Program {
            binaries.push(source.clone());
        }
        add(package, &source, &place)?;
    }
    for text in &arguments.license_file {
        let name = text.file_name().and_then(|name| name.to_str()).context("a licence's name")?;
        add(package, text, &place::of_license(name))?;
    }
    for library in libraries(&binaries)? {
        package.requires(Dependency::any(library));
    }
    Ok(())
}

fn add(package: &mut PackageBuilder, source: &Path, place: &Place) -> Result<()> {
    let options = FileOptions::new(&place.path);
    let options = match place.kind {
        Kind::Program => options.permissions(0o755),
        Kind::Data => options.permissions(0o644),
        Kind::Configuration => options.permissions(0o644).config().noreplace(),
        Kind::Document => options.permissions(0o644).doc(),
        Kind::License => options.permissions(0o644).license(),
    };
    package
        .with_file(source, options)
        .with_context(|| format!("add {} as {}", source.display(), place.path))?;
    Ok(())
}

/// Every file below `directory`, sorted: the order is part of the package.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The library capabilities that the binaries need, as rpm's own generator names them.
fn libraries(binaries: &[PathBuf]) -> Result<Vec<String>> {
    ensure!(
        Path::new(FIND_REQUIRES).exists(),
        "{FIND_REQUIRES} is missing: install the package rpm (`cargo xtask setup` does)"
    );
    let mut child = Command::new(FIND_REQUIRES)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {FIND_REQUIRES}"))?;
    let mut input = child.stdin.take().context("its input is a pipe")?;
    for binary in binaries {
        writeln!(input, "{}", binary.display()).with_context(|| format!("ask {FIND_REQUIRES}"))?;
    }
    drop(input);
    let output = child.wait_with_output().with_context(|| format!("wait for {FIND_REQUIRES}"))?;
    let text = String::from_utf8(output.stdout).context("capabilities are UTF-8")?;
    let found: Vec<String> = text.lines().map(str::to_owned).collect();
    if !output.status.success() || !found.iter().any(|name| name.starts_with("libc.so")) {
        bail!("{FIND_REQUIRES} did not name the libraries that {binaries:?} need: {text:?}");
    }
    Ok(found)
}
