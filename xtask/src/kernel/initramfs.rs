//! The guest's first files: a static busybox, the init script, and the few modules that reach the
//! root. Everything else is loaded later, by the real modprobe, from there.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::Layout;
use crate::progress;

/// Path in Debian's busybox-static.
pub(crate) const BUSYBOX: &str = "/bin/busybox";
/// Goes on in this machine's own root.
pub(crate) const SHARED_INIT: &str = include_str!("../../guest/init");
/// Modules that it needs.
pub(crate) const SHARED_MODULES: [&str; 5] =
    ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];
/// Goes on with systemd on a disk.
pub(crate) const HOST_INIT: &str = include_str!("../../guest/host/init");

/// Writes an initramfs for `kernel` to `target`: `init`, and `modules` with their dependencies.
pub(crate) fn write(kernel: &Layout, target: &Path, init: &str, modules: &[&str]) -> Result<()> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "proc", "sys", "mnt", "modules"] {
        archive.add(directory, 0o040_755, &[]);
    }
    archive.add("init", 0o100_755, init.as_bytes());
    archive.add(
        "bin/busybox",
        0o100_755,
        &fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?,
    );
    for (number, module) in load_order(kernel, modules)?.iter().enumerate() {
        archive.add(&format!("modules/{:02}.ko", number), 0o100_644, &unpacked(module)?);
    }
    fs::write(target, archive.finish()).with_context(|| format!("write {}", target.display()))
}

/// The files of the modules and of their dependencies, in the order to load them.
fn load_order(kernel: &Layout, modules: &[&str]) -> Result<Vec<String>> {
    let mut files: Vec<String> = Vec::new();
    for module in modules {
        let shown =
            progress::capture(Command::new("modprobe").arg("-d").arg(&kernel.directory).args([
                "-S",
                &kernel.release,
                "--show-depends",
                module,
            ]))?;
        // Built-in ones are listed as "builtin NAME": nothing to load.
        let needed = shown
            .lines()
            .filter_map(|line| line.strip_prefix("insmod "))
            .map(|path| path.trim().to_owned());
        for file in needed {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

fn unpacked(module: &str) -> Result<Vec<u8>> {
    let tool = match module.rsplit('.').next() {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(module).with_context(|| format!("read {module}")),
    };
    let output = Command::new(tool)
        .args(["-dcq", module])
        .output()
        .with_context(|| format!("start {tool}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{tool} could not unpack {module} ({})",
        output.status
    );
    Ok(output.stdout)
}

/// A cpio archive in the "newc" format that the kernel reads.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = 1;
        let size = content.len();
        let name_size = name.len() + 1;
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            self.entries, 0, 0, 0, 0, 0, 0, 0, 0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
