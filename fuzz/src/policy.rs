//! A policy file's text.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use guard_agent::model::policy::diff::diff;
use guard_agent::model::policy::{
    DefaultMode, MAX_TTL, OnJoinFailure, Policy, PolicyErrors, Root, duration, parse,
};

const FILE: &str = "policy.toml";
/// Problems of the file as a whole: all others have a place in it.
const WITHOUT_PLACE: [&str; 3] = ["`version` is missing", "no guarded root", "more than 64 "];

pub fn check(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    match parse(&text, Path::new(FILE)) {
        Ok(policy) => is_sound(&policy),
        Err(errors) => say_where_and_what(&text, &errors),
    }
}

fn say_where_and_what(text: &str, errors: &PolicyErrors) {
    assert!(!errors.problems().is_empty());
    let lines: Vec<&str> = text.split('\n').collect();
    let mut message = String::new();
    for problem in errors.problems() {
        assert!(!problem.what.is_empty());
        let place = match (problem.line, problem.column) {
            (Some(line), Some(column)) => {
                let columns = lines[line - 1].chars().count() + 1;
                assert!((1..=columns).contains(&column), "{problem:?} is outside of its line");
                format!(":{line}:{column}")
            }
            place => {
                assert_eq!(place, (None, None));
                let is_whole = WITHOUT_PLACE.iter().any(|what| problem.what.starts_with(what));
                assert!(
                    is_whole || problem.what.ends_with(" further problems are not shown"),
                    "{problem:?}"
                );
                String::new()
            }
        };
        let hint = problem.hint.as_ref().map_or(String::new(), |hint| {
            format!(
                "\n    hint: \
                 {hint}"
            )
        });
        writeln!(message, "{FILE}{place}: {}{hint}", problem.what).expect("a string takes all");
    }
    let placed = errors.problems().iter().filter_map(|problem| problem.line.zip(problem.column));
    assert!(placed.is_sorted(), "{errors}");
    assert_eq!(format!("{errors}\n"), message);
}

fn is_sound(policy: &Policy) {
    assert!(
        !policy.roots().is_empty()
            && policy.roots().len() <= 64
            && policy.filesystems().len() <= 64
    );
    for (index, root) in policy.roots().iter().enumerate() {
        assert!(is_normal(root.path()) && root.path() != Path::new("/"), "{root:?}");
        let others = &policy.roots()[..index];
        assert!(others.iter().all(|other| other.path() != root.path()), "{root:?} is given twice");
        assert_eq!(
            policy.root_of_actor_set(root.actor_set()),
            Some(root),
            "actor sets are told apart"
        );
        assert!(!root.filesystems().is_empty(), "{root:?} guards nothing");
        let is_known = |name: &String| policy.filesystems().iter().any(|kind| kind.name() == name);
        assert!(root.filesystems().iter().all(is_known), "{root:?}");
        for actor in root.actors() {
            assert!(actor.cgroup().is_some() || actor.executable().is_some());
            assert!(
                actor.cgroup().is_none_or(|path| path != "/" && is_normal(Path::new(path))),
                "{actor:?}"
            );
            assert!(actor.executable().is_none_or(is_normal), "{actor:?}");
        }
    }
    let (lease, seconds) = (policy.lease(), Duration::from_secs);
    // The protocol speaks of whole seconds.
    assert!(
        lease.default_ttl() >= seconds(1) && lease.default_ttl() <= lease.max_ttl(),
        "{lease:?}"
    );
    assert!(lease.max_ttl() <= MAX_TTL, "{lease:?}");
    for interval in [policy.canary_interval(), policy.incident_interval()] {
        assert!((seconds(1)..=seconds(3600)).contains(&interval), "{interval:?}");
    }
    assert_eq!(policy.hash().len(), 64);
    comes_back_from_its_text(policy);
}

