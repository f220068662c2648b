//! Boots a stock Debian kernel in QEMU whose root is this machine's own root, read-only under a
//! tmpfs, and runs a command in it as root. With or without a real Ceph cluster beside it.

mod ceph;
mod job;
mod qemu;

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{fs::File, thread};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::host;
use crate::kernel::{Kernel, Layout};
use crate::progress;
use crate::setup::{self, Use};
use ceph::Cluster;
use job::Job;
use qemu::Acceleration;

#[derive(Args)]
pub(crate) struct Arguments {
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Kernel,
    /// The kernel's lsm= parameter; without it, the kernel's own default
    #[arg(long, value_name = "LIST", conflicts_with = "no_bpf_lsm")]
    lsm: Option<String>,
    /// Boot as hosts do on which bpf is not in the list of active LSMs
    #[arg(long)]
    no_bpf_lsm: bool,
    /// Run a real Ceph cluster beside the VM; the guest finds it through CEPH_MON, CEPH_SECRET, …
    #[arg(long)]
    ceph: bool,
    #[arg(long, default_value_t = 2)]
    smp: u32,
    #[arg(long, default_value = "4G")]
    memory: String,
    /// A further kernel parameter; may be given several times
    #[arg(long, value_name = "PARAMETER")]
    append: Vec<String>,
    /// Count instructions: one processor, one thread, repeatable
    #[arg(long)]
    icount: bool,
    /// End the VM after so many seconds (no limit for an interactive shell)
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    limit: u64,
    /// Real hosts instead: Debian 13 on a disk, with systemd, Ceph and Incus, started from a saved
    /// state
    #[arg(long, conflicts_with_all = ["lsm", "no_bpf_lsm", "ceph", "icount", "append"])]
    host: bool,
    /// With --host: booted (one host), seed (a cluster of one, with a pool, and two more hosts),
    /// members (two have joined)
    #[arg(long, requires = "host", default_value = "booted")]
    state: String,
    /// With --host: which host to show, store, n1, n2 or n3
    #[arg(long, requires = "host", default_value = "n1", value_name = "NAME")]
    on: String,
    /// With --host: the version of Incus
    #[arg(long, requires = "host", value_enum, default_value = "7.0")]
    incus: host::Incus,
    /// Command to run as root: one argument is a shell script, several are a command and its
    /// arguments. Nothing on a terminal: an interactive shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lsm {
    KernelDefault,
    WithoutBpf,
    List(String),
}

/// Machine to boot.
#[derive(Clone, Debug)]
pub(crate) struct Boot {
    pub kernel: Kernel,
    pub lsm: Lsm,
    pub ceph: bool,
    pub smp: u32,
    pub memory: String,
    pub append: Vec<String>,
    pub icount: bool,
    pub limit: Option<Duration>,
    /// The machine stands still for [`STANDS_STILL`] each time that so much has passed, as a
    /// hypervisor suspends one. Not with a cluster, which would go on.
    pub suspend_every: Option<Duration>,
    /// Run by bash in the guest; `None` is an interactive shell on this terminal.
    pub script: Option<String>,
    pub environment: Vec<(String, String)>,
}

/// A guest that has not come to its second stage by then never will: an emulated one loses a timer
/// now and then.
const START_LIMIT: Duration = Duration::from_secs(180);
/// So often such a guest is booted. Nothing has run in it.
const BOOTS: u32 = 3;
/// Time for which a suspended machine stands still.
const STANDS_STILL: Duration = Duration::from_secs(4);

impl Boot {
    /// The usual machine, running `script`.
    pub(crate) fn new(kernel: Kernel, script: String) -> Self {
        Self {
            kernel,
            lsm: Lsm::KernelDefault,
            ceph: false,
            smp: 2,
            memory: "4G".to_owned(),
            append: Vec::new(),
            icount: false,
            limit: Some(Duration::from_secs(900)),
            suspend_every: None,
            script: Some(script),
            environment: Vec::new(),
        }
    }
}

