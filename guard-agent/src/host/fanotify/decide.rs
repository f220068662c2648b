//! Answers to processes that open or list a directory of a pool. Pure.
//!
//! The same rules as in the kernel program (`decide.rs` there), asked of the one step that every
//! recursive deletion begins with. Guest views do not come here: their mounts bear no mark.

use guard_common::policy::POOL_EXPORTED;
use guard_common::{Counter, Mode, PoolEntry, Reason, Verdict};

/// The asking process, as far as it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    pub kernel_thread: bool,
    /// Policy lets it delete in this pool.
    pub actor: bool,
    /// It belongs to a command tree with a lease on this pool, which runs.
    pub lease: bool,
}

/// An answer and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub reason: Reason,
}

impl Outcome {
    const fn denied(reason: Reason) -> Self {
        Self { verdict: Verdict::Denied, reason }
    }

    const fn allowed(reason: Reason) -> Self {
        Self { verdict: Verdict::Allowed, reason }
    }

    /// The counter of this outcome.
    pub fn counter(self) -> Counter {
        match (self.verdict, self.reason) {
            (Verdict::WouldDeny, _) => Counter::WouldDeny,
            (Verdict::Allowed, Reason::Released) => Counter::AllowedReleased,
            (Verdict::Allowed, Reason::Lease) => Counter::AllowedLease,
            (Verdict::Allowed, _) => Counter::AllowedActor,
            (Verdict::Denied, Reason::Guarded) => Counter::DeniedGuarded,
            (Verdict::Denied, Reason::ReleaseExpired) => Counter::DeniedExpired,
            (Verdict::Denied, Reason::KernelThread) => Counter::DeniedKernelThread,
            (Verdict::Denied, Reason::ReadError) => Counter::DeniedReadError,
            (Verdict::Denied, Reason::Held) => Counter::DeniedHeld,
            (Verdict::Denied, _) => Counter::DeniedSealed,
        }
    }
}

/// Whether the answer depends on the asking process. If not, nobody needs to look at it before.
pub fn depends_on_asker(entry: &PoolEntry, read_only: bool, now_boot_ns: u64) -> bool {
    match Mode::from_u32(entry.mode) {
        Some(Mode::Guarded | Mode::Observed | Mode::Held) => true,
        Some(Mode::Released) => !is_released(entry, now_boot_ns) && !read_only,
        Some(Mode::Sealed) | None => !read_only,
    }
}

/// The answer. `read_only`: the mount that is used has been sealed, so that nothing can be deleted
/// through it. `asker`: nothing if the process could not be identified, which fails closed. `None`:
/// allowed, and nobody needs to know.
pub fn decide(
    entry: &PoolEntry,
    read_only: bool,
    now_boot_ns: u64,
    asker: Option<Asker>,
) -> Option<Outcome> {
    // A number that is no mode is treated as sealed: fail closed for known pools.
    let mode = Mode::from_u32(entry.mode).unwrap_or(Mode::Sealed);
    if mode == Mode::Released && is_released(entry, now_boot_ns) {
        return Some(Outcome::allowed(Reason::Released));
    }
    if asker.is_some_and(|asker| asker.lease) {
        return Some(Outcome::allowed(Reason::Lease));
    }
    let reason = match (mode, asker) {
        (Mode::Sealed | Mode::Released, _) if read_only => return None,
        (Mode::Sealed, _) => return Some(Outcome::denied(Reason::Sealed)),
        (Mode::Released, _) => return Some(Outcome::denied(Reason::ReleaseExpired)),
        (_, None) => Reason::ReadError,
        (_, Some(asker)) if asker.actor && mode != Mode::Held => {
            return Some(Outcome::allowed(Reason::Actor));
        }
        (_, Some(asker)) if asker.kernel_thread && entry.flags & POOL_EXPORTED != 0 => return None,
        (_, Some(asker)) if asker.kernel_thread => Reason::KernelThread,
        _ if mode == Mode::Held => Reason::Held,
        _ => Reason::Guarded,
    };
    let verdict = if mode == Mode::Observed { Verdict::WouldDeny } else { Verdict::Denied };
    Some(Outcome { verdict, reason })
}

