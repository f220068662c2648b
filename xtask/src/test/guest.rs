//! Runs the suites of `guard-tests`: boots for each kernel and each profile that their tests
//! declare.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::report::{Entry, Report, lock};
use super::{Suite, Tier};
use crate::build::TestBinaries;
use crate::kernel::{Kernel, Layout};
use crate::progress;
use crate::vm::{self, Boot, Lsm, Outcome, quoted};
use crate::{host, incus};

/// Longest time for one boot with all of its tests.
const LIMIT: Duration = Duration::from_secs(2400);
/// The same for real clusters: each test starts and joins nodes, which takes an emulated machine a
/// minute.
const INCUS_LIMIT: Duration = Duration::from_secs(7200);
/// So many of these tests are run in one boot.
const JOINS_A_BOOT: usize = 6;
/// And so many of all others: parts small enough that the processors end at about the same time.
const TESTS_A_BOOT: usize = 30;
/// Starts the line that ends a suite: `guard-tests: 3 passed, 0 failed`.
const CLOSING: &str = "guard-tests: ";
/// Starts each line that explains the failure just reported.
const EXPLANATION: &str = "  | ";

/// Environment of a test suite, without the Ceph cluster's part.
fn environment(binaries: &TestBinaries, kernel: Kernel, profile: &str) -> Vec<(String, String)> {
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let values = [
        ("GUARD_AGENT", path(&binaries.agent)),
        ("GUARDCTL", path(&binaries.control)),
        // An emulated machine's agent may take longer than a second, and is no stopped one for
        // that.
        ("GUARDCTL_TIMEOUT", "35s".to_owned()),
        ("GUARD_AGENT_UPGRADE", path(&binaries.upgraded_agent)),
        ("GUARD_AGENT_LAYOUT", path(&binaries.layout_agent)),
        ("GUARD_EMPTY_OBJECT", path(&binaries.empty_object)),
        ("GUARD_MONITOR_OBJECT", path(&binaries.monitor_object)),
        ("GUARD_KERNEL", kernel.name().to_owned()),
        ("GUARD_PROFILE", profile.to_owned()),
        ("RUST_BACKTRACE", "0".to_owned()),
    ];
    values.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

/// A machine that runs a command of `guard-tests`.
pub(crate) fn machine(kernel: Kernel, binaries: &TestBinaries, command: &str) -> Boot {
    let mut boot =
        Boot::new(kernel, format!("exec {} {command}", quoted(&binaries.tests.to_string_lossy())));
    boot.environment = environment(binaries, kernel, "default");
    boot
}

/// Variable with the guest's path of Incus, once its programs are checked.
pub(crate) fn incus() -> Result<(String, String)> {
    Ok(("GUARD_INCUS".to_owned(), incus::open()?.to_string_lossy().into_owned()))
}

/// Which tests of a suite.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Also those that are left out otherwise.
    pub full: bool,
    /// Those whose name contains one of these; all if there is none.
    pub filters: &'a [String],
    /// Versions of Incus, for real hosts.
    pub incus: &'a [host::Incus],
}

impl Wanted<'_> {
    fn arguments(&self) -> impl Iterator<Item = &str> {
        self.full.then_some("--full").into_iter().chain(self.filters.iter().map(String::as_str))
    }
}

/// Work of one boot: the tests of one suite that need the same machine.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    suite: Suite,
    kernel: Kernel,
    profile: String,
    /// Of a real host.
    incus: Option<host::Incus>,
    tests: Vec<String>,
}

impl Part {
    /// As it is called in the report.
    pub(crate) fn name(&self) -> String {
        let kernel = self.kernel.name();
        match self.incus {
            Some(incus) => format!("{}[{kernel}, Incus {}]", self.suite.name(), incus.name()),
            None => format!("{}[{kernel}]", self.suite.name()),
        }
    }

    /// Number of its tests.
    pub(crate) fn size(&self) -> usize {
        self.tests.len()
    }
}

/// A line of `guard-tests run --list`, without its profile.
#[derive(Clone, Copy, Debug)]
struct Listed<'a> {
    name: &'a str,
    /// The only version of Incus that it is for, or `any`.
    incus: &'a str,
}

