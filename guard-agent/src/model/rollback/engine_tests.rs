//! The engine on machines that do not exist: mount trees with the kernel's rules, and processes
//! that hold things.

use proptest::prelude::*;

use super::*;
use crate::model::mounts::Snapshot;
use crate::model::rollback::Via;

const ROOT: &str = "/var/lib/incus";

#[derive(Clone, Debug)]
struct Mounted {
    namespace: u64,
    id: u32,
    parent: u32,
    dev: u32,
    at: String,
    fs_type: &'static str,
}

/// A machine. Namespace 1 is the host's.
#[derive(Clone, Debug, Default)]
struct Machine {
    mounts: Vec<Mounted>,
    /// Mount ids that somebody uses.
    busy: BTreeSet<u32>,
    /// Devices whose superblock somebody keeps after a lazy unmount.
    kept: BTreeSet<u32>,
    stuck: BTreeSet<u32>,
    known: BTreeMap<u32, u64>,
    unmounted: Vec<u32>,
    no_answer: bool,
    /// Number of times that a mount comes back.
    remounts: u32,
}

impl Machine {
    fn mount(
        mut self,
        namespace: u64,
        id: u32,
        parent: u32,
        dev: u32,
        at: &str,
        fs_type: &'static str,
    ) -> Self {
        self.mounts.push(Mounted { namespace, id, parent, dev, at: at.to_owned(), fs_type });
        self
    }

    fn targets(&self) -> Vec<Target> {
        let target = |(dev, generation): (&u32, &u64)| Target {
            dev: *dev,
            generation: *generation,
            name: format!("pool{generation}"),
        };
        self.known.iter().map(target).collect()
    }

    fn roll_back(&mut self, lazy: bool) -> RollbackOutcome {
        let targets = self.targets();
        self.roll_back_as(Allowed { lazy, force: true }, &targets)
    }
}

impl Machine {
    fn roll_back_as(&mut self, allowed: Allowed, targets: &[Target]) -> RollbackOutcome {
        run(self, targets, Path::new(ROOT), allowed, &mut |_| {})
    }
}

impl Host for Machine {
    fn tables(&mut self) -> Result<Vec<NamespaceTable>, String> {
        let mut namespaces: BTreeMap<u64, String> = BTreeMap::new();
        for mount in &self.mounts {
            let Mounted { namespace, id, parent, dev, at, fs_type } = mount;
            let line = format!("{id} {parent} 0:{dev} / {at} rw - {fs_type} s rw\n");
            namespaces.entry(*namespace).or_default().push_str(&line);
        }
        Ok(namespaces
            .into_iter()
            .map(|(namespace, text)| NamespaceTable {
                namespace,
                is_host: namespace == 1,
                pid: u32::try_from(namespace).unwrap_or(0) * 100,
                mounts: Snapshot::parse(text.as_bytes()),
            })
            .collect())
    }

    fn alive(&mut self) -> Result<BTreeSet<u64>, String> {
        if self.no_answer {
            return Err("no maps".to_owned());
        }
        let lives = |dev: &u32| {
            self.kept.contains(dev) || self.mounts.iter().any(|mount| mount.dev == *dev)
        };
        Ok(self
            .known
            .iter()
            .filter(|(dev, _)| lives(dev))
            .map(|(_, generation)| *generation)
            .collect())
    }

    fn unmount(&mut self, step: &Step, lazy: bool) -> UnmountOutcome {
        let tables = self.tables().unwrap();
        let table = tables.iter().find(|table| table.namespace == step.namespace).unwrap();
        let Some(entry) = table.mounts.mount(step.mount_id) else { return UnmountOutcome::Gone };
        if let Some(top) = self.mounts.iter().find(|mount| mount.parent == entry.mount_id) {
            return UnmountOutcome::Covered { by: top.at.clone() };
        }
        if self.stuck.contains(&step.mount_id) {
            return UnmountOutcome::TimedOut;
        }
        if self.busy.contains(&step.mount_id) && !lazy {
            return UnmountOutcome::Busy;
        }
        if self.busy.contains(&step.mount_id) {
            self.kept.insert(step.dev);
        }
        if self.remounts > 0 {
            self.remounts -= 1;
        } else {
            self.mounts.retain(|mount| mount.id != step.mount_id);
        }
        self.unmounted.push(step.mount_id);
        UnmountOutcome::Unmounted
    }

