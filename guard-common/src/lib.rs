//! The interface between the kernel program (`guard-ebpf`) and the agent (`guard-agent`):
//! map keys and values, the record of the ring buffer, counters, and every name that both sides
//! use.
//!
//! Everything here is `#[repr(C)]`, has no implicit padding and no `bool` or `Option`: integers
//! only, parsed into enums on the reading side. A number of an enum or flag, once given, keeps its
//! meaning in all layouts: agents of different layouts carry such numbers over as they are.
#![no_std]

pub mod checked;
pub mod counter;
pub mod description;
pub mod kept;
pub mod names;
pub mod offsets;
pub mod policy;
pub mod record;

pub use checked::Checked;
pub use counter::Counter;
pub use offsets::Offsets;
pub use policy::{
    ActorMask, CarriedKey, CgroupKey, Config, ExecutableKey, FilesystemKey, KindEntry, LeaseEntry,
    LeaseKey, Meta, Mode, PoolCounters, PoolEntry, PoolKey, RootEntry, RootKey,
};
pub use record::{Hook, IncidentKey, IncidentValue, Operation, Reason, Record, Tier, Verdict};

/// Version of what pinned maps mean. An agent that finds pins of another layout carries over what
/// it can understand, and refuses the rest. A change of sizes or fields makes another layout by
/// itself (see [`description`]); this number is for people, and for a change of meaning that leaves
/// all of them alone.
pub const LAYOUT_VERSION: u32 = if cfg!(feature = "other-layout") { 1004 } else { 4 };

/// Declares an enum whose values cross the line as `u32`, with its name in map, log and JSON.
macro_rules! wire_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $value:literal => $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[$doc])* $variant = $value,)+ }

        impl $name {
            /// Every value, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name used in the audit log, the CLI and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The value for a number read from a map or the ring buffer; `None` if it is unknown.
            pub const fn from_u32(value: u32) -> Option<Self> {
                match value { $($value => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}
pub(crate) use wire_enum;

/// Implements aya's `Pod` (plain old data) on the agent's side.
macro_rules! pod {
    ($($name:ident),+ $(,)?) => { $(
        #[cfg(feature = "user")]
        // SAFETY: repr(C), integers only, no padding (asserted beside the type), any bits valid.
        unsafe impl aya::Pod for $name {}
    )+ };
}
pub(crate) use pod;

/// Asserts size and alignment at compile time, so that both sides see the same bytes.
macro_rules! layout {
    ($($name:ty: $size:literal),+ $(,)?) => { $(
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
        const _: () = assert!(core::mem::align_of::<$name>() <= 8);
    )+ };
}
pub(crate) use layout;