/// Outcome of a boot.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The command ran and ended with this status.
    Ended { status: i32, kernel_messages: String },
    /// It did not end by itself, or the guest died first.
    Broken { why: String },
}

impl Outcome {
    /// The command's own status; 125 if there is none.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Ended { status, .. } => ExitCode::from(u8::try_from(*status).unwrap_or(u8::MAX)),
            Self::Broken { why } => {
                eprintln!("xtask: {why}");
                ExitCode::from(125)
            }
        }
    }
}

/// The command `cargo xtask vm`.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let script = match arguments.command.as_slice() {
        [] if io::stdin().is_terminal() => None,
        [] => bail!("no command, and the input is no terminal for a shell: give one after `--`"),
        [script] => Some(script.clone()),
        words => Some(words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")),
    };
    if arguments.host {
        let limit = arguments.limit.to_string();
        let options = ["--state", &arguments.state, "--on", &arguments.on, "--limit", &limit];
        let arguments_ = options.into_iter().map(str::to_owned).chain(script).collect();
        let (kernel, incus) = (arguments.kernel, arguments.incus);
        return host::run::shell(&host::run::Shell { kernel, incus, arguments: arguments_ });
    }
    let boot_this = Boot {
        lsm: match arguments.lsm {
            Some(list) => Lsm::List(list),
            None if arguments.no_bpf_lsm => Lsm::WithoutBpf,
            None => Lsm::KernelDefault,
        },
        ceph: arguments.ceph,
        smp: arguments.smp,
        memory: arguments.memory,
        append: arguments.append,
        icount: arguments.icount,
        limit: script.is_some().then(|| Duration::from_secs(arguments.limit)),
        suspend_every: None,
        script,
        kernel: arguments.kernel,
        environment: Vec::new(),
    };
    show(&boot_this)
}

/// Boots, shows the guest's output as it comes, and passes its exit status on.
pub(crate) fn show(boot_this: &Boot) -> Result<ExitCode> {
    let outcome = boot(boot_this, &mut |output| {
        let mut stdout = io::stdout().lock();
        stdout.write_all(output)?;
        stdout.flush()
    })?;
    Ok(outcome.exit_code())
}

