//! Per-CPU counters: one for every outcome of a decision and for every kind of error.
//!
//! They reconcile: the audited outcomes (all that make a record or are aggregated) sum up to
//! `records_emitted + records_aggregated + records_lost`.

crate::wire_enum! {
    /// Index into the map `COUNTERS`.
    Counter {
        DeniedSealed = 0 => "denied_sealed",
        DeniedGuarded = 1 => "denied_guarded",
        DeniedUnclassified = 2 => "denied_unclassified",
        /// The pool was released, and its release has ended.
        DeniedExpired = 3 => "denied_expired",
        /// A kernel thread (nfsd, ksmbd) in a guarded pool that policy does not export.
        DeniedKernelThread = 4 => "denied_kernel_thread",
        /// A guarded pool, and the kernel's memory could not be read: fail closed.
        DeniedReadError = 5 => "denied_read_error",
        WouldDeny = 6 => "would_deny",
        AllowedReleased = 7 => "allowed_released",
        AllowedLease = 8 => "allowed_lease",
        AllowedGuestView = 9 => "allowed_guest_view",
        AllowedActor = 10 => "allowed_actor",
        /// A full record went into the ring buffer.
        RecordsEmitted = 11 => "records_emitted",
        /// The incident had its full records: counted in `INCIDENTS` only.
        RecordsAggregated = 12 => "records_aggregated",
        /// Neither: the ring buffer or `INCIDENTS` was full.
        RecordsLost = 13 => "records_lost",
        /// A read failed where nothing is known to be guarded: fail open.
        ErrorReadOpen = 14 => "error_read_open",
        /// A read failed on a guarded pool: fail closed.
        ErrorReadClosed = 15 => "error_read_closed",
        /// The walk towards a guarded root was longer than its bound: fail open.
        ErrorWalkBound = 16 => "error_walk_bound",
        /// `INCIDENTS` took no new entry.
        ErrorIncidentsFull = 17 => "error_incidents_full",
        /// The ring buffer took no record.
        ErrorRingFull = 18 => "error_ring_full",
        /// A superblock with an entry ended, and its entry was removed.
        PoolsEnded = 19 => "pools_ended",
        /// A record was written without some of its fields, which could not be read.
        ErrorReadRecord = 20 => "error_read_record",
        /// A superblock that could have held a pool ended, with or without an entry. The agent
        /// tells by it whether a device number may have changed hands while it wrote an entry.
        /// (Both loads of the tier `fmod-ret` count.)
        SuperblocksEnded = 21 => "superblocks_ended",
        /// A storage daemon of a sealed pool, on another superblock that may show the same data.
        DeniedAlias = 22 => "denied_alias",
        /// Decisions from maps of another layout that counted them under a name of its own.
        CarriedOther = 23 => "carried_other",
        /// The pool is held: only guests go on.
        DeniedHeld = 24 => "denied_held",
    }
}

impl Counter {
    /// Length of the map `COUNTERS`.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// Whether this outcome is audited: it makes a record, is aggregated, or is lost.
    pub const fn is_audited(self) -> bool {
        matches!(
            self,
            Self::DeniedSealed
                | Self::DeniedGuarded
                | Self::DeniedUnclassified
                | Self::DeniedExpired
                | Self::DeniedKernelThread
                | Self::DeniedReadError
                | Self::DeniedAlias
                | Self::DeniedHeld
                | Self::WouldDeny
                | Self::AllowedReleased
                | Self::AllowedLease
                | Self::CarriedOther
        )
    }
}
