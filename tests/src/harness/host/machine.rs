//! One virtual machine: its QEMU, and the operations on it from outside.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::qmp::Qmp;
use super::runner::{Ended, Runner, Running};
use super::settings::Settings;
use crate::harness::wait;

pub const QEMU: &str = "qemu-system-x86_64";
const MEMORY: &str = "2G";
const PROCESSORS: &str = "2";
/// A panic restarts the guest after ten seconds, so that the console holds its last words.
const PARAMETERS: &str = "console=ttyS0 root=/dev/vda rw quiet loglevel=4 panic=10 nokaslr \
                          mitigations=off tsc=nowatchdog net.ifnames=0";
/// From power on to the guest's runner, and for a reboot.
pub const UP_LIMIT: Duration = Duration::from_secs(300);
/// For a command, unless it says otherwise.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
const SAVE_LIMIT: Duration = Duration::from_secs(180);

/// Start of a machine: from a disk or a saved state.
#[derive(Clone, Copy, Debug)]
pub enum From<'a> {
    /// Power on, with this disk below.
    Disk(&'a Path),
    /// A saved state: the directory, and its name there.
    Saved(&'a Path, &'a str),
}

/// A running machine; it ends when this is dropped.
#[derive(Debug)]
pub struct Machine {
    pub name: String,
    directory: PathBuf,
    child: Child,
    qmp: Mutex<Qmp>,
    runner: Runner,
}

