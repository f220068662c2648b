//! The kernel structure members that the kernel program reads, resolved from BTF.

use guard_common::{Offsets, Tier};

use super::btf::{Btf, BtfError};

type Field = fn(&mut Offsets) -> &mut u32;

/// Structure, member, and where its offset goes.
const MEMBERS: &[(&str, &str, Field)] = &[
    ("path", "mnt", |o| &mut o.path_mnt),
    ("path", "dentry", |o| &mut o.path_dentry),
    ("vfsmount", "mnt_root", |o| &mut o.vfsmount_mnt_root),
    ("vfsmount", "mnt_sb", |o| &mut o.vfsmount_mnt_sb),
    ("mount", "mnt", |o| &mut o.mount_mnt),
    ("mount", "mnt_parent", |o| &mut o.mount_mnt_parent),
    ("mount", "mnt_mountpoint", |o| &mut o.mount_mnt_mountpoint),
    ("mount", "mnt_ns", |o| &mut o.mount_mnt_ns),
    ("mount", "mnt_id", |o| &mut o.mount_mnt_id),
    ("mnt_namespace", "ns.inum", |o| &mut o.mnt_namespace_inum),
    ("dentry", "d_parent", |o| &mut o.dentry_d_parent),
    ("dentry", "d_inode", |o| &mut o.dentry_d_inode),
    ("dentry", "d_sb", |o| &mut o.dentry_d_sb),
    ("dentry", "d_name.name", |o| &mut o.dentry_d_name_name),
    ("dentry", "d_hash.pprev", |o| &mut o.dentry_d_hash_pprev),
    ("super_block", "s_dev", |o| &mut o.super_block_s_dev),
    ("super_block", "s_magic", |o| &mut o.super_block_s_magic),
    ("super_block", "s_root", |o| &mut o.super_block_s_root),
    ("super_block", "s_subtype", |o| &mut o.super_block_s_subtype),
    ("super_block", "s_mounts", |o| &mut o.super_block_s_mounts),
    ("inode", "i_ino", |o| &mut o.inode_i_ino),
    ("inode", "i_sb", |o| &mut o.inode_i_sb),
    ("inode", "i_generation", |o| &mut o.inode_i_generation),
    ("file", "f_path", |o| &mut o.file_f_path),
    ("file", "f_inode", |o| &mut o.file_f_inode),
    ("task_struct", "tgid", |o| &mut o.task_tgid),
    ("task_struct", "flags", |o| &mut o.task_flags),
    ("task_struct", "mm", |o| &mut o.task_mm),
    ("task_struct", "cred", |o| &mut o.task_cred),
    ("task_struct", "real_parent", |o| &mut o.task_real_parent),
    ("task_struct", "group_leader", |o| &mut o.task_group_leader),
    ("task_struct", "start_boottime", |o| &mut o.task_start_boottime),
    ("task_struct", "nsproxy", |o| &mut o.task_nsproxy),
    ("task_struct", "thread_pid", |o| &mut o.task_thread_pid),
    ("task_struct", "fs", |o| &mut o.task_fs),
    ("pid", "numbers", |o| &mut o.pid_numbers),
    ("upid", "ns", |o| &mut o.upid_ns),
    ("pid_namespace", "child_reaper", |o| &mut o.pid_namespace_child_reaper),
    ("fs_struct", "root", |o| &mut o.fs_struct_root),
    ("mm_struct", "exe_file", |o| &mut o.mm_exe_file),
    ("nsproxy", "mnt_ns", |o| &mut o.nsproxy_mnt_ns),
    ("cred", "uid", |o| &mut o.cred_uid),
    ("cred", "euid", |o| &mut o.cred_euid),
    ("iattr", "ia_valid", |o| &mut o.iattr_ia_valid),
];

/// Members that only records want. Not every kernel has them, and none decides the abilities of a
/// kernel. A missing one is 0, and the record says that it is not known.
const FOR_RECORDS: &[(&str, &str, Field)] = &[
    // Of kernels with CONFIG_AUDIT.
    ("task_struct", "loginuid", |o| &mut o.task_loginuid),
];

/// Link between the mounts of a superblock: a kernel has one of these, and 0 stands for the other.
const SIBLINGS: &[(&str, &str, Field)] = &[
    ("mount", "mnt_instance", |o| &mut o.mount_mnt_instance),
    // Since 6.18.
    ("mount", "mnt_next_for_sb", |o| &mut o.mount_mnt_next_for_sb),
];