fn is_normal(path: &Path) -> bool {
    let text = path.to_str().expect("a policy is UTF-8");
    path.is_absolute()
        && !text.contains('\0')
        && !format!("{text}/").contains("/../")
        && !text.contains("//")
}

fn comes_back_from_its_text(policy: &Policy) {
    let text = print(policy);
    let again =
        parse(&text, Path::new(FILE)).unwrap_or_else(|errors| panic!("{errors}\nof\n{text}"));
    let changes = diff(policy, &again);
    assert!(changes.is_empty(), "{changes}after\n{text}");
    assert_eq!(policy.filesystems().len(), again.filesystems().len());
}

/// The policy with nothing left to presets and defaults.
fn print(policy: &Policy) -> String {
    let mut text = String::from("version = 1\n");
    let mut setting = |table: &str, key: &str, value: String| {
        writeln!(text, "{table}.{key} = {value}").expect("a string takes all");
    };
    let time = |time| string(&duration::format(time));
    setting("lease", "default_ttl", time(policy.lease().default_ttl()));
    setting("lease", "max_ttl", time(policy.lease().max_ttl()));
    setting("canary", "interval", time(policy.canary_interval()));
    setting("audit", "incident_interval", time(policy.incident_interval()));
    setting("audit", "full_records", policy.full_records().to_string());
    setting("agent", "on_inactive", string(if policy.allow_inactive() { "run" } else { "exit" }));
    policy.roots().iter().for_each(|root| text.push_str(&print_root(root)));
    text
}

fn print_root(root: &Root) -> String {
    let mut text = String::from("[[root]]\n");
    let mut setting = |key: &str, value: String| {
        writeln!(text, "{key} = {value}").expect("a string takes all");
    };
    setting("path", path(root.path()));
    let mode = match root.default_mode() {
        DefaultMode::Sealed => "sealed",
        DefaultMode::Guarded => "guarded",
        DefaultMode::Observed => "observed",
    };
    setting("mode", string(mode));
    let kinds: Vec<String> = root.filesystems().iter().map(|name| string(name)).collect();
    setting("filesystems", format!("[{}]", kinds.join(", ")));
    setting("truncate", string(if root.guard_truncate() { "guard" } else { "allow" }));
    setting("exported", root.exported().to_string());
    let actors = root.actors().iter().map(|actor| {
        let cgroup = actor.cgroup().map(|cgroup| format!("cgroup = {}", string(cgroup)));
        let executable =
            actor.executable().map(|executable| format!("executable = {}", path(executable)));
        let keys: Vec<String> = cgroup.into_iter().chain(executable).collect();
        format!("{{ {} }}", keys.join(", "))
    });
    setting("actors", format!("[{}]", actors.collect::<Vec<_>>().join(", ")));
    let guests: Vec<String> = root.guests().iter().map(|guest| string(guest)).collect();
    setting("guests", format!("[{}]", guests.join(", ")));
    let namespaces: Vec<String> =
        root.namespaces().iter().map(|namespace| path(namespace)).collect();
    setting("namespaces", format!("[{}]", namespaces.join(", ")));
    setting("join", string(if root.incus().is_some() { "incus" } else { "none" }));
    if let Some(node) = root.incus() {
        if let Some(socket) = node.socket() {
            setting("incus_socket", path(socket));
        }
        setting("incus_unit", string(node.unit()));
        let rolls_back = node.on_join_failure() == OnJoinFailure::Rollback;
        setting("on_join_failure", string(if rolls_back { "rollback" } else { "hold" }));
    }
    text
}

fn path(path: &Path) -> String {
    string(path.to_str().expect("a policy is UTF-8"))
}

/// A TOML string with every character escaped that could mean something.
fn string(text: &str) -> String {
    let escaped = text.chars().map(|letter| match letter {
        '/' | '.' | '-' | 'a'..='z' | 'A'..='Z' | '0'..='9' => letter.to_string(),
        other => format!("\\U{:08x}", u32::from(other)),
    });
    format!("\"{}\"", escaped.collect::<String>())
}
