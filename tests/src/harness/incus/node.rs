//! One incusd with its client and its socket.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::machine::{JOINER_ADDRESS, SEED_ADDRESS, SEED_NETWORK};
use crate::harness::{command, wait};

const DAEMON: &str = "/usr/libexec/incus/incusd";
/// From start to ready, on an emulated machine.
const START_LIMIT: Duration = Duration::from_secs(120);
/// incusd waits for its operations, and on a broken one for its database.
const STOP_LIMIT: Duration = Duration::from_secs(90);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// For one call of the client. What hangs has failed.
const CLIENT_LIMIT: Duration = Duration::from_secs(150);

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// In network, mount and UTS namespaces of its own, with another INCUS_DIR.
    Seed,
    /// As on a host: the initial namespaces, `/var/lib/incus`, the cgroup of `incus.service`.
    Joiner,
}

impl Role {
    pub fn directory(self) -> &'static Path {
        Path::new(match self {
            Self::Seed => "/var/lib/incus-seed",
            Self::Joiner => "/var/lib/incus",
        })
    }

    pub fn logs(self) -> &'static Path {
        Path::new(match self {
            Self::Seed => "/var/log/incus-seed",
            Self::Joiner => "/var/log/incus",
        })
    }

    pub fn cgroup(self) -> &'static Path {
        Path::new(match self {
            Self::Seed => "/sys/fs/cgroup/system.slice/incus-seed.service",
            Self::Joiner => "/sys/fs/cgroup/system.slice/incus.service",
        })
    }

    pub fn address(self) -> &'static str {
        match self {
            Self::Seed => SEED_ADDRESS,
            Self::Joiner => JOINER_ADDRESS,
        }
    }

    /// Command that enters the node's namespaces, in front of its daemon. A process keeps its id
    /// through all of it.
    fn entrance(self) -> &'static str {
        match self {
            Self::Joiner => "exec sh -c",
            Self::Seed => {
                "exec nsenter --net=/run/netns/seed unshare --mount --uts --propagation private sh \
                 -c"
            }
        }
    }

    /// Commands that furnish the daemon's namespaces: `/sys` must show the seed's own network.
    fn furniture(self) -> &'static str {
        match self {
            Self::Joiner => "hostname node2",
            Self::Seed => {
                "mkdir -p /run/seed-sys && mount -t sysfs sysfs /run/seed-sys && mount --rbind \
                 /sys/fs/cgroup /run/seed-sys/fs/cgroup && mount --rbind /sys/kernel/security \
                 /run/seed-sys/kernel/security && mount --rbind /run/seed-sys /sys && hostname \
                 node1"
            }
        }
    }
}

/// A running (or ended) incusd.
#[derive(Debug)]
pub struct Node {
    pub role: Role,
    child: Child,
}

impl Node {
    /// Starts it and waits until it is ready.
    pub fn start(role: Role) -> Result<Self> {
        let mut node = Self::spawn(role)?;
        node.wait_ready(START_LIMIT)?;
        Ok(node)
    }

    /// Starts it, and waits for nothing.
    pub fn spawn(role: Role) -> Result<Self> {
        for directory in [role.directory(), role.logs(), role.cgroup()] {
            fs::create_dir_all(directory)
                .with_context(|| format!("create {}", directory.display()))?;
        }
        let script = format!(
            "{} '{} && echo $$ >{}/cgroup.procs && exec {DAEMON} --group root --debug --logfile \
             {}'",
            role.entrance(),
            role.furniture(),
            role.cgroup().display(),
            log_path(role).display(),
        );
        let printed = role.logs().join("printed");
        let output = File::options()
            .create(true)
            .append(true)
            .open(&printed)
            .context("open incusd's output")?;
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir("/").stdin(Stdio::null());
        environment(&mut command, role);
        let child =
            command.stdout(output.try_clone()?).stderr(output).spawn().context("start incusd")?;
        Ok(Self { role, child })
    }