    fn holders(&mut self, wanted: &[Wanted]) -> Result<Vec<Holder>, String> {
        let uses = |each: &&Wanted| each.mount_ids.iter().any(|id| self.busy.contains(id));
        let via = vec![Via::OpenFile { descriptor: 3, path: "/x".to_owned() }];
        let holder = |each: &Wanted| Holder {
            generation: each.generation,
            pid: 77,
            command: "vi".to_owned(),
            via: via.clone(),
        };
        Ok(wanted.iter().filter(uses).map(holder).collect())
    }

    fn name(&mut self, pid: u32) -> String {
        format!("c{pid}")
    }

    fn wait_for_end(&mut self, generations: &BTreeSet<u64>) -> Result<BTreeSet<u64>, String> {
        Ok(generations.intersection(&self.alive()?).copied().collect())
    }
}

fn pool_in_two_namespaces() -> Machine {
    Machine { known: BTreeMap::from([(43, 7)]), ..Machine::default() }
        .mount(1, 1, 0, 8, "/", "ext4")
        .mount(1, 78, 1, 43, "/var/lib/incus/storage-pools/shared", "ceph")
        .mount(2, 50, 0, 9, "/", "ext4")
        .mount(2, 51, 50, 43, "/data", "ceph")
}

#[test]
fn everything_goes_in_every_namespace() {
    let mut machine = pool_in_two_namespaces();
    let outcome = machine.roll_back(false);
    assert!(outcome.is_complete() && outcome.problems.is_empty(), "{outcome:?}");
    assert_eq!(machine.unmounted, [78, 51]);
    assert_eq!(outcome.steps.len(), 2);
}

#[test]
fn a_holder_is_named_and_lazily_detached_only_if_asked() {
    let mut machine = pool_in_two_namespaces();
    machine.busy.insert(51);
    let outcome = machine.clone().roll_back(false);
    let [remaining] = &outcome.remaining[..] else { panic!("{outcome:?}") };
    assert_eq!((remaining.holders[0].pid, remaining.mounts.len()), (77, 1));
    assert!(remaining.fix.contains("77") && remaining.fix.contains("--lazy"), "{}", remaining.fix);
    assert!(!remaining.mounts[0].in_host);

    let lazily = machine.roll_back(true);
    let [remaining] = &lazily.remaining[..] else { panic!("{lazily:?}") };
    assert_eq!((remaining.mounts.len(), remaining.holders.len()), (0, 1));
    assert!(!remaining.fix.contains("--lazy"), "{}", remaining.fix);
    // The holder goes: then so has the superblock, and the next rollback finds nothing to do.
    machine.kept.clear();
    assert!(machine.roll_back(false).is_complete());
}

#[test]
fn no_answer_of_the_servers_is_no_end_and_no_hang() {
    let mut machine = pool_in_two_namespaces();
    machine.stuck.insert(78);
    let outcome = machine.roll_back(true);
    assert!(outcome.remaining[0].fix.contains("do not answer"), "{outcome:?}");
}

#[test]
fn without_the_kernels_word_nothing_is_gone() {
    let mut machine = pool_in_two_namespaces();
    machine.no_answer = true;
    let outcome = machine.roll_back(false);
    assert!(!outcome.is_complete() && !outcome.problems.is_empty(), "{outcome:?}");
    assert_eq!(machine.unmounted, [0_u32; 0]);
}

#[test]
fn who_mounts_again_and_again_is_not_raced_for_ever() {
    let mut machine = pool_in_two_namespaces();
    machine.remounts = u32::MAX;
    let outcome = machine.roll_back(false);
    assert!(
        outcome.problems.iter().any(|problem| problem.contains("mounts these filesystems again")),
        "{outcome:?}"
    );
}

#[test]
fn a_strangers_mount_keeps_the_pool_and_is_named() {
    let mut machine = pool_in_two_namespaces().mount(
        1,
        90,
        78,
        17,
        "/var/lib/incus/storage-pools/shared/disk",
        "ext4",
    );
    let outcome = machine.roll_back(true);
    assert_eq!(machine.unmounted, [51]);
    let [remaining] = &outcome.remaining[..] else { panic!("{outcome:?}") };
    assert!(remaining.obstacles[0].contains("shared/disk"), "{remaining:?}");
    assert!(remaining.fix.contains("shared/disk"), "{remaining:?}");
}

