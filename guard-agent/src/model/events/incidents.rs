//! When an incident's counts are told: a pure reporter over the kernel's map `INCIDENTS`.
//!
//! The kernel counts; this only decides which records to write and which entries may go. All totals
//! are cumulative, so a restarted agent repeats at most a total and never loses one.

use std::collections::HashMap;

use guard_common::{IncidentKey, IncidentValue, Reason, Verdict};

use super::decode;

/// An incident's totals so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub key: IncidentKey,
    pub value: IncidentValue,
    /// The process is gone, or the pool: these totals are final.
    pub ended: bool,
}

impl Summary {
    /// Decisions that were counted and neither sent as a record nor lost.
    pub fn aggregated(&self) -> u64 {
        self.value.count.saturating_sub(self.value.emitted).saturating_sub(self.value.lost)
    }

    /// Name of the thread that began the incident.
    pub fn comm(&self) -> String {
        decode::comm(&self.value.comm_bytes())
    }

    /// The login uid, if it was set.
    pub fn login_uid(&self) -> Option<u32> {
        decode::login_uid(self.value.login_uid)
    }

    /// Why; `None` for a number that this version does not know.
    pub fn reason(&self) -> Option<Reason> {
        Reason::from_u32(self.key.reason)
    }

    /// The verdict; `None` for a number that this version does not know.
    pub fn verdict(&self) -> Option<Verdict> {
        Verdict::from_u32(self.key.verdict)
    }

    /// Decisions that no record shows.
    pub fn hidden(&self) -> u64 {
        self.value.count.saturating_sub(self.value.emitted)
    }
}

/// The result of one scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IncidentScan {
    /// To be written down.
    pub summaries: Vec<Summary>,
    /// To be removed from the map: nothing can count there any more, and all of it has been told.
    pub remove: Vec<IncidentKey>,
}

/// Remembers the totals that have been reported.
#[derive(Debug)]
pub struct IncidentTracker {
    interval_ns: u64,
    told: HashMap<IncidentKey, Told>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// Decisions without a record at the last summary.
    hidden: u64,
    /// When the last summary was made.
    at_ns: Option<u64>,
    /// It was over at the previous scan, so values read after that are final.
    gone: bool,
}

impl IncidentTracker {
    /// A tracker that tells of a running incident once in `interval_ns`.
    pub fn new(interval_ns: u64) -> Self {
        Self { interval_ns, told: HashMap::new() }
    }

    /// Changes how often a running incident is told of.
    pub fn set_interval(&mut self, interval_ns: u64) {
        self.interval_ns = interval_ns;
    }

    /// Looks at all entries of the map, read before this call.
    ///
    /// An entry goes only when it was found over by the *previous* scan: the values at hand may
    /// have been read before the last decisions of a process that died just now. `goes_on` says
    /// whether more can be counted there.
    pub fn scan(
        &mut self,
        now_boot_ns: u64,
        entries: &[(IncidentKey, IncidentValue)],
        goes_on: impl Fn(&IncidentKey) -> bool,
    ) -> IncidentScan {
        let mut scan = IncidentScan::default();
        let mut told = HashMap::with_capacity(entries.len());
        for (key, value) in entries {
            let mut entry = self.told.remove(key).unwrap_or_default();
            let summary = Summary { key: *key, value: *value, ended: entry.gone };
            if self.is_due(now_boot_ns, &summary, &entry) {
                (entry.hidden, entry.at_ns) = (summary.hidden(), Some(now_boot_ns));
                scan.summaries.push(summary);
            }
            if entry.gone {
                scan.remove.push(*key);
            } else {
                entry.gone = !goes_on(key);
                told.insert(*key, entry);
            }
        }
        self.told = told;
        scan
    }

