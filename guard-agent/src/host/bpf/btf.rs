//! A reader of BTF, as much of it as it takes to find a structure's member or a function.
//!
//! The format is in the kernel's `Documentation/bpf/btf.rst`. aya reads BTF too but keeps members
//! to itself; the one other crate for it does not know the kinds of today's kernels.

use std::collections::HashMap;

use thiserror::Error;

/// Why a member's offset could not be found.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// Not BTF, or cut short.
    #[error("malformed BTF at byte {at}: {what}")]
    Malformed { at: usize, what: &'static str },
    /// A kind this reader cannot skip.
    #[error("BTF type {id} is of kind {kind}, which this version does not know")]
    UnknownKind { id: u32, kind: u32 },
    /// No structure of that name.
    #[error("the kernel's BTF has no `struct {name}`")]
    NoStruct { name: String },
    /// The structure is there, the member is not.
    #[error("the kernel's `struct {name}` has no member `{member}`")]
    NoMember { name: String, member: String },
    /// The member is a bit field.
    #[error("member `{member}` of the kernel's `struct {name}` is a bit field")]
    BitField { name: String, member: String },
    /// No function of that name, or none with such a parameter.
    #[error("the kernel's function `{function}` has no parameter `{parameter}`")]
    NoParameter { function: String, parameter: String },
    /// It is there, and not as this version knows it.
    #[error("the kernel's `{name}` is not as this version knows it: {what}")]
    Unexpected { name: String, what: String },
}

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
/// Prefixes of the functions that a program can stand before or in place of. Only those are looked
/// up: the kernel has a hundred times as many others.
const FUNCTIONS: [&[u8]; 2] = [b"bpf_lsm_", b"security_"];
/// PTR ends a walk; these are looked through: TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG.
const MODIFIERS: [u32; 5] = [8, 9, 10, 11, 18];

/// BTF with an index of its structures, and of the functions that programs are for.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Start of each type in `types`; type 0 is void.
    starts: Vec<u32>,
    structs: HashMap<&'a [u8], u32>,
    functions: HashMap<&'a [u8], u32>,
}

struct Type {
    start: usize,
    kind: u32,
    kind_flag: bool,
    count: usize,
    /// A modifier's type.
    refers: u32,
}

struct Member<'a> {
    name: &'a [u8],
    type_id: u32,
    bits: u32,
    bit_field: bool,
}

