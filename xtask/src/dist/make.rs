//! Makes the two packages. Their content stands in guard-agent/Cargo.toml (`package.metadata.deb`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::{EPOCH, changelog, copyright};
use crate::setup::cargo_tool::CARGO_DEB;
use crate::{build, progress, workspace};

/// The workspace's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Counts packages of one version.
const REVISION: &str = "1";

/// Paths of the packages.
#[derive(Debug)]
pub(crate) struct Packages {
    pub deb: PathBuf,
    pub rpm: PathBuf,
}

/// Makes both in `directory`.
pub(super) fn both(directory: &Path, date: u64) -> Result<Packages> {
    let target = workspace::target().join("package");
    let binaries = build::for_packages(&target)?;
    let generated = workspace::fresh_directory(binaries.join("dist"))?;
    let about = about()?;
    let maintainer = about.metadata.deb.maintainer;
    let crates = copyright::linked()?;
    let items = changes()?;
    manual(&binaries, &generated, date)?;
    for section in ["man5", "man8"] {
        let pages = fs::read_dir(generated.join(section)).context("list the man pages")?;
        let pages: Vec<PathBuf> = pages.flatten().map(|page| page.path()).collect();
        progress::capture(Command::new("gzip").args(["-9", "--no-name"]).args(pages))?;
    }
    let full = format!("{VERSION}-{REVISION}");
    let entry = changelog::debian(&items, &full, &maintainer, &mail_date(date)?);
    let file = generated.join("changelog.Debian");
    write(&file, &entry)?;
    // cargo-deb compresses the changelog of the project, not this one.
    progress::capture(Command::new("gzip").args(["-9", "--no-name"]).arg(&file))?;
    write(&generated.join("copyright"), &copyright::render(&crates, &license_texts()?)?)?;
    let deb = directory.join(format!("guard-agent_{full}_amd64.deb"));
    debian(&target, &full, &deb, date)?;
    let rpm = directory.join(format!("guard-agent-{full}.x86_64.rpm"));
    let order = Rpm {
        binaries: &binaries,
        summary: &about.description,
        maintainer: &maintainer,
        version: VERSION,
        items: &items,
    };
    order.make(&copyright::spdx(&crates), &deb, &rpm, date)?;
    Ok(Packages { deb, rpm })
}

/// Makes a later version of `deb` that has another agent, for trying an upgrade: the same package
/// but for that.
pub(crate) fn with_another_agent(
    deb: &Path,
    agent: &Path,
    version: &str,
    output: &Path,
) -> Result<()> {
    let place = workspace::fresh_directory(output.with_extension("tree"))?;
    let script = "dpkg-deb --raw-extract \"$1\" \"$5\"; install -m 755 \"$2\" \"$5/usr/sbin/guard-agent\"
                  sed -i \"s/^Version: .*/Version: $3/\" \"$5/DEBIAN/control\"
                  (cd \"$5\" && find . -path ./DEBIAN -prune -o -type f -printf '%P\\0' | sort -z | xargs -0 md5sum) \
                  >\"$5.sums\"; mv \"$5.sums\" \"$5/DEBIAN/md5sums\"
                  dpkg-deb --root-owner-group --build \"$5\" \"$4\"; rm -r \"$5\"";
    let mut command = Command::new("bash");
    command
        .args(["-ec", script, "repack"])
        .arg(deb)
        .arg(agent)
        .arg(version)
        .arg(output)
        .arg(&place);
    progress::capture(&mut command).map(drop)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn read(below_root: &str) -> Result<String> {
    let path = workspace::root().join(below_root);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

fn changes() -> Result<Vec<String>> {
    Ok(changelog::newest(&read("CHANGELOG.md")?))
}

fn license_texts() -> Result<BTreeMap<String, String>> {
    let mut texts = BTreeMap::from([("MIT".to_owned(), read("LICENSE-MIT")?)]);
    let directory = workspace::root().join("packaging/licenses");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        texts.insert(name.clone(), read(&format!("packaging/licenses/{name}"))?);
    }
    Ok(texts)
}

/// Description of the package in guard-agent/Cargo.toml.
#[derive(Deserialize)]
struct About {
    description: String,
    metadata: AboutPackages,
}

#[derive(Deserialize)]
struct AboutPackages {
    deb: AboutDebian,
}

#[derive(Deserialize)]
struct AboutDebian {
    maintainer: String,
}

fn about() -> Result<About> {
    let mut cargo = workspace::cargo();
    cargo.args(["metadata", "--locked", "--no-deps", "--format-version", "1"]);
    let mut found: serde_json::Value = serde_json::from_str(&progress::capture(&mut cargo)?)
        .context("understand `cargo metadata`")?;
    let packages = found["packages"].as_array_mut().context("`cargo metadata` lists packages")?;
    let agent = packages.iter_mut().find(|package| package["name"] == "guard-agent");
    let agent = agent.context("the workspace has no package guard-agent")?;
    serde_json::from_value(agent.take()).context("understand guard-agent/Cargo.toml")
}

/// As mail headers and Debian's changelogs write a time.
fn mail_date(date: u64) -> Result<String> {
    let mut command = Command::new("date");
    command.args(["--utc", "--rfc-email", &format!("--date=@{date}")]).env("LC_ALL", "C");
    Ok(progress::capture(&mut command)?.trim().to_owned())
}

fn manual(binaries: &Path, generated: &Path, date: u64) -> Result<()> {
    let mut command = Command::new(binaries.join("guard-manual"));
    command.arg(workspace::root().join("docs/POLICY.md")).arg(generated);
    progress::capture(command.env(EPOCH, date.to_string()))
        .context("make man pages and completions")?;
    Ok(())
}

fn debian(target: &Path, version: &str, output: &Path, date: u64) -> Result<()> {
    let mut tool = Command::new(CARGO_DEB.path()?);
    tool.args([
        "--package",
        "guard-agent",
        "--no-build",
        "--no-strip",
        "--locked",
        "--deb-version",
        version,
    ])
    .arg("--output")
    .arg(output)
    .env("CARGO_TARGET_DIR", target)
    .env(EPOCH, date.to_string());
    progress::run("make the .deb", &mut workspace::without_package_variables(tool))
}

/// Inputs of an .rpm beside the files of the .deb.
struct Rpm<'a> {
    binaries: &'a Path,
    summary: &'a str,
    maintainer: &'a str,
    version: &'a str,
    items: &'a [String],
}

impl Rpm<'_> {
    fn make(&self, license: &str, deb: &Path, output: &Path, date: u64) -> Result<()> {
        let place = workspace::fresh_directory(self.binaries.join("rpm"))?;
        let tree = place.join("tree");
        progress::capture(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(&tree))?;
        let changes = place.join("changes");
        let lines: Vec<String> = self.items.iter().map(|item| format!("- {item}")).collect();
        write(&changes, &lines.join("\n"))?;
        let mut command = Command::new(build::rpm_maker()?);
        command.arg("--tree").arg(&tree).arg("--changes").arg(&changes);
        command.arg("--description").arg(workspace::root().join("packaging/description"));
        for name in ["LICENSE", "LICENSE-APACHE", "LICENSE-GPL-2.0", "LICENSE-MIT"] {
            command.arg("--license-file").arg(workspace::root().join(name));
        }
        command.args(["--license", license, "--version", self.version, "--release", REVISION]);
        command.args(["--summary", self.summary, "--packager", self.maintainer]);
        command.args(["--date", &date.to_string()]).arg(output);
        progress::run("make the .rpm", &mut command)
    }
}
