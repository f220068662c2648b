//! Entries that are removed, and entries that never are.

use super::*;
use crate::cli::preflight::tests::{fit, leftover};

/// A cluster that does as it is told, or not.
struct Fake {
    members: Vec<Member>,
    refuses: bool,
    keeps: bool,
    removed: Vec<String>,
}

impl Cluster for Fake {
    fn members(&mut self) -> Result<Vec<Member>, String> {
        Ok(self.members.clone())
    }

    fn remove(&mut self, name: &str) -> Result<(), String> {
        if self.refuses {
            return Err("not permitted".to_owned());
        }
        self.removed.push(name.to_owned());
        if !self.keeps {
            self.members.retain(|member| member.server_name != name);
        }
        Ok(())
    }
}

fn cluster(name: &str, address: &str, status: &str) -> Fake {
    let member = |name: &str, address: &str, status: &str| Member {
        server_name: name.to_owned(),
        url: format!("https://{address}"),
        status: status.to_owned(),
    };
    let members = vec![member("n1", "10.0.0.1:8443", "Online"), member(name, address, status)];
    Fake { members, refuses: false, keeps: false, removed: Vec::new() }
}

#[test]
fn an_offline_entry_of_this_node_is_removed_and_shown_to_be_gone() {
    for (name, address) in
        [("n2", "10.0.0.2:8443"), ("n2", "10.0.0.99:8443"), ("old", "10.0.0.2:8443")]
    {
        let mut cluster = cluster(name, address, "Offline");
        let (removed, left) = remove(&fit(), &mut cluster).unwrap();
        assert_eq!((removed, left.len()), (vec![name.to_owned()], 1));
        assert_eq!(cluster.removed, [name]);
    }
}

#[test]
fn nothing_that_may_live_is_removed() {
    for status in ["Online", "Evacuated", "Blocked", ""] {
        let mut cluster = cluster("n2", "10.0.0.2:8443", status);
        assert!(remove(&fit(), &mut cluster).unwrap_err().contains("not as offline"), "{status}");
        assert!(cluster.removed.is_empty());
    }
    let mut facts = fit();
    facts.address_is_local = Some(false);
    let mut mistaken = cluster("old", "10.0.0.2:8443", "Offline");
    assert!(remove(&facts, &mut mistaken).unwrap_err().contains("another server"));
    let mut other = cluster("n7", "10.0.0.7:8443", "Offline");
    assert_eq!(remove(&fit(), &mut other).unwrap().0, Vec::<String>::new());
    assert!(mistaken.removed.is_empty() && other.removed.is_empty());
}

#[test]
fn nothing_is_removed_from_a_node_that_is_not_clean() {
    type Change = fn(&mut Facts);
    let cases: [Change; 4] = [
        |facts| facts.config = Config::cluster(Some("a"), 2),
        |facts| facts.config = Config::Unreadable { why: "locked".to_owned() },
        |facts| facts.leftovers = Ok(vec![leftover()]),
        |facts| facts.leftovers = Err("no permission".to_owned()),
    ];
    for change in cases {
        let mut facts = fit();
        change(&mut facts);
        let mut cluster = cluster("n2", "10.0.0.2:8443", "Offline");
        assert!(remove(&facts, &mut cluster).is_err());
        assert!(cluster.removed.is_empty());
    }
}

#[test]
fn a_removal_counts_when_the_list_says_so() {
    let mut refusing = Fake { refuses: true, ..cluster("n2", "10.0.0.2:8443", "Offline") };
    assert!(remove(&fit(), &mut refusing).unwrap_err().contains("not permitted"));
    let mut keeping = Fake { keeps: true, ..cluster("n2", "10.0.0.2:8443", "Offline") };
    assert!(remove(&fit(), &mut keeping).unwrap_err().contains("still listed"));
}
