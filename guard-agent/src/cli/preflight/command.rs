//! `guardctl preflight`: is this node fit to join a cluster? Every finding has a fix. Needs no
//! agent, and says so as a finding when there is none.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::cli::error::{CliError, NodeError};
use crate::cli::global::{Global, expect_reply, write_json};
use crate::cli::node;
use crate::cli::node::Node;
use crate::cli::preflight;
use crate::cli::preflight::{Agent, Question, Remote, Source, TokenText, preseed};
use crate::cli::stop;
use crate::cli::stop::{Stop, StopArgs};
use crate::cli::text::safe;
use crate::host::doctor;
use crate::host::doctor::{Check, CheckState};
use crate::host::service::{Host, Scope};
use crate::host::wait::Interrupt;
use crate::model::control::{Reply, Request};
use crate::model::errors;
use crate::model::exit::Exit;
use crate::model::join::Daemon;
use crate::model::policy;

#[derive(Clone, Debug, clap::Args)]
pub struct PreflightArgs {
    /// The node's guarded root. Needed only if there are several nodes.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// The cluster's members: the output of `incus cluster list --format json` on one of them.
    #[arg(long, value_name = "FILE", conflicts_with = "remote")]
    pub members: Option<PathBuf>,
    /// Ask a member that the incus client on this host knows by this name.
    #[arg(long, value_name = "NAME", value_parser = Remote::named)]
    pub remote: Option<Remote>,
    /// Ask the cluster to remove an offline member with this node's name or address. Refused while
    /// anything of an earlier join is left here.
    #[arg(long, requires = "remote")]
    pub remove_stale_member: bool,
    /// The preseed for `incus admin init --preseed`, or a cloud-init document that holds one.
    #[arg(long, value_name = "FILE")]
    pub preseed: Option<PathBuf>,
    /// A file with the join token; `-`: standard input.
    #[arg(long, value_name = "FILE")]
    pub token: Option<PathBuf>,
    /// The name that this node will have. Default: its host name.
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,
    /// The address that this node will have.
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,
}

/// Shows every finding. Exit 7 if one of them forbids the join.
pub fn run(global: &Global, args: &PreflightArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    let checks = check(global, args)?.checks;
    if global.json {
        write_json(out, &checks)?;
    } else {
        show(&checks, out)?;
    }
    Ok(if is_fit(&checks) { Exit::Ok } else { Exit::Degraded })
}

/// Whether no finding forbids the join.
pub fn is_fit(checks: &[Check]) -> bool {
    doctor::worst(checks) != CheckState::Fail
}

/// As `doctor` shows it.
pub fn show(checks: &[Check], out: &mut impl Write) -> Result<(), CliError> {
    let text = doctor::Report(checks).to_string();
    // Names that others chose (members, mounts) must not steer the terminal.
    text.lines().try_for_each(|line| Ok(writeln!(out, "{}", safe(line))?))
}

/// The findings of a preflight.
pub struct Checked {
    pub root: PathBuf,
    pub checks: Vec<Check>,
    /// The text for Incus to read: exactly what was checked.
    pub preseed: Option<String>,
}

