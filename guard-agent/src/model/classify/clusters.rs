//! Which Ceph cluster a monitor belongs to. Pure: the caller passes the text.
//!
//! The old spelling of a CephFS source names some monitors and no cluster. The monitors and their
//! order may differ with each mount, so they cannot be the identity; the cluster's id is, if
//! anything on the host tells it.

use std::collections::{BTreeMap, BTreeSet};

use super::ceph;
use super::server::Server;
use crate::model::mounts::Snapshot;

/// Monitors and the ids of their clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clusters {
    /// From the kernel: other mounts, and the monitor maps of its clients.
    seen: Monitors,
    /// From files of configuration, which may be out of date.
    configured: Monitors,
}

impl ceph::Identity {
    /// The same for every mount of the same path, with any monitors. If nothing on the host knows
    /// the cluster, it is left out: then two clusters' pools of one name and path share an id, and
    /// a seal holds for both.
    pub fn canonical(&self, clusters: &Clusters) -> String {
        let cluster =
            self.fsid.as_deref().or_else(|| clusters.fsid(&self.monitors)).unwrap_or_default();
        format!("{cluster}\0{}\0{}", self.filesystem.as_deref().unwrap_or_default(), self.path)
    }
}

type Monitors = BTreeMap<Server, BTreeSet<String>>;

impl Clusters {
    /// Takes facts that mounts show themselves: an id and monitors.
    pub fn learn_mounts(&mut self, snapshot: &Snapshot) {
        for identity in snapshot.entries().iter().filter_map(ceph::identity) {
            if let Some(fsid) = &identity.fsid {
                learn(&mut self.seen, fsid, identity.monitors);
            }
        }
    }

    /// Takes debugfs's data on a client of the kernel: its directory's name,
    /// `<fsid>.client<number>`, and its file `monmap`.
    pub fn learn_client(&mut self, directory: &str, monmap: &str) {
        let Some((fsid, _client)) = directory.split_once(".client") else { return };
        // `<tab>mon0<tab>(1)10.0.0.1:6789`, behind a line with the epoch.
        let addresses =
            monmap.lines().filter_map(|line| line.rsplit_once('\t')).map(|(_, address)| address);
        let bare =
            addresses.map(|address| address.split_once(')').map_or(address, |(_, bare)| bare));
        if let Some(fsid) = ceph::known_fsid(fsid) {
            learn(&mut self.seen, &fsid, bare.filter_map(Server::parse));
        }
    }

    /// Takes a `ceph.conf`.
    pub fn learn_configuration(&mut self, text: &str) {
        let settings = settings(text);
        let values = |wanted: &'static [&'static str]| {
            settings
                .iter()
                .filter(|(key, _)| wanted.contains(&key.as_str()))
                .map(|(_, value)| value)
        };
        let Some(fsid) = values(&["fsid"]).next().and_then(|fsid| ceph::known_fsid(fsid)) else {
            return;
        };
        let monitors: Vec<Server> =
            values(&["mon_host", "mon_addr"]).flat_map(|value| monitors(value)).collect();
        learn(&mut self.configured, &fsid, monitors);
    }

    /// The id of the one cluster that any of these monitors belongs to.
    pub fn fsid(&self, monitors: &[Server]) -> Option<&str> {
        [&self.seen, &self.configured].into_iter().find_map(|known| cluster(known, monitors))
    }

    /// Whether a mount of CephFS tells no id, and the kernel has not told that of its monitors.
    pub fn lacks(&self, snapshot: &Snapshot) -> bool {
        let unknown = |identity: ceph::Identity| {
            identity.fsid.is_none() && cluster(&self.seen, &identity.monitors).is_none()
        };
        snapshot.entries().iter().filter_map(ceph::identity).any(unknown)
    }
}

fn learn(known: &mut Monitors, fsid: &str, monitors: impl IntoIterator<Item = Server>) {
    for monitor in monitors {
        known.entry(monitor).or_default().insert(fsid.to_owned());
    }
}

