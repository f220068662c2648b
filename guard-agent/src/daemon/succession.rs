//! Takes the place of an agent with another layout of the maps, or of attempts to that died.
//!
//! The order is: [`Succession::begin`] reads all that must be carried, and refuses unknown content
//! before any change → [`Succession::carry_into`] → the caller writes the policy, attaches and
//! proves → [`Succession::settle`] (from then on this layout speaks, even after a crash) →
//! `Agent::take_over`, when everything else has been retired.

use std::path::Path;

use super::error::DaemonError;
use crate::host::bpf::LoadError;
use crate::host::bpf::foreign::{Estate, ForeignError, ForeignMaps};
use crate::host::bpf::layouts::{Layout, Layouts, boot_ns};
use crate::host::bpf::pins::{PinError, Pins, wait_for_the_end};
use crate::host::bpf::{MapAccessError, Maps};
use crate::model::errors::chain;
use crate::model::events::Summary;

/// The layout of this agent, and those whose place it takes.
#[derive(Debug)]
pub(super) struct Succession {
    own: Layout,
    /// Our maps are in force already.
    speaks: bool,
    /// The layout that speaks, if that is another one.
    source: Option<Old>,
    estate: Estate,
    leftovers: Vec<Old>,
}

#[derive(Debug)]
struct Old {
    layout: Layout,
    maps: Result<ForeignMaps, ForeignError>,
}

impl Old {
    fn look(layout: Layout) -> Self {
        let maps = ForeignMaps::open(&layout.pins.maps());
        Self { layout, maps }
    }
}

impl Succession {
    /// Looks at the pins. An error has changed nothing.
    pub(super) fn begin(pin_directory: &Path) -> Result<Self, LoadError> {
        let layouts = Layouts::open(pin_directory)?;
        if layouts.has_older_pins() {
            return Err(LoadError::OlderPins { directory: pin_directory.display().to_string() });
        }
        let standing = layouts.standing()?;
        let (source, estate) = match standing.source {
            None => (None, Estate::default()),
            Some(layout) => {
                let (version, directory) = (layout.name.version, layout.pins.maps());
                let refused = |source: ForeignError| {
                    let (directory, source) = (directory.display().to_string(), Box::new(source));
                    match *source {
                        // The next start may succeed in reading these maps.
                        ForeignError::Read { .. } | ForeignError::Restless { .. } => {
                            LoadError::Foreign { directory, source }
                        }
                        _ => LoadError::Incompatible { directory, version, source },
                    }
                };
                let maps = ForeignMaps::open(&directory).map_err(refused)?;
                let estate = maps.estate().map_err(refused)?;
                (Some(Old { layout, maps: Ok(maps) }), estate)
            }
        };
        let own = standing.own;
        let speaks = source.is_none() && (own.settled.is_some() || own.attached);
        if !speaks {
            own.begin_again()?;
        }
        let leftovers = standing.leftovers.into_iter().map(Old::look).collect();
        Ok(Self { own, speaks, source, estate, leftovers })
    }

    /// This agent's own pins.
    pub(super) fn pins(&self) -> &Pins {
        &self.own.pins
    }

    /// Whether programs of any layout are pinned.
    pub(super) fn has_programs(&self) -> bool {
        let all = self.old().map(|old| &old.layout).chain([&self.own]);
        // A layout that cannot be looked at fails in `load::prepare`, with its reason.
        all.map(|layout| layout.pins.generations())
            .any(|found| found.is_ok_and(|found| !found.is_empty()))
    }

    /// Whether another layout speaks until this one is settled.
    pub(super) fn is_pending(&self) -> bool {
        self.source.is_some()
    }

    /// Copies the contents of the maps in force into ours.
    pub(super) fn carry_into(&self, maps: &mut Maps) -> Result<(), MapAccessError> {
        if !self.speaks {
            maps.clear_entries()?;
        }
        let Some(source) = &self.source else { return Ok(()) };
        let (from, to) = (&source.layout.name, &self.own.name);
        let (pools, leases) = (self.estate.pools.len(), self.estate.leases.len());
        tracing::info!(
            from = from.version,
            to = to.version,
            pools,
            leases,
            "another map layout is taken over"
        );
        maps.carry(&self.estate)
    }

    fn old(&self) -> impl Iterator<Item = &Old> {
        self.source.iter().chain(&self.leftovers)
    }