fn is_released(entry: &PoolEntry, now_boot_ns: u64) -> bool {
    now_boot_ns < entry.expires_boot_ns
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000;
    const STRANGER: Option<Asker> =
        Some(Asker { kernel_thread: false, actor: false, lease: false });
    const ACTOR: Option<Asker> = Some(Asker { kernel_thread: false, actor: true, lease: false });
    const LEASE: Option<Asker> = Some(Asker { kernel_thread: false, actor: false, lease: true });
    const KTHREAD: Option<Asker> = Some(Asker { kernel_thread: true, actor: false, lease: false });

    fn entry(mode: u32) -> PoolEntry {
        PoolEntry { mode, expires_boot_ns: NOW + 1, ..PoolEntry::default() }
    }

    fn answer(
        entry: &PoolEntry,
        read_only: bool,
        asker: Option<Asker>,
    ) -> Option<(Verdict, Reason)> {
        decide(entry, read_only, NOW, asker).map(|outcome| (outcome.verdict, outcome.reason))
    }

    #[test]
    fn every_mode_and_asker() {
        use Reason as R;
        use Verdict::{Allowed, Denied, WouldDeny};
        let guarded = entry(Mode::Guarded as u32);
        let observed = entry(Mode::Observed as u32);
        let sealed = entry(Mode::Sealed as u32);
        let released = entry(Mode::Released as u32);
        let expired = PoolEntry { expires_boot_ns: NOW, ..released };
        let exported = PoolEntry { flags: POOL_EXPORTED, ..guarded };
        let held = entry(Mode::Held as u32);
        for (entry, read_only, asker, expected) in [
            (&guarded, false, STRANGER, Some((Denied, R::Guarded))),
            (&guarded, true, STRANGER, Some((Denied, R::Guarded))),
            (&guarded, false, ACTOR, Some((Allowed, R::Actor))),
            (&guarded, false, LEASE, Some((Allowed, R::Lease))),
            (&guarded, false, KTHREAD, Some((Denied, R::KernelThread))),
            (&exported, false, KTHREAD, None),
            (&guarded, false, None, Some((Denied, R::ReadError))),
            (&observed, false, STRANGER, Some((WouldDeny, R::Guarded))),
            (&observed, false, ACTOR, Some((Allowed, R::Actor))),
            (&sealed, false, STRANGER, Some((Denied, R::Sealed))),
            (&sealed, false, ACTOR, Some((Denied, R::Sealed))),
            (&sealed, false, None, Some((Denied, R::Sealed))),
            (&sealed, false, LEASE, Some((Allowed, R::Lease))),
            (&sealed, true, STRANGER, None),
            (&held, false, STRANGER, Some((Denied, R::Held))),
            (&held, false, ACTOR, Some((Denied, R::Held))),
            (&held, false, KTHREAD, Some((Denied, R::KernelThread))),
            (&held, false, LEASE, Some((Allowed, R::Lease))),
            (&held, false, None, Some((Denied, R::ReadError))),
            (&released, false, STRANGER, Some((Allowed, R::Released))),
            (&expired, false, ACTOR, Some((Denied, R::ReleaseExpired))),
            (&expired, true, STRANGER, None),
            (&entry(99), false, ACTOR, Some((Denied, R::Sealed))),
        ] {
            assert_eq!(
                answer(entry, read_only, asker),
                expected,
                "{entry:?} {read_only} {asker:?}"
            );
        }
    }

    #[test]
    fn whoever_is_not_looked_at_would_change_nothing() {
        for mode in 0..7 {
            for (read_only, expires_boot_ns) in
                [(false, NOW), (true, NOW), (false, NOW + 1), (true, NOW + 1)]
            {
                let entry = PoolEntry { expires_boot_ns, ..entry(mode) };
                if depends_on_asker(&entry, read_only, NOW) {
                    continue;
                }
                let answers =
                    [None, STRANGER, ACTOR, KTHREAD].map(|asker| answer(&entry, read_only, asker));
                assert!(answers.iter().all(|other| *other == answers[0]), "{entry:?}");
            }
        }
    }
}
