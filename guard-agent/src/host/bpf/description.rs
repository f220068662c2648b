//! A layout's description (`guard_common::description`) as JSON, and the conversion of another
//! layout's entries into ours. Pure.
//!
//! A field that cannot be understood is an error: nothing is guessed.

use guard_common::description::{Carry, Field, MAPS, MapLayout};
use guard_common::{Counter, LAYOUT_VERSION};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Version of the description itself.
const VERSION: u32 = 1;
/// No key or value is larger. Also keeps all sums of offsets and sizes small.
const LARGEST: usize = 64 * 1024;

/// Another layout cannot be understood.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DescriptionError {
    #[error("their description is empty: they are older than layouts that describe themselves")]
    Empty,
    #[error("their description is no JSON that is understood: {0}")]
    Json(String),
    #[error("their description has version {found}, and this agent knows version {VERSION}")]
    Version { found: u32 },
    #[error("their description of map {map} is wrong: field `{field}` lies outside of the entry")]
    Outside { map: String, field: String },
    #[error("they have no map {map}")]
    NoMap { map: &'static str },
    #[error("their map {map} has no field `{field}`")]
    NoField { map: &'static str, field: &'static str },
    #[error(
        "their map {map} has a field `{field}` that enforcement depends on and this agent does not \
         know"
    )]
    UnknownField { map: &'static str, field: String },
    #[error("their map {map} is one that enforcement depends on and this agent does not know")]
    UnknownMap { map: String },
    #[error("the value of field `{field}` in their map {map} is too large for this agent")]
    TooLarge { map: &'static str, field: String },
    #[error("an entry of their map {map} has {found} bytes, and their description says {expected}")]
    Size { map: String, expected: usize, found: usize },
}

/// All maps of a layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    description: u32,
    /// `LAYOUT_VERSION` of the agent that wrote it.
    pub layout: u32,
    maps: Vec<DescribedMap>,
    /// Names of the counters, in the order of their numbers.
    pub counters: Vec<String>,
    /// Those that make a record, are aggregated or are lost.
    pub audited: Vec<String>,
}

/// One map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribedMap {
    pub name: String,
    pub capacity: u32,
    pub key: Vec<DescribedField>,
    pub value: Vec<DescribedField>,
}

/// A field of a key or value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribedField {
    pub name: String,
    pub offset: usize,
    pub size: usize,
    pub carry: DescribedCarry,
}

/// As [`Carry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DescribedCarry {
    Required,
    Added,
    Optional,
}

impl DescribedMap {
    /// Whether enforcement depends on its content.
    pub fn is_enforced(&self) -> bool {
        self.key.iter().chain(&self.value).any(|field| field.carry != DescribedCarry::Optional)
    }
}

/// Bytes of a key or value with these fields, none of which has padding behind it.
pub fn size_of_fields(fields: &[DescribedField]) -> usize {
    fields.iter().map(|field| field.offset + field.size).max().unwrap_or(0)
}

impl Description {
    /// Of this agent's own maps.
    pub fn own() -> Self {
        let counters = |which: fn(&Counter) -> bool| {
            Counter::ALL
                .iter()
                .filter(|counter| which(counter))
                .map(|counter| counter.name().to_owned())
                .collect()
        };
        Self {
            description: VERSION,
            layout: LAYOUT_VERSION,
            maps: MAPS.iter().map(described).collect(),
            counters: counters(|_| true),
            audited: counters(|counter| counter.is_audited()),
        }
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a description has string keys and whole numbers")
    }

