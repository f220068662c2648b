//! Hosts as trees of files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;
use crate::model::policy::parse;

fn host(files: &[(&str, &str)]) -> HostFacts {
    let directory = tempfile::tempdir().unwrap();
    let btf = format!(
        "{}\0bpf_lsm_inode_unlink\0bpf_lsm_path_unlink\0security_path_unlink\0",
        "x".repeat(30)
    );
    let mounts = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n32 23 0:29 / /sys/fs/bpf rw \
                  - bpf bpf rw\n";
    let usual = [
        ("proc/sys/kernel/osrelease", "6.12.43+deb13-amd64\n"),
        ("proc/cmdline", "root=/dev/vda quiet\n"),
        ("sys/kernel/btf/vmlinux", btf.as_str()),
        ("sys/kernel/security/lsm", "lockdown,capability,landlock,yama,apparmor,tomoyo,bpf"),
        ("sys/kernel/security/lockdown", "[none] integrity confidentiality\n"),
        ("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n"),
        ("proc/self/mountinfo", mounts),
        ("proc/sys/fs/fanotify/max_queued_events", "16384\n"),
    ];
    for (path, text) in usual.iter().chain(files) {
        let file = directory.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        if *text == "absent" {
            let _ = fs::remove_file(file);
        } else {
            fs::write(file, text).unwrap();
        }
    }
    for process in ["self", "1"] {
        let ns = directory.path().join(format!("proc/{process}/ns"));
        fs::create_dir_all(&ns).unwrap();
        symlink("mnt:[4026531841]", ns.join("mnt")).unwrap();
        symlink("pid:[4026531836]", ns.join("pid")).unwrap();
    }
    HostFacts::gather(directory.path())
}

fn check(facts: &HostFacts, code: &str) -> Check {
    checks(facts).into_iter().find(|check| check.code == code).unwrap()
}

#[test]
fn a_fit_host_as_the_operator_sees_it() {
    let expected = "\
                    ok    kernel version        6.12.43+deb13-amd64
ok    kernel BTF            /sys/kernel/btf/vmlinux
ok    CONFIG_BPF_LSM        built in (bpf_lsm hooks are in the BTF)
ok    active LSM list       lockdown,capability,landlock,yama,apparmor,tomoyo,bpf
ok    CONFIG_SECURITY_PATH  built in (path hooks are in the BTF)
ok    kernel lockdown       not active
ok    capabilities          all that are needed
ok    bpffs                 /sys/fs/bpf
ok    cgroup v2             /sys/fs/cgroup
ok    PID namespace         the host's
ok    mount namespace       the host's
ok    tier bpf-lsm          looks available (not tried)
ok    tier fmod-ret         looks available (not tried): taken where bpf-lsm is not
ok    tier fanotify         looks available (not tried): taken where neither is, and leaves much open (docs/TIERS.md)
";
    let checks = checks(&host(&[]));
    assert_eq!(Report(&checks).to_string(), expected);
    assert_eq!(worst(&checks), CheckState::Ok);
    assert_eq!(summary(&checks), "14 checks, 0 failed, 0 warnings");
}

#[test]
fn a_container_is_told_from_the_host_by_its_pid_namespace() {
    let facts = HostFacts { pid_namespace: Some("pid:[4026532701]".to_owned()), ..host(&[]) };
    let found = check(&facts, "pid-namespace");
    assert_eq!(found.state, CheckState::Fail);
    assert!(
        found.found.contains("pid:[4026532701]")
            && found.fix.is_some_and(|fix| fix.contains("--pid=host"))
    );
    let facts = HostFacts { pid_namespace: None, ..host(&[]) };
    assert_eq!(check(&facts, "pid-namespace").state, CheckState::Warn);
}

fn tried(facts: HostFacts, refused: &[(Tier, &str)]) -> HostFacts {
    let trial = |tier: Tier| {
        let refusal =
            refused.iter().find(|(other, _)| *other == tier).map(|(_, why)| (*why).to_owned());
        let log = refusal.as_ref().map(|_| "R1 type=scalar\nprocessed 7 insns".to_owned());
        Trial { tier: tier.name(), refusal, log }
    };
    HostFacts {
        trials: Trials(vec![trial(Tier::BpfLsm), trial(Tier::FmodRet), trial(Tier::Fanotify)]),
        ..facts
    }
}