/// The wanted tests of the suites, on each of the kernels.
pub(crate) fn parts(
    suites: &[Suite],
    kernels: &[Kernel],
    binaries: &TestBinaries,
    wanted: &Wanted<'_>,
) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    if let ([Suite::Host], [kernel]) = (suites, kernels) {
        host::kernel(*kernel)?;
    }
    for &suite in suites {
        let listed = progress::capture(
            Command::new(&binaries.tests)
                .args(["run", "--list", "--suite", suite.name()])
                .args(wanted.arguments()),
        )?;
        let mut by_profile: BTreeMap<&str, Vec<Listed<'_>>> = BTreeMap::new();
        for line in listed.lines() {
            let mut columns = line.split('\t');
            let (Some(name), Some(profile), Some(incus)) =
                (columns.next(), columns.next(), columns.next())
            else {
                bail!("`guard-tests run --list` printed something unexpected: {line}");
            };
            by_profile.entry(profile).or_default().push(Listed { name, incus });
        }
        for (profile, tests) in &by_profile {
            let at_once = if suite == Suite::Incus { JOINS_A_BOOT } else { TESTS_A_BOOT };
            let part = |kernel, incus, tests: &[Listed<'_>]| Part {
                suite,
                kernel,
                profile: (*profile).to_owned(),
                incus,
                tests: tests.iter().map(|test| test.name.to_owned()).collect(),
            };
            for &kernel in kernels {
                if suite != Suite::Host {
                    parts.extend(tests.chunks(at_once).map(|tests| part(kernel, None, tests)));
                    continue;
                }
                // Debian 13 has no 6.1: with all kernels asked for, its hosts boot the others.
                let Ok(kernel) = host::kernel(kernel) else { continue };
                for &incus in wanted.incus {
                    let on = |test: &&Listed<'_>| [incus.name(), "any"].contains(&test.incus);
                    let tests: Vec<_> = tests.iter().filter(on).copied().collect();
                    parts.extend((!tests.is_empty()).then(|| part(kernel, Some(incus), &tests)));
                }
            }
        }
    }
    Ok(parts)
}

/// Boots the part's machine and runs its tests there.
pub(crate) fn run(
    part: &Part,
    tier: Tier,
    binaries: &TestBinaries,
    report: &Mutex<Report>,
) -> Result<()> {
    if let Some(incus) = part.incus {
        return run_beside_hosts(part, incus, binaries, report);
    }
    let Part { suite, kernel, ref profile, ref tests, .. } = *part;
    let script = format!(
        "exec {} run --suite {} --profile {profile} --full --exact {}",
        quoted(&binaries.tests.to_string_lossy()),
        suite.name(),
        tests.join(" ")
    );
    let mut boot = boot_of_profile(kernel, profile, script)?;
    if tier == Tier::FmodRet {
        boot.lsm = Lsm::WithoutBpf;
    }
    boot.ceph = suite != Suite::Standin;
    boot.limit = Some(if suite == Suite::Incus { INCUS_LIMIT } else { LIMIT });
    boot.environment = environment(binaries, kernel, profile);
    let best = if boot.lsm == Lsm::WithoutBpf { "fmod-ret" } else { "bpf-lsm" };
    boot.environment.push(("GUARD_TIER".to_owned(), best.to_owned()));
    if suite == Suite::Incus {
        boot.environment.push(incus()?);
    }
    let release = Layout::open(kernel)?.release;
    eprintln!("xtask: {} on {release}, profile {profile}: {} tests …", suite.name(), tests.len());

    let mut reader = Reader::new(part.name(), suite.name(), report);
    let outcome = vm::boot(&boot, &mut |output| {
        reader.bytes(output);
        io::Result::Ok(())
    })?;
    reader.end(tests, &outcome);
    Ok(())
}

/// Runs the part's tests here, beside the hosts that they start.
fn run_beside_hosts(
    part: &Part,
    incus: host::Incus,
    binaries: &TestBinaries,
    report: &Mutex<Report>,
) -> Result<()> {
    let mut command = host::run::beside(&binaries.tests)?;
    command.args(["run", "--suite", part.suite.name(), "--full", "--exact"]).args(&part.tests);
    command.envs(host::environment(incus, part.kernel)?).env("RUST_BACKTRACE", "0");
    command.env("GUARD_HOST_PAYLOAD", host::run::payload());
    eprintln!("xtask: {}: {} tests …", part.name(), part.tests.len());
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start unshare")?;
    let mut output = child.stdout.take().context("the tests' output is a pipe")?;
    let mut reader = Reader::new(part.name(), part.suite.name(), report);
    let mut buffer = [0; 16 * 1024];
    while let count @ 1.. = output.read(&mut buffer).context("read the tests' output")? {
        reader.bytes(&buffer[..count]);
    }
    let status = child.wait().context("wait for the tests")?.code().unwrap_or(-1);
    reader.end(&part.tests, &Outcome::Ended { status, kernel_messages: String::new() });
    Ok(())
}