    fn is_due(&self, now_boot_ns: u64, summary: &Summary, told: &Told) -> bool {
        if summary.ended {
            return summary.hidden() > 0;
        }
        let since = told.at_ns.unwrap_or(summary.value.first_boot_ns);
        summary.hidden() > told.hidden && now_boot_ns.saturating_sub(since) >= self.interval_ns
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn key(tgid: u32) -> IncidentKey {
        IncidentKey { tgid, start_boot_ns: 7, generation: 1, dev: 2, reason: 2, verdict: 1 }
    }

    fn value(count: u64, emitted: u64, lost: u64) -> IncidentValue {
        IncidentValue { count, emitted, lost, first_boot_ns: 100, ..IncidentValue::default() }
    }

    #[test]
    fn a_running_incident_is_told_once_an_interval_and_only_when_it_grew() {
        let mut tracker = IncidentTracker::new(1_000);
        let told = |tracker: &mut IncidentTracker, now, count| {
            let scan = tracker.scan(now, &[(key(1), value(count, 3, 0))], |_| true);
            assert!(scan.remove.is_empty());
            scan.summaries.iter().map(Summary::aggregated).collect::<Vec<_>>()
        };
        assert_eq!(told(&mut tracker, 500, 3), [0; 0], "records showed all of it");
        assert_eq!(told(&mut tracker, 900, 50), [0; 0], "not yet an interval old");
        assert_eq!(told(&mut tracker, 1_100, 60), [57]);
        assert_eq!(told(&mut tracker, 5_000, 60), [0; 0], "nothing new");
        assert_eq!(told(&mut tracker, 5_001, 61), [58]);
        assert_eq!(told(&mut tracker, 5_002, 62), [0; 0]);
    }

    #[test]
    fn an_ended_incident_is_told_with_values_read_after_its_end() {
        let mut tracker = IncidentTracker::new(u64::MAX);
        // Three more decisions happen between the reading of the map and the death of the process.
        assert_eq!(
            tracker.scan(200, &[(key(1), value(5, 3, 0))], |_| false),
            IncidentScan::default()
        );
        let scan = tracker.scan(300, &[(key(1), value(8, 3, 1))], |_| false);
        assert_eq!(scan.remove, [key(1)]);
        assert_eq!(scan.summaries.len(), 1);
        assert!(scan.summaries[0].ended);
        assert_eq!((scan.summaries[0].value.count, scan.summaries[0].aggregated()), (8, 4));
    }

    #[test]
    fn an_ended_incident_that_records_showed_whole_goes_silently() {
        let mut tracker = IncidentTracker::new(0);
        let entries = [(key(1), value(2, 2, 0))];
        tracker.scan(200, &entries, |_| false);
        let scan = tracker.scan(300, &entries, |_| false);
        assert_eq!(scan, IncidentScan { summaries: vec![], remove: vec![key(1)] });
    }

    #[derive(Clone, Debug)]
    enum Step {
        Decide { tgid: u32, ring_full: bool },
        End { tgid: u32 },
        Scan { late: Option<u32> },
        RestartAgent,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..4u32, any::<bool>()).prop_map(|(tgid, ring_full)| Step::Decide { tgid, ring_full }),
            1 => (0..4u32).prop_map(|tgid| Step::End { tgid }),
            2 => prop::option::of(0..4u32).prop_map(|late| Step::Scan { late }),
            1 => Just(Step::RestartAgent),
        ];
        prop::collection::vec(step, 0..200)
    }

    /// The kernel's side and the log, as a model.
    #[derive(Default)]
    struct Model {
        now: u64,
        map: HashMap<IncidentKey, IncidentValue>,
        dead: HashSet<u32>,
        decisions: u64,
        records: u64,
        last: HashMap<IncidentKey, Summary>,
        finals: HashMap<IncidentKey, u32>,
    }

    impl Model {
        fn decide(&mut self, tgid: u32, ring_full: bool) {
            if self.dead.contains(&tgid) {
                return;
            }
            self.decisions += 1;
            let value = self.map.entry(key(tgid)).or_insert(value(0, 0, 0));
            value.count += 1;
            match (value.count <= 3, ring_full) {
                (true, true) => value.lost += 1,
                (true, false) => {
                    (value.emitted, self.records) = (value.emitted + 1, self.records + 1)
                }
                (false, _) => {}
            }
        }

        fn scan(&mut self, tracker: &mut IncidentTracker, late: Option<u32>) {
            let entries: Vec<_> = self.map.iter().map(|(key, value)| (*key, *value)).collect();
            if let Some(tgid) = late {
                self.decide(tgid, true);
                self.dead.insert(tgid);
            }
            let scan = tracker.scan(self.now, &entries, |key| !self.dead.contains(&key.tgid));
            for summary in scan.summaries {
                assert_eq!(
                    summary.value.emitted + summary.value.lost + summary.aggregated(),
                    summary.value.count
                );
                *self.finals.entry(summary.key).or_default() += u32::from(summary.ended);
                self.last.insert(summary.key, summary);
            }
            for key in scan.remove {
                assert!(self.dead.contains(&key.tgid), "a living process keeps its entry");
                self.map.remove(&key);
            }
        }
    }

    proptest! {
        #[test]
        fn records_and_aggregated_and_lost_are_all_decisions(steps in steps(), interval in 0..20u64) {
            let mut model = Model::default();
            let mut tracker = IncidentTracker::new(interval);
            for step in steps {
                model.now += 1;
                match step {
                    Step::Decide { tgid, ring_full } => model.decide(tgid, ring_full),
                    Step::End { tgid } => drop(model.dead.insert(tgid)),
                    Step::Scan { late } => model.scan(&mut tracker, late),
                    Step::RestartAgent => tracker = IncidentTracker::new(interval),
                }
            }
            model.dead.extend(0..4);
            model.scan(&mut tracker, None);
            model.scan(&mut tracker, None);
            prop_assert!(model.map.is_empty());
            let told: u64 = model.last.values().map(|last| last.aggregated() + last.value.lost).sum();
            prop_assert_eq!(model.records + told, model.decisions);
            prop_assert!(model.finals.values().all(|count| *count == 1));
        }
    }
}
