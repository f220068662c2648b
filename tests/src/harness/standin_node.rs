//! A node whose Incus is not real: its `local.db`, written here, and a daemon that answers what a
//! test lays down (`peers::incusd`), in the cgroup of its unit and under the daemon's name.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use rusqlite::Connection;
use serde_json::{Value, json};

use super::attempt::in_cgroup;
use super::guarded::Guarded;
use super::scratch::Scratch;
use super::{command, wait};

const ADDRESS: &str = "10.99.0.2:8443";
/// The node's name in its cluster, and another member's.
const OWN: &str = "node2";
const OTHER: &str = "node3";
const MEMBERS: &str = "/1.0/cluster/members";
const OPERATIONS: &str = "/1.0/operations";

/// A node below a guarded root. Drop it before the root.
#[derive(Debug)]
pub struct StandinNode {
    directory: PathBuf,
    unit: String,
    answers: BTreeMap<String, Value>,
    daemon: Option<Daemon>,
    scratch: Scratch,
}

#[derive(Debug)]
struct Daemon {
    child: Child,
    orders: ChildStdin,
    confirmed: BufReader<ChildStdout>,
}

/// The keys of a root that follows the Incus of this unit, which is the root's only actor.
pub fn settings(unit: &str) -> String {
    format!(
        "join = \"incus\"\nincus_unit = \"{unit}\"\nactors = [{{ cgroup = \
         \"/system.slice/{unit}\" }}]"
    )
}

impl StandinNode {
    /// A node that was never in a cluster. Its daemon does not run yet.
    pub fn new(directory: &Path, unit: &str) -> Result<Self> {
        let scratch = Scratch::new("incus")?;
        let program = std::env::current_exe().context("where is this program?")?;
        symlink(&program, scratch.join("incusd")).context("give this program the daemon's name")?;
        let mut node = Self {
            directory: directory.to_owned(),
            unit: unit.to_owned(),
            answers: BTreeMap::new(),
            daemon: None,
            scratch,
        };
        fs::create_dir_all(node.cgroup())
            .with_context(|| format!("create {}", node.cgroup().display()))?;
        node.write_config(None, 0)?;
        node.lay_down_standalone()?;
        Ok(node)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("unix.socket")
    }

    pub fn local_db(&self) -> PathBuf {
        self.directory.join("database/local.db")
    }

    fn cgroup(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup/system.slice").join(&self.unit)
    }

    /// Whether a deletion passes that the storage daemon itself makes.
    pub fn deletes(&self, file: &Path) -> Result<bool> {
        let rm = command::run("sh", &["-c", "command -v rm"])?;
        in_cgroup(&self.cgroup(), Path::new(rm.trim()), file)
    }

    /// Starts the daemon, and waits until it listens.
    pub fn start(&mut self) -> Result<()> {
        let script = "echo $$ > \"$1/cgroup.procs\" && exec \"$2\" peer incusd \"$3\"";
        let mut child = Command::new("sh")
            .args(["-c", script, "sh"])
            .args([self.cgroup(), self.scratch.join("incusd"), self.socket()])
            .env("INCUS_DIR", &self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start sh")?;
        let orders = child.stdin.take().context("no standard input")?;
        let confirmed = BufReader::new(child.stdout.take().context("no standard output")?);
        self.daemon = Some(Daemon { child, orders, confirmed });
        self.order(&json!({"answers": self.answers}))
    }

    /// SIGKILL. Its socket stays behind, as Incus's does.
    pub fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        daemon.child.kill().context("kill the daemon")?;
        daemon.child.wait().context("wait for the daemon")?;
        Ok(())
    }

