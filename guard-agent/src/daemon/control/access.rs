//! The peer of a connection, and its access.

use std::ffi::CString;
use std::fs;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use crate::model::control::protocol::Request;
use crate::model::control::refusal::Refusal;

/// The group whose members may read.
pub const GROUP: &str = "guard";

/// The process at the other end, as the kernel names it (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub pid: Option<u32>,
    pub uid: u32,
    pub gid: u32,
    /// Uid of the login, if the session has one; for the audit log, never for a decision.
    pub login_uid: Option<u32>,
    /// When it started, in ticks of the boot clock, read as the connection was accepted: with `pid`
    /// it names one process.
    pub start_ticks: Option<u64>,
}

/// Access of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Nothing,
    Read,
    Change,
}

impl Access {
    /// The access of a peer: root everything; members of `reader_group` may read.
    ///
    /// Looks the peer's groups up in the host's user database, which may block.
    pub fn of(peer: &Peer, reader_group: Option<Gid>) -> Self {
        match reader_group {
            _ if peer.uid == 0 => Self::Change,
            Some(group) if peer.gid == group.as_raw() || is_member(peer.uid, group) => Self::Read,
            _ => Self::Nothing,
        }
    }

    /// Whether this access is enough for a request of `peer`.
    pub fn permits(self, request: &Request, peer: &Peer) -> Result<(), Refusal> {
        match self {
            Self::Change => Ok(()),
            Self::Read if !request.is_change() => Ok(()),
            Self::Read => Err(Refusal::NotRoot { uid: peer.uid }),
            Self::Nothing if request.is_change() => Err(Refusal::NotRoot { uid: peer.uid }),
            Self::Nothing => Err(Refusal::NotReader { uid: peer.uid, group: GROUP.to_owned() }),
        }
    }
}

/// The group `guard`, if the host has it.
pub fn reader_group() -> Option<Gid> {
    Group::from_name(GROUP).ok().flatten().map(|group| group.gid)
}

/// The login uid of a process, if it can be read and is set.
pub fn login_uid(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/loginuid")).ok()?;
    text.trim().parse().ok().filter(|uid| *uid != u32::MAX)
}

fn is_member(uid: u32, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32) -> Peer {
        Peer { pid: None, uid, gid, login_uid: None, start_ticks: None }
    }

    #[test]
    fn root_changes_the_group_reads_others_nothing() {
        let group = Some(Gid::from_raw(4_242));
        for (peer, group, access) in [
            (peer(0, 0), None, Access::Change),
            (peer(65_534, 4_242), group, Access::Read),
            (peer(65_534, 65_534), group, Access::Nothing),
            (peer(65_534, 4_242), None, Access::Nothing),
        ] {
            assert_eq!(Access::of(&peer, group), access, "{peer:?}");
        }
    }

    #[test]
    fn a_reader_may_not_change() {
        let peer = peer(1_000, 4_242);
        let seal = Request::Seal { pool: "a".to_owned() };
        assert_eq!(Access::Read.permits(&Request::Status, &peer), Ok(()));
        assert_eq!(Access::Read.permits(&seal, &peer), Err(Refusal::NotRoot { uid: 1_000 }));
        assert_eq!(
            Access::Nothing.permits(&Request::Status, &peer).unwrap_err().code(),
            "not-reader"
        );
        assert_eq!(Access::Change.permits(&seal, &peer), Ok(()));
    }
}