/// Host and port say more than the host alone, on which monitors of two clusters may run; but a
/// monitor has a port for each version of the protocol.
fn cluster<'k>(known: &'k Monitors, monitors: &[Server]) -> Option<&'k str> {
    let exact: BTreeSet<&String> =
        monitors.iter().filter_map(|monitor| known.get(monitor)).flatten().collect();
    let on_host = |server: &&Server| monitors.iter().any(|monitor| monitor.host == server.host);
    let found = match exact.is_empty() {
        false => exact,
        true => known
            .iter()
            .filter(|(server, _)| on_host(server))
            .flat_map(|(_, fsids)| fsids)
            .collect(),
    };
    let mut found = found.into_iter();
    found.next().filter(|_| found.next().is_none()).map(String::as_str)
}

/// Addresses in `mon_host`: `10.0.0.1,mon.example:6789`, `[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]`.
fn monitors(value: &str) -> Vec<Server> {
    let tokens = value.split([',', ' ', '\t']).filter(|token| !token.is_empty());
    let address = |token: &str| {
        let inner = token.strip_prefix('[').filter(|rest| rest.starts_with('v')).unwrap_or(token);
        let bare = ["v1:", "v2:", "any:"]
            .iter()
            .find_map(|version| inner.strip_prefix(version))
            .unwrap_or(inner);
        let bare = bare.split_once('/').map_or(bare, |(address, _nonce)| address);
        let closed = bare.matches(']').count() > bare.matches('[').count();
        Server::parse(if closed { bare.strip_suffix(']').unwrap_or(bare) } else { bare })
    };
    tokens.filter_map(address).collect()
}