    /// Writes `local.db` anew in one transaction, as the daemon does.
    pub fn write_config(&self, cluster_address: Option<&str>, raft_nodes: u32) -> Result<()> {
        let path = self.local_db();
        let directory = path.parent().context("no directory")?;
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let mut database =
            Connection::open(&path).with_context(|| format!("open {}", path.display()))?;
        let transaction = database.transaction()?;
        transaction.execute_batch(
            "CREATE TABLE IF NOT EXISTS config (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
                key VARCHAR(255) NOT NULL, value TEXT, UNIQUE (key));
             CREATE TABLE IF NOT EXISTS raft_nodes (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
                address TEXT NOT NULL, role INTEGER NOT NULL DEFAULT 0, name TEXT NOT NULL DEFAULT '',
                UNIQUE (address));
             DELETE FROM config; DELETE FROM raft_nodes;",
        )?;
        if let Some(address) = cluster_address {
            let insert = "INSERT INTO config (key, value) VALUES ('cluster.https_address', ?1)";
            transaction.execute(insert, [address])?;
        }
        for number in 1..=raft_nodes {
            let address =
                if number == 2 { ADDRESS.to_owned() } else { format!("10.99.0.{number}:8443") };
            let insert = "INSERT INTO raft_nodes (address, name) VALUES (?1, ?2)";
            transaction.execute(insert, [address, format!("node{number}")])?;
        }
        transaction.commit().with_context(|| format!("write {}", path.display()))
    }

    fn lay_down_standalone(&mut self) -> Result<()> {
        self.answer(OPERATIONS, sync(json!({})))?;
        self.answer(MEMBERS, error(500, "Server is not clustered"))
    }

    /// `PUT /1.0/cluster`: the address is written, and the operation runs.
    pub fn begin_join(&mut self) -> Result<()> {
        self.lay_down_join()?;
        self.event(&operation_event(103))
    }

    /// The same, with nobody there to hear of it.
    pub fn lay_down_join(&mut self) -> Result<()> {
        self.answer(OPERATIONS, sync(json!({"running": [operation(103)]})))?;
        self.write_config(Some(ADDRESS), 0)
    }

    /// The operation ends with an error, before anything has made the node a member.
    pub fn fail_join(&mut self) -> Result<()> {
        self.answer(OPERATIONS, sync(json!({})))?;
        self.event(&operation_event(400))
    }

    /// The node is a member; the operation still runs.
    pub fn become_member(&mut self) -> Result<()> {
        self.write_config(Some(ADDRESS), 2)?;
        self.answer(
            MEMBERS,
            sync(json!([member("node1", "10.99.0.1:8443"), member("node2", ADDRESS)])),
        )
    }

    /// Raft nodes are written, and the cluster knows nothing of this node.
    pub fn become_stranger(&mut self) -> Result<()> {
        self.write_config(Some(ADDRESS), 2)?;
        self.answer(MEMBERS, sync(json!([member("node1", "10.99.0.1:8443")])))
    }

    /// Another member joins: the stream tells of it, and so would the operations of the whole
    /// cluster.
    pub fn another_joins(&mut self, code: u32) -> Result<()> {
        self.event(&event("operation", &operation(code), OTHER))
    }

    /// The cluster removes a member by force: this one, or another.
    pub fn removes(&mut self, own: bool) -> Result<()> {
        let member = if own { OWN } else { OTHER };
        let source = format!("/1.0/cluster/members/{member}");
        let metadata = json!({"action": "cluster-member-removed", "source": source});
        if own {
            self.answer(MEMBERS, error(500, "RAFT cluster is unavailable"))?;
        }
        self.event(&event("lifecycle", &metadata, "node1"))
    }

    /// The daemon answers nothing but 503, as while it starts, or waits for the upgrade of the
    /// others.
    pub fn is_blocked(&mut self) -> Result<()> {
        for path in [OPERATIONS, MEMBERS] {
            self.answer(path, error(503, "Daemon is starting up"))?;
        }
        Ok(())
    }

    /// A member again, that answers.
    pub fn answers_again(&mut self) -> Result<()> {
        self.answer(OPERATIONS, sync(json!({})))?;
        self.become_member()
    }

    /// The node leaves its cluster in order: its database names none any more, its address stays.
    pub fn leave(&mut self) -> Result<()> {
        self.event(&event(
            "lifecycle",
            &json!({"action": "cluster-disabled", "source": "/1.0/cluster"}),
            OWN,
        ))?;
        self.write_config(Some(ADDRESS), 0)?;
        self.answer(MEMBERS, error(500, "Server is not clustered"))
    }

    /// The operation is over, with this code.
    pub fn end_join(&mut self, code: u32) -> Result<()> {
        self.answer(OPERATIONS, sync(json!({})))?;
        self.event(&operation_event(code))
    }

    /// The operation is over, with nobody there to hear of it.
    pub fn lay_down_end(&mut self) -> Result<()> {
        self.answer(OPERATIONS, sync(json!({})))
    }

    /// Puts something in the place of `local.db` that is no database.
    pub fn damage(&self) -> Result<()> {
        let (path, good, bad) = self.copies();
        fs::copy(&path, &good).with_context(|| format!("copy {}", path.display()))?;
        fs::write(&bad, "This is no database, and is longer than the header of one. ".repeat(100))?;
        fs::rename(&bad, &path).with_context(|| format!("replace {}", path.display()))
    }

    /// Restores the files that [`damage`](Self::damage) has replaced.
    pub fn repair(&self) -> Result<()> {
        let (path, good, _) = self.copies();
        fs::rename(&good, &path).with_context(|| format!("replace {}", path.display()))
    }

    fn copies(&self) -> (PathBuf, PathBuf, PathBuf) {
        let path = self.local_db();
        let (good, bad) = (path.with_extension("good"), path.with_extension("bad"));
        (path, good, bad)
    }

    /// Makes a process one of the daemon's.
    pub fn adopt(&self, pid: u32) -> Result<()> {
        let file = self.cgroup().join("cgroup.procs");
        fs::write(&file, pid.to_string()).with_context(|| format!("write {}", file.display()))
    }

    /// From here on nothing is answered any more. Connections are taken all the same.
    pub fn hang(&mut self) -> Result<()> {
        for path in [OPERATIONS, MEMBERS, "/1.0/events"] {
            self.answers.insert(path.to_owned(), Value::Null);
        }
        self.order(&json!({"answers": self.answers}))
    }

    fn answer(&mut self, path: &str, answer: Value) -> Result<()> {
        self.answers.insert(path.to_owned(), answer);
        if self.daemon.is_none() {
            return Ok(());
        }
        self.order(&json!({"answers": self.answers}))
    }

    /// Sends an event, once the agent follows them.
    fn event(&mut self, event: &Value) -> Result<()> {
        self.order(&json!({"event": event}))
    }

    fn order(&mut self, order: &Value) -> Result<()> {
        let daemon = self.daemon.as_mut().context("the daemon does not run")?;
        writeln!(daemon.orders, "{order}").with_context(|| format!("order the daemon {order}"))?;
        let mut line = String::new();
        daemon.confirmed.read_line(&mut line).context("wait for the daemon")?;
        ensure!(line == "done\n", "the daemon says {line:?} to {order}");
        Ok(())
    }

    /// Report of `guardctl status` on it.
    pub fn report(&self, ground: &Guarded) -> Result<Value> {
        let found = self.find(ground)?;
        found.with_context(|| format!("the status has no node {}", self.directory.display()))
    }

    fn find(&self, ground: &Guarded) -> Result<Option<Value>> {
        let status = ground.status()?;
        let root = self.directory.to_string_lossy();
        let nodes = status["nodes"].as_array().context("the status has no nodes")?;
        Ok(nodes.iter().find(|node| node["root"] == *root).cloned())
    }

    /// Waits until it is in this state.
    pub fn wait_for_state(&self, ground: &Guarded, state: &str) -> Result<Value> {
        let mut last = Value::Null;
        let waited = wait::until_some(&format!("the node is {state}"), wait::LIMIT, || {
            // An edited policy may have to be read first.
            last = self.find(ground)?.unwrap_or_default();
            Ok((last["state"] == state).then(|| last.clone()))
        });
        waited.with_context(|| format!("last seen: {last}\n{}", ground.installation.log()))
    }

    /// Waits until it was looked at so often, with whatever result: what has happened before was
    /// seen then.
    pub fn wait_for_looks(&self, ground: &Guarded, looks: u32) -> Result<Value> {
        let mut report = self.report(ground)?;
        for _ in 0..looks {
            let before = report["looked"].clone();
            report = wait::until_some("the agent looks at the node", wait::LIMIT, || {
                let report = self.report(ground)?;
                Ok((report["looked"] != before).then_some(report))
            })?;
        }
        Ok(report)
    }
}

