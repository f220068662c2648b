//! Asks the running system where audit lines come from.

use std::{fs, io};

use nix::unistd::gethostname;

use crate::model::audit::record::Origin;

/// This host, and this boot of it.
pub fn of_this_host() -> io::Result<Origin> {
    let host = gethostname()?.to_string_lossy().into_owned();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(Origin { host, boot_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_name_and_a_boot() {
        let origin = of_this_host().unwrap();
        assert!(!origin.host.is_empty() && origin.boot_id.len() == 36, "{origin:?}");
    }
}
