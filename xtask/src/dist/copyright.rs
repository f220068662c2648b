//! Debian's machine-readable copyright file: our own licences, and those of all that is linked into
//! the binaries. [`render`] and its callees are pure; [`linked`] asks cargo.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{progress, workspace};

/// A crate that is compiled into a binary of the packages.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Crate {
    pub name: String,
    pub version: String,
    /// As its Cargo.toml says.
    pub license: String,
    /// The lines of its licence files that name who holds the copyright.
    pub holders: Vec<String>,
}

/// Licences whose text every Debian system has.
const COMMON: [(&str, &str); 2] = [("Apache-2.0", "Apache-2.0"), ("GPL-2", "GPL-2")];
/// The parts that `cargo tree` does not list: the standard library, and the C code in a crate.
const BESIDE_CRATES: &str = "\
                             Files: rust-std/*
Copyright: The Rust Project contributors
License: MIT

Files: libsqlite3-sys/sqlite3/*
Copyright: None; its authors have dedicated SQLite to the public domain
License: public-domain

";
const OWN: &str = "\
                   Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: guard-agent
Comment: Each stanza below the first two is of code that is linked into the binaries. Of licences that are
 offered side by side, MIT is taken.

Files: *
Copyright: guard-agent developers
License: MIT or Apache-2.0

Files: guard-ebpf/*
Copyright: guard-agent developers
License: GPL-2
Comment: The program that runs in the kernel. The binary guard-agent holds it compiled.

";

/// The file's text. `texts` holds the licences that Debian has no common copy of, by name.
pub(super) fn render(crates: &BTreeSet<Crate>, texts: &BTreeMap<String, String>) -> Result<String> {
    let mut out = String::from(OWN);
    let mut used: BTreeSet<String> =
        ["MIT", "Apache-2.0", "GPL-2", "public-domain"].map(str::to_owned).into();
    for one in crates {
        let chosen = choose(&one.license);
        let names = chosen.join(" and ");
        let holders = match one.holders.as_slice() {
            [] => format!("The developers of {}", one.name),
            some => some.join("\n           "),
        };
        out.push_str(&format!(
            "Files: {}-{}/*\nCopyright: {holders}\nLicense: {names}\n\n",
            one.name, one.version
        ));
        used.extend(chosen);
    }
    out.push_str(BESIDE_CRATES);
    for name in used {
        out.push_str(&paragraph(&name, texts)?);
    }
    Ok(out)
}

/// All licences that apply, one of those that are offered side by side.
fn choose(expression: &str) -> Vec<String> {
    let parts = expression.split(" AND ").map(|part| part.trim_matches(['(', ')', ' ']));
    let one_of = |part: &str| {
        let mut offered = part.split(" OR ").flat_map(|name| name.split('/')).map(str::trim);
        let mit = offered.clone().find(|name| *name == "MIT");
        mit.or_else(|| offered.next()).unwrap_or(part).to_owned()
    };
    parts.map(one_of).collect()
}

/// A licence's stanza of its own.
fn paragraph(name: &str, texts: &BTreeMap<String, String>) -> Result<String> {
    let body = if let Some((_, file)) = COMMON.iter().find(|(common, _)| *common == name) {
        format!("On Debian systems the whole text is in /usr/share/common-licenses/{file}.")
    } else if name == "public-domain" {
        "Anyone may use it for any purpose.".to_owned()
    } else {
        let text = texts.get(name);
        text.with_context(|| {
            format!("no text of the licence {name}: add packaging/licenses/{name}")
        })?
        .clone()
    };
    let mut out = format!("License: {name}\n");
    for line in body.trim().lines() {
        let line = if line.trim().is_empty() { "." } else { line.trim_end() };
        out.push_str(&format!(" {line}\n"));
    }
    out.push('\n');
    Ok(out)
}

/// Every licence once, as an SPDX expression: the licence field of an .rpm.
pub(super) fn spdx(crates: &BTreeSet<Crate>) -> String {
    let mut names: BTreeSet<String> = crates.iter().flat_map(|one| choose(&one.license)).collect();
    names.insert("MIT".to_owned());
    names.insert("GPL-2.0-only".to_owned());
    names.into_iter().collect::<Vec<_>>().join(" AND ")
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: PathBuf,
}

/// The crates of others that are linked into the agent, guardctl and the kernel program.
pub(super) fn linked() -> Result<BTreeSet<Crate>> {
    let mut names = BTreeSet::new();
    for package in ["guard-agent", "guard-ebpf"] {
        let mut cargo = workspace::cargo();
        cargo.args(["tree", "--locked", "--package", package, "--edges", "normal,no-proc-macro"]);
        cargo.args(["--prefix", "none", "--no-dedupe", "--format", "{p}"]);
        for line in progress::capture(&mut cargo)?.lines() {
            let mut words = line.split_whitespace();
            if let (Some(name), Some(version)) = (words.next(), words.next()) {
                names.insert((name.to_owned(), version.trim_start_matches('v').to_owned()));
            }
        }
    }
    let mut cargo = workspace::cargo();
    cargo.args(["metadata", "--locked", "--format-version", "1"]);
    let metadata: Metadata = serde_json::from_str(&progress::capture(&mut cargo)?)
        .context("understand `cargo metadata`")?;
    let ours = |package: &Package| package.manifest_path.starts_with(workspace::root());
    let found = metadata.packages.into_iter().filter(|package| {
        !ours(package) && names.contains(&(package.name.clone(), package.version.clone()))
    });
    found.map(described).collect()
}

fn described(package: Package) -> Result<Crate> {
    let Some(license) = package.license else {
        bail!("{} {} names no licence", package.name, package.version)
    };
    let directory = package.manifest_path.parent().context("a manifest is in a directory")?;
    let holders = holders(directory)?;
    Ok(Crate { name: package.name, version: package.version, license, holders })
}

/// The lines `Copyright …` of a crate's licence files, each once.
fn holders(directory: &Path) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().map(|name| name.to_string_lossy().to_uppercase());
        if name.is_some_and(|name| name.starts_with("LICENSE") || name.starts_with("COPYRIGHT"))
            && path.is_file()
        {
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            found.extend(copyright_lines(&String::from_utf8_lossy(&text)));
        }
    }
    Ok(found.into_iter().collect())
}

/// Lines that say whose it is; not those of a licence's own wording.
fn copyright_lines(text: &str) -> Vec<String> {
    let year = |line: &str| line.chars().any(|c| c.is_ascii_digit());
    text.lines()
        .map(str::trim)
        .filter(|line| line.starts_with("Copyright") && year(line) && !line.contains('['))
        .map(|line| line.trim_start_matches("Copyright").trim().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_licences_side_by_side_mit_is_taken_and_all_that_apply_are_kept() {
        assert_eq!(choose("MIT OR Apache-2.0"), ["MIT"]);
        assert_eq!(choose("Unlicense/MIT"), ["MIT"]);
        assert_eq!(choose("(MIT OR Apache-2.0) AND Unicode-3.0"), ["MIT", "Unicode-3.0"]);
        assert_eq!(choose("(Apache-2.0 OR MIT) AND BSD-3-Clause"), ["MIT", "BSD-3-Clause"]);
        assert_eq!(choose("Zlib"), ["Zlib"]);
    }

    #[test]
    fn a_licence_that_has_a_text_is_known_to_whoever_checks() {
        let root = workspace::root();
        for file in fs::read_dir(root.join("packaging/licenses")).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            for checker in ["packaging/rpm/rpmlint.toml", "deny.toml"] {
                let text = fs::read_to_string(root.join(checker)).unwrap();
                assert!(text.contains(&format!("\"{name}\"")), "{checker} does not name {name}");
            }
        }
    }

    #[test]
    fn a_licence_without_a_text_is_an_error_that_says_where_to_put_it() {
        let one = Crate {
            name: "a".into(),
            version: "1.0.0".into(),
            license: "Zlib".into(),
            holders: vec!["2020 A".into(), "2021 B".into()],
        };
        let crates = BTreeSet::from([one]);
        let mut texts = BTreeMap::from([("MIT".to_owned(), "Be free.\n\nReally.".to_owned())]);
        let error = render(&crates, &texts).unwrap_err().to_string();
        assert!(error.contains("packaging/licenses/Zlib"), "{error}");
        texts.insert("Zlib".to_owned(), "As is.".to_owned());
        let text = render(&crates, &texts).unwrap();
        let stanza = "Files: a-1.0.0/*\nCopyright: 2020 A\n           2021 B\nLicense: Zlib\n";
        assert!(text.contains(stanza), "{text}");
        assert!(text.contains("License: MIT\n Be free.\n .\n Really.\n\n"), "{text}");
    }

    #[test]
    fn a_licences_own_wording_names_no_holder() {
        let text = "Copyright (c) 2014 Ann\n  Copyright notice\nCopyright [yyyy] [name]\ncopyright \
                    2";
        assert_eq!(copyright_lines(text), ["(c) 2014 Ann"]);
    }
}
