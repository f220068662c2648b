//! Options of a superblock, as mountinfo lists them.

/// The value of `name=`, if there is one and it is not empty. The kernel's last word counts.
pub(super) fn option<'o>(super_options: &'o str, name: &str) -> Option<&'o str> {
    let value = |option: &'o str| option.strip_prefix(name)?.strip_prefix('=');
    super_options.rsplit(',').find_map(value).filter(|value| !value.is_empty())
}
