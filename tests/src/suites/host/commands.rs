//! Every command of guardctl under the unit as it is shipped, in each tier: a table of exit codes.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::harness::host::guard::Guard;
use crate::harness::host::standin::{self, FILES, POOL};
use crate::harness::host::{Lab, Name, State};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] = &[
    Test::new("commands_under_the_unit_in_tier_bpf_lsm", || commands("bpf-lsm"))
        .within_seconds(900)
        .only_in_full(),
    Test::new("commands_under_the_unit_in_tier_fmod_ret", || commands("fmod-ret"))
        .within_seconds(900)
        .only_in_full(),
    Test::new("commands_under_the_unit_in_tier_fanotify", || commands("fanotify"))
        .within_seconds(900)
        .only_in_full(),
];
/// Debian's default order without `bpf`, as hosts have it on which the strongest tier cannot be
/// had.
const WITHOUT_BPF: &str =
    "lsm=landlock,lockdown,yama,loadpin,safesetid,integrity,apparmor,selinux,smack,tomoyo";

/// Each command with its exit code. In the weaker tiers commands that tell the posture say 7.
const TABLE: &[(&str, i64)] = &[
    ("pools", 0),
    ("seal POOL", 0),
    ("unseal POOL", 0),
    ("release POOL --ttl 1m --reason test", 0),
    ("lease list", 0),
    ("lease revoke LEASE", 0),
    ("exec --pool POOL --reason test -- rm POOL/d1/f1", 0),
    ("exec --pool POOL --reason test -- sh -c 'exit 42'", 42),
    ("history", 0),
    ("state-machine", 0),
    ("events -n 5", 0),
    ("policy check", 0),
    ("policy show", 0),
    ("policy diff /etc/guard-agent/policy.toml", 0),
    ("preflight --root /srv/guarded", 7),
    ("rollback --root /srv/guarded", 6),
    ("rollback --root /srv/nothing", 6),
    ("wipe --root /srv/nothing --yes", 2),
    ("seal nothing", 6),
];

fn commands(tier: &str) -> Result<()> {
    let parameters = if tier == "fmod-ret" { WITHOUT_BPF } else { "" };
    let lab = Lab::start_with(State::Booted, &[Name::N1], parameters)?;
    let host = lab.host(Name::N1);
    standin::prepare(host, tier)?;
    Guard::install(host)?;
    standin::guard(host, tier)?;
    let guard = Guard::of(host);
    ensure!(
        guard.json("status")?["posture"]["tier"] == tier,
        "the tier is not {tier}: {}",
        guard.json("status")?
    );
    let posture = if tier == "fanotify" { 7 } else { 0 };
    let mut wrong = Vec::new();
    let mut row = |command: &str, expected: i64| -> Result<()> {
        let ended = guard.control(command)?;
        println!("note: {tier}: guardctl {command}: exit code {}", ended.status);
        if ended.status != expected {
            wrong.push(format!(
                "guardctl {command}: {}, not {expected}: {}",
                ended.status,
                ended.output.trim()
            ));
        }
        Ok(())
    };
    row("status", posture)?;
    // It judges the host, which could do better than a policy that names this tier.
    row("doctor", 0)?;
    for (command, expected) in TABLE {
        let lease = host.run("guardctl lease list --json | jq -r '.[0].id // empty'")?;
        row(&command.replace("LEASE", lease.trim()).replace("POOL", POOL), *expected)?;
    }
    ensure!(
        standin::files(host)? == FILES - 1,
        "only the command with a lease may have deleted one file"
    );
    let denied = host.attempt(&format!("rm -rf {POOL}/d2"))?;
    ensure!(denied.status != 0, "the host could delete in tier {tier}");

    let refused = host.attempt("guard-agent unload")?;
    host.run("systemctl stop guard-agent")?;
    let unloaded = host.attempt_within("guard-agent unload", Duration::from_secs(60))?;
    println!(
        "note: {tier}: guard-agent unload: {} while it runs, {} after",
        refused.status, unloaded.status
    );
    ensure!(refused.status != 0 && unloaded.status == 0, "unload: {refused:?}, then {unloaded:?}");
    host.run(&format!("rm -rf {POOL}/d2 && test ! -e {POOL}/d2"))?;
    let warnings = host.run("journalctl -b --no-pager | grep -i 'left-over process' || true")?;
    ensure!(warnings.is_empty(), "systemd warns: {warnings}");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