    /// Waits until it is ready; fails at once if it ends before.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let role = self.role;
        wait::until("incusd is ready", limit, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("incusd of the {role:?} ended before it was ready: {status}");
            }
            Ok(ask(role, "/internal/ready", ANSWER_LIMIT)
                .is_ok_and(|answer| answer["status_code"] == 200))
        })
        .with_context(|| log_tail(role))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid()).context("incusd's pid")?);
        kill(pid, signal).with_context(|| format!("send {signal} to incusd"))
    }

    /// Stops it as `systemctl stop` does: SIGTERM, and the time to end.
    pub fn stop(&mut self) -> Result<()> {
        if self.runs()? {
            self.signal(Signal::SIGTERM)?;
            self.wait_end(STOP_LIMIT).with_context(|| log_tail(self.role))?;
        }
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill incusd")?;
        self.wait_end(STOP_LIMIT)
    }

    pub fn wait_end(&mut self, limit: Duration) -> Result<()> {
        wait::until("incusd ends", limit, || Ok(self.child.try_wait()?.is_some()))
    }

    /// Runs the client, which must succeed.
    pub fn client(&self, arguments: &[&str]) -> Result<String> {
        let start = Instant::now();
        let output = client(self.role, arguments, CLIENT_LIMIT)?;
        // Shows the position of a test that ran into its limit.
        println!("{:.1} s for incus {}", start.elapsed().as_secs_f64(), arguments.join(" "));
        let text = command::text(&output);
        ensure!(output.status.success(), "incus {}: {}", arguments.join(" "), text.trim());
        Ok(text)
    }

    /// Runs the client, which must fail, or not answer in time.
    pub fn client_failing(&self, arguments: &[&str], limit: Duration) -> Result<String> {
        let output = client(self.role, arguments, limit)?;
        let text = command::text(&output);
        ensure!(
            !output.status.success(),
            "incus {} succeeded, but had to fail",
            arguments.join(" ")
        );
        Ok(text)
    }

    /// Asks the socket.
    pub fn ask(&self, path: &str) -> Result<Value> {
        ask(self.role, path, Duration::from_secs(60))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already. Whatever it has started goes with its cgroup.
        let _ = self.child.kill();
        let _ = fs::write(self.role.cgroup().join("cgroup.kill"), "1");
        let _ = self.child.wait();
    }
}

/// Runs the client on a node.
fn client(role: Role, arguments: &[&str], limit: Duration) -> Result<Output> {
    let mut command = client_command(role, arguments, limit);
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start incus {}", arguments.join(" ")))
}

/// The client on a node, in its network: a joining client itself fetches the seed's certificate.
fn client_command(role: Role, arguments: &[&str], limit: Duration) -> Command {
    let (network, limit) = (format!("--net={SEED_NETWORK}"), limit.as_secs().to_string());
    let limited = ["timeout", "--kill-after=5", &limit, "/usr/bin/incus"];
    let line: Vec<&str> = match role {
        Role::Joiner => limited.to_vec(),
        Role::Seed => ["nsenter", &network].into_iter().chain(limited).collect(),
    };
    let mut command = Command::new(line[0]);
    command.args(&line[1..]).args(arguments);
    environment(&mut command, role);
    command.env("INCUS_CONF", format!("/run/incus-client-{role:?}"));
    command
}

/// Starts `incus admin init --preseed`, its output in pipes.
pub fn initialise(role: Role, preseed: &str) -> Result<Child> {
    let mut command = client_command(role, &["admin", "init", "--preseed"], CLIENT_LIMIT);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start incus admin init")?;
    let mut input = child.stdin.take().context("the client's input is a pipe")?;
    input.write_all(preseed.as_bytes()).context("hand over the preseed")?;
    Ok(child)
}

fn environment(command: &mut Command, role: Role) {
    // The cluster's own configuration is for the tests' commands; incusd finds /etc/ceph.
    command
        .env_remove("CEPH_CONF")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env_remove("INCUS_DIR");
    if role == Role::Seed {
        command.env("INCUS_DIR", role.directory());
    }
}

/// A request over the node's socket, with a limit for each read and write.
fn ask(role: Role, path: &str, limit: Duration) -> Result<Value> {
    let socket: PathBuf = role.directory().join("unix.socket");
    let mut stream =
        UnixStream::connect(&socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: incus\r\n\r\n")
        .with_context(|| format!("ask for {path}"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("read the answer to {path}"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).with_context(|| format!("parse the answer to {path}: {body:?}"))
}

/// The daemon's debug log.
pub fn log_path(role: Role) -> PathBuf {
    role.logs().join("incusd.log")
}

/// The last lines of the output of a node's daemon, its log among it.
pub fn log_tail(role: Role) -> String {
    const LINES: usize = 15;
    const WIDTH: usize = 240;
    let text = fs::read(role.logs().join("printed")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    // Requests and answers in full say little here.
    let lines: Vec<String> = text
        .lines()
        .filter(|line| !line.contains("msg=\"WriteJSON") && !line.contains("msg=\"API Request"))
        .map(|line| line.chars().take(WIDTH).collect())
        .collect();
    format!(
        "the end of the {role:?}'s \
         log:\n{}",
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    )
}