impl Drop for StandinNode {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // It may have ended already.
            let _ = daemon.child.kill();
            let _ = daemon.child.wait();
        }
        // Best effort: they go with the machine.
        let _ = fs::remove_dir_all(self.directory.join("database"));
        let _ = fs::remove_file(self.socket());
        let _ = fs::remove_dir(self.cgroup());
    }
}

fn sync(metadata: Value) -> Value {
    json!({"type": "sync", "status": "Success", "status_code": 200, "operation": "", "error_code": 0, "error": "",
        "metadata": metadata})
}

fn error(code: u32, text: &str) -> Value {
    json!({"type": "error", "status": "", "status_code": 0, "operation": "", "error_code": code, "error": text,
        "metadata": null})
}

fn operation(code: u32) -> Value {
    json!({"id": "5d1c", "class": "task", "description": "Joining \
                                                          cluster", "status_code": code, "location": "none",
        "err": if code == 400 { "Failed to join" } else { "" }})
}

fn operation_event(code: u32) -> Value {
    event("operation", &operation(code), OWN)
}

/// An event as the server of that name sends it.
fn event(kind: &str, metadata: &Value, sender: &str) -> Value {
    json!({"type": kind, "timestamp": "2026-08-01T10:00:00.1Z", "metadata": metadata, "location": sender, "project": ""})
}

fn member(name: &str, address: &str) -> Value {
    json!({"server_name": name, "url": format!("https://{address}"), "database": true, "status": "Online"})
}
