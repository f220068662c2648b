//! Versions of Incus, and their known behaviour in a join. Read from its source; docs/RUNBOOK.md
//! has the table. Pure.

use std::fmt;

/// A version as `incus --version` and `/1.0` say it: `6.0.4`, `6.15`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Version {
    /// `None` if it does not begin with two numbers.
    pub fn parse(text: &str) -> Option<Self> {
        let number = text.split_whitespace().next()?;
        let mut parts = number.split('.').map(|part| part.parse::<u32>().ok());
        let (major, minor) = (parts.next()??, parts.next()??);
        Some(Self { major, minor, patch: parts.next().flatten().unwrap_or(0) })
    }

    /// Whether a join is refused (400) while `cluster.https_address`, which a failed join leaves
    /// set, does not cover the new server's address: 6.0.5 and later of 6.0, and from 6.15 on.
    pub fn keeps_to_set_address(self) -> bool {
        match (self.major, self.minor) {
            (6, 0) => self.patch >= 5,
            (6, minor) => minor >= 15,
            (major, _) => major >= 7,
        }
    }

    /// Whether a join copies a covering `core.https_address` to `cluster.https_address`, which
    /// takes no wildcard: to 6.0.4 and 6.13.
    pub fn copies_core_address(self) -> bool {
        match (self.major, self.minor) {
            (6, 0) => self.patch <= 4,
            (6, minor) => minor <= 13,
            _ => false,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch > 0 || self.minor == 0 {
            write!(f, ".{}", self.patch)?;
        }
        Ok(())
    }
}

/// A server's description of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub version: Version,
    pub api_extensions: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_version_does() {
        for (text, shown, keeps, copies) in [
            ("6.0.0", "6.0.0", false, true),
            ("6.0.4\n", "6.0.4", false, true),
            ("6.0.5", "6.0.5", true, false),
            ("6.0.6", "6.0.6", true, false),
            ("6.1", "6.1", false, true),
            ("6.10.1", "6.10.1", false, true),
            ("6.13", "6.13", false, true),
            ("6.14", "6.14", false, false),
            ("6.15", "6.15", true, false),
            ("6.23", "6.23", true, false),
            ("7.0.2", "7.0.2", true, false),
            ("7.3 LTS", "7.3", true, false),
        ] {
            let version = Version::parse(text).unwrap();
            assert_eq!(version.to_string(), shown);
            assert_eq!(
                (version.keeps_to_set_address(), version.copies_core_address()),
                (keeps, copies),
                "{text}"
            );
        }
        for text in ["", "seven", "6", "6.x"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }
}
