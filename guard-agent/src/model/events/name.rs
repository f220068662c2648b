//! The names of `guard_common`'s enums in JSON: written and read through one wrapper.

use std::fmt;
use std::marker::PhantomData;

use guard_common::{Hook, Mode, Operation, Reason, Tier, Verdict};
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};

/// An enum of the kernel's contract that has a name for each value.
pub trait WireName: Copy + Eq + fmt::Debug + 'static {
    /// The enum's name in an error message.
    const WHAT: &'static str;
    /// Every value.
    const VALUES: &'static [Self];
    /// The name of this value.
    fn text(self) -> &'static str;
}

macro_rules! wire_name {
    ($($name:ident => $what:literal),+ $(,)?) => { $(
        impl WireName for $name {
            const WHAT: &'static str = $what;
            const VALUES: &'static [Self] = Self::ALL;
            fn text(self) -> &'static str {
                self.name()
            }
        }
    )+ };
}
wire_name!(
    Hook => "hook",
    Mode => "mode",
    Operation => "operation",
    Reason => "reason",
    Tier => "tier",
    Verdict => "verdict",
);

/// A value that is its name in JSON and in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name<T>(pub T);

impl<T: WireName> fmt::Display for Name<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.text())
    }
}

impl<T: WireName> Serialize for Name<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.text())
    }
}

impl<'de, T: WireName> Deserialize<'de> for Name<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor(PhantomData))
    }
}

struct NameVisitor<T>(PhantomData<T>);

impl<T: WireName> Visitor<'_> for NameVisitor<T> {
    type Value = Name<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the name of a {}", T::WHAT)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let found = T::VALUES.iter().copied().find(|value| value.text() == text);
        found.map(Name).ok_or_else(|| E::custom(format_args!("`{text}` is not a {}", T::WHAT)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back() {
        for mode in Mode::ALL {
            let json = serde_json::to_string(&Name(*mode)).unwrap();
            assert_eq!(serde_json::from_str::<Name<Mode>>(&json).unwrap(), Name(*mode));
        }
        let error = serde_json::from_str::<Name<Mode>>("\"open\"").unwrap_err().to_string();
        assert!(error.starts_with("`open` is not a mode"), "{error}");
    }
}
