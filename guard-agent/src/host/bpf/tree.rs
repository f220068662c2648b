//! The addresses of two counters of the kernel: one counts changes of mounts, the other renames.
//! The kernel program keeps the end of a walk for as long as both stand still.

use std::fs::File;
use std::io::{self, BufRead, BufReader};

const SYMBOLS: &str = "/proc/kallsyms";
/// Seqlocks of `fs/namespace.c` and `fs/dcache.c`, which begin with their numbers.
const NAMES: [&str; 2] = ["mount_lock", "rename_lock"];

/// Addresses of `mount_lock` and `rename_lock`. Zeros where the kernel does not tell them
/// (`kernel.kptr_restrict = 2`, or no `CONFIG_KALLSYMS_ALL`): then each walk is made, at its price,
/// and nothing else is different.
pub(super) fn addresses() -> [u64; 2] {
    let found = File::open(SYMBOLS).and_then(|file| find(BufReader::new(file)));
    let found = found.unwrap_or_else(|error| {
        tracing::debug!(%error, "{SYMBOLS} cannot be read");
        None
    });
    found.unwrap_or_else(|| {
        tracing::info!(
            "the kernel does not tell where `mount_lock` and `rename_lock` lie \
             (kernel.kptr_restrict, CONFIG_KALLSYMS_ALL): decisions cost more, since nothing is \
             kept of earlier ones"
        );
        [0; 2]
    })
}

/// From the text of `/proc/kallsyms`, which has hundreds of thousands of lines. `None` if one is
/// missing, told twice, or told as 0.
fn find(mut text: impl BufRead) -> io::Result<Option<[u64; 2]>> {
    let mut addresses = [None; 2];
    let mut line = Vec::new();
    while {
        line.clear();
        text.read_until(b'\n', &mut line)? > 0
    } {
        // `ffffffff82a6ff40 D mount_lock`; a symbol of a module has its name behind. Nearly no line
        // gets further.
        let symbol = line.trim_ascii_end();
        if !NAMES.iter().any(|name| symbol.ends_with(name.as_bytes())) {
            continue;
        }
        let words = || symbol.split(|byte| byte.is_ascii_whitespace());
        let name = words().nth(2).filter(|_| words().count() == 3);
        if let Some(index) =
            name.and_then(|name| NAMES.iter().position(|known| known.as_bytes() == name))
        {
            let address = words().next().and_then(|word| str::from_utf8(word).ok());
            let address = address.and_then(|word| u64::from_str_radix(word, 16).ok());
            match (addresses[index], address) {
                (None, Some(address)) if address != 0 => addresses[index] = Some(address),
                _ => return Ok(None),
            }
        }
    }
    Ok(addresses[0].zip(addresses[1]).map(|(mounts, names)| [mounts, names]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Option<[u64; 2]> {
        find(text.as_bytes()).unwrap()
    }

    #[test]
    fn both_or_none() {
        let text = "ffffffff81000000 T _stext\nffffffff82a6ff40 D mount_lock\nffffffff82a6ff80 D \
                    rename_lock\nffffffffc0000000 t mount_lock\t[some_module]\n";
        assert_eq!(found(text), Some([0xffff_ffff_82a6_ff40, 0xffff_ffff_82a6_ff80]));
        for text in [
            "",
            "ffffffff82a6ff40 D mount_lock\n",
            "0000000000000000 D mount_lock\n0000000000000000 D rename_lock\n",
            "ffffffff82a6ff40 D mount_lock\nffffffff82a6ff44 d mount_lock\nffffffff82a6ff80 D \
             rename_lock\n",
            "zz D mount_lock\nffffffff82a6ff80 D rename_lock\n",
        ] {
            assert_eq!(found(text), None, "{text}");
        }
    }
}
