//! Installs what building and testing need. Looks first, says what is missing and what it will
//! change, then changes it. When all is there it costs a few file look-ups.

mod install;
mod requirement;
pub mod toolchain;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::incus;
use crate::kernel::{self, Kernel, Selection};
use crate::workspace;
pub use install::is_root;
use requirement::Requirement;
pub use requirement::{Use, find_command};
use toolchain::Toolchain;

#[derive(Args)]
pub struct Arguments {
    /// Only say what is missing; exit status 1 if anything is
    #[arg(long)]
    check: bool,
    /// Which kernels to have in the cache
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Selection,
    /// Check every file of the cached kernels and of Incus against its recorded checksum
    #[arg(long)]
    verify: bool,
}

/// What is missing.
struct Plan {
    packages: Vec<&'static Requirement>,
    bpf_linker: bool,
    kernels: Vec<Kernel>,
    incus: bool,
}

impl Plan {
    fn observe(uses: &[Use], kernels: &[Kernel]) -> Result<Self> {
        // The rustup route needs none of Debian's compiler packages.
        let toolchain = if uses.contains(&Use::Bpf) { toolchain::detect()? } else { Toolchain::Unneeded };
        let wanted = |use_: Use| uses.contains(&use_) && !(use_ == Use::Bpf && toolchain.is_complete());
        let mut packages: Vec<&Requirement> =
            requirement::ALL.iter().filter(|r| wanted(r.needed_for) && !r.is_present()).collect();
        // One package may serve two purposes, which stand side by side.
        packages.dedup_by_key(|requirement| requirement.package);
        let mut missing = Vec::new();
        for &kernel in kernels {
            if !kernel.is_ready()? {
                missing.push(kernel);
            }
        }
        let incus = uses.contains(&Use::Incus) && !incus::is_ready()?;
        Ok(Self { packages, bpf_linker: toolchain.lacks_linker(), kernels: missing, incus })
    }

    fn is_empty(&self) -> bool {
        self.packages.is_empty() && !self.bpf_linker && self.kernels.is_empty() && !self.incus
    }

    fn print(&self) -> Result<()> {
        eprintln!("xtask: setup, missing on this machine:");
        for requirement in &self.packages {
            eprintln!("xtask:   package {:<24} {}", requirement.package, requirement.purpose);
        }
        if self.bpf_linker {
            let place = toolchain::linker_root()?;
            eprintln!(
                "xtask:   bpf-linker {} built by cargo (2 minutes) into {}",
                toolchain::LINKER_VERSION,
                place.display()
            );
        }
        for kernel in &self.kernels {
            eprintln!(
                "xtask:   kernel {:<25} into {} (not installed)",
                kernel.name(),
                kernel.directory()?.display()
            );
        }
        if self.incus {
            eprintln!("xtask:   Incus {:<26} into {} (not installed)", "", incus::directory()?.display());
        }
        Ok(())
    }

    fn execute(&self) -> Result<()> {
        if !self.packages.is_empty() {
            install::packages(&self.packages)?;
        }
        if self.bpf_linker {
            toolchain::install_linker()?;
        }
        self.kernels.iter().try_for_each(|kernel| kernel.fetch())?;
        if self.incus { incus::fetch() } else { Ok(()) }
    }
}

/// The command `cargo xtask setup`: everything.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let kernels = arguments.kernel.kernels();
    if arguments.check {
        let plan = Plan::observe(&Use::ALL, kernels)?;
        if plan.is_empty() {
            eprintln!("xtask: nothing is missing");
            return Ok(ExitCode::SUCCESS);
        }
        plan.print()?;
        return Ok(ExitCode::FAILURE);
    }
    ensure(&Use::ALL, kernels)?;
    if arguments.verify {
        kernels.iter().try_for_each(|&kernel| kernel::verify_all(kernel))?;
        incus::verify_all()?;
        eprintln!("xtask: every file of the cached kernels and of Incus has its recorded checksum");
    }
    eprintln!("xtask: everything is in place; BPF toolchain: {}", toolchain::detect()?);
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that what a step uses is there.
pub fn ensure(uses: &[Use], kernels: &[Kernel]) -> Result<()> {
    if Plan::observe(uses, kernels)?.is_empty() {
        return Ok(());
    }
    let _lock = workspace::lock_cache()?;
    // Another step may have done it while this one waited.
    let plan = Plan::observe(uses, kernels)?;
    if plan.is_empty() {
        return Ok(());
    }
    plan.print()?;
    plan.execute()?;
    let left = Plan::observe(uses, kernels)?;
    if !left.is_empty() {
        left.print()?;
        bail!("setup ran through, but what is listed above is still missing");
    }
    Ok(())
}