/// Keys and values of a `ceph.conf`, of all sections. Blanks, hyphens and underscores are the same
/// in a key.
pub fn settings(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().map(|line| line.split(['#', ';']).next().unwrap_or_default());
    let normal = |key: &str| key.trim().replace([' ', '-'], "_").to_lowercase();
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (normal(key), value.trim().trim_matches('"').to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const F0: &str = "f0f0f0f0-0000-4000-8000-000000000001";
    const F1: &str = "f1f1f1f1-0000-4000-8000-000000000002";

    fn identity(source: &str, options: &str) -> ceph::Identity {
        ceph::read(std::ffi::OsStr::new(source), options).unwrap()
    }

    fn servers(listed: &[&str]) -> Vec<Server> {
        listed.iter().filter_map(|address| Server::parse(address)).collect()
    }

    #[test]
    fn one_id_whatever_monitors_a_mount_names() {
        const FS: &str = "mds_namespace=fs";
        let first = identity("10.0.0.1:6789,10.0.0.2:6789:/pool", FS);
        let (reordered, subset) =
            (identity("10.0.0.2,10.0.0.1:/pool", FS), identity("10.0.0.3:6789:/pool/", FS));
        let new = identity("admin@f0.fs=/pool", "mon_addr=10.0.0.1:3300");
        let unknown = Clusters::default();
        assert_eq!(first.canonical(&unknown), reordered.canonical(&unknown));
        assert_eq!(first.canonical(&unknown), subset.canonical(&unknown));
        assert_ne!(first.canonical(&unknown), identity("10.0.0.1:/other", FS).canonical(&unknown));
        let mut known = Clusters::default();
        known.learn_configuration("fsid = f0\nmon_host = 10.0.0.1,10.0.0.2,10.0.0.3");
        for old in [&first, &reordered, &subset] {
            assert_eq!(old.canonical(&known), new.canonical(&unknown));
        }
        assert_ne!(first.canonical(&known), identity("10.7.0.1:/pool", FS).canonical(&known));
        // A configuration file may be out of date. So a cluster's id from there names a pool, but
        // sets no two apart.
        assert!(!first.certainly_apart(&identity("admin@f1.fs=/pool", "")));
    }

    #[test]
    fn ids_with_a_cluster_are_what_they_were() {
        let canonical = |source, options| identity(source, options).canonical(&Clusters::default());
        assert_eq!(canonical("admin@f0.fs=/pool", "mon_addr=10.0.0.1:3300"), "f0\0fs\0/pool");
        assert_eq!(canonical("10.0.0.1:/pool", "fsid=f0"), "f0\0\0/pool");
    }

    #[test]
    fn a_configuration_names_monitors_in_many_ways() {
        for mon_host in [
            "mon_host = 10.0.0.1,10.0.0.2:6789",
            "mon host = 10.0.0.1 10.0.0.2   # both",
            "mon-host = [v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0] [v2:10.0.0.2:3300/0]",
            "mon_host = \"v2:10.0.0.1:3300/0, v1:10.0.0.2:6789/0\"",
            "[mon.a]\nmon addr = 10.0.0.1:6789\n[mon.b]\nmon addr = 10.0.0.2:6789",
        ] {
            let mut clusters = Clusters::default();
            clusters.learn_configuration(&format!("[global]\n; old\n  fsid = {F0}\n{mon_host}\n"));
            for monitor in ["10.0.0.1:6789", "10.0.0.2", "10.0.0.2:3300"] {
                assert_eq!(clusters.fsid(&servers(&[monitor])), Some(F0), "{mon_host} {monitor}");
            }
            assert_eq!(clusters.fsid(&servers(&["10.0.0.3:6789"])), None, "{mon_host}");
        }
        let six = "fsid = F0\nmon_host = \
                   [v2:[FD00:0::1]:3300/0,v1:[fd00::1]:6789/0],[fd00::2]:6789,fd00::3";
        assert_eq!(
            monitors(settings(six)[1].1.as_str()),
            servers(&["[fd00::1]:3300", "[fd00::1]:6789", "[fd00::2]:6789", "[fd00::3]"])
        );
    }

    #[test]
    fn what_names_no_cluster_teaches_nothing() {
        let mut clusters = Clusters::default();
        clusters.learn_configuration("mon_host = 10.0.0.1");
        clusters.learn_configuration("# fsid = f0\nmon_host = 10.0.0.1");
        clusters.learn_configuration(
            "fsid = 00000000-0000-0000-0000-000000000000\nmon_host = \
             10.0.0.1",
        );
        clusters.learn_client("meta", "epoch 1\n\tmon0\t(1)10.0.0.1:6789\n");
        assert_eq!(clusters, Clusters::default());
    }

    #[test]
    fn the_kernel_goes_before_a_configuration() {
        let mut clusters = Clusters::default();
        clusters.learn_configuration(&format!("fsid = {F1}\nmon_host = 10.0.0.1,10.0.0.9"));
        clusters.learn_client(
            &format!("{F0}.client4242"),
            "epoch 3\n\tmon0\t(1)10.0.0.1:6789\n\tmon1\t10.0.0.2:6789\n",
        );
        assert_eq!(clusters.fsid(&servers(&["10.0.0.1:6789"])), Some(F0));
        assert_eq!(clusters.fsid(&servers(&["10.0.0.2:6789", "10.0.0.8:6789"])), Some(F0));
        assert_eq!(clusters.fsid(&servers(&["10.0.0.9:6789"])), Some(F1));
    }

    #[test]
    fn two_clusters_on_one_host_are_told_by_port_or_not_at_all() {
        let mut clusters = Clusters::default();
        clusters.learn_client(&format!("{F0}.client1"), "epoch 1\n\tmon0\t(1)10.0.0.1:6789\n");
        clusters.learn_client(&format!("{F1}.client2"), "epoch 1\n\tmon0\t(1)10.0.0.1:16789\n");
        assert_eq!(clusters.fsid(&servers(&["10.0.0.1:16789"])), Some(F1));
        assert_eq!(clusters.fsid(&servers(&["10.0.0.1:6789"])), Some(F0));
        assert_eq!(clusters.fsid(&servers(&["10.0.0.1:3300"])), None);
    }

    #[test]
    fn mounts_teach_what_they_show_and_tell_what_is_lacking() {
        let old = "2 1 0:2 / /b rw - ceph 10.0.0.2:6789,10.0.0.1:6789:/b rw,mds_namespace=fs\n";
        let new = format!("1 1 0:1 / /a rw - ceph admin@{F0}.fs=/a rw,mon_addr=10.0.0.1:3300\n");
        let mut clusters = Clusters::default();
        assert!(clusters.lacks(&Snapshot::parse(old.as_bytes())));
        assert!(!clusters.lacks(&Snapshot::parse(new.as_bytes())));
        clusters.learn_mounts(&Snapshot::parse(format!("{new}{old}").as_bytes()));
        assert!(
            !clusters.lacks(&Snapshot::parse(old.as_bytes())),
            "also after the other mount is gone"
        );
        assert_eq!(clusters.fsid(&servers(&["10.0.0.1:6789"])), Some(F0));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[a=v:/\\[\\]#; \\n\\t(),0-9é]{0,40}") {
            let mut clusters = Clusters::default();
            clusters.learn_configuration(&format!("fsid = 1\nmon_host = {text}"));
            clusters.learn_client(&text, &text);
        }
    }
}
