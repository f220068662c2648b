//! Cost of following a node for its Incus: requests, and lines in its log.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::harness::host::cluster;
use crate::harness::host::guard::Guard;
use crate::harness::host::{Lab, Machine, Name, State};
use crate::harness::registry::Test;

pub(super) const TESTS: &[Test] =
    &[Test::new("cost_of_following_a_member_is_small", cost).within_seconds(1800).only_in_full()];

/// Time for which requests are counted.
const WHILE: Duration = Duration::from_secs(120);
/// Requests in a minute to the Incus of one member, ours alone.
const REQUESTS_A_MINUTE: usize = 60;
/// In the address of a request of the test's own.
const KNOWN: &str = "counted=1";
/// Lines of Incus's log that our requests cause: it leaves out members it takes for offline when a
/// question goes to all, and nobody is there for an event stream.
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
            "note: {}: {requests} requests in a minute; {lines} lines of its log since the join \
             began",
            name.as_str()
        );
        ensure!(
            lines == 0,
            "{lines} lines of {}'s log are there because it was asked",
            name.as_str()
        );
        ensure!(
            requests <= REQUESTS_A_MINUTE,
            "{}'s Incus is asked {requests} times in a minute",
            name.as_str()
        );
    }
    Ok(())
}

/// Requests of this host's own programs in a minute, by Incus's own word. The one that listens for
/// it is not counted, and one that is made meanwhile shows that requests are seen.
fn requests(host: &Machine) -> Result<usize> {
    let listen = format!(
        "(sleep 10; incus query '/1.0?{KNOWN}') >/root/known 2>&1 & timeout {} incus monitor \
         --type logging --format json >/root/requests 2>&1; grep 'Handling API request' \
         /root/requests | grep unix >/root/ours; grep -c '{KNOWN}' /root/ours; grep -vc '{KNOWN}' \
         /root/ours || true",
        WHILE.as_secs()
    );
    let said = host.attempt_within(&listen, WHILE + Duration::from_secs(60))?;
    let counts: Vec<usize> =
        said.output.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let [known, counted] = counts[..] else { bail!("count the requests: {}", said.output) };
    if known == 0 {
        bail!(
            "the log does not tell of a request that was made: {}",
            host.run("head -c 3000 /root/requests; cat /root/known")?
        );
    }
    Ok(counted * 60 / WHILE.as_secs() as usize)
}

fn lines_because_of_us(host: &Machine) -> Result<usize> {
    let mut lines = 0;
    for text in BECAUSE_OF_US {
        let count = format!(
            "(cat /var/log/incus/incusd.log; journalctl -u incus --no-pager) 2>/dev/null | grep -c \
             '{text}' || true"
        );
        lines += host.run(&count)?.trim().parse::<usize>().context("count lines of the log")?;
    }
    Ok(lines)
}