/// Trees of mounts in two namespaces; numbers choose each mount's parent.
fn machines() -> impl Strategy<Value = Machine> {
    let kinds = prop::sample::select(vec![(43, "ceph"), (44, "ceph"), (50, "tmpfs"), (17, "ext4")]);
    let mount = (kinds, 0_usize..8, 0_u64..2, prop::bool::weighted(0.2), "[ab]");
    prop::collection::vec(mount, 0..12).prop_map(|choices| {
        let mut machine =
            Machine { known: BTreeMap::from([(43, 7), (44, 8)]), ..Machine::default() }
                .mount(1, 1, 0, 8, "/", "ext4")
                .mount(1, 2, 1, 8, ROOT, "ext4")
                .mount(2, 3, 0, 9, "/", "ext4");
        for (index, ((dev, fs_type), parent, namespace, busy, name)) in
            choices.into_iter().enumerate()
        {
            let inside: Vec<&Mounted> =
                machine.mounts.iter().filter(|m| m.namespace == namespace + 1).collect();
            let parent = inside[parent % inside.len()].clone();
            // One mount of a parent and a place; a second one would be stacked on the first.
            let at = format!("{}/{name}", parent.at.trim_end_matches('/'));
            if machine.mounts.iter().any(|m| m.parent == parent.id && m.at == at) {
                continue;
            }
            let id = 100 + u32::try_from(index).unwrap_or(0);
            if busy {
                machine.busy.insert(id);
            }
            machine = machine.mount(parent.namespace, id, parent.id, dev, &at, fs_type);
        }
        machine
    })
}

proptest! {
    #[test]
    fn only_pools_and_incus_own_go_and_what_remains_is_told(mut machine in machines(), lazy: bool) {
        let before = machine.clone();
        let outcome = machine.roll_back(lazy);
        for id in &machine.unmounted {
            let mount = before.mounts.iter().find(|mount| mount.id == *id).unwrap();
            let own = mount.fs_type == "tmpfs" && Path::new(&mount.at).starts_with(ROOT);
            prop_assert!(before.known.contains_key(&mount.dev) || own, "{mount:?} was unmounted");
        }
        let alive = machine.alive().unwrap();
        let told: BTreeSet<u64> = outcome.remaining.iter().map(|remaining| remaining.generation).collect();
        prop_assert_eq!(&told, &alive);
        for remaining in &outcome.remaining {
            let named = remaining.mounts.len() + remaining.holders.len() + remaining.obstacles.len();
            prop_assert!(named > 0 && !remaining.fix.is_empty(), "{:?}", remaining);
        }
        // Nothing in the way and nobody in it: nothing may remain.
        let strangers = before.mounts.iter().any(|m| m.id >= 100 && (m.dev == 17 || (m.dev == 50 && !m.at.starts_with(ROOT))));
        if before.busy.is_empty() && !strangers {
            prop_assert!(outcome.is_complete(), "{:?}", outcome);
        }
    }
}

#[test]
fn nothing_is_unmounted_from_under_a_guest_without_force() {
    let mut machine = Machine { known: [(43, 1), (44, 2)].into(), ..Machine::default() }
        .mount(1, 1, 0, 10, "/", "ext4")
        .mount(1, 2, 1, 43, "/var/lib/incus/storage-pools/shared", "ceph")
        .mount(1, 3, 1, 44, "/var/lib/incus/storage-pools/idle", "ceph")
        .mount(2, 50, 0, 11, "/", "ext4")
        .mount(2, 51, 50, 43, "/data", "ceph");
    let targets = machine.targets();
    let outcome = machine.roll_back_as(Allowed { lazy: true, force: false }, &targets);
    assert_eq!(machine.unmounted, Vec::<u32>::new());
    let guests: Vec<String> = outcome.guests.iter().map(ToString::to_string).collect();
    assert_eq!(guests, ["c200 (process 200) has pool pool1 mounted at /data"]);
    assert_eq!(outcome.remaining.len(), 2);
    assert!(
        outcome.remaining[0].fix.contains("end c200 (process 200)"),
        "{}",
        outcome.remaining[0].fix
    );
    assert!(outcome.remaining[1].fix.contains("another pool is in use"));

    let outcome = machine.roll_back_as(Allowed { lazy: false, force: true }, &targets);
    assert!(outcome.is_complete() && outcome.guests.is_empty(), "{outcome:?}");
}