impl<'a> Btf<'a> {
    /// Reads BTF of this machine's byte order.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let malformed = |at, what| BtfError::Malformed { at, what };
        if bytes.get(..2) != Some(MAGIC.to_ne_bytes().as_slice()) {
            return Err(malformed(0, "wrong magic"));
        }
        let header = u32_at(bytes, 4)? as usize;
        let part = |field: usize| -> Result<&'a [u8], BtfError> {
            let start = header + u32_at(bytes, field)? as usize;
            let length = u32_at(bytes, field + 4)? as usize;
            bytes
                .get(start..start.saturating_add(length))
                .ok_or(malformed(field, "section beyond the end"))
        };
        let mut btf = Self {
            types: part(8)?,
            strings: part(16)?,
            starts: vec![0],
            structs: HashMap::new(),
            functions: HashMap::new(),
        };
        btf.index()?;
        Ok(btf)
    }

    fn index(&mut self) -> Result<(), BtfError> {
        let mut start = 0;
        while start < self.types.len() {
            let id = self.starts.len() as u32;
            self.starts.push(start as u32);
            let found = self.type_at(start)?;
            // A name is read to its end only where it is kept: this is the longest loop of the
            // agent's start.
            if matches!(found.kind, STRUCT | FUNC) {
                let at = u32_at(self.types, start)?;
                let name = self.strings.get(at as usize..).unwrap_or_default();
                if found.kind == FUNC && FUNCTIONS.iter().any(|prefix| name.starts_with(prefix)) {
                    self.functions.insert(self.string(at)?, id);
                } else if found.kind == STRUCT && at != 0 {
                    self.structs.entry(self.string(at)?).or_insert(id);
                }
            }
            start += 12
                + trailing_bytes(&found).ok_or(BtfError::UnknownKind { id, kind: found.kind })?;
        }
        Ok(())
    }

    /// Whether the kernel has a function of this name, which must begin like `FUNCTIONS`.
    pub fn has_function(&self, name: &str) -> bool {
        self.functions.contains_key(name.as_bytes())
    }

    /// Number of a function's type: a program is loaded for it.
    pub fn function_id(&self, name: &str) -> Option<u32> {
        self.functions.get(name.as_bytes()).copied()
    }

    /// Number of a function's parameters; `None` if there is no such function.
    pub fn parameters(&self, function: &str) -> Result<Option<u32>, BtfError> {
        let Some(id) = self.function_id(function) else { return Ok(None) };
        Ok(Some(self.type_of(self.type_of(id)?.refers)?.count as u32))
    }

    /// Index of the parameter of a function that has this name, from 0.
    pub fn parameter_index(&self, function: &str, parameter: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::NoParameter {
            function: function.to_owned(),
            parameter: parameter.to_owned(),
        };
        let id = self.function_id(function).ok_or_else(missing)?;
        let prototype = self.type_of(self.type_of(id)?.refers)?;
        for index in 0..prototype.count {
            let name = u32_at(self.types, prototype.start + 12 + index * 8)?;
            if prototype.kind == FUNC_PROTO && self.string(name)? == parameter.as_bytes() {
                return Ok(index as u32);
            }
        }
        Err(missing())
    }

    /// Byte offset of a member, named by a path such as `d_name.name`. Members of unnamed
    /// structures and unions within are found like the compiler finds them.
    pub fn member_offset(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        let mut id = *self
            .structs
            .get(structure.as_bytes())
            .ok_or_else(|| BtfError::NoStruct { name: structure.to_owned() })?;
        let error_member =
            || BtfError::NoMember { name: structure.to_owned(), member: path.to_owned() };
        let mut bits = 0;
        for name in path.split('.') {
            let member = self.find(id, name.as_bytes(), 0)?.ok_or_else(error_member)?;
            if member.bit_field || member.bits % 8 != 0 {
                return Err(BtfError::BitField {
                    name: structure.to_owned(),
                    member: path.to_owned(),
                });
            }
            bits += member.bits;
            id = self.resolve(member.type_id)?;
        }
        Ok(bits / 8)
    }

    fn find(&self, id: u32, name: &[u8], depth: u8) -> Result<Option<Member<'a>>, BtfError> {
        let found = self.type_of(id)?;
        if !matches!(found.kind, STRUCT | UNION) || depth > 8 {
            return Ok(None);
        }
        for index in 0..found.count {
            let member = self.member(&found, index)?;
            if member.name == name {
                return Ok(Some(member));
            }
            if member.name.is_empty() {
                let inner = self.resolve(member.type_id)?;
                if let Some(within) = self.find(inner, name, depth + 1)? {
                    return Ok(Some(Member { bits: member.bits + within.bits, ..within }));
                }
            }
        }
        Ok(None)
    }

    fn member(&self, of: &Type, index: usize) -> Result<Member<'a>, BtfError> {
        let at = of.start + 12 + index * 12;
        let raw = u32_at(self.types, at + 8)?;
        let (bits, bit_field) =
            if of.kind_flag { (raw & 0xff_ffff, raw >> 24 != 0) } else { (raw, false) };
        Ok(Member {
            name: self.string(u32_at(self.types, at)?)?,
            type_id: u32_at(self.types, at + 4)?,
            bits,
            bit_field,
        })
    }

    /// Looks through typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Result<u32, BtfError> {
        for _ in 0..32 {
            if id == 0 {
                break;
            }
            let found = self.type_of(id)?;
            if !MODIFIERS.contains(&found.kind) {
                break;
            }
            id = found.refers;
        }
        Ok(id)
    }

    fn type_of(&self, id: u32) -> Result<Type, BtfError> {
        match self.starts.get(id as usize) {
            Some(start) if id != 0 => self.type_at(*start as usize),
            _ => Ok(Type { start: 0, kind: 0, kind_flag: false, count: 0, refers: 0 }),
        }
    }

    fn type_at(&self, start: usize) -> Result<Type, BtfError> {
        let info = u32_at(self.types, start + 4)?;
        Ok(Type {
            start,
            kind: (info >> 24) & 0x1f,
            kind_flag: info >> 31 != 0,
            count: (info & 0xffff) as usize,
            refers: u32_at(self.types, start + 8)?,
        })
    }

    fn string(&self, at: u32) -> Result<&'a [u8], BtfError> {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        match rest.iter().position(|byte| *byte == 0) {
            Some(end) => Ok(&rest[..end]),
            None => Err(BtfError::Malformed { at: at as usize, what: "name beyond the strings" }),
        }
    }
}