    /// Maps of the others that can be read. Unreadable maps do not hold; they are named once.
    fn readable(&self) -> impl Iterator<Item = (&Layout, &ForeignMaps)> {
        self.old().filter_map(|old| Some((&old.layout, old.maps.as_ref().ok()?)))
    }

    /// Records that wait in the others' rings, as ours.
    pub(super) fn records(&self) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        for (layout, maps) in self.readable() {
            let mut ring = match maps.records() {
                Ok(ring) => ring,
                Err(error) => {
                    note(layout, &error, "its records are not read");
                    continue;
                }
            };
            // No more than it holds: it may be filled as fast as it is read.
            for _ in 0..maps.records_in_ring() {
                let Some(bytes) = ring.next() else { break };
                match maps.record(&bytes) {
                    Ok(record) => records.push(record),
                    Err(error) => note(layout, &error, "a record cannot be read"),
                }
            }
        }
        records
    }

    /// Unpins all loads of the others and waits until the kernel has ended them. Returns how many
    /// layouts had some.
    pub(super) fn retire(&self) -> Result<usize, PinError> {
        let mut ids = Vec::new();
        let mut retired = 0;
        for Old { layout, .. } in self.old() {
            let programs = layout.pins.retire_all()?;
            retired += usize::from(!programs.is_empty());
            ids.extend(programs);
        }
        if let Err(error) = wait_for_the_end(ids) {
            // They are detached all the same.
            tracing::warn!(
                error = chain(&error),
                "programs that have been replaced are still held"
            );
        }
        Ok(retired)
    }
}

fn note(layout: &Layout, error: &(dyn std::error::Error + 'static), what: &'static str) {
    tracing::warn!(layout = layout.name.version, error = chain(error), what, "another map layout");
}

impl Succession {
    /// From now on this agent's layout speaks. Only when it is proven, and before anything else is
    /// retired: the agent that starts next takes over from the layout that was settled last.
    pub(super) fn settle(&mut self, maps: &mut Maps) -> Result<(), DaemonError> {
        if let Some(Old { layout, maps: Ok(old) }) = &self.source {
            match old.pools() {
                Ok(left) => maps.remove_ended(&self.estate, &left)?,
                Err(error) => note(layout, &error, "pools that have ended meanwhile are not told"),
            }
        }
        if self.own.settled.is_none() {
            let now = boot_ns();
            self.own.pins.settle(now)?;
            self.own.settled = Some(now);
        }
        Ok(())
    }

    /// Whether there are other layouts.
    pub(super) fn has_others(&self) -> bool {
        self.old().next().is_some()
    }

    /// Unreported summaries of other layouts' incidents. An incident ends with its maps: if it goes
    /// on, it is another one in ours.
    pub(super) fn ended_incidents(&self) -> Vec<Summary> {
        let mut ended = Vec::new();
        for (layout, maps) in self.readable() {
            match maps.incidents() {
                Ok(incidents) => ended.extend(incidents),
                Err(error) => note(layout, &error, "its incidents are not told"),
            }
        }
        let summaries = ended.into_iter().map(|(key, value)| Summary { key, value, ended: true });
        summaries.filter(|summary| summary.hidden() > 0).collect()
    }

    /// Adds other layouts' counts to our maps.
    pub(super) fn carry_totals(&self, maps: &mut Maps) {
        let own = self.own.name.token;
        let tokens: Vec<u64> = self.old().map(|old| old.layout.name.token).chain([own]).collect();
        for (layout, foreign) in self.readable() {
            let carried =
                foreign.totals(&tokens).map_err(|error| chain(&error)).and_then(|totals| {
                    let audited = &foreign.description.audited;
                    let carried = maps.carry_totals(layout.name.token, &totals, audited);
                    carried.map_err(|error| chain(&error))
                });
            if let Err(error) = carried {
                tracing::warn!(
                    layout = layout.name.version,
                    error,
                    "the counters of another map layout are lost"
                );
            }
        }
    }

    /// Removes the pins of all other layouts.
    pub(super) fn remove_others(&mut self) -> Result<(), DaemonError> {
        for Old { layout, maps } in self.source.take().into_iter().chain(self.leftovers.drain(..)) {
            if let Err(error) = maps {
                note(&layout, &error, "it is removed, and its counters are lost");
            }
            layout.pins.remove()?;
        }
        Ok(())
    }
}