/// Makes all checks.
pub fn check(global: &Global, args: &PreflightArgs) -> Result<Checked, CliError> {
    let text = args.preseed.as_deref().map(|path| read(path, "read the preseed")).transpose()?;
    let preseed = text.as_deref().map(preseed::parse);
    let known =
        preseed.as_ref().and_then(|preseed| preseed.as_ref().ok()).cloned().unwrap_or_default();
    let (node, agent) = node_and_agent(global, args.root.as_deref())?;
    let token = match &args.token {
        Some(path) => Some(TokenText::Printed(read(path, "read the token")?)),
        None => known.cluster_token.map(TokenText::Bare),
    };
    let members = match (&args.members, &args.remote) {
        (Some(path), _) => Source::File(path.clone()),
        (None, Some(remote)) => Source::Remote(remote.clone()),
        (None, None) => Source::Nowhere,
    };
    let host_name = || {
        nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let (root, service) = (node.root.clone(), service(&node)?);
    let mut facts = preflight::gather(Question {
        root: node.root,
        place: node.place,
        incus: node.incus,
        policy: node.policy,
        agent,
        server_name: args.server_name.clone().or(known.server_name).unwrap_or_else(host_name),
        address: args.address.clone().or(known.server_address),
        members: members.clone(),
        token,
        preseed: preseed.map(|preseed| preseed.map_err(|error| errors::chain(&error))),
    });
    if let (true, Source::Remote(mut remote)) = (args.remove_stale_member, members) {
        facts.stale =
            Some(preflight::stale::remove(&facts, &mut remote).map(|(removed, members)| {
                facts.members = Some(Ok(members));
                removed
            }));
    }
    let preseed = match &facts.preseed {
        Some(Ok(preseed)) => Some(preseed.text.clone()),
        _ => text,
    };
    let mut checks = preflight::checks(&facts);
    checks.extend(service);
    Ok(Checked { root, checks, preseed })
}

/// Whether the incus client can reach the daemon, or start it.
fn service(node: &Node) -> Result<Option<Check>, CliError> {
    let (interrupt, host) = (Interrupt::catch()?, Host::this());
    let (args, scope) = (StopArgs::default(), Scope::Daemon);
    let stop = Stop { node, host: &host, args: &args, interrupt: &interrupt, scope };
    let reach = stop.reach(&mut |_| Ok(()))?;
    Ok(match (reach, stop::daemon(node)?) {
        (Some(reach), _) => Some(preflight::service::check(&reach)),
        (None, Daemon::Stopped) => {
            Some(preflight::service::not_started(&host.manager.start_command(&[])))
        }
        (None, _) => None,
    })
}

/// Without an agent, or with one that does not know the node, the preset's node is looked at.
fn node_and_agent(global: &Global, root: Option<&Path>) -> Result<(Node, Agent), CliError> {
    let status = match global.ask(&Request::Status) {
        Ok(Reply::Status(status)) => status,
        Ok(_) => {
            return Err(crate::cli::client::ClientError::OtherAnswer { request: "status" }.into());
        }
        Err(error) if error.exit() == Exit::Unreachable => {
            return Ok((preset(root)?, Agent::Unreachable(errors::chain(&error))));
        }
        Err(error) => return Err(error),
    };
    let posture = status.posture.posture;
    let text = expect_reply!(global, Request::PolicyShow, Reply::PolicyText(policy) => policy);
    let policy =
        policy::parse(&text.text, Path::new(&text.path)).map_err(CliError::ForeignPolicy)?;
    match Node::of(policy, root, &node::mount_table()?) {
        Ok(node) => {
            let report = status.roots.iter().find(|report| Path::new(&report.path) == node.root);
            let in_force = report.is_some_and(|report| report.in_force);
            Ok((node, Agent::Guards { posture, in_force }))
        }
        Err(NodeError::NoNode | NodeError::Unknown { .. }) => {
            Ok((preset(root)?, Agent::Unguarded(posture)))
        }
        Err(error) => Err(error.into()),
    }
}

/// The node of the preset `incus`, at another path if one is given.
fn preset(root: Option<&Path>) -> Result<Node, CliError> {
    let path = root
        .map(|root| {
            format!(
                "path = \
                 {:?}\n",
                root.display().to_string()
            )
        })
        .unwrap_or_default();
    let text = format!("version = 1\n[[root]]\npreset = \"incus\"\n{path}");
    let policy =
        policy::parse(&text, Path::new("(the preset)")).map_err(CliError::ForeignPolicy)?;
    Ok(Node::of(policy, root, &node::mount_table()?)?)
}

/// A text from a file, or standard input for `-`.
fn read(path: &Path, operation: &'static str) -> Result<String, CliError> {
    let failed = |source| NodeError::Io { operation, source };
    let file: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(path).map_err(failed)?),
    };
    let mut text = String::new();
    file.take(preseed::LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > preseed::LIMIT {
        return Err(failed(io::ErrorKind::FileTooLarge.into()).into());
    }
    Ok(text)
}
