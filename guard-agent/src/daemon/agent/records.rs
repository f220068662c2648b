//! From the kernel's records and incidents to the audit log.

use std::collections::BTreeSet;
use std::path::Path;

use aya::maps::{MapData, RingBuf};
use guard_common::{Counter, IncidentKey};

use super::Agent;
use crate::host::clock;
use crate::host::clock::now;
use crate::host::process::{is_alive, ticks_per_second};
use crate::model::audit::record::{DecisionBody, IncidentBody};
use crate::model::audit::{Body, Place};
use crate::model::errors::chain;
use crate::model::events::{Decision, decode};
use crate::model::posture::trouble;
use crate::model::time::BootOffset;

impl Agent {
    /// Writes down every record that waits in the ring.
    pub(super) fn drain_records(&mut self, ring: &mut RingBuf<MapData>) {
        let (offset, _) = clock::read();
        while let Some(bytes) = ring.next() {
            self.write_decision(&bytes, offset);
        }
    }

    /// Writes one record down.
    pub(super) fn write_decision(&mut self, bytes: &[u8], offset: BootOffset) {
        match decode(bytes) {
            Ok(decision) => {
                let place = self.place_of(&decision);
                let body = DecisionBody::new(&decision, offset, place);
                self.trail.write_at(offset.stamp(decision.boot_ns), Body::Decision(Box::new(body)));
            }
            Err(error) => {
                tracing::error!(%error, "a record of a decision could not be read");
                self.posture.troubles.set(trouble::RECORDS, error.to_string());
            }
        }
    }

    fn place_of(&self, decision: &Decision) -> Place {
        match decision.generation {
            Some(generation) => self.book.place(generation),
            // Unclassified: the mount table may know where it is.
            None => Place {
                mountpoint: decision
                    .mount_id
                    .and_then(|id| self.view.snapshot.mount(id))
                    .map(|mount| mount.mountpoint.display().to_string()),
                ..Place::default()
            },
        }
    }

    /// Sums up incidents that are due, and closes those whose process or pool is gone.
    pub(super) fn scan_incidents(&mut self) {
        let entries = match self.enforcement.maps.incidents.entries() {
            Ok(entries) => entries,
            Err(error) => return tracing::error!(error = chain(&error), "incidents"),
        };
        let unrecorded = self.counter(Counter::ErrorIncidentsFull);
        let more = unrecorded
            .saturating_sub(std::mem::replace(&mut self.pulse.unrecorded_seen, unrecorded));
        self.posture.troubles.set_if(trouble::INCIDENTS, || {
            let detail = format!(
                "{more} more decisions belong to incidents that found no place: {unrecorded} by now"
            );
            (more > 0).then_some(detail)
        });
        let ticks = ticks_per_second();
        let living: Option<BTreeSet<u64>> = self
            .enforcement
            .maps
            .pools
            .entries()
            .map(|entries| entries.into_iter().map(|(_, entry)| entry.generation).collect())
            .ok();
        // In a pool that has ended nothing more is counted, however long the process lives: else a
        // daemon's incidents would fill the map, remount after remount. (Incidents without a
        // generation belong to no pool.)
        let has_ended = |key: &IncidentKey| {
            key.generation != 0
                && living.as_ref().is_some_and(|living| !living.contains(&key.generation))
        };
        let goes_on = |key: &IncidentKey| {
            // Of process 0 are all whose process had ended before it could be looked at.
            !has_ended(key)
                && (key.tgid == 0
                    || is_alive(Path::new("/proc"), key.tgid, key.start_boot_ns, ticks))
        };
        let scan = self.trail.incidents.scan(now().boot_ns, &entries, goes_on);
        let (offset, _) = clock::read();
        for summary in &scan.summaries {
            let body = IncidentBody::new(summary, offset, self.book.place(summary.key.generation));
            self.write(Body::Incident(Box::new(body)));
        }
        for key in &scan.remove {
            if let Err(error) = self.enforcement.maps.incidents.remove(key) {
                tracing::warn!(error = chain(&error), "an incident stays");
            }
        }
    }

    /// One of the kernel's counters; 0 if it cannot be read.
    pub(super) fn counter(&self, counter: Counter) -> u64 {
        self.enforcement
            .maps
            .counters()
            .ok()
            .and_then(|counters| counters.get(&counter).copied())
            .unwrap_or(0)
    }
}