/// Boots, hands the guest's output to `on_output` as it comes, and returns when the machine is off.
pub(crate) fn boot(
    boot: &Boot,
    on_output: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<Outcome> {
    let uses: &[Use] = if boot.ceph { &[Use::Vm, Use::Ceph] } else { &[Use::Vm] };
    setup::ensure(uses, &[boot.kernel])?;
    for _ in 1..BOOTS {
        match boot_once(boot, on_output)? {
            (Outcome::Broken { why }, Followed::NotStarted) => {
                eprintln!("xtask: {why}\nxtask: it is booted again");
            }
            (outcome, _) => return Ok(outcome),
        }
    }
    Ok(boot_once(boot, on_output)?.0)
}

fn boot_once(
    boot: &Boot,
    on_output: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(Outcome, Followed)> {
    let kernel = Layout::open(boot.kernel)?;
    let cluster = if boot.ceph { Some(Cluster::prepare()?) } else { None };
    let mut environment = boot.environment.clone();
    environment.extend(cluster.iter().flat_map(Cluster::environment));
    let job = Job::create(boot, &kernel, &environment)?;
    let mut command = qemu::command(boot, &kernel, &job, Acceleration::choose(boot.icount)?);
    if let Some(cluster) = &cluster {
        let session = if boot.icount { ceph::SESSION_BY_INSTRUCTIONS } else { ceph::SESSION };
        command = cluster.wrap(&command, setup::is_root()?, session);
    }
    let mut machine = Machine::start(&command, &job, boot.script.is_none())?;
    let followed = machine.follow(boot, &job, on_output)?;
    drop(machine);
    let kernel_messages = progress::tail(&job.console(), 20);
    let why = match followed {
        Followed::Off => "the guest ended before its command did".to_owned(),
        Followed::NotStarted => {
            format!("the guest did not start within {} s and was ended", START_LIMIT.as_secs())
        }
        Followed::Limit => {
            let limit = boot.limit.unwrap_or_default().as_secs();
            format!("the guest was still running after {limit} s and was ended")
        }
    };
    let outcome = match job.status() {
        Some(status) => Outcome::Ended { status, kernel_messages },
        None => Outcome::Broken { why: broken(&job, &why) },
    };
    if matches!(outcome, Outcome::Ended { .. }) {
        job.remove();
    }
    Ok((outcome, followed))
}

fn broken(job: &Job, what: &str) -> String {
    format!(
        "{what}; its files are kept in {}\nQEMU's complaints:\n{}\nthe kernel's last lines:\n{}",
        job.directory.display(),
        progress::tail(&job.complaints(), 25),
        progress::tail(&job.console(), 25)
    )
}

/// Outcome of following a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Followed {
    /// It is off.
    Off,
    /// It hangs on its way up.
    NotStarted,
    /// It ran for as long as it may.
    Limit,
}

/// A running QEMU. It ends when this is dropped, and when this process dies.
struct Machine {
    child: Child,
}

impl Machine {
    fn start(command: &[String], job: &Job, interactive: bool) -> Result<Self> {
        let complaints = File::create(job.complaints()).context("create QEMU's log")?;
        // The kernel ends it with us, however we end; killing `unshare` ends its whole namespace.
        let mut start = Command::new("setpriv");
        start.args(["--pdeathsig", "KILL", "--"]).args(command).stderr(complaints);
        if interactive {
            start.stdin(Stdio::inherit()).stdout(Stdio::inherit());
        } else {
            start.stdin(Stdio::null()).stdout(Stdio::piped());
        }
        Ok(Self { child: start.spawn().context("start setpriv (package util-linux)")? })
    }

    /// Passes the output on until the machine is off, or a limit comes first.
    fn follow(
        &mut self,
        boot: &Boot,
        job: &Job,
        on_output: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Followed> {
        let Some(mut output) = self.child.stdout.take() else {
            self.child.wait().context("wait for QEMU")?;
            return Ok(Followed::Off);
        };
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let end = boot.limit.map(|limit| Instant::now() + limit);
        let next = || boot.suspend_every.map(|every| Instant::now() + every);
        let mut suspension = next();
        let mut start = Some(Instant::now() + START_LIMIT);
        loop {
            let wake = [end, suspension, start].into_iter().flatten().min();
            let left = wake.map_or(Duration::from_secs(3600), |at| {
                at.saturating_duration_since(Instant::now())
            });
            match receiver.recv_timeout(left) {
                Ok(chunk) => on_output(&chunk).context("pass on the guest's output")?,
                Err(RecvTimeoutError::Timeout) if end.is_some_and(|end| end <= Instant::now()) => {
                    return Ok(Followed::Limit);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if start.is_some_and(|at| at <= Instant::now()) {
                if !job.has_started() {
                    return Ok(Followed::NotStarted);
                }
                start = None;
            }
            if suspension.is_some_and(|at| at <= Instant::now()) {
                self.suspend()?;
                suspension = next();
            }
        }
        self.child.wait().context("wait for QEMU")?;
        Ok(Followed::Off)
    }

    fn suspend(&self) -> Result<()> {
        let pid = self.child.id().to_string();
        progress::capture(Command::new("kill").args(["-STOP", &pid]))?;
        thread::sleep(STANDS_STILL);
        progress::capture(Command::new("kill").args(["-CONT", &pid]))?;
        eprintln!("xtask: the machine stood still for {} s", STANDS_STILL.as_secs());
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `word` as one word of a shell's line.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