#[test]
fn what_the_kernel_says_goes_before_what_the_host_looks_like() {
    // It looks fit, and the verifier refuses.
    let facts = tried(
        host(&[]),
        &[(Tier::BpfLsm, "the kernel refused to load program guard_path_unlink: EACCES")],
    );
    let tier = check(&facts, "tier-bpf-lsm");
    assert_eq!(tier.state, CheckState::Warn);
    assert!(tier.found.starts_with("not available: tried: the kernel refused"), "{}", tier.found);
    assert!(
        !tier.found.contains("R1")
            && tier.fix.as_ref().is_some_and(|fix| fix.contains("--verbose"))
    );
    let shown = Report(&[tier]).to_string();
    assert!(
        shown.contains(
            "| R1 \
             type=scalar\n"
        ) && shown.contains("| processed 7 insns\n"),
        "{shown}"
    );
    assert_eq!(check(&facts, "tier-fmod-ret").found, "available: taken where bpf-lsm is not");
    assert_eq!(summary(&checks(&facts)), "14 checks, 0 failed, 1 warning");
    // It looks unfit, and the kernel takes it.
    let unset = ("boot/config-6.12.43+deb13-amd64", "# CONFIG_BPF_EVENTS is not set\n");
    let facts = tried(host(&[unset, FANOTIFY_UNSET]), &[]);
    assert_eq!(check(&facts, "tier-fmod-ret").state, CheckState::Ok);
    assert_eq!(check(&facts, "tier-fanotify").state, CheckState::Ok);
    // A load knows nothing of whether it is called, or can be pinned.
    let facts = tried(host(&[("sys/kernel/security/lsm", "yama")]), &[]);
    assert_eq!(check(&facts, "tier-bpf-lsm").state, CheckState::Warn);
    let facts = tried(host(&[("proc/self/mountinfo", "")]), &[]);
    assert!(
        checks(&facts)
            .iter()
            .filter(|check| check.code.starts_with("tier-"))
            .all(|check| { check.state == CheckState::Fail && check.found.contains("bpffs") })
    );
}

#[test]
fn root_is_not_told_to_be_root() {
    let status = |uid: u32| {
        format!("Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nCapEff:\t0000000000000000\n")
    };
    for (uid, is_told) in [(0, false), (1000, true)] {
        let mut facts = host(&[("proc/self/status", &status(uid))]);
        facts.mount_namespaces = None;
        for code in ["capabilities", "mount-namespace"] {
            let fix = check(&facts, code).fix.unwrap();
            assert_eq!(fix.contains("run as root"), is_told, "{fix}");
        }
    }
}

#[test]
fn a_compressed_configuration_is_read() {
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("proc")).unwrap();
    let mut file = GzEncoder::new(Vec::new(), Compression::fast());
    file.write_all(b"CONFIG_BPF_LSM=y\n# CONFIG_SECURITY_PATH is not set\n").unwrap();
    fs::write(directory.path().join("proc/config.gz"), file.finish().unwrap()).unwrap();
    let facts = HostFacts::gather(directory.path());
    assert_eq!((facts.bpf_lsm, facts.security_path), (KernelOption::Set, KernelOption::Unset));
}

#[test]
fn an_ubuntu_without_bpf_in_the_list() {
    let facts = host(&[
        ("sys/kernel/security/lsm", "lockdown,capability,landlock,yama,apparmor"),
        ("usr/sbin/update-grub", ""),
    ]);
    let lsm = check(&facts, "bpf-not-in-lsm-list");
    let expected = "\
                    WARN  active LSM list  lockdown,capability,landlock,yama,apparmor (without \
                    bpf: the kernel attaches programs and never calls them)
                       > boot with lsm=lockdown,capability,landlock,yama,apparmor,bpf
                       > add lsm=lockdown,capability,landlock,yama,apparmor,bpf in GRUB_CMDLINE_LINUX in /etc/default/grub, then: update-grub && reboot
";
    assert_eq!(Report(&[lsm]).to_string(), expected);
    // The next tier does; the obstacle of this one is told with the one change.
    let tier = check(&facts, "tier-bpf-lsm");
    assert_eq!(
        (tier.state, check(&facts, "tier-fmod-ret").state),
        (CheckState::Warn, CheckState::Ok)
    );
    assert!(tier.found.starts_with("not available: active LSM list: lockdown"), "{}", tier.found);
    assert!(tier.fix.is_some_and(|fix| fix.contains("update-grub")));
    assert_eq!(worst(&checks(&facts)), CheckState::Warn);
}

