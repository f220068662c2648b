//! The clocks of the running system.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::model::time::{BootOffset, Stamp};

/// The boot clock, in nanoseconds.
pub fn boot_ns() -> nix::Result<u64> {
    let boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    Ok(u64::try_from(boot.as_nanos()).unwrap_or(u64::MAX))
}

/// Now, on both clocks.
pub fn now() -> Stamp {
    read().1
}

/// Both clocks of the running system: the offset between them, and now.
pub fn read() -> (BootOffset, Stamp) {
    let time = |clock| clock_gettime(clock).expect("Linux has CLOCK_BOOTTIME and CLOCK_REALTIME");
    let boot = Duration::from(time(ClockId::CLOCK_BOOTTIME));
    let wall = Duration::from(time(ClockId::CLOCK_REALTIME));
    let offset = BootOffset::between(wall, boot);
    let boot_ns = u64::try_from(boot.as_nanos()).unwrap_or(u64::MAX);
    (offset, offset.stamp(boot_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_has_both_clocks() {
        let (offset, stamp) = read();
        assert_eq!(offset.stamp(stamp.boot_ns), stamp);
    }
}
