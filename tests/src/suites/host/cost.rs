//! What following a node costs its Incus: requests, and lines in its log.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::harness::host::cluster;
use crate::harness::host::guard::Guard;
use crate::harness::host::{Lab, Machine, Name, State};
use crate::harness::registry::Test;

pub const TESTS: &[Test] =
    &[Test::new("cost_of_following_a_member_is_small", cost).within_seconds(1800).only_in_full()];

/// For how long requests are counted.
const WHILE: Duration = Duration::from_secs(120);
/// Requests in a minute to the Incus of one member, ours alone.
const REQUESTS_A_MINUTE: usize = 60;
/// What Incus's log says because of who asks it: that it leaves out members it takes for offline when a question goes to all,
/// and that nobody is there for an event stream.
const BECAUSE_OF_US: &[&str] = &["Excluding offline member", "Failed upgrading event connection"];

fn cost() -> Result<()> {
    let lab = Lab::start(State::Members, &Name::ALL)?;
    let hosts = Name::NODES.map(|name| lab.host(name));
    for host in hosts {
        Guard::install(host)?;
    }
    cluster::join(&lab, Name::N3)?.succeeds()?;
    for host in hosts {
        Guard::of(host).becomes("joined", "guarded")?;
    }
    for (name, host) in Name::NODES.into_iter().zip(hosts) {
        let lines = lines_because_of_us(host)?;
        let requests = requests(host)?;
        println!(
            "note: {}: {requests} requests in a minute; {lines} lines of its log since the join began",
            name.as_str()
        );
        ensure!(lines == 0, "{lines} lines of {}'s log are there because it was asked", name.as_str());
        ensure!(
            requests <= REQUESTS_A_MINUTE,
            "{}'s Incus is asked {requests} times in a minute",
            name.as_str()
        );
    }
    Ok(())
}

/// Requests of this host's own programs in a minute, by Incus's own word. The one that listens for it is not counted.
fn requests(host: &Machine) -> Result<usize> {
    let listen = format!(
        "timeout {} incus monitor --type logging --loglevel debug --format json >/root/requests; \
         grep 'Handling API request' /root/requests | grep -c 'protocol\":\"unix' || true",
        WHILE.as_secs()
    );
    let said = host.attempt_within(&listen, WHILE + Duration::from_secs(60))?;
    let counted: usize = said
        .output
        .lines()
        .rev()
        .find_map(|line| line.trim().parse().ok())
        .with_context(|| format!("count the requests: {}", said.output))?;
    Ok(counted * 60 / WHILE.as_secs() as usize)
}

fn lines_because_of_us(host: &Machine) -> Result<usize> {
    let mut lines = 0;
    for text in BECAUSE_OF_US {
        let count = format!(
            "(cat /var/log/incus/incusd.log; journalctl -u incus --no-pager) 2>/dev/null | grep -c '{text}' || true"
        );
        lines += host.run(&count)?.trim().parse::<usize>().context("count lines of the log")?;
    }
    Ok(lines)
}
