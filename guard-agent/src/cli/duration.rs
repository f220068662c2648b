//! Durations as people write them: `90s`, `10m`, `1h30m`.

use std::time::Duration;

use jiff::SignedDuration;

/// A duration of at least one second, in whole seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration =
        text.parse().map_err(|_| format!("`{text}` is no duration: write it like 90s, 10m or 1h30m"))?;
    let seconds = u64::try_from(parsed.as_secs()).unwrap_or(0);
    if seconds == 0 || parsed.subsec_nanos() != 0 {
        return Err(format!("`{text}` is not a positive number of whole seconds"));
    }
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_durations_in_several_ways() {
        for (text, seconds) in
            [("90s", 90), ("10m", 600), ("1h30m", 5_400), ("1h 30m", 5_400), ("24h", 86_400)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "10", "ten minutes", "0s", "-5m", "10m ago", "1.5s", "500ms", "1y"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