#[test]
fn the_fix_names_the_hosts_boot_loader() {
    for (files, expected) in [
        (
            &[
                ("usr/sbin/proxmox-boot-tool", ""),
                ("etc/kernel/proxmox-boot-uuids", ""),
                ("etc/kernel/cmdline", ""),
                ("usr/sbin/update-grub", ""),
            ][..],
            "proxmox-boot-tool refresh",
        ),
        (
            &[("usr/sbin/proxmox-boot-tool", ""), ("usr/sbin/update-grub", "")],
            "update-grub && reboot",
        ),
        (
            &[("usr/sbin/grubby", "")],
            "grubby --update-kernel=ALL --remove-args=\"lsm=a\" --args=\"lsm=yama,bpf\"",
        ),
        (&[("etc/default/grub", "")], "replace lsm=a by lsm=yama,bpf in GRUB_CMDLINE_LINUX"),
        (&[("etc/kernel/cmdline", "")], "kernel-install add-all"),
        (&[], "in the boot loader"),
    ] {
        let mut files = files.to_vec();
        files.extend([("sys/kernel/security/lsm", "yama"), ("proc/cmdline", "lsm=x quiet lsm=a")]);
        let fix = check(&host(&files), "bpf-not-in-lsm-list").fix.unwrap();
        assert!(fix.contains(expected), "{fix}");
    }
}

const FANOTIFY_UNSET: (&str, &str) =
    ("boot/config-6.12.43+deb13-amd64", "# CONFIG_FANOTIFY_ACCESS_PERMISSIONS is not set\n");

