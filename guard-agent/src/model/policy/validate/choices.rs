//! Keys that take one of several words.

use toml::Spanned;

use super::super::error::{Problems, nearest};

/// Index of the value in the list of words; a problem if it is none of them.
pub(super) fn one_of(
    value: Option<&Spanned<String>>,
    key: &str,
    names: &[&str],
    problems: &mut Problems<'_>,
) -> Option<usize> {
    let value = value?;
    let found = names.iter().position(|name| name == value.get_ref());
    if found.is_none() {
        let what = format!("unknown {key} `{}`", value.get_ref());
        problems.at(value.span(), what, choices(value.get_ref(), names));
    }
    found
}

/// The words, or the one that was probably meant.
pub(super) fn choices(word: &str, names: &[&str]) -> String {
    match nearest(word, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known are {}", names.join(", ")),
    }
}
