//! An eCryptfs over a directory, without the programs around it: the key that ecryptfs-utils would
//! put together is written here, and opens nothing that anybody else has.

use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::libc;

use crate::harness::command;
use crate::harness::mount::Mount;

/// The key's name, in hexadecimal.
const SIGNATURE: &str = "0123456789abcdef";
const VERSION: u16 = 4;
/// SHA-512 of the password, so often; nobody will calculate it.
const DIGEST: (u32, u32) = (10, 65536);
/// The key below stands for one that is derived from a password.
const KEY_IS_SET: u32 = 2;
const KEY: [u8; 64] = *b"sixty-four bytes that the tests of the bypass catalogue all know";

/// `struct ecryptfs_auth_tok` of a password, packed. (The members that are left out of the names
/// are zero.)
fn token() -> Vec<u8> {
    let mut token = Vec::new();
    token.extend(VERSION.to_ne_bytes());
    // Its kind, a password, and its flags; then a session key that is not there yet, and reserved
    // bytes.
    token.resize(token.len() + 2 + 4 + (3 * 4 + 512 + 64) + 32, 0);
    for number in [0, DIGEST.0, DIGEST.1, KEY.len() as u32, KEY_IS_SET] {
        token.extend(number.to_ne_bytes());
    }
    token.extend(KEY);
    token.extend(SIGNATURE.as_bytes());
    // The signature's end, the salt, and padding up to the size of the structure.
    token.resize(token.len() + 1 + 8 + 3, 0);
    token
}

/// Mounts the directory `lower` at `place`, encrypted: names as they are, content not.
pub fn mount(lower: &Path, place: &Path) -> Result<Mount> {
    const KEY_SPEC_THREAD_KEYRING: libc::c_int = -1;
    command::run("modprobe", &["ecryptfs"])?;
    let (token, name) = (token(), format!("{SIGNATURE}\0"));
    // SAFETY: a system call with NUL-closed names, and a payload of the length that it is told.
    let added = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            name.as_ptr(),
            token.as_ptr(),
            token.len(),
            KEY_SPEC_THREAD_KEYRING,
        )
    };
    Errno::result(added).context("add_key")?;
    let options = format!("ecryptfs_sig={SIGNATURE},ecryptfs_cipher=aes,ecryptfs_key_bytes=16");
    let mounted = Mount::new("ecryptfs", &lower.to_string_lossy(), place, &options);
    mounted.with_context(|| command::run("dmesg", &[]).unwrap_or_default())
}
