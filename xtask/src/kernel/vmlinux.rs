//! Takes the ELF kernel out of a compressed x86 image: QEMU starts it directly (PVH), which saves
//! the decompression that is slow under emulation.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};

// Offsets of the Linux/x86 boot protocol's header.
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
/// The build appends the unpacked size to the payload, but not to gzip's, which has it anyway.
const APPENDED_SIZE: usize = 4;

/// Writes the kernel of `image` to `target`.
pub(super) fn extract(image: &Path, target: &Path) -> Result<()> {
    let bytes = fs::read(image).with_context(|| format!("read {}", image.display()))?;
    let payload = payload(&bytes)
        .with_context(|| format!("{} is not an x86 kernel image", image.display()))?;
    let (tool, arguments, payload): (&str, &[&str], &[u8]) = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            ("zstd", &["-dcq"], &payload[..payload.len() - APPENDED_SIZE])
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => ("xz", &["-dc", "--single-stream"], payload),
        [0x1f, 0x8b, ..] => ("gzip", &["-dcq"], payload),
        other => bail!(
            "{}: the payload is packed in an unknown way ({:02x?})",
            image.display(),
            &other[..8.min(other.len())]
        ),
    };
    decompress(tool, arguments, payload, target)?;
    let kernel = fs::read(target).with_context(|| format!("read {}", target.display()))?;
    if !kernel.starts_with(b"\x7fELF") {
        bail!("{tool} made something of {} that is not an ELF kernel", image.display());
    }
    Ok(())
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |offset: usize| -> Option<usize> {
        let bytes = image.get(offset..offset + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let sectors = match *image.get(SETUP_SECTORS)? {
        0 => 4, // what the protocol says 0 means
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * SECTOR + word(PAYLOAD_OFFSET)?;
    image.get(start..start + word(PAYLOAD_LENGTH)?).filter(|payload| payload.len() > 8)
}

fn decompress(tool: &str, arguments: &[&str], payload: &[u8], target: &Path) -> Result<()> {
    let out = File::create(target).with_context(|| format!("create {}", target.display()))?;
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(out)
        .spawn()
        .with_context(|| format!("start {tool}: run `cargo xtask setup`"))?;
    let mut input = child.stdin.take().context("the unpacker's input is a pipe")?;
    let written = thread::scope(|scope| scope.spawn(move || input.write_all(payload)).join());
    let status = child.wait()?;
    if !status.success() {
        bail!("{tool} could not unpack the kernel ({status})");
    }
    written
        .map_err(|_| anyhow::anyhow!("feeding {tool} panicked"))?
        .with_context(|| format!("feed {tool}"))
}