    /// Tells this layout from every other: any change of a map, a field, a size or a counter gives
    /// another one.
    pub fn fingerprint(&self) -> String {
        Sha256::digest(self.to_json()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    /// From the bytes of the map: JSON, padded with NULs.
    pub fn parse(bytes: &[u8]) -> Result<Self, DescriptionError> {
        #[derive(Deserialize)]
        struct Head {
            description: u32,
        }
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if end == 0 {
            return Err(DescriptionError::Empty);
        }
        let json = |error: serde_json::Error| DescriptionError::Json(error.to_string());
        let head: Head = serde_json::from_slice(&bytes[..end]).map_err(json)?;
        if head.description != VERSION {
            return Err(DescriptionError::Version { found: head.description });
        }
        let description: Self = serde_json::from_slice(&bytes[..end]).map_err(json)?;
        description.maps.iter().try_for_each(check)?;
        Ok(description)
    }

    /// A map by its name.
    pub fn map(&self, name: &'static str) -> Result<&DescribedMap, DescriptionError> {
        self.maps.iter().find(|map| map.name == name).ok_or(DescriptionError::NoMap { map: name })
    }

    /// Maps that enforcement depends on and this agent does not know.
    pub fn unknown_maps(&self) -> impl Iterator<Item = &DescribedMap> {
        let is_known = |map: &&DescribedMap| MAPS.iter().any(|own| own.name == map.name);
        self.maps.iter().filter(move |map| map.is_enforced() && !is_known(map))
    }
}

fn check(map: &DescribedMap) -> Result<(), DescriptionError> {
    let is_inside = |field: &DescribedField| field.size <= LARGEST && field.offset <= LARGEST;
    match map.key.iter().chain(&map.value).find(|field| !is_inside(field)) {
        None => Ok(()),
        Some(field) => {
            Err(DescriptionError::Outside { map: map.name.clone(), field: field.name.clone() })
        }
    }
}

fn described(map: &MapLayout) -> DescribedMap {
    let fields = |fields: &[Field]| fields.iter().map(described_field).collect();
    DescribedMap {
        name: map.name.to_owned(),
        capacity: map.capacity,
        key: fields(map.key),
        value: fields(map.value),
    }
}

fn described_field(field: &Field) -> DescribedField {
    let carry = match field.carry {
        Carry::Required => DescribedCarry::Required,
        Carry::Added => DescribedCarry::Added,
        Carry::Optional => DescribedCarry::Optional,
    };
    DescribedField { name: field.name.to_owned(), offset: field.offset, size: field.size, carry }
}

/// This agent's description of a map.
pub fn own_map(name: &'static str) -> &'static MapLayout {
    MAPS.iter().find(|map| map.name == name).expect("every map that is carried is described")
}

/// From the bytes of one layout's key or value to those of ours.
#[derive(Debug)]
pub struct Translation {
    map: &'static str,
    /// Bytes of theirs and of ours.
    sizes: (usize, usize),
    moves: Vec<Move>,
    /// Fields of theirs that are unknown here and must be 0.
    must_be_zero: Vec<DescribedField>,
}

#[derive(Debug)]
struct Move {
    name: &'static str,
    from: (usize, usize),
    to: (usize, usize),
}

impl Translation {
    /// Refuses a field that enforcement depends on and that only one of both layouts has.
    pub fn new(
        map: &'static str,
        theirs: &[DescribedField],
        ours: &'static [Field],
    ) -> Result<Self, DescriptionError> {
        let mut moves = Vec::new();
        for field in ours {
            match theirs.iter().find(|their| their.name == field.name) {
                Some(their) => moves.push(Move {
                    name: field.name,
                    from: (their.offset, their.size),
                    to: (field.offset, field.size),
                }),
                None if field.carry == Carry::Required => {
                    return Err(DescriptionError::NoField { map, field: field.name });
                }
                None => {}
            }
        }
        let unknown = |their: &&DescribedField| ours.iter().all(|field| field.name != their.name);
        let mut must_be_zero = Vec::new();
        for their in theirs.iter().filter(unknown) {
            match their.carry {
                DescribedCarry::Required => {
                    return Err(DescriptionError::UnknownField { map, field: their.name.clone() });
                }
                DescribedCarry::Added => must_be_zero.push(their.clone()),
                DescribedCarry::Optional => {}
            }
        }
        let own = ours.iter().map(|field| field.offset + field.size).max().unwrap_or(0);
        Ok(Self { map, sizes: (size_of_fields(theirs), own), moves, must_be_zero })
    }

    /// An entry's bytes in our layout. Fields that theirs lacks are 0.
    pub fn apply(&self, bytes: &[u8]) -> Result<Vec<u8>, DescriptionError> {
        let (expected, own) = self.sizes;
        if bytes.len() < expected {
            return Err(DescriptionError::Size {
                map: self.map.to_owned(),
                expected,
                found: bytes.len(),
            });
        }
        let set = |field: &&DescribedField| {
            bytes[field.offset..field.offset + field.size].iter().any(|byte| *byte != 0)
        };
        if let Some(field) = self.must_be_zero.iter().find(set) {
            return Err(DescriptionError::UnknownField {
                map: self.map,
                field: field.name.clone(),
            });
        }
        let mut entry = vec![0; own];
        for Move { name, from: (from, theirs), to: (to, ours) } in &self.moves {
            let (source, target) = (&bytes[*from..from + theirs], &mut entry[*to..to + ours]);
            if !copy(source, target) {
                return Err(DescriptionError::TooLarge {
                    map: self.map,
                    field: (*name).to_owned(),
                });
            }
        }
        Ok(entry)
    }
}

/// Copies a number of any width, or text and lists from their beginning. False: the part that does
/// not fit is not 0.
fn copy(source: &[u8], target: &mut [u8]) -> bool {
    const { assert!(cfg!(target_endian = "little"), "a number's first bytes are its lowest") };
    let length = source.len().min(target.len());
    target[..length].copy_from_slice(&source[..length]);
    source[length..].iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use guard_common::PoolEntry;
    use guard_common::description::Described;
    use guard_common::names::{capacity, map};
    use proptest::prelude::*;

    use super::*;

    fn pool_fields() -> Vec<DescribedField> {
        Description::own().map(map::POOLS).unwrap().value.clone()
    }

    fn translation(theirs: &[DescribedField]) -> Result<Translation, DescriptionError> {
        Translation::new(map::POOLS, theirs, PoolEntry::FIELDS)
    }

    #[test]
    fn a_description_comes_back_as_it_was_and_fits_into_its_map() {
        let own = Description::own();
        let mut bytes = own.to_json().into_bytes();
        assert!(bytes.len() <= capacity::DESCRIPTION_BYTES, "{} bytes", bytes.len());
        bytes.resize(capacity::DESCRIPTION_BYTES, 0);
        assert_eq!(Description::parse(&bytes), Ok(own));
        assert_eq!(Description::parse(&[0; 64]), Err(DescriptionError::Empty));
    }

    #[test]
    fn every_pinned_map_with_meaning_is_described() {
        // Bytes for people, and the description itself.
        let others = [map::AYA_LOGS, map::DESCRIPTION];
        for name in map::ALL.iter().filter(|name| !others.contains(name)) {
            assert!(Description::own().map(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn any_change_makes_another_layout() {
        let own = Description::own();
        let mut others = vec![own.clone(); 4];
        others[0].layout += 1;
        others[1].maps[2].capacity += 1;
        others[2].maps[2].value[0].offset += 8;
        others[3].counters.push("denied_otherwise".into());
        for other in others {
            assert_ne!(other.fingerprint(), own.fingerprint());
        }
    }

    #[test]
    fn fields_are_found_by_name_wherever_they_lie() {
        let mut theirs = pool_fields();
        let width = size_of_fields(&theirs);
        // In the opposite order, behind a field of their own, and one number wider.
        theirs.reverse();
        let mut offset = 8;
        for field in &mut theirs {
            field.size = if field.name == "mode" { 8 } else { field.size };
            field.offset = offset;
            offset += field.size;
        }
        let own = DescribedField {
            name: "own".into(),
            offset: 0,
            size: 8,
            carry: DescribedCarry::Optional,
        };
        theirs.push(own);
        let mut bytes = vec![0xff; 8];
        bytes.resize(offset, 0);
        let place = |name: &str| theirs.iter().find(|field| field.name == name).unwrap().offset;
        bytes[place("mode")] = 2;
        bytes[place("generation")..][..8].copy_from_slice(&0x0102_0304_0506_0708_u64.to_ne_bytes());
        let entry = translation(&theirs).unwrap().apply(&bytes).unwrap();
        assert_eq!(entry.len(), width);
        let number = |name: &str| {
            let field = PoolEntry::FIELDS.iter().find(|field| field.name == name).unwrap();
            let mut number = [0; 8];
            number[..field.size].copy_from_slice(&entry[field.offset..field.offset + field.size]);
            u64::from_ne_bytes(number)
        };
        assert_eq!(
            (number("generation"), number("mode"), number("magic")),
            (0x0102_0304_0506_0708, 2, 0)
        );
        bytes[place("mode") + 7] = 1;
        let refused = translation(&theirs).unwrap().apply(&bytes);
        assert_eq!(
            refused,
            Err(DescriptionError::TooLarge { map: map::POOLS, field: "mode".into() })
        );
    }

    #[test]
    fn what_enforcement_depends_on_must_be_known_to_both() {
        let without: Vec<_> =
            pool_fields().into_iter().filter(|field| field.name != "mode").collect();
        let missing = translation(&without).unwrap_err();
        assert_eq!(missing, DescriptionError::NoField { map: map::POOLS, field: "mode" });
        let with = |carry| {
            let mut theirs = pool_fields();
            let offset = size_of_fields(&theirs);
            theirs.push(DescribedField { name: "subtree".into(), offset, size: 8, carry });
            (translation(&theirs), offset)
        };
        let unknown = DescriptionError::UnknownField { map: map::POOLS, field: "subtree".into() };
        assert_eq!(with(DescribedCarry::Required).0.unwrap_err(), unknown);
        let (added, offset) = with(DescribedCarry::Added);
        let added = added.unwrap();
        assert!(added.apply(&vec![0; offset + 8]).is_ok(), "unused, it says nothing");
        assert_eq!(added.apply(&[vec![0; offset], vec![1; 8]].concat()), Err(unknown));
        let (optional, offset) = with(DescribedCarry::Optional);
        assert!(optional.unwrap().apply(&vec![1; offset + 8]).is_ok());
    }

    #[test]
    fn a_map_that_enforcement_depends_on_must_be_known() {
        let mut theirs = Description::own();
        assert_eq!(theirs.unknown_maps().count(), 0);
        let mut map = theirs.map(map::LEASES).unwrap().clone();
        map.name = "SUBTREES".into();
        theirs.maps.push(map);
        assert_eq!(
            theirs.unknown_maps().map(|map| map.name.as_str()).collect::<Vec<_>>(),
            ["SUBTREES"]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_description_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Description::parse(&bytes);
        }

        /// A description with damage in it is refused, or gives entries of our size or errors:
        /// never a panic.
        #[test]
        fn a_damaged_description_never_panics(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            entry in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = Description::own().to_json().into_bytes();
            for (place, byte) in damage {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            if let Ok(theirs) = Description::parse(&bytes) {
                for own in MAPS {
                    let Ok(map) = theirs.map(own.name) else { continue };
                    for (theirs, ours) in [(&map.key, own.key), (&map.value, own.value)] {
                        let Ok(translation) = Translation::new(own.name, theirs, ours) else { continue };
                        if let Ok(translated) = translation.apply(&entry) {
                            prop_assert_eq!(translated.len(), translation.sizes.1);
                        }
                    }
                }
            }
        }
    }
}
