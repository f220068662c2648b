//! Everything that can be wrong with enforcement: a stable code for each, and the fix.

use std::collections::BTreeMap;

/// A stable code, and the fix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trouble {
    /// Enforcement that is left. First field: the worst is named first.
    pub(super) leaves: Leaves,
    pub(super) code: &'static str,
    pub(super) fix: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Leaves {
    Nothing,
    Part,
}

pub const CANARY: Trouble = Trouble {
    code: "canary-failed",
    fix: "run `guardctl doctor`: most often `bpf` is missing in the kernel's list of active LSMs \
          (parameter lsm=)",
    leaves: Leaves::Nothing,
};
pub const UNPINNED: Trouble = Trouble {
    code: "link-unpinned",
    fix: "restart the agent: it pins its programs anew",
    leaves: Leaves::Part,
};
pub const RECONCILE: Trouble = Trouble {
    code: "maps-not-current",
    fix: "new pools are still protected as unclassified; see the agent's log, then restart it",
    leaves: Leaves::Part,
};
pub const UNRESOLVED: Trouble = Trouble {
    leaves: Leaves::Part,
    code: "path-unresolved",
    fix: "make the path readable for the agent, or correct the policy: this path is not in \
          force",
};
pub const MOUNT_TABLE: Trouble = Trouble {
    code: "mount-table-unclear",
    fix: "report the line: a mount in it has no entry of its own",
    leaves: Leaves::Part,
};
pub const STATE: Trouble = Trouble {
    code: "state-file",
    fix: "check the space and permissions of the state directory: it is written again by itself",
    leaves: Leaves::Part,
};
pub const STATE_LOST: Trouble = Trouble {
    code: "state-lost",
    fix: "look at `guardctl pools` and seal the pools that must be sealed: seals that were in \
          force still are; any `guardctl seal` or `unseal`, or a restart, ends this reason",
    leaves: Leaves::Part,
};
pub const JOURNAL: Trouble = Trouble {
    code: "journal-not-written",
    fix: "check the space and permissions of the state directory: until then no node's pools are \
          weakened",
    leaves: Leaves::Part,
};
pub const LAST_GOOD: Trouble = Trouble {
    leaves: Leaves::Part,
    code: "policy-not-kept",
    fix: "check the space and permissions of the state directory: a start with a wrong policy file \
          would find none",
};
pub const AUDIT: Trouble = Trouble {
    code: "audit-not-written",
    fix: "make room for the audit log; waiting records are written then",
    leaves: Leaves::Part,
};
pub const WEAK_TIER: Trouble = Trouble {
    code: "tier-fanotify",
    fix: "run `guardctl doctor`: it names the change that would raise the tier",
    leaves: Leaves::Part,
};
pub const UNMARKED: Trouble = Trouble {
    code: "mounts-unmarked",
    fix: "see the detail: directories of these mounts can be listed, and so deleted, by everybody; \
          it is tried again. Too many open files: raise the sysctl fs.fanotify.max_user_groups",
    leaves: Leaves::Part,
};
pub const UNSEALED: Trouble = Trouble {
    code: "mounts-not-sealed",
    fix: "see the detail: `busy` means that a file is open for writing through the mount (`fuser \
          -vm MOUNTPOINT`); until then listing its directories is refused to everybody, and it is \
          tried again",
    leaves: Leaves::Part,
};
pub const UNSEEN: Trouble = Trouble {
    code: "deletions-unseen",
    fix: "see the detail: deletions that this tier does not stop are not in the audit log either; \
          if the queue is full, the host deletes faster than the agent reads (sysctl \
          fs.fanotify.max_queued_events), \
          and the next proof forgets it. Too many open files: raise the sysctl \
          fs.fanotify.max_user_groups",
    leaves: Leaves::Part,
};
pub const RESPONDER: Trouble = Trouble {
    code: "responder-replaced",
    fix: "see the agent's log: for a moment the kernel allowed everything in guarded pools; this \
          ends with the next proof",
    leaves: Leaves::Part,
};
pub const RECORDS: Trouble = Trouble {
    code: "records-undecodable",
    fix: "agent and kernel program do not match: restart the agent",
    leaves: Leaves::Part,
};
pub const INCIDENTS: Trouble = Trouble {
    leaves: Leaves::Part,
    code: "incidents-full",
    fix: "end what deletes in so many processes: their deletions are denied and counted, and the \
          audit log has no line of them",
};

pub const TIER_LOST: Trouble = Trouble {
    code: "tier-lost",
    fix: "run `guardctl doctor`: it names the change that brings the stronger tier back; or take \
          this one by name in the policy: [enforcement] tier",
    leaves: Leaves::Part,
};
pub const OTHER_TIER: Trouble = Trouble {
    code: "tier-not-as-policy",
    fix: "restart the agent: the tier is chosen when it starts",
    leaves: Leaves::Part,
};
/// A live pool in which nobody may delete that policy lets.
pub const NO_ACTOR: Trouble = Trouble {
    code: "no-actor",
    fix: "name the storage daemon of this host in the policy: actors = [{ executable = \
          \"/usr/sbin/incusd\" }], say (`ls -l /proc/$(pidof incusd)/exe` tells which); it is \
          denied deletion until then",
    leaves: Leaves::Part,
};
/// The policy file on disk is not the one in force.
pub const POLICY_REJECTED: Trouble = Trouble {
    code: "policy-rejected",
    fix: "correct the file (`guardctl policy check` names every problem): it is read again within \
          seconds",
    leaves: Leaves::Part,
};
/// A followed node's join has failed. Its pools are sealed, which is right but not meant to last.
pub const NODE_FAILED: Trouble = Trouble {
    code: "node-failed",
    fix: "run `guardctl rollback` and then join again: docs/RUNBOOK.md; `guardctl history` tells \
          how it came here",
    leaves: Leaves::Part,
};
pub const SKIPPED: Trouble = Trouble {
    code: "decisions-skipped",
    fix: "boot with lsm=…,bpf (see `guardctl doctor`) and a kernel from 6.2 on, which never skips \
          those programs, or with preempt=voluntary where the kernel takes that; the count begins \
          anew with the next load of the programs",
    leaves: Leaves::Part,
};

/// Present troubles.
#[derive(Debug, Default)]
pub struct Troubles(pub(super) BTreeMap<Trouble, String>);

impl Troubles {
    /// Notes a trouble, with its detail.
    pub fn set(&mut self, trouble: Trouble, detail: String) {
        self.0.insert(trouble, detail);
    }

    /// It is over.
    pub fn clear(&mut self, trouble: Trouble) {
        self.0.remove(&trouble);
    }

    /// Detail of a trouble, if it is noted.
    pub fn detail(&self, trouble: Trouble) -> Option<String> {
        self.0.get(&trouble).cloned()
    }

    /// Sets or clears.
    pub fn set_if(&mut self, trouble: Trouble, detail: impl FnOnce() -> Option<String>) {
        match detail() {
            Some(detail) => self.set(trouble, detail),
            None => self.clear(trouble),
        }
    }
}
