//! The software bill of materials, CycloneDX, by cargo-cyclonedx: one of what runs on the host, one
//! of the kernel program inside it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::setup::cargo_tool::CARGO_CYCLONEDX;
use crate::{progress, workspace};

/// The tool writes a file of this name beside the Cargo.toml of each member, and nowhere else.
const WRITTEN: &str = "guard-dist-sbom";
/// Members that the packages hold.
const SHIPPED: [&str; 2] = ["guard-agent", "guard-ebpf"];
const MEMBERS: [&str; 8] = [
    "guard-common",
    "guard-ebpf",
    "guard-agent",
    "packaging/manual",
    "packaging/rpm",
    "xtask",
    "fuzz",
    "tests",
];

/// Writes the files into `directory`.
pub(super) fn write(directory: &Path, version: &str, date: u64) -> Result<()> {
    let mut tool = std::process::Command::new(CARGO_CYCLONEDX.path()?);
    tool.args([
        "cyclonedx",
        "--format",
        "json",
        "--spec-version",
        "1.5",
        "--override-filename",
        WRITTEN,
    ])
    .args(["--target", "x86_64-unknown-linux-gnu", "--manifest-path"])
    .arg(workspace::root().join("Cargo.toml"))
    .env("SOURCE_DATE_EPOCH", date.to_string());
    let made = progress::capture(&mut workspace::without_package_variables(tool));
    let texts = collect();
    made.context("make the bill of materials")?;
    for (name, text) in texts? {
        let path = directory.join(format!("{name}_{version}.cdx.json"));
        fs::write(&path, neutral(&text, workspace::root())?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Takes the tool's output out of the source tree; returns the part that is shipped.
fn collect() -> Result<Vec<(&'static str, String)>> {
    let mut texts = Vec::new();
    for member in MEMBERS {
        let path = workspace::root().join(member).join(format!("{WRITTEN}.json"));
        if !path.exists() {
            continue;
        }
        if SHIPPED.contains(&member) {
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            texts.push((member, text));
        }
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    if texts.len() != SHIPPED.len() {
        bail!("cargo-cyclonedx wrote no bill of materials for one of {SHIPPED:?}");
    }
    Ok(texts)
}

/// The text without the folder in which it was made.
fn neutral(text: &str, root: &Path) -> Result<String> {
    let root = root.to_str().context("the workspace's path is UTF-8")?;
    Ok(text.replace(&format!("file://{root}"), "file:///usr/src/guard-agent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_not_in_it() {
        let text = r#"{"bom-ref": "path+file:///home/a/b/guard-agent#0.1.0"}"#;
        let found = neutral(text, Path::new("/home/a/b")).unwrap();
        assert_eq!(found, r#"{"bom-ref": "path+file:///usr/src/guard-agent/guard-agent#0.1.0"}"#);
    }

    #[test]
    fn each_member_of_the_workspace_is_cleaned_up_after() {
        let manifest = fs::read_to_string(workspace::root().join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let members = manifest["workspace"]["members"].as_array().unwrap();
        let listed: Vec<&str> = members.iter().filter_map(toml::Value::as_str).collect();
        assert_eq!(listed, MEMBERS);
    }
}