/// The function that a program stands in front of, or in place of.
pub fn function(tier: Tier, hook: &str) -> String {
    match tier {
        Tier::FmodRet => format!("security_{hook}"),
        Tier::BpfLsm | Tier::Fanotify => format!("bpf_lsm_{hook}"),
    }
}

/// Number of arguments that the kernel program takes for granted: the answer of an earlier program
/// stands behind them.
const ARGUMENTS: &[(&str, u32)] = &[
    ("path_unlink", 2),
    ("path_rmdir", 2),
    ("path_rename", 5),
    ("path_truncate", 1),
    ("file_truncate", 1),
    ("inode_unlink", 2),
    ("inode_rmdir", 2),
    ("sb_delete", 1),
];

/// Resolves them all, for the functions of a tier; the first one that is missing, and that a
/// decision needs, is the error.
pub fn resolve(btf: &Btf<'_>, tier: Tier) -> Result<Offsets, BtfError> {
    let mut offsets = Offsets::default();
    for (structure, member, field) in MEMBERS {
        *field(&mut offsets) = btf.member_offset(structure, member)?;
    }
    where_present(FOR_RECORDS, btf, &mut offsets)?;
    where_present(SIBLINGS, btf, &mut offsets)?;
    let unexpected = |name, what: String| Err(BtfError::Unexpected { name, what });
    for (hook, expected) in ARGUMENTS {
        let name = function(tier, hook);
        // A missing function is reported by the caller that attaches to it.
        match btf.parameters(&name)? {
            Some(found) if found != *expected => {
                return unexpected(name, format!("it has {found} arguments instead of {expected}"));
            }
            _ => {}
        }
    }
    if offsets.mount_mnt_instance == 0 && offsets.mount_mnt_next_for_sb == 0 {
        let what = "it has neither `mnt_instance` nor `mnt_next_for_sb`".to_owned();
        return unexpected("structure mount".to_owned(), what);
    }
    let setattr = function(tier, "inode_setattr");
    offsets.inode_setattr_dentry = btf.parameter_index(&setattr, "dentry")?;
    let behind =
        btf.parameters(&setattr)?.unwrap_or(0).saturating_sub(offsets.inode_setattr_dentry);
    if offsets.inode_setattr_dentry > 1 || behind != 2 {
        return unexpected(
            setattr,
            "the dentry is not the last but one of two or three".to_owned(),
        );
    }
    let rename = function(tier, "inode_rename");
    offsets.inode_rename_arguments = btf.parameters(&rename)?.unwrap_or(0);
    if !matches!(offsets.inode_rename_arguments, 4 | 5) {
        let what = format!("it has {} arguments instead of 4 or 5", offsets.inode_rename_arguments);
        return unexpected(rename, what);
    }
    Ok(offsets)
}

fn where_present(
    members: &[(&str, &str, Field)],
    btf: &Btf<'_>,
    offsets: &mut Offsets,
) -> Result<(), BtfError> {
    for (structure, member, field) in members {
        *field(offsets) = match btf.member_offset(structure, member) {
            Err(BtfError::NoMember { .. }) => 0,
            found => found?,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bpf::btf::tests::with_structure;

    #[test]
    fn every_offset_is_resolved() {
        let all = || MEMBERS.iter().chain(FOR_RECORDS).chain(SIBLINGS);
        // One u32 a member, and two about arguments.
        assert_eq!(size_of::<Offsets>(), (all().count() + 2) * 4);
        let mut offsets = Offsets::default();
        for (number, (_, _, field)) in all().enumerate() {
            *field(&mut offsets) = number as u32 + 1;
        }
        let mut distinct: Vec<u32> = all().map(|(_, _, field)| *field(&mut offsets)).collect();
        distinct.dedup();
        assert_eq!(distinct.len(), all().count(), "two members share a field");
    }

    #[test]
    fn a_kernel_without_audit_is_missing_nothing_that_a_decision_needs() {
        let resolved = |bytes: &[u8]| {
            let mut offsets = Offsets::default();
            where_present(FOR_RECORDS, &Btf::parse(bytes).unwrap(), &mut offsets)
                .map(|()| offsets.task_loginuid)
        };
        assert_eq!(
            resolved(&with_structure("task_struct", &[("flags", 0), ("loginuid", 128)])),
            Ok(16)
        );
        assert_eq!(resolved(&with_structure("task_struct", &[("flags", 0)])), Ok(0));
        assert!(resolved(&with_structure("dentry", &[("d_flags", 0)])).is_err());
    }
}
