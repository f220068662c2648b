//! The kinds of shared filesystems that policy can name, and their superblocks' magics.
//!
//! A kind is the kernel program's distinction: magic and, for FUSE, subtype. Names that share both
//! (`nfs` and `nfs4`; `cifs` and `smb3`) are one kind: guarding one of them guards the other.

use guard_common::FilesystemKey;
use guard_common::policy::{CEPH_SUPER_MAGIC, FUSE_SUPER_MAGIC, SUBTYPE_BYTES};
use serde::Serialize;

use super::error::nearest;

/// Names in mountinfo of one kind, the first is the kind's own; its magic.
///
/// The magic is `s_magic`, not that of statfs: an SMB 3 mount says 0xfe534d42 there.
const KINDS: &[(&[&str], u64)] = &[
    (&["ceph"], CEPH_SUPER_MAGIC),
    (&["nfs", "nfs4"], 0x6969),
    (&["cifs", "smb3"], 0xff53_4d42),
    (&["9p"], 0x0102_1997),
    (&["afs"], 0x6b41_4653),
    (&["beegfs"], 0x1983_0326),
    (&["coda"], 0x7375_7245),
    (&["gfs2"], 0x0116_1970),
    (&["gpfs"], 0x4750_4653),
    (&["lustre"], 0x0bd0_0bd0),
    (&["ocfs2"], 0x7461_636f),
    (&["pvfs2"], 0x2003_0528),
    (&["virtiofs", "fuse"], FUSE_SUPER_MAGIC),
    // Shared with nobody: the stand-in for tests and trials.
    (&["tmpfs"], 0x0102_1994),
];

/// People's names for a filesystem, and mountinfo's.
const SYNONYMS: &[(&str, &str)] = &[
    ("cephfs", "ceph"),
    ("ceph-fuse", "fuse.ceph-fuse"),
    ("fuse.ceph", "fuse.ceph-fuse"),
    ("glusterfs", "fuse.glusterfs"),
    ("gluster", "fuse.glusterfs"),
    ("moosefs", "fuse.mfs"),
    ("orangefs", "pvfs2"),
    ("s3fs", "fuse.s3fs"),
    ("smb", "cifs"),
    ("smbfs", "cifs"),
    ("smb2", "cifs"),
    ("sshfs", "fuse.sshfs"),
];

/// A kind of shared filesystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Filesystem {
    name: String,
    magic: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    subtype: String,
}

impl Filesystem {
    /// The kind of that name; otherwise a hint.
    pub(super) fn named(name: &str) -> Result<Self, String> {
        if let Some((names, magic)) = KINDS.iter().find(|(names, _)| names.contains(&name)) {
            return Ok(Self { name: names[0].to_owned(), magic: *magic, subtype: String::new() });
        }
        if let Some((_, known)) = SYNONYMS.iter().find(|(synonym, _)| *synonym == name) {
            return Err(format!("write `{known}`, as mountinfo does"));
        }
        let subtype = name.strip_prefix("fuse.").or_else(|| name.strip_prefix("fuseblk."));
        match subtype {
            Some("") => Err("name the FUSE filesystem, as in `fuse.ceph-fuse`".to_owned()),
            Some(subtype) if subtype.len() >= SUBTYPE_BYTES => {
                Err(format!("a FUSE subtype has at most {} bytes", SUBTYPE_BYTES - 1))
            }
            Some(subtype) if subtype.bytes().any(|byte| byte <= b' ' || byte == 0x7f) => {
                Err("a FUSE subtype has no spaces or control characters".to_owned())
            }
            Some(subtype) => Ok(Self {
                name: format!("fuse.{subtype}"),
                magic: FUSE_SUPER_MAGIC,
                subtype: subtype.to_owned(),
            }),
            None => Err(unknown(name)),
        }
    }

    /// Whether mountinfo's type names some kind of shared filesystem, guarded or not.
    pub fn is_known(fs_type: &str) -> bool {
        Self::named(fs_type).is_ok()
    }

    /// The kind's name: one of those in mountinfo.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `s_magic` of its superblocks.
    pub fn magic(&self) -> u64 {
        self.magic
    }

    /// The part after `fuse.`; empty for all other kinds.
    pub fn subtype(&self) -> &str {
        &self.subtype
    }

    /// The key in the map `FILESYSTEMS`.
    pub fn key(&self) -> FilesystemKey {
        FilesystemKey::new(self.magic, self.subtype.as_bytes())
            .expect("the subtype's length is checked by named()")
    }

    /// Whether a mount with this type in mountinfo is of this kind.
    pub fn matches(&self, fs_type: &str) -> bool {
        Self::named(fs_type).is_ok_and(|other| other.key() == self.key())
    }
}

fn unknown(name: &str) -> String {
    let known = KINDS.iter().flat_map(|(names, _)| names.iter().copied());
    match nearest(name, known.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let list: Vec<&str> = known.filter(|name| *name != "fuse").collect();
            format!("known are {} and fuse.<subtype>", list.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_magic_are_one_kind() {
        let nfs = Filesystem::named("nfs").unwrap();
        assert_eq!(nfs, Filesystem::named("nfs4").unwrap());
        assert!(nfs.matches("nfs4") && nfs.matches("nfs") && !nfs.matches("ceph"));
        let ceph_fuse = Filesystem::named("fuse.ceph-fuse").unwrap();
        assert!(ceph_fuse.matches("fuse.ceph-fuse"));
        assert!(!ceph_fuse.matches("fuse.sshfs") && !ceph_fuse.matches("fuse"));
        assert_ne!(ceph_fuse.key(), Filesystem::named("fuse").unwrap().key());
    }

    #[test]
    fn unknown_names_get_a_hint() {
        for (name, hint) in [
            ("cephfs", "write `ceph`, as mountinfo does"),
            ("cehp", "did you mean `ceph`?"),
            ("fuse.", "name the FUSE filesystem, as in `fuse.ceph-fuse`"),
            ("fuse.a23456789012345678901234", "a FUSE subtype has at most 23 bytes"),
        ] {
            assert_eq!(Filesystem::named(name).unwrap_err(), hint, "{name}");
        }
        assert!(Filesystem::named("zonefs9000").unwrap_err().starts_with("known are ceph, nfs"));
    }
}
