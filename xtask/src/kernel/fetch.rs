//! Downloads a Debian kernel through a private apt and lays it out in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Kernel, vmlinux};
use crate::apt::{PrivateApt, Sources};
use crate::workspace::{self, fresh_directory};
use crate::{checksums, progress};

/// The package that depends on the suite's newest kernel.
const METAPACKAGE: &str = "linux-image-amd64";

/// Downloads `kernel`; its directory appears whole, by a rename, or not at all.
pub(super) fn fetch(kernel: Kernel) -> Result<()> {
    let sources = Sources::of_this_machine()?;
    let mut suites = vec![kernel.suite().to_owned()];
    // The release's kernel is often newer in its security archive; apt takes the newest.
    if kernel == Kernel::V6_1 && sources.have_security() {
        suites.push(format!("{}-security", kernel.suite()));
    }
    let apt_directory = workspace::cache()?.join("apt").join(kernel.name());
    let apt = PrivateApt::downloading(&apt_directory, &sources, &suites)?;
    progress::run(
        &format!("list the packages of {}", suites.join(", ")),
        apt.command("apt-get").arg("update"),
    )?;
    let (release, packages) = resolve(&apt, kernel)?;

    let downloads = fresh_directory(apt_directory.join("download"))?;
    progress::run(
        &format!("download kernel {release}"),
        apt.command("apt-get").arg("download").args(&packages).current_dir(&downloads),
    )?;
    let unpacked = fresh_directory(apt_directory.join("unpacked"))?;
    for entry in
        fs::read_dir(&downloads).with_context(|| format!("list {}", downloads.display()))?
    {
        let package = entry?.path();
        let name = package.file_name().unwrap_or_default().display().to_string();
        progress::run(
            &format!("unpack {name}"),
            Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked),
        )?;
    }
    let partial = fresh_directory(kernel.directory()?.with_extension("partial"))?;
    lay_out(&unpacked, &partial, &release)?;
    let directory = kernel.directory()?;
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("remove {}", directory.display()))?;
    }
    fs::rename(&partial, &directory)
        .with_context(|| format!("rename {} into place", partial.display()))?;
    for litter in [&downloads, &unpacked] {
        fs::remove_dir_all(litter).with_context(|| format!("remove {}", litter.display()))?;
    }
    Ok(())
}

/// From the metapackage to the release and its packages: 7.x splits the image into several.
fn resolve(apt: &PrivateApt, kernel: Kernel) -> Result<(String, Vec<String>)> {
    let images: Vec<String> = dependencies(apt, METAPACKAGE)?
        .into_iter()
        .filter(|name| name.starts_with("linux-image-") && !name.contains("<"))
        .collect();
    let [image] = images.as_slice() else {
        bail!(
            "{METAPACKAGE} of {} should depend on one kernel image, but depends on {images:?}",
            kernel.suite()
        );
    };
    let release = image["linux-image-".len()..].to_owned();
    let mut packages = vec![image.clone()];
    let suffix = format!("-{release}");
    let parts = ["linux-base-", "linux-binary-", "linux-modules-"];
    packages.extend(
        dependencies(apt, image)?.into_iter().filter(|name| {
            name.ends_with(&suffix) && parts.iter().any(|part| name.starts_with(part))
        }),
    );
    Ok((release, packages))
}

fn dependencies(apt: &PrivateApt, package: &str) -> Result<Vec<String>> {
    let text = progress::capture(apt.command("apt-cache").args(["depends", package]))?;
    let names = text
        .lines()
        .filter_map(|line| line.trim_start().trim_start_matches('|').strip_prefix("Depends: "));
    Ok(names.map(|name| name.trim().to_owned()).collect())
}

fn lay_out(unpacked: &Path, partial: &Path, release: &str) -> Result<()> {
    let modules = ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|place| unpacked.join(place).join(release))
        .find(|path| path.is_dir())
        .with_context(|| format!("the packages of {release} hold no modules"))?;
    // 7.x keeps the image and its configuration in the modules' directory.
    let image_file = |name: &str| -> Result<PathBuf> {
        let places = [unpacked.join(format!("boot/{name}-{release}")), modules.join(name)];
        places
            .into_iter()
            .find(|path| path.is_file())
            .with_context(|| format!("the packages of {release} hold no {name}"))
    };
    for name in ["config", "System.map"] {
        let from = image_file(name)?;
        fs::copy(&from, partial.join(name)).with_context(|| format!("copy {}", from.display()))?;
    }
    vmlinux::extract(&image_file("vmlinuz")?, &partial.join("vmlinux"))?;
    let place = partial.join("lib/modules");
    fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
    fs::rename(&modules, place.join(release))
        .with_context(|| format!("move {}", modules.display()))?;
    progress::run(
        &format!("index the modules of {release}"),
        Command::new("depmod")
            .arg("-b")
            .arg(partial)
            .arg("-F")
            .arg(partial.join("System.map"))
            .arg(release),
    )?;
    fs::write(partial.join("release"), format!("{release}\n"))
        .context("write the kernel's release")?;
    checksums::record(partial)
}
