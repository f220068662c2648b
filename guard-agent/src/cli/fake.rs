//! An agent for tests only: gives the answers that a test sets, and remembers the requests.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use clap::Parser as _;
use guard_common::Mode;

use super::global::Global;
use super::join::JoinArgs;
use super::node::Node;
use super::wipe::WipeArgs;
use super::{Cli, Command};
use crate::host::paths::SOCKET_NAME;
use crate::host::wait::Interrupt;
use crate::model::control::report::{AnsweredBy, PoolCountersReport, PoolReport, RollbackReport};
use crate::model::control::{RefusalReport, Reply, Request, Response};
use crate::model::events::Name;

/// Lives until the test's process ends.
pub(super) struct FakeAgent {
    directory: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl FakeAgent {
    pub(super) fn start(answer: impl Fn(&Request) -> Reply + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(SOCKET_NAME)).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
                let request = Request::parse(line.trim_end().as_bytes()).unwrap();
                let reply = Response::Ok(answer(&request));
                log.lock().unwrap().push(request);
                stream.write_all(reply.to_line().as_bytes()).unwrap();
            }
        });
        Self { directory, asked }
    }

    pub(super) fn global(&self) -> Global {
        Global { run_dir: self.directory.path().to_owned(), json: false, timeout: None }
    }

    /// Names of the requests so far.
    pub(super) fn asked(&self) -> Vec<&'static str> {
        self.asked.lock().unwrap().iter().map(Request::name).collect()
    }
}

pub(super) const ROOT: &str = "/var/lib/incus";

/// A node's state, which refuses a rollback unless a join has failed.
pub(super) fn rollback_status(state: &str) -> Reply {
    let refused = !state.starts_with("join-");
    let refusal = RefusalReport {
        code: "node-state".to_owned(),
        message: format!("the node is {state}"),
        fix: "nothing".to_owned(),
    };
    Reply::Rollback(Box::new(RollbackReport {
        root: ROOT.to_owned(),
        state: state.to_owned(),
        running: false,
        lazy: false,
        steps: Vec::new(),
        waiting_for: 0,
        outcome: None,
        refusal: refused.then_some(refusal),
    }))
}

pub(super) fn pool(name: &str, mode: Mode) -> PoolReport {
    PoolReport {
        name: name.to_owned(),
        pool_id: "0000000000c0ffee".to_owned(),
        device: "0:44".to_owned(),
        filesystem: "ceph".to_owned(),
        source: "admin@fsid.cephfs=/".to_owned(),
        mountpoints: vec![format!("{ROOT}/storage-pools/{name}")],
        root: Some(ROOT.to_owned()),
        mode: Name(mode),
        mode_cause: None,
        generation: 3,
        release_ends: None,
        remaining_seconds: None,
        counters: PoolCountersReport::default(),
        answered_by: AnsweredBy::Agent,
    }
}

/// The node of the preset.
pub(super) fn node() -> Node {
    node_at(Path::new(ROOT))
}

/// A node below a directory, on a host where nothing runs.
pub(super) fn node_in(directory: &Path) -> Node {
    let (root, proc) = (directory.join("incus"), directory.join("proc"));
    let process = proc.join("1");
    fs::create_dir_all(&root).unwrap();
    fs::create_dir_all(process.join("ns")).unwrap();
    symlink("mnt:[1]", process.join("ns/mnt")).unwrap();
    symlink("/", process.join("root")).unwrap();
    fs::write(process.join("mountinfo"), "1 0 8:1 / / rw - ext4 a rw\n").unwrap();
    fs::write(process.join("stat"), format!("1 (init) S 0{}\n", " 0".repeat(40))).unwrap();
    let mut node = node_at(&root);
    node.incus.proc_root = proc;
    node
}

/// Writes a program. Not by this process: another test that forks meanwhile would hold the file
/// open for writing, and the kernel runs no such file.
pub(super) fn script(path: &Path, text: &str) {
    let mut shell = std::process::Command::new("sh")
        .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
}

/// A process of the host's that has a file open.
pub(super) fn process_with_file(node: &Node, pid: u32, comm: &str, file: &Path) {
    let process = node.incus.proc_root.join(pid.to_string());
    fs::create_dir_all(process.join("ns")).unwrap();
    fs::create_dir_all(process.join("fd")).unwrap();
    symlink("mnt:[1]", process.join("ns/mnt")).unwrap();
    symlink("/", process.join("root")).unwrap();
    symlink(file, process.join("fd/3")).unwrap();
    fs::write(process.join("comm"), comm).unwrap();
    let zeros = " 0".repeat(40);
    fs::write(process.join("stat"), format!("{pid} ({comm}) S 1{zeros}\n")).unwrap();
}

fn node_at(root: &Path) -> Node {
    let text = format!(
        "version = 1\n[[root]]\npreset = \"incus\"\npath = \
         {:?}\n",
        root.display().to_string()
    );
    let policy = crate::model::policy::parse(&text, Path::new("test")).unwrap();
    Node::of(policy, None, &crate::model::mounts::Snapshot::parse(b"")).unwrap()
}

pub(super) fn join_args(arguments: &[&str]) -> JoinArgs {
    let cli = Cli::try_parse_from([&["guardctl", "join"], arguments].concat()).unwrap();
    match cli.command {
        Command::Join(args) => args,
        other => panic!("{other:?}"),
    }
}

pub(super) fn wipe_args(arguments: &[&str]) -> WipeArgs {
    let cli = Cli::try_parse_from([&["guardctl", "wipe"], arguments].concat()).unwrap();
    match cli.command {
        Command::Wipe(args) => args,
        other => panic!("{other:?}"),
    }
}

/// Never interrupted while the other end lives.
pub(super) fn uninterrupted() -> (Interrupt, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Interrupt::by(reader.into()), writer)
}
