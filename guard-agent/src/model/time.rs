//! Times: from the boot clock, which the kernel program reads, to the wall clock, which people
//! read.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

/// A wall-clock time: RFC 3339 in UTC with nanoseconds, in JSON and in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Timestamp);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.9}", self.0)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Time).map_err(D::Error::custom)
    }
}

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Nanoseconds on the boot clock.
    pub boot_ns: u64,
    /// The same moment on the wall clock.
    pub time: Time,
}

/// Wall clock minus boot clock, in nanoseconds. It changes when the wall clock is set: read it anew
/// for each batch of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootOffset(i128);

impl BootOffset {
    /// The offset between two readings of the two clocks.
    pub fn between(wall: Duration, boot: Duration) -> Self {
        Self(nanoseconds(wall) - nanoseconds(boot))
    }

    /// The moment `boot_ns` on both clocks. A number that no calendar has (a corrupt record)
    /// becomes the nearest time that one has.
    pub fn stamp(self, boot_ns: u64) -> Stamp {
        let wall = self.0 + i128::from(boot_ns);
        let bound = if wall < 0 { Timestamp::MIN } else { Timestamp::MAX };
        Stamp { boot_ns, time: Time(Timestamp::from_nanosecond(wall).unwrap_or(bound)) }
    }
}

fn nanoseconds(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).expect("a u64 of seconds fits in an i128 of nanoseconds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_becomes_wall_time_with_nanoseconds() {
        let offset = BootOffset::between(Duration::new(1_790_000_000, 250), Duration::new(100, 50));
        let stamp = offset.stamp(101_000_000_005);
        assert_eq!(stamp.time.to_string(), "2026-09-21T14:13:21.000000205Z");
        let json = serde_json::to_string(&stamp.time).unwrap();
        assert_eq!(serde_json::from_str::<Time>(&json).unwrap(), stamp.time);
    }

    #[test]
    fn any_number_is_a_time() {
        let offset = BootOffset::between(Duration::from_secs(u64::MAX), Duration::ZERO);
        assert_eq!(offset.stamp(u64::MAX).time, Time(Timestamp::MAX));
        let offset = BootOffset::between(Duration::ZERO, Duration::from_secs(u64::MAX));
        assert_eq!(offset.stamp(0).time, Time(Timestamp::MIN));
    }
}