/// Bytes that follow a type's first twelve; `None` for an unknown kind.
fn trailing_bytes(of: &Type) -> Option<usize> {
    Some(match of.kind {
        1 | 14 | 17 => 4,
        2 | 7..=12 | 16 | 18 => 0,
        3 => 12,
        4 | 5 | 15 | 19 => of.count * 12,
        6 | 13 => of.count * 8,
        _ => return None,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    match bytes.get(at..).and_then(<[u8]>::first_chunk) {
        Some(four) => Ok(u32::from_ne_bytes(*four)),
        None => Err(BtfError::Malformed { at, what: "cut short" }),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// (name, kind, kind_flag, size or type, members: name, type, offset).
    type Described<'a> = (&'a str, u32, bool, u32, Vec<(&'a str, u32, u32)>);

    fn build(types: &[Described<'_>]) -> Vec<u8> {
        let (mut strings, mut body) = (vec![0_u8], Vec::new());
        let mut intern = |name: &str| {
            if name.is_empty() {
                return 0;
            }
            let at = strings.len() as u32;
            strings.extend(name.as_bytes());
            strings.push(0);
            at
        };
        for (name, kind, flag, size, members) in types {
            let info = kind << 24 | u32::from(*flag) << 31 | members.len() as u32;
            for word in [intern(name), info, *size] {
                body.extend(word.to_ne_bytes());
            }
            for (member, type_id, offset) in members {
                let words = [intern(member), *type_id, *offset];
                // A prototype's parameters have no offset.
                for word in &words[..if *kind == FUNC_PROTO { 2 } else { 3 }] {
                    body.extend(word.to_ne_bytes());
                }
            }
        }
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, body.len() as u32, body.len() as u32, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(body);
        bytes.extend(strings);
        bytes
    }

    /// BTF with one structure: its members, and where they are in bits.
    pub(crate) fn with_structure(name: &str, members: &[(&str, u32)]) -> Vec<u8> {
        let members = members.iter().map(|(member, bits)| (*member, 0, *bits)).collect();
        build(&[(name, STRUCT, false, 64, members)])
    }

    fn sample() -> Vec<u8> {
        build(&[
            ("qstr", STRUCT, false, 16, vec![("hash", 0, 0), ("name", 0, 64)]),
            ("", UNION, false, 16, vec![("d_name", 3, 0)]),
            ("", 10, false, 1, vec![]), // const qstr
            (
                "dentry",
                STRUCT,
                true,
                64,
                vec![("d_flags", 0, 0), ("", 2, 256), ("bits", 0, 1 << 24 | 512)],
            ),
            ("security_path_unlink", FUNC, false, 0, vec![]),
            ("", FUNC_PROTO, false, 0, vec![("idmap", 0, 0), ("dentry", 0, 0)]),
            ("bpf_lsm_inode_setattr", FUNC, false, 6, vec![]),
        ])
    }

    #[test]
    fn a_member_is_found_through_unnamed_unions_and_qualifiers() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.member_offset("dentry", "d_name.name"), Ok(40));
        assert_eq!(btf.member_offset("dentry", "d_flags"), Ok(0));
        assert!(btf.has_function("security_path_unlink"));
        assert!(!btf.has_function("security_path_rmdir"));
        assert_eq!(btf.parameter_index("bpf_lsm_inode_setattr", "dentry"), Ok(1));
        assert_eq!(btf.parameters("bpf_lsm_inode_setattr"), Ok(Some(2)));
        assert_eq!(btf.parameters("security_path_rmdir"), Ok(None));
    }

    #[test]
    fn what_is_missing_is_named() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(
            btf.member_offset("mount", "mnt").unwrap_err().to_string(),
            "the kernel's BTF has no `struct mount`"
        );
        assert_eq!(
            btf.member_offset("dentry", "d_name.len").unwrap_err().to_string(),
            "the kernel's `struct dentry` has no member `d_name.len`"
        );
        assert!(matches!(btf.member_offset("dentry", "bits"), Err(BtfError::BitField { .. })));
        assert_eq!(
            btf.parameter_index("security_path_unlink", "dentry").unwrap_err().to_string(),
            "the kernel's function `security_path_unlink` has no parameter `dentry`"
        );
        assert!(btf.parameter_index("bpf_lsm_inode_setattr", "attr").is_err());
    }

    #[test]
    fn damaged_bytes_are_an_error_and_never_a_panic() {
        let bytes = sample();
        assert!(matches!(Btf::parse(&bytes[..20]), Err(BtfError::Malformed { .. })));
        assert!(matches!(Btf::parse(b"\x7fELF"), Err(BtfError::Malformed { at: 0, .. })));
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                if let Ok(btf) = Btf::parse(&damaged) {
                    let _ = btf.member_offset("dentry", "d_name.name");
                }
            }
        }
    }
}