#[test]
fn every_check_can_fail_or_warn() {
    use CheckState::{Fail, Ok, Warn};
    let no_btf = ("sys/kernel/btf/vmlinux", "absent");
    let plain_btf = "x".repeat(40);
    let later_btf = format!("{}\0security_path_unlink\0", "x".repeat(30));
    type Files<'f> = &'f [(&'f str, &'f str)];
    let cases: &[(&str, CheckState, Files<'_>)] = &[
        ("kernel-version", Warn, &[("proc/sys/kernel/osrelease", "5.15.0-91-generic")]),
        ("kernel-version", Warn, &[("proc/sys/kernel/osrelease", "absent")]),
        ("kernel-version", Ok, &[("proc/sys/kernel/osrelease", "7.0-rc1")]),
        ("btf-missing", Fail, &[no_btf]),
        ("bpf-lsm-not-built", Warn, &[no_btf]),
        ("bpf-lsm-not-built", Fail, &[("sys/kernel/btf/vmlinux", &plain_btf)]),
        ("bpf-lsm-not-built", Warn, &[("sys/kernel/btf/vmlinux", &later_btf)]),
        ("tier-bpf-lsm", Warn, &[("sys/kernel/btf/vmlinux", &later_btf)]),
        ("tier-bpf-lsm", Fail, &[no_btf]),
        ("tier-fmod-ret", Fail, &[no_btf]),
        ("tier-fmod-ret", Ok, &[("sys/kernel/btf/vmlinux", &later_btf)]),
        (
            "tier-fmod-ret",
            Warn,
            &[(
                "boot/config-6.12.43+deb13-amd64",
                "# CONFIG_BPF_EVENTS is not \
                 set\n",
            )],
        ),
        ("tier-bpf-lsm", Warn, &[("sys/kernel/security/lsm", "absent")]),
        ("tier-fanotify", Ok, &[no_btf]),
        (
            "tier-fanotify",
            Warn,
            &[("proc/sys/fs/fanotify/max_queued_events", "absent"), FANOTIFY_UNSET],
        ),
        ("tier-fanotify", Fail, &[no_btf, FANOTIFY_UNSET]),
        (
            "bpf-lsm-not-built",
            Ok,
            &[no_btf, ("boot/config-6.12.43+deb13-amd64", "CONFIG_BPF_LSM=y\n")],
        ),
        (
            "security-path-not-built",
            Fail,
            &[no_btf, ("boot/config-6.12.43+deb13-amd64", "# CONFIG_SECURITY_PATH is not set\n")],
        ),
        ("bpf-not-in-lsm-list", Warn, &[("sys/kernel/security/lsm", "absent")]),
        (
            "bpf-not-in-lsm-list",
            Warn,
            &[("sys/kernel/security/lsm", "absent"), ("proc/cmdline", "lsm=yama,bpf")],
        ),
        (
            "bpf-not-in-lsm-list",
            Warn,
            &[("sys/kernel/security/lsm", "absent"), ("proc/cmdline", "lsm=yama")],
        ),
        ("bpf-not-in-lsm-list", Fail, &[("sys/kernel/security/lsm", "yama"), no_btf]),
        ("lockdown", Fail, &[("sys/kernel/security/lockdown", "none integrity [confidentiality]")]),
        ("lockdown", Ok, &[("sys/kernel/security/lockdown", "none [integrity] confidentiality")]),
        ("capabilities", Fail, &[("proc/self/status", "CapEff:\t0000000000000000\n")]),
        ("capabilities", Warn, &[("proc/self/status", "")]),
        ("bpffs-missing", Fail, &[("proc/self/mountinfo", "")]),
        ("cgroup2-missing", Warn, &[("proc/self/mountinfo", "")]),
        (
            "cgroup2-missing",
            Warn,
            &[(
                "proc/self/mountinfo",
                "38 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 none \
                 rw\n",
            )],
        ),
    ];
    for (code, state, files) in cases {
        let check = check(&host(files), code);
        assert_eq!(check.state, *state, "{check:?}");
        assert_eq!(check.fix.is_some(), *state != Ok, "{check:?}");
    }
}

#[test]
fn an_empty_host_is_unknown_and_never_fit() {
    let facts = HostFacts::gather(Path::new("/nonexistent"));
    let checks = checks(&facts);
    assert_eq!(worst(&checks), CheckState::Fail);
    let round: Vec<Check> = serde_json::from_str(&serde_json::to_string(&checks).unwrap()).unwrap();
    assert_eq!(round, checks);
}

#[test]
fn the_agents_directories_lie_outside_the_roots() {
    let policy = parse("version = 1\n[[root]]\npath = \"/var/lib/incus\"", Path::new("p")).unwrap();
    let found = directory_checks(
        &policy,
        &[Path::new("/var/lib/incus/guard"), Path::new("/run/guard-agent")],
    );
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].state, CheckState::Fail);
    let found = directory_checks(&policy, &[Path::new("/var/lib/incus-guard")]);
    assert_eq!(found[0].state, CheckState::Ok);
}

#[test]
fn a_policy_that_is_hardly_meant_is_a_warning() {
    let hints = |text: &str| {
        let policy = parse(&format!("version = 1\n[[root]]\n{text}"), Path::new("policy.toml"));
        policy.map(|policy| crate::model::hints::lint(&policy))
    };
    let good = policy_checks(&hints("preset = \"incus\""));
    assert_eq!((good.len(), good[0].state, good[0].fix.as_ref()), (1, CheckState::Ok, None));
    let wide = policy_checks(&hints("path = \"/a\"\nactors = [{ cgroup = \"/user.slice\" }]"));
    assert_eq!((wide[0].code.as_str(), wide[0].state), ("wide-actor", CheckState::Warn));
    assert!(wide[0].fix.is_some());
    let wrong = policy_checks(&hints("preset = \"incsu\""));
    assert_eq!((wrong[0].code.as_str(), wrong[0].state), ("policy-wrong", CheckState::Warn));
    assert!(wrong[0].found.contains("unknown preset"), "{wrong:?}");
}

#[test]
fn this_machine_is_looked_at_without_privileges() {
    assert_eq!(checks(&HostFacts::gather(Path::new("/"))).len(), 14);
}