impl Machine {
    /// Starts it, stopped if it comes from a saved state. `network` is QEMU's options for the
    /// backend `net0`.
    pub fn start(
        name: &str,
        settings: &Settings,
        directory: &Path,
        from: From<'_>,
        network: &[String],
        payload: &Path,
    ) -> Result<Self> {
        let overlay = directory.join(format!("{name}.qcow2"));
        let below = match from {
            From::Disk(disk) => disk.to_owned(),
            From::Saved(saved, saved_name) => saved.join(format!("{saved_name}.qcow2")),
        };
        make_overlay(&overlay, &below)?;
        let socket = |what: &str| directory.join(format!("{name}.{what}"));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", QEMU]).args(options(settings, network));
        command.args(disk_options(&overlay, payload));
        for (what, id) in [("serial", "console"), ("runner", "lab"), ("shell", "shell")] {
            let path = socket(what).display().to_string();
            let backend = match what {
                "serial" => format!("file,id={id},path={path}"),
                _ => format!("socket,id={id},path={path},server=on,wait=off"),
            };
            command.args(["-chardev", &backend]);
        }
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", socket("qmp").display())]);
        if let From::Saved(saved, saved_name) = from {
            let memory = saved.join(format!("{saved_name}.memory"));
            command.args(["-incoming", &format!("exec:cat '{}'", memory.display())]);
        }
        let complaints = File::create(socket("qemu")).context("create QEMU's log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(complaints.try_clone()?)
            .stderr(complaints)
            .spawn()
            .context("start QEMU")?;
        let started = Qmp::connect(&socket("qmp"))
            .and_then(|qmp| Ok((qmp, Runner::connect(&socket("runner"))?)));
        let (qmp, runner) = started.with_context(|| {
            format!("machine {name}: {}", fs::read_to_string(socket("qemu")).unwrap_or_default())
        })?;
        Ok(Self {
            name: name.to_owned(),
            directory: directory.to_owned(),
            child,
            qmp: Mutex::new(qmp),
            runner,
        })
    }

    fn qmp(&self) -> MutexGuard<'_, Qmp> {
        self.qmp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a machine from a saved state go on, once its memory is whole.
    pub fn resume(&self) -> Result<()> {
        wait::until("the machine's saved memory is read", SAVE_LIMIT, || {
            let status = self.qmp().execute("query-status", json!({}))?;
            match status["status"].as_str() {
                Some("inmigrate") => Ok(false),
                Some("paused" | "postmigrate" | "prelaunch") => Ok(true),
                other => bail!("machine {}: QEMU is {other:?}", self.name),
            }
        })
        .with_context(|| self.last_words())?;
        self.qmp().execute("cont", json!({})).map(drop)
    }

    /// Stops its processors.
    pub fn pause(&self) -> Result<()> {
        self.qmp().execute("stop", json!({})).map(drop)
    }

    /// Writes its memory into `directory`, moves its disk there, and ends it. It must be paused.
    pub fn save(mut self, directory: &Path) -> Result<()> {
        let memory = directory.join(format!("{}.memory", self.name));
        let uri = format!("exec:cat >'{}'", memory.display());
        self.qmp()
            .execute("migrate-set-parameters", json!({"max-bandwidth": 4_000_000_000_u64}))?;
        self.qmp().execute("migrate", json!({"uri": uri}))?;
        wait::until("the machine's memory is written", SAVE_LIMIT, || {
            let answer = self.qmp().execute("query-migrate", json!({}))?;
            ensure!(answer["status"] != "failed", "QEMU could not save the machine: {answer}");
            Ok(answer["status"] == "completed")
        })?;
        self.qmp().execute("quit", json!({}))?;
        self.child.wait().context("wait for QEMU")?;
        let disk = format!("{}.qcow2", self.name);
        fs::rename(self.directory.join(&disk), directory.join(&disk))
            .context("move the machine's disk")
    }

    /// Cuts its power, and switches it on again.
    pub fn power_cut(&self) -> Result<()> {
        self.qmp().execute("system_reset", json!({})).map(drop)
    }

    /// Reboots it in order, and waits until its runner is there again.
    pub fn reboot(&self) -> Result<()> {
        let before = self.starts();
        self.run("systemctl --no-block reboot")?;
        self.wait_up(before)
    }

    /// Pulls its network cable, or plugs it in.
    pub fn link(&self, up: bool) -> Result<()> {
        self.qmp().execute("set_link", json!({"name": "net0", "up": up})).map(drop)
    }

    /// Number of starts of its runner: to be read before an act that starts it again.
    pub fn starts(&self) -> u64 {
        self.runner.starts()
    }

    /// Waits until the guest's runner has started more often than `before`.
    pub fn wait_up(&self, before: u64) -> Result<()> {
        self.runner.wait_started(before, UP_LIMIT).with_context(|| self.last_words())
    }

    /// Runs a script as root; it must succeed. Returns its output.
    pub fn run(&self, script: &str) -> Result<String> {
        let ended = self.attempt(script)?;
        ensure!(
            ended.status == 0,
            "{}: `{script}` ended with {}:\n{}",
            self.name,
            ended.status,
            ended.output.trim()
        );
        Ok(ended.output)
    }

    /// Runs a script as root, with any result.
    pub fn attempt(&self, script: &str) -> Result<Ended> {
        self.attempt_within(script, COMMAND_LIMIT)
    }

    /// The same with another limit.
    pub fn attempt_within(&self, script: &str, limit: Duration) -> Result<Ended> {
        let ended = self.begin(script, limit)?.end();
        ended.with_context(|| format!("{}: `{script}`\n{}", self.name, self.last_words()))
    }

    /// Starts a script, and goes on.
    pub fn begin(&self, script: &str, limit: Duration) -> Result<Running> {
        self.runner.begin(script, limit)
    }

    /// Waits until a script succeeds.
    pub fn wait_for(&self, what: &str, limit: Duration, script: &str) -> Result<String> {
        let mut last = String::new();
        let waited = wait::until_some(what, limit, || {
            let ended = self.attempt(script)?;
            last.clone_from(&ended.output);
            Ok((ended.status == 0).then_some(ended.output))
        });
        waited.with_context(|| format!("{}: the last answer was: {}", self.name, last.trim()))
    }

    /// The socket of its shell, for a person.
    pub fn shell_socket(&self) -> PathBuf {
        self.directory.join(format!("{}.shell", self.name))
    }

    /// Last messages of the kernel, and complaints of QEMU.
    fn last_words(&self) -> String {
        let tail = |what: &str| {
            let bytes =
                fs::read(self.directory.join(format!("{}.{what}", self.name))).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            lines[lines.len().saturating_sub(20)..].join("\n")
        };
        format!(
            "the last lines of {}'s \
             kernel:\n{}\nQEMU:\n{}",
            self.name,
            tail("serial"),
            tail("qemu")
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn make_overlay(overlay: &Path, below: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(below).arg(overlay);
    let output = command.output().context("start qemu-img")?;
    ensure!(
        output.status.success(),
        "qemu-img: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// A saved state can only be read by a machine with the same devices: everything but files and the
/// network's backend is the same for all.
fn options(settings: &Settings, network: &[String]) -> Vec<OsString> {
    let mut line: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| line.extend(words.iter().map(OsString::from));
    add(&[
        "-nodefaults",
        "-display",
        "none",
        "-machine",
        "q35",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
    ]);
    add(&["-smp", PROCESSORS, "-m", MEMORY]);
    // The guest's clock goes with its processors: saved states stay where they were in time.
    add(&["-rtc", "base=utc,clock=vm"]);
    add(&[
        "-kernel",
        &settings.kernel.to_string_lossy(),
        "-initrd",
        &settings.initrd.to_string_lossy(),
    ]);
    let parameters = format!("{PARAMETERS} {}", settings.parameters);
    add(&["-append", &parameters, "-serial", "chardev:console"]);
    add(&[
        "-object",
        "rng-random,id=random,filename=/dev/urandom",
        "-device",
        "virtio-rng-pci,rng=random",
    ]);
    // Free memory of the guest is free here, and not saved.
    add(&["-device", "virtio-balloon-pci,free-page-reporting=on"]);
    add(&["-device", "virtio-serial-pci"]);
    add(&[
        "-device",
        "virtserialport,chardev=lab,name=guard.lab",
        "-device",
        "virtconsole,chardev=shell",
    ]);
    for option in network {
        add(&["-netdev", option]);
    }
    add(&["-device", "virtio-net-pci,netdev=net0,romfile="]);
    line
}

fn disk_options(overlay: &Path, payload: &Path) -> Vec<String> {
    let drive = |path: &Path, rest: &str| format!("file={},if=none,{rest}", path.display());
    [
        "-drive",
        &drive(overlay, "id=disk,format=qcow2,cache=unsafe,discard=unmap"),
        "-device",
        "virtio-blk-pci,drive=disk",
        "-drive",
        &drive(payload, "id=payload,format=raw,readonly=on"),
        "-device",
        "virtio-blk-pci,drive=payload",
    ]
    .map(str::to_owned)
    .to_vec()
}
