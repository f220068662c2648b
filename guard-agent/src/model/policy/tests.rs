//! Policies as operators write them, right and wrong.

use std::path::Path;
use std::time::Duration;

use guard_common::Tier;

use super::diff::diff;
use super::validate::MAX_ACTORS;
use super::*;

fn read(text: &str) -> Result<Policy, PolicyErrors> {
    parse(text, Path::new("policy.toml"))
}

fn good(text: &str) -> Policy {
    read(text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn refusal(text: &str) -> String {
    read(text).expect_err("must be refused").to_string()
}

#[test]
fn the_smallest_policy_is_a_preset() {
    let policy = good("version = 1\n[[root]]\npreset = \"incus\"\n");
    let root = &policy.roots()[0];
    assert_eq!(root.path(), Path::new("/var/lib/incus"));
    assert_eq!(root.default_mode(), DefaultMode::Guarded);
    assert_eq!(root.filesystems(), ["ceph"]);
    assert_eq!(root.actors()[0].cgroup(), Some("/system.slice/incus.service"));
    assert_eq!(policy.filesystems().len(), 1);
    assert_eq!(policy.lease().default_ttl(), Duration::from_secs(600));
    assert_eq!(policy.lease().max_ttl(), MAX_TTL);
    assert_eq!(policy.canary_interval(), Duration::from_secs(60));
    assert_eq!(policy.full_records(), 8);
    assert!(!policy.allow_inactive());
    assert_eq!(policy.tier(), TierChoice::Auto);
    assert_eq!(policy.hash().len(), 64);
}

#[test]
fn every_key_can_be_set() {
    let policy = good(
        r#"version = 1
        [[root]]
        preset = "incus"
        path = "/srv//incus/"
        filesystems = ["nfs4", "nfs", "fuse.ceph-fuse"]
        mode = "sealed"
        actors = [{ cgroup = "/a", executable = "/bin/b" }, { executable = "/c" }]
        [[root]]
        path = "/srv/incus/inner"
        exported = false
        [defaults]
        truncate = "guard"
        exported = true
        mode = "observed"
        filesystems = ["tmpfs"]
        [lease]
        default_ttl = "1m"
        max_ttl = "1h30m"
        [canary]
        interval = "5s"
        [audit]
        full_records = 3
        incident_interval = "1s"
        [agent]
        on_inactive = "run"
        [enforcement]
        tier = "bpf-lsm"
        "#,
    );
    let [outer, inner] = policy.roots() else { panic!("two roots") };
    assert_eq!(outer.path(), Path::new("/srv/incus"));
    assert_eq!(outer.filesystems(), ["nfs", "fuse.ceph-fuse"]);
    assert_eq!(
        (outer.default_mode(), inner.default_mode()),
        (DefaultMode::Sealed, DefaultMode::Observed)
    );
    assert_eq!((outer.exported(), inner.exported()), (true, false));
    assert!(outer.guard_truncate() && inner.guard_truncate());
    assert!(outer.actors()[0].is_combined() && !outer.actors()[1].is_combined());
    assert_ne!(outer.actor_set(), inner.actor_set());
    assert_eq!(inner.filesystems(), ["tmpfs"]);
    assert_eq!(policy.lease().max_ttl(), Duration::from_secs(5400));
    assert!(policy.allow_inactive());
    assert_eq!(policy.tier(), TierChoice::Only(Tier::BpfLsm));
}

#[test]
fn all_problems_are_shown_at_once() {
    let text = r#"version = 2
[[root]]
preset = "incsu"
acters = []
[[root]]
path = "var/lib/incus"
filesystems = ["cehp", 3]
mode = "gaurded"
actors = [{ cgroup = "system.slice" }, {}]
[[root]]
path = "/"
filesystems = []
[[root]]
path = "/a/../b"
[[root]]
mode = 7
[lease]
default_ttl = "10"
max_ttl = "48h"
[audit]
full_records = 0
[wombat]
"#;
    let expected = "\
                    policy.toml:1:11: version 2 of the policy format is not known
    hint: this agent reads version = 1
policy.toml:3:10: unknown preset `incsu`
    hint: did you mean `incus`?
policy.toml:4:1: unknown key `acters` in [[root]]
    hint: did you mean `actors`?
policy.toml:6:8: `path` \"var/lib/incus\" is not absolute
    hint: write the whole path from `/`: path = \"/…\"
policy.toml:7:16: unknown filesystem `cehp`
    hint: did you mean `ceph`?
policy.toml:7:24: an item of `filesystems` must be a string, not integer
policy.toml:8:8: unknown mode `gaurded`
    hint: did you mean `guarded`?
policy.toml:9:22: `cgroup` \"system.slice\" is not absolute
    hint: write the whole path from `/`: cgroup = \"/…\"
policy.toml:9:40: an actor without cgroup and executable
    hint: write { cgroup = \"/…\" }, { executable = \"/…\" }, or both in one
policy.toml:11:8: a guarded root cannot be `/`: every mount of the host would be below it
    hint: name the storage daemon's directory
policy.toml:12:15: `filesystems` is empty: nothing would be protected
    hint: name at least one, as in filesystems = [\"ceph\"]
policy.toml:14:8: `path` \"/a/../b\" contains `..`
    hint: write the whole path from `/`: path = \"/…\"
policy.toml:15:1: [[root]] has no path
    hint: add path = \"/…\" or preset = \"incus\"
policy.toml:16:8: `mode` must be a string, not integer
policy.toml:18:15: default_ttl \"10\" is not a duration
    hint: write it as in 90s, 10m, 1h30m
policy.toml:19:11: max_ttl 48h is too long
    hint: 24h is the longest
policy.toml:21:16: full_records 0 is out of range
    hint: 1 to 1024
policy.toml:22:2: unknown key `wombat` in the file
    hint: known here are version, root, defaults, lease, canary, audit, agent, enforcement";
    assert_eq!(refusal(text), expected);
}

#[test]
fn single_problems() {
    let incus = "version = 1\n[[root]]\npreset = \"incus\"\n";
    for (text, expected) in [
        ("", "policy.toml: `version` is missing"),
        ("version = 1", "no guarded root"),
        ("version = 1\nroot = 3", "policy.toml:2:8: `root` must be a list of tables: [[root]]"),
        ("version = 1\n[[root]]\npath = \"/a\n", "policy.toml:3:"),
        ("version = 1\nversion = 1", "policy.toml:2:1: not TOML: duplicate key"),
        (
            &format!("{incus}[[root]]\npath = \"/var/lib/incus\""),
            "policy.toml:5:8: root /var/lib/incus is given twice",
        ),
        (&format!("{incus}[lease]\ndefault_ttl = \"1h\"\nmax_ttl = \"1m\""), "hint: max_ttl is 1m"),
        (&format!("{incus}[canary]\ninterval = \"1ms\""), "out of range"),
        (&format!("{incus}actors = [{{ cgroup = \"/\" }}]"), "every process could delete"),
        (&format!("{incus}exported = \"yes\""), "must be true or false, not string"),
        (&format!("{incus}join = \"lxd\""), "known are incus, none"),
        (&format!("{incus}join = \"none\"\nincus_unit = \"a.service\""), "follows no Incus"),
        (&format!("{incus}incus_unit = \"incus\""), "is not the name of a service"),
        (&format!("{incus}incus_socket = \"unix.socket\""), "is not absolute"),
        (&format!("{incus}on_join_failure = \"ask\""), "known are hold, rollback"),
        ("version = 1\n[[root]]\npath = \"/a\"\non_join_failure = \"hold\"", "follows no Incus"),
        (&format!("{incus}[agent]\non_inactive = \"panic\""), "known are exit, run"),
        (&format!("{incus}[enforcement]\ntier = \"kprobe\""), "unknown tier `kprobe`"),
        (&format!("{incus}[enforcement]\ntier = \"fmod_ret\""), "did you mean `fmod-ret`?"),
    ] {
        let message = refusal(text);
        assert!(message.contains(expected), "{text:?} gave {message}");
    }
}

#[test]
fn more_combined_actors_than_bits_are_too_many() {
    let actors = |count| {
        let list: Vec<String> =
            (0..count).map(|index| format!("{{cgroup=\"/c{index}\",executable=\"/e\"}}")).collect();
        format!("version = 1\n[[root]]\npath = \"/a\"\nactors = [{}]", list.join(","))
    };
    assert_eq!(good(&actors(62)).roots()[0].actors().len(), 62);
    assert!(refusal(&actors(63)).contains("more than 62 actors"));
}

#[test]
fn actors_that_their_maps_could_not_take_are_too_many() {
    let root = |path: &str, count| {
        let list: Vec<String> =
            (0..count).map(|index| format!("{{executable=\"/e{index}\"}}")).collect();
        format!("[[root]]\npath = \"{path}\"\nactors = [{}]\n", list.join(","))
    };
    let half = root("/a", MAX_ACTORS / 2);
    good(&format!("version = 1\n{half}{}", root("/b", MAX_ACTORS / 2)));
    let refused = refusal(&format!("version = 1\n{half}{}", root("/b", MAX_ACTORS / 2 + 1)));
    assert!(refused.contains("more than 1024 actors in all roots"), "{refused}");
}

#[test]
fn a_preset_is_a_root_for_each_place_that_distributions_have() {
    let paths = |policy: &Policy| -> Vec<String> {
        policy.roots().iter().map(|root| root.path().display().to_string()).collect()
    };
    let preset = |name: &str| good(&format!("version = 1\n[[root]]\npreset = \"{name}\"\n"));
    let kubelet = preset("kubelet");
    assert_eq!(
        paths(&kubelet),
        ["/var/lib/kubelet", "/var/snap/microk8s/common/var/lib/kubelet", "/var/lib/k0s/kubelet"]
    );
    let sets: Vec<u32> = kubelet.roots().iter().map(Root::actor_set).collect();
    assert!(sets[0] != sets[1] && sets[1] != sets[2]);
    for root in kubelet.roots() {
        assert!(root.actors().is_empty(), "CSI plugins and debug pods are pods too");
        assert_eq!(root.guests(), ["/kubepods.slice", "/kubepods"]);
    }
    let lxd = preset("lxd");
    assert_eq!(paths(&lxd), ["/var/lib/lxd", "/var/snap/lxd/common/lxd"]);
    assert_eq!(lxd.roots()[1].namespaces(), [Path::new("/run/snapd/ns/lxd.mnt")]);
    let snap = lxd.roots()[1].actors().iter().filter_map(Actor::executable).next();
    assert_eq!(snap, Some(Path::new("/snap/lxd/current/bin/lxd")));
    let docker = preset("docker");
    assert_eq!(paths(&docker), ["/var/lib/docker", "/var/snap/docker/common/var-lib-docker"]);
    assert!(
        docker
            .roots()
            .iter()
            .all(|root| root.actors().is_empty() && root.guards(&docker.filesystems()[0]))
    );

    let one = good(
        "version = 1\n[[root]]\npreset = \"kubelet\"\npath = \"/srv/kubelet\"\nguests = []\n\
         actors = [{ cgroup = \"/system.slice/kubelet.service\" }]",
    );
    assert_eq!(paths(&one), ["/srv/kubelet"]);
    assert_eq!((one.roots()[0].guests().len(), one.roots()[0].actors().len()), (0, 1));
    let twice = refusal(
        "version = 1\n[[root]]\npath = \"/var/lib/lxd\"\n[[root]]\npreset = \
         \"lxd\"",
    );
    assert!(twice.contains("policy.toml:4:1: root /var/lib/lxd is given twice"), "{twice}");
    let many: String = (0..63).map(|index| format!("[[root]]\npath = \"/r{index}\"\n")).collect();
    let many = refusal(&format!("version = 1\n{many}[[root]]\npreset = \"lxd\""));
    assert!(many.contains("more than 64 roots"), "{many}");
}

#[test]
fn guests_and_namespaces() {
    let root = |keys: &str| format!("version = 1\n[[root]]\npath = \"/a\"\n{keys}\n");
    let policy = good(&root(
        "guests = [\"/kubepods.slice/\", \"/kubepods\", \"/kubepods.slice\"]\n\
         namespaces = [\"/run/snapd/ns/lxd.mnt\", \"/run//snapd/ns/lxd.mnt\"]",
    ));
    assert_eq!(policy.roots()[0].guests(), ["/kubepods.slice", "/kubepods"]);
    assert_eq!(policy.roots()[0].namespaces(), [Path::new("/run/snapd/ns/lxd.mnt")]);
    let none = good(&root(""));
    assert!(none.roots()[0].guests().is_empty() && none.roots()[0].namespaces().is_empty());
    let text = diff(&none, &policy).to_string();
    assert!(text.contains("+ root /a: guests: \"/kubepods\""), "{text}");
    assert!(text.contains("+ root /a: namespaces: \"/run/snapd/ns/lxd.mnt\""), "{text}");

    for (keys, expected) in [
        ("guests = [\"/\"]", "policy.toml:4:11: the root cgroup as a guest"),
        ("guests = [\"kubepods\"]", "policy.toml:4:11: `guests` \"kubepods\" is not absolute"),
        ("guests = \"/kubepods\"", "`guests` must be a list of strings, not string"),
        ("namespaces = [\"lxd.mnt\"]", "`namespaces` \"lxd.mnt\" is not absolute"),
        ("namespaces = [\"/run/../ns\"]", "contains `..`"),
        ("namespace = []", "did you mean `namespaces`?"),
    ] {
        let message = refusal(&root(keys));
        assert!(message.contains(expected), "{keys} gave {message}");
    }
    let many =
        |count| (0..count).map(|index| format!("\"/g{index}\"")).collect::<Vec<_>>().join(",");
    assert_eq!(good(&root(&format!("guests = [{}]", many(64)))).roots()[0].guests().len(), 64);
    assert!(refusal(&root(&format!("guests = [{}]", many(65)))).contains("more than 64 guests"));
    assert!(
        refusal(&root(&format!("namespaces = [{}]", many(17)))).contains("more than 16 namespaces")
    );
}

#[test]
fn actor_sets_do_not_depend_on_order() {
    let one = good("version = 1\n[[root]]\npath = \"/a\"\n[[root]]\npath = \"/b\"");
    let two = good("version = 1\n[[root]]\npath = \"/b\"\n[[root]]\npath = \"/a\"");
    assert_eq!(one.roots()[0].actor_set(), two.roots()[1].actor_set());
    assert!(diff(&one, &two).is_empty());
}

#[test]
fn a_diff_says_what_changes() {
    let before = good("version = 1\n[[root]]\npreset = \"incus\"\n[[root]]\npath = \"/gone\"");
    let after = good(
        "version = 1\n# new\n[[root]]\npreset = \"incus\"\nmode = \"sealed\"\nfilesystems = \
         [\"ceph\", \"nfs\"]\n[lease]\ndefault_ttl = \"5m\"",
    );
    let text = diff(&before, &after).to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "~ root /var/lib/incus: default_mode: \"guarded\" -> \"sealed\"");
    assert_eq!(lines[1], "+ root /var/lib/incus: filesystems: \"nfs\"");
    assert!(lines[2].starts_with("- root /gone: {"));
    assert_eq!(lines[3], "~ lease: default_ttl: \"10m\" -> \"5m\"");
    assert_eq!(diff(&before, &before).to_string(), "no difference in effect\n");
}

#[test]
fn the_packaged_example_is_valid() {
    let policy = good(include_str!("../../../../packaging/policy.toml"));
    assert_eq!(policy.roots()[0].path(), Path::new("/var/lib/incus"));
    assert_eq!(policy.roots(), good("version = 1\n[[root]]\npreset = \"incus\"").roots());
}

proptest::proptest! {
    #[test]
    fn never_panics(text in "[\\[\\]a-z\"=,./{} \n0-9ö]{0,200}") {
        let _ = read(&text);
        let _ = read(&format!("version = 1\n[[root]]\n{text}"));
    }
}

#[test]
fn a_node_is_followed_where_policy_says_so() {
    let policy = good(
        "version = 1\n[[root]]\npreset = \"incus\"\n[[root]]\npath = \"/srv/two\"\njoin = \
         \"incus\"\nincus_unit = \"two.service\"\non_join_failure = \"rollback\"\n[[root]]\npreset \
         = \"lxd\"",
    );
    let first = policy.roots()[0].incus().unwrap();
    assert_eq!(first.socket(), None);
    assert_eq!((first.unit(), first.on_join_failure()), ("incus.service", OnJoinFailure::Hold));
    let second = policy.roots()[1].incus().unwrap();
    assert_eq!((second.socket(), second.cgroup().as_str()), (None, "/system.slice/two.service"));
    assert_eq!(second.on_join_failure(), OnJoinFailure::Rollback);
    assert!(policy.roots()[2].incus().is_none());
    let off = good("version = 1\n[[root]]\npreset = \"incus\"\njoin = \"none\"\n");
    assert!(off.roots()[0].incus().is_none());
}

#[test]
fn no_lease_is_shorter_than_requests_can_say() {
    let limits = |limits: &str| {
        format!(
            "version = 1\n[[root]]\npreset = \
             \"incus\"\n[lease]\n{limits}\n"
        )
    };
    let refused = refusal(&limits("default_ttl = \"1ms\"\nmax_ttl = \"999ms\""));
    let expected = "policy.toml:5:15: default_ttl 1ms is too short\n    hint: requests count in \
                    whole seconds: 1s is the shortest\npolicy.toml:6:11: max_ttl 999ms is too \
                    short\n    hint: requests count in whole seconds: 1s is the shortest";
    assert_eq!(refused, expected);
    assert_eq!(good(&limits("max_ttl = \"1s\"")).lease().default_ttl(), Duration::from_secs(1));
}

#[test]
fn a_megabyte_of_anything_is_read_and_its_problems_are_few() {
    let filled = |head: &str, part: &dyn Fn(usize) -> String, tail: &str| {
        let mut text = head.to_owned();
        let parts = (0..).map(part).take_while(|part| {
            text.push_str(part);
            text.len() < 1_000_000
        });
        parts.for_each(drop);
        text.push_str(tail);
        text
    };
    let root = "version = 1\n[[root]]\npath = \"/a\"\n";
    for (what, text) in [
        ("unknown keys", filled("", &|at| format!("a{at} = 1\n"), "")),
        ("roots", filled("version = 1\n", &|at| format!("[[root]]\npath = \"/{at}\"\n"), "")),
        ("the same root", filled("version = 1\n", &|_| "[[root]]\npath = \"/a\"\n".to_owned(), "")),
        (
            "actors",
            filled(
                &format!("{root}actors = ["),
                &|at| format!("{{ executable = \"/{at}\" }},"),
                "]\n",
            ),
        ),
        (
            "kinds",
            filled(&format!("{root}filesystems = ["), &|at| format!("\"fuse.{at}\","), "]\n"),
        ),
        ("no kinds", filled(&format!("{root}filesystems = ["), &|_| "1,".to_owned(), "]\n")),
        ("brackets", "[".repeat(1 << 20)),
        ("tables in tables", "a={".repeat(1 << 18)),
        ("a long path of keys", format!("a{}=1\n", ".a".repeat(1 << 18))),
        ("a long key", format!("{} = 1\n", "a".repeat(1 << 20))),
        ("quotes", "\"".repeat(1 << 20)),
        ("NUL", "\0".repeat(1 << 20)),
    ] {
        match read(&text) {
            Ok(policy) => assert_eq!((what, policy.roots().len()), ("actors", 1)),
            Err(errors) => assert!((1..=104).contains(&errors.problems().len()), "{what}"),
        }
    }
}
