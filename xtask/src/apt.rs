//! Debian's archive, found through the machine's own sources: other suites of the same archive are
//! derived from its entries, in a private apt that never touches `/etc/apt`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// One entry of the machine's sources.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// A stanza of a `.sources` file.
    Stanza { text: String, suites: Vec<String> },
    /// A line of a `.list` file: the text before the suite, the suite, the text after it.
    Line { before: String, suite: String, after: String },
}

/// The machine's sources of binary packages.
#[derive(Debug)]
pub(crate) struct Sources {
    entries: Vec<Entry>,
    codename: String,
}

impl Sources {
    /// Reads `/etc/apt`.
    pub(crate) fn of_this_machine() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
        let codename = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("/etc/os-release has no VERSION_CODENAME: is this Debian?")?;
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        if let Ok(directory) = fs::read_dir("/etc/apt/sources.list.d") {
            files.extend(directory.flatten().map(|entry| entry.path()));
        }
        let mut entries = Vec::new();
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else { continue };
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("sources") => entries.extend(stanzas(&text)),
                Some("list") => entries.extend(lines(&text)),
                _ => {}
            }
        }
        Ok(Self { entries, codename: codename.trim_matches('"').to_owned() })
    }

    /// The release's name, such as `bookworm`.
    pub(crate) fn codename(&self) -> &str {
        &self.codename
    }

    /// Whether the machine has an entry of the security archive.
    pub(crate) fn have_security(&self) -> bool {
        self.entries
            .iter()
            .any(|entry| entry.suites().iter().any(|suite| suite.ends_with("-security")))
    }

    /// Writes the sources for `suite` into `directory`. The security suites are in an archive of
    /// their own; all others are beside the machine's own release.
    pub(crate) fn derive(&self, suite: &str, directory: &Path) -> Result<()> {
        let wanted = |name: &str| match suite.ends_with("-security") {
            true => name.ends_with("-security"),
            false => name == self.codename || name == "stable",
        };
        let entry =
            self.entries.iter().find(|entry| entry.suites().iter().any(|name| wanted(name)));
        let Some(entry) = entry else {
            bail!(
                "no entry in /etc/apt/sources.list or /etc/apt/sources.list.d to derive {suite} \
                 from: add your mirror's {} entry, then run this again",
                if suite.ends_with("-security") {
                    format!("{}-security", self.codename)
                } else {
                    self.codename.clone()
                }
            )
        };
        let (extension, text) = entry.with_suite(suite);
        let path = directory.join(format!("{suite}.{extension}"));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Writes all of the machine's sources into `directory`.
    fn copy(&self, directory: &Path) -> Result<()> {
        for (number, entry) in self.entries.iter().enumerate() {
            let (extension, text) = match entry {
                Entry::Stanza { text, .. } => ("sources", text.clone()),
                Entry::Line { before, suite, after } => (
                    "list",
                    format!(
                        "{before} {suite} \
                         {after}\n"
                    ),
                ),
            };
            let path = directory.join(format!("machine-{number}.{extension}"));
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

impl Entry {
    fn suites(&self) -> &[String] {
        match self {
            Self::Stanza { suites, .. } => suites,
            Self::Line { suite, .. } => std::slice::from_ref(suite),
        }
    }

    fn with_suite(&self, suite: &str) -> (&'static str, String) {
        match self {
            Self::Line { before, after, .. } => ("list", format!("{before} {suite} {after}\n")),
            Self::Stanza { text, .. } => {
                let mut out = String::new();
                let mut in_suites = false;
                for line in text.lines() {
                    in_suites =
                        is_field(line, "suites") || (in_suites && line.starts_with([' ', '\t']));
                    if is_field(line, "suites") {
                        out.push_str(&format!("Suites: {suite}\n"));
                    } else if !in_suites {
                        out.push_str(line);
                        out.push('\n');
                    }
                }
                ("sources", out)
            }
        }
    }
}

fn is_field(line: &str, name: &str) -> bool {
    line.split_once(':').is_some_and(|(field, _)| field.trim().eq_ignore_ascii_case(name))
}

/// The enabled binary stanzas of a deb822 file.
fn stanzas(text: &str) -> Vec<Entry> {
    let without_comments: String = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    without_comments.split("\n\n").filter_map(stanza).collect()
}

fn stanza(text: &str) -> Option<Entry> {
    let value = |name: &str| -> Option<String> {
        let mut lines = text.lines().skip_while(|line| !is_field(line, name));
        let mut value = lines.next()?.split_once(':')?.1.to_owned();
        for line in lines.take_while(|line| line.starts_with([' ', '\t'])) {
            value.push_str(line);
        }
        Some(value)
    };
    let enabled = value("enabled").is_none_or(|value| !value.trim().eq_ignore_ascii_case("no"));
    let binary = value("types")?.split_whitespace().any(|kind| kind == "deb");
    let suites = value("suites")?.split_whitespace().map(str::to_owned).collect();
    (enabled && binary)
        .then(|| Entry::Stanza { text: format!("{}\n", text.trim_matches('\n')), suites })
}

/// The binary entries of a one-line-style file: `deb [option=value …] URI suite component…`.
fn lines(text: &str) -> Vec<Entry> {
    text.lines().filter_map(line).collect()
}

fn line(text: &str) -> Option<Entry> {
    let rest = text.trim().strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            bracketed.split_once(']').map(|(inner, rest)| (format!("[{inner}] "), rest))?
        }
        None => (String::new(), rest),
    };
    let mut words = rest.split('#').next()?.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let components: Vec<&str> = words.collect();
    Some(Entry::Line {
        before: format!("deb {options}{uri}"),
        suite: suite.to_owned(),
        after: components.join(" "),
    })
}

/// An apt with its own sources and lists.
#[derive(Debug)]
pub(crate) struct PrivateApt {
    directory: PathBuf,
    installs: bool,
}

impl PrivateApt {
    /// Only downloads: knows nothing of installed packages, needs no root.
    pub(crate) fn downloading(
        directory: &Path,
        sources: &Sources,
        suites: &[String],
    ) -> Result<Self> {
        Self::make(directory, sources, suites, false)
    }

    /// Installs on this machine, from its own sources and from `suites`.
    pub(crate) fn installing(
        directory: &Path,
        sources: &Sources,
        suites: &[String],
    ) -> Result<Self> {
        Self::make(directory, sources, suites, true)
    }

    fn make(
        directory: &Path,
        sources: &Sources,
        suites: &[String],
        installs: bool,
    ) -> Result<Self> {
        let parts = directory.join("parts");
        if parts.exists() {
            fs::remove_dir_all(&parts).with_context(|| format!("remove {}", parts.display()))?;
        }
        for part in ["parts", "lists/partial", "state", "cache/archives/partial"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        if installs {
            sources.copy(&parts)?;
        }
        for suite in suites {
            sources.derive(suite, &parts)?;
        }
        Ok(Self { directory: directory.to_owned(), installs })
    }

    /// `apt-get` or `apt-cache`, bound to the private sources and lists.
    pub(crate) fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        let mut option = |name: &str, value: &Path| {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        };
        option("Dir::Etc::sourcelist", Path::new("/dev/null"));
        option("Dir::Etc::sourceparts", &self.directory.join("parts"));
        option("Dir::State::lists", &self.directory.join("lists"));
        option("Dir::Cache", &self.directory.join("cache"));
        if !self.installs {
            option("Dir::Etc::preferencesparts", Path::new("/dev/null"));
            option("Dir::State", &self.directory.join("state"));
            option("Dir::State::status", Path::new("/dev/null"));
        }
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none", "-q"]);
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stanza_gets_another_suite_and_keeps_the_rest() {
        let text = "Types: deb\n# comment\nURIs: mirror:/d\nSuites: bookworm\n \
                    bookworm-updates\nComponents: main\n\nTypes: deb-src\nURIs: mirror:/d\nSuites: \
                    bookworm\nComponents: main\n\nTypes: deb\nEnabled: no\nURIs: \
                    mirror:/e\nSuites: x\nComponents: main\n";
        let found = stanzas(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].suites(), ["bookworm", "bookworm-updates"]);
        let (extension, derived) = found[0].with_suite("bookworm-backports");
        assert_eq!(extension, "sources");
        assert_eq!(
            derived,
            "Types: deb\nURIs: mirror:/d\nSuites: bookworm-backports\nComponents: \
             main\n"
        );
    }

    #[test]
    fn a_line_gets_another_suite_and_keeps_its_options() {
        let found = lines(
            "# x\ndeb [arch=amd64 signed-by=/k] mirror:/d bookworm main contrib # c\ndeb-src \
             mirror:/d x y\n",
        );
        assert_eq!(found.len(), 1);
        let (extension, derived) = found[0].with_suite("trixie-backports");
        assert_eq!(extension, "list");
        assert_eq!(
            derived,
            "deb [arch=amd64 signed-by=/k] mirror:/d trixie-backports main \
             contrib\n"
        );
    }
}
