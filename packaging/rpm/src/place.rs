//! Path and kind in the .rpm of a file of the .deb. Pure.

/// Directories that no other package owns.
pub(crate) const OWN_DIRECTORIES: [&str; 3] =
    ["/etc/guard-agent", "/usr/share/doc/guard-agent", LICENSE_DIRECTORY];
const LICENSE_DIRECTORY: &str = "/usr/share/licenses/guard-agent";

/// Kind of a file to rpm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Program,
    Data,
    Configuration,
    Document,
    License,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub path: String,
    pub kind: Kind,
}

/// The place of a file whose path in the .deb is `/` and `below`; `None` if it is Debian's alone.
pub(crate) fn of(below: &str) -> Option<Place> {
    let place = |path: String, kind| Some(Place { path, kind });
    let same = || format!("/{below}");
    let for_debian = below.starts_with("usr/share/lintian/");
    if for_debian || below == "usr/share/doc/guard-agent/changelog.Debian.gz" {
        return None;
    }
    // It names the authors and licences of the linked code.
    if below == "usr/share/doc/guard-agent/copyright" {
        return Some(of_license("copyright"));
    }
    if let Some(name) = below.strip_prefix("usr/share/zsh/vendor-completions/") {
        return place(format!("/usr/share/zsh/site-functions/{name}"), Kind::Data);
    }
    match below {
        _ if below.starts_with("etc/") => place(same(), Kind::Configuration),
        _ if below.starts_with("usr/share/doc/") => place(same(), Kind::Document),
        _ if below.starts_with("usr/share/man/") => place(same(), Kind::Document),
        _ if below.starts_with("usr/bin/") => place(same(), Kind::Program),
        _ if below.starts_with("usr/sbin/") => place(same(), Kind::Program),
        _ => place(same(), Kind::Data),
    }
}

/// The place of a licence's text.
pub(crate) fn of_license(name: &str) -> Place {
    Place { path: format!("{LICENSE_DIRECTORY}/{name}"), kind: Kind::License }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_has_the_place_that_rpm_distributions_give_it() {
        let cases = [
            ("usr/sbin/guard-agent", "/usr/sbin/guard-agent", Kind::Program),
            ("etc/guard-agent/policy.toml", "/etc/guard-agent/policy.toml", Kind::Configuration),
            (
                "usr/share/zsh/vendor-completions/_guardctl",
                "/usr/share/zsh/site-functions/_guardctl",
                Kind::Data,
            ),
            (
                "usr/share/doc/guard-agent/copyright",
                "/usr/share/licenses/guard-agent/copyright",
                Kind::License,
            ),
            (
                "usr/lib/systemd/system/guard-agent.service",
                "/usr/lib/systemd/system/guard-agent.service",
                Kind::Data,
            ),
        ];
        for (below, path, kind) in cases {
            assert_eq!(of(below), Some(Place { path: path.into(), kind }), "{below}");
        }
        assert_eq!(of("usr/share/doc/guard-agent/changelog.Debian.gz"), None);
        assert_eq!(of("usr/share/lintian/overrides/guard-agent"), None);
    }
}