/// The machine that a profile names. `guard-tests` declares the same names.
fn boot_of_profile(kernel: Kernel, profile: &str, script: String) -> Result<Boot> {
    let mut boot = Boot::new(kernel, script);
    match profile {
        "default" => {}
        "no-bpf" => boot.lsm = Lsm::WithoutBpf,
        // As the parameter lockdown= does it, and as final.
        "locked-down" => {
            let lock = "echo confidentiality >/sys/kernel/security/lockdown || exit 1";
            boot.script = boot.script.map(|script| format!("{lock}\n{script}"));
        }
        "icount" => boot.icount = true,
        other => {
            bail!("guard-tests asks for the boot profile {other:?}, which xtask does not know")
        }
    }
    Ok(boot)
}

/// Reads the output of `guard-tests run` into the report.
struct Reader<'a> {
    /// Stands for the suite in the report.
    part: String,
    suite: &'static str,
    report: &'a Mutex<Report>,
    line: Vec<u8>,
    /// Lines since the last result: the running test's own output.
    output: Vec<String>,
    /// A failure whose explanation is still coming.
    pending: Option<Entry>,
    reported: BTreeSet<String>,
    closing: Option<String>,
}

impl<'a> Reader<'a> {
    fn new(part: String, suite: &'static str, report: &'a Mutex<Report>) -> Self {
        Self {
            part,
            suite,
            report,
            line: Vec::new(),
            output: Vec::new(),
            pending: None,
            reported: BTreeSet::new(),
            closing: None,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line).trim_end_matches('\r').to_owned();
                self.line.clear();
                self.take(line);
            } else {
                self.line.push(byte);
            }
        }
    }

    fn take(&mut self, line: String) {
        if line.is_empty() {
            return;
        }
        if let Some(explanation) = line.strip_prefix(EXPLANATION)
            && let Some(entry) = &mut self.pending
        {
            entry.detail.push_str(explanation);
            entry.detail.push('\n');
            return;
        }
        self.flush();
        if let Some(closing) = line.strip_prefix(CLOSING) {
            self.closing = Some(closing.to_owned());
        } else if let Some((name, passed, seconds)) = self.result(&line) {
            self.reported.insert(name.clone());
            let output = std::mem::take(&mut self.output).join("\n");
            let detail = if passed || output.is_empty() {
                String::new()
            } else {
                format!(
                    "its \
                     output:\n{output}\n"
                )
            };
            let entry = Entry { name: format!("{}::{name}", self.part), passed, seconds, detail };
            if passed { lock(self.report).add(entry) } else { self.pending = Some(entry) }
        } else {
            lock(self.report).note(&self.part, &line);
            self.output.push(line);
        }
    }

    /// Reads `test suite::name ... ok (1.2 s)`.
    fn result(&self, line: &str) -> Option<(String, bool, Option<f64>)> {
        let rest = line.strip_prefix("test ")?.strip_prefix(self.suite)?.strip_prefix("::")?;
        let (name, outcome) = rest.split_once(" ... ")?;
        let (word, time) = outcome.split_once(' ').unwrap_or((outcome, ""));
        let seconds =
            time.trim_start_matches('(').split(' ').next().and_then(|number| number.parse().ok());
        match word {
            "ok" => Some((name.to_owned(), true, seconds)),
            "FAILED" => Some((name.to_owned(), false, seconds)),
            _ => None,
        }
    }

    fn flush(&mut self) {
        if let Some(entry) = self.pending.take() {
            lock(self.report).add(entry);
        }
    }

    /// The machine is off: every listed test must have a result, and the suite its closing line.
    fn end(mut self, tests: &[String], outcome: &Outcome) {
        self.flush();
        let lost: Vec<&str> = tests
            .iter()
            .map(String::as_str)
            .filter(|test| !self.reported.contains(*test))
            .collect();
        let whole = self.closing.is_some() && lost.is_empty();
        if whole && matches!(outcome, Outcome::Ended { .. }) {
            return;
        }
        let why = match outcome {
            Outcome::Broken { why } => why.clone(),
            Outcome::Ended { status, kernel_messages } => {
                format!(
                    "guard-tests ended with status {status}\nthe kernel's last \
                     lines:\n{kernel_messages}"
                )
            }
        };
        let tail = self.output[self.output.len().saturating_sub(30)..].join("\n");
        let closing = self.closing.as_deref().unwrap_or("no closing line");
        let why = format!(
            "{closing}; no result of: {}\n{why}\nthe guest's last \
             output:\n{tail}",
            lost.join(", ")
        );
        let mut report = lock(self.report);
        report.part_did_not_run(&self.part, &why);
        for name in lost {
            let detail = "did not run, see above".to_owned();
            let name = format!("{}::{name}", self.part);
            report.add(Entry { name, passed: false, seconds: None, detail });
        }
    }
}
