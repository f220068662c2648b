//! The kernel program's object, embedded at build time, and its identity.

use guard_common::Offsets;
use guard_common::offsets::{IMMEDIATE_PLACEHOLDER, LOAD_PLACEHOLDER};
use object::{Object as _, ObjectSection as _, SectionKind};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The object of `guard-ebpf`. Empty if this binary was built without `cargo xtask build`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard-ebpf.o"));

/// Version of this build, with the label that tells two builds of one version apart.
pub const BUILD: &str = env!("GUARD_BUILD");

/// The embedded object; `None` if there is none.
pub fn bytes() -> Option<&'static [u8]> {
    (!OBJECT.is_empty()).then_some(OBJECT)
}

/// Identifies the programs of this build: the start of a hash of the object and the build's name.
pub fn identity() -> String {
    let mut hash = Sha256::new();
    hash.update(OBJECT);
    hash.update(BUILD);
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The object cannot be fitted to this kernel and its maps.
#[derive(Debug, Error)]
pub enum ObjectError {
    #[error("the object is no ELF file of instructions")]
    Object(#[source] object::Error),
    #[error(
        "its instruction at byte {at} wants member {number} of a structure, which this agent does \
         not know"
    )]
    Unknown { at: usize, number: usize },
    #[error(
        "member {number} of a structure lies {offset} bytes in, and an instruction reaches {} \
         bytes",
        i16::MAX
    )]
    TooFar { number: usize, offset: u32 },
    #[error(
        "it wants no member of any structure: it was not built by this version's `cargo xtask \
         build`"
    )]
    None,
}

/// Bytes of an instruction; a load of 64 bits takes two.
const INSTRUCTION: usize = 8;
const LOAD_WIDE: u8 = 0x18;
/// The lower three bits: loads through a register.
const CLASS: u8 = 0x07;
const CLASS_LOAD: u8 = 0x01;
/// Adds a number to a register, and sets one to a number, 64 bits wide.
const ADD_NUMBER: u8 = 0x07;
const SET_NUMBER: u8 = 0xb7;

/// Writes the offsets of the kernel's members in place of their placeholders, in a copy of an
/// object.
pub fn with_offsets(bytes: &[u8], offsets: &Offsets) -> Result<Vec<u8>, ObjectError> {
    let file = object::File::parse(bytes).map_err(ObjectError::Object)?;
    let mut fitted = bytes.to_vec();
    let mut count = 0;
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let Some((start, size)) = section.file_range() else { continue };
        let (mut at, end) = (start as usize, (start + size) as usize);
        while let Some(instruction) =
            fitted.get_mut(at..end).and_then(<[u8]>::first_chunk_mut::<INSTRUCTION>)
        {
            count += usize::from(fit(instruction, at, offsets.numbered())?);
            at += if instruction[0] == LOAD_WIDE { 2 * INSTRUCTION } else { INSTRUCTION };
        }
    }
    if count == 0 { Err(ObjectError::None) } else { Ok(fitted) }
}

/// Writes an offset into one instruction, if it wants one: code, registers, two bytes of offset,
/// four of number.
fn fit(
    [code, _, low, high, number @ ..]: &mut [u8; INSTRUCTION],
    at: usize,
    offsets: &[u32],
) -> Result<bool, ObjectError> {
    let of = |number: i32| {
        let number = number as usize;
        offsets
            .get(number)
            .copied()
            .map(|offset| (number, offset))
            .ok_or(ObjectError::Unknown { at, number })
    };
    if *code & CLASS == CLASS_LOAD {
        let wanted = i32::from(i16::from_le_bytes([*low, *high])) - LOAD_PLACEHOLDER;
        if wanted < 0 {
            return Ok(false);
        }
        let (number, offset) = of(wanted)?;
        let offset = i16::try_from(offset).map_err(|_| ObjectError::TooFar { number, offset })?;
        [*low, *high] = offset.to_le_bytes();
        return Ok(true);
    }
    let wanted = i32::from_le_bytes(*number).wrapping_sub(IMMEDIATE_PLACEHOLDER);
    if !matches!(*code, ADD_NUMBER | SET_NUMBER) || !(0..=0xff).contains(&wanted) {
        return Ok(false);
    }
    *number = of(wanted)?.1.to_le_bytes();
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSETS: [u32; 3] = [16, 0, 40_000];

    fn fitted(instruction: [u8; INSTRUCTION]) -> Result<[u8; INSTRUCTION], String> {
        let mut fitted = instruction;
        fit(&mut fitted, 64, &OFFSETS).map(|_| fitted).map_err(|error| error.to_string())
    }

    #[test]
    fn an_instruction_that_wants_an_offset_gets_it_and_all_others_stay() {
        // r1 = *(u64 *)(r2 + member 0), and the same with a plain offset.
        assert_eq!(
            fitted([0x79, 0x21, 0x00, 0x7e, 0, 0, 0, 0]),
            Ok([0x79, 0x21, 16, 0, 0, 0, 0, 0])
        );
        assert_eq!(
            fitted([0x79, 0x21, 0x08, 0x00, 0, 0, 0, 0]),
            Ok([0x79, 0x21, 8, 0, 0, 0, 0, 0])
        );
        // r3 = member 2; r3 += member 1; r3 |= the same number, and r3 = another one.
        assert_eq!(
            fitted([0xb7, 3, 0, 0, 0x02, 0x53, 0x46, 0x4f]),
            Ok([0xb7, 3, 0, 0, 0x40, 0x9c, 0, 0])
        );
        assert_eq!(
            fitted([0x07, 3, 0, 0, 0x01, 0x53, 0x46, 0x4f]),
            Ok([0x07, 3, 0, 0, 0, 0, 0, 0])
        );
        for other in
            [[0x47, 3, 0, 0, 0x01, 0x53, 0x46, 0x4f], [0xb7, 3, 0, 0, 0x01, 0x54, 0x46, 0x4f]]
        {
            assert_eq!(fitted(other), Ok(other));
        }
    }

    #[test]
    fn an_offset_that_is_unknown_or_out_of_reach_is_an_error() {
        let error = fitted([0x79, 0x21, 0x03, 0x7e, 0, 0, 0, 0]).unwrap_err();
        assert!(error.contains("at byte 64 wants member 3"), "{error}");
        let error = fitted([0x61, 0x21, 0x02, 0x7e, 0, 0, 0, 0]).unwrap_err();
        assert!(error.contains("lies 40000 bytes in"), "{error}");
    }
}
