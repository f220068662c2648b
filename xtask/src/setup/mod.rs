//! Installs the requirements of building and testing. Looks first, names the missing ones and the
//! changes, then makes them. When all is there it costs a few file look-ups.

pub(crate) mod cargo_tool;
mod install;
mod requirement;
pub(crate) mod toolchain;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::kernel::{self, Kernel, Selection};
use crate::workspace;
use crate::{host, incus};
use cargo_tool::CargoTool;
pub(crate) use install::is_root;
use requirement::Requirement;
pub(crate) use requirement::{Use, find_command};
use toolchain::Toolchain;

#[derive(Args)]
pub(crate) struct Arguments {
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

/// Requirements of a step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted<'a> {
    pub uses: &'a [Use],
    pub kernels: &'a [Kernel],
    /// Real hosts, by their Incus.
    pub hosts: &'a [host::Incus],
}

/// Missing requirements.
struct Plan {
    packages: Vec<&'static Requirement>,
    bpf_linker: bool,
    cargo_tools: Vec<&'static CargoTool>,
    kernels: Vec<Kernel>,
    incus: bool,
    hosts: Vec<host::Incus>,
}

/// One thing to bring into being, with the minutes that it takes on two processors.
struct Task<'a> {
    minutes: u32,
    what: String,
    act: Box<dyn Fn() -> Result<()> + 'a>,
}

impl<'a> Task<'a> {
    fn new(minutes: u32, what: String, act: impl Fn() -> Result<()> + 'a) -> Self {
        Self { minutes, what, act: Box::new(act) }
    }
}

impl Plan {
    fn observe(wanted: Wanted<'_>) -> Result<Self> {
        let Wanted { uses, kernels, hosts } = wanted;
        // The rustup route needs none of Debian's compiler packages.
        let toolchain =
            if uses.contains(&Use::Bpf) { toolchain::detect()? } else { Toolchain::Unneeded };
        let wanted =
            |use_: Use| uses.contains(&use_) && !(use_ == Use::Bpf && toolchain.is_complete());
        let mut packages: Vec<&Requirement> =
            requirement::ALL.iter().filter(|r| wanted(r.needed_for) && !r.is_present()).collect();
        // One package may serve two purposes, which stand side by side.
        packages.dedup_by_key(|requirement| requirement.package);
        let of_hosts: &[Kernel] = if hosts.is_empty() { &[] } else { &host::KERNELS };
        let mut missing = Vec::new();
        for &kernel in kernels.iter().chain(of_hosts) {
            if !kernel.is_ready()? && !missing.contains(&kernel) {
                missing.push(kernel);
            }
        }
        let incus = uses.contains(&Use::Incus) && !incus::is_ready()?;
        let mut unmade = Vec::new();
        for &host in hosts {
            if !host::Image::is_ready(host)? {
                unmade.push(host);
            }
        }
        Ok(Self {
            packages,
            bpf_linker: toolchain.lacks_linker(),
            cargo_tools: if uses.contains(&Use::Dist) {
                cargo_tool::missing()?
            } else {
                Vec::new()
            },
            kernels: missing,
            incus,
            hosts: unmade,
        })
    }

    fn is_empty(&self) -> bool {
        self.packages.is_empty()
            && !self.bpf_linker
            && self.cargo_tools.is_empty()
            && self.kernels.is_empty()
            && !self.incus
            && self.hosts.is_empty()
    }

    fn print(&self) -> Result<()> {
        eprintln!("xtask: setup, missing on this machine:");
        for requirement in &self.packages {
            eprintln!("xtask:   package {:<24} {}", requirement.package, requirement.purpose);
        }
        for task in self.tasks()?.iter().skip(usize::from(!self.packages.is_empty())) {
            eprintln!("xtask:   {}", task.what);
        }
        Ok(())
    }

    /// All that is to be done, in order: a host's disk needs packages and kernels.
    fn tasks(&self) -> Result<Vec<Task<'_>>> {
        let mut tasks: Vec<Task<'_>> = Vec::new();
        if !self.packages.is_empty() {
            let what = format!("{} packages", self.packages.len());
            tasks.push(Task::new(2, what, || install::packages(&self.packages)));
        }
        if self.bpf_linker {
            let place = toolchain::linker_root()?;
            let what = format!(
                "bpf-linker {}, built by cargo into {}",
                toolchain::LINKER_VERSION,
                place.display()
            );
            tasks.push(Task::new(2, what, toolchain::install_linker));
        }
        for &tool in &self.cargo_tools {
            let place = cargo_tool::root()?;
            let what =
                format!("{} {}, built by cargo into {}", tool.name, tool.version, place.display());
            tasks.push(Task::new(2, what, || tool.install()));
        }
        for kernel in &self.kernels {
            let place = kernel.directory()?;
            let what = format!("kernel {} into {} (not installed)", kernel.name(), place.display());
            tasks.push(Task::new(1, what, || kernel.fetch()));
        }
        if self.incus {
            let what = format!("Incus into {} (not installed)", incus::directory()?.display());
            tasks.push(Task::new(1, what, incus::fetch));
        }
        for &host in &self.hosts {
            let what = format!("a Debian 13 system with Incus {} on a disk image", host.name());
            tasks.push(Task::new(3, what, move || host::Image::make(host)));
        }
        Ok(tasks)
    }

    fn execute(&self) -> Result<()> {
        let tasks = self.tasks()?;
        let mut left: u32 = tasks.iter().map(|task| task.minutes).sum();
        for (number, task) in tasks.iter().enumerate() {
            let (number, all) = (number + 1, tasks.len());
            eprintln!(
                "xtask: setup, {number} of {all}: {} (about {left} minutes left in all)",
                task.what
            );
            (task.act)()?;
            left -= task.minutes;
        }
        Ok(())
    }
}

/// The command `cargo xtask setup`: everything.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let kernels = arguments.kernel.kernels();
    let all = Wanted { uses: &Use::ALL, kernels, hosts: &[host::Incus::V7_0] };
    if arguments.check {
        let plan = Plan::observe(all)?;
        if plan.is_empty() {
            eprintln!("xtask: nothing is missing");
            return Ok(ExitCode::SUCCESS);
        }
        plan.print()?;
        return Ok(ExitCode::FAILURE);
    }
    ensure_all(all)?;
    if arguments.verify {
        kernels.iter().try_for_each(|&kernel| kernel::verify_all(kernel))?;
        incus::verify_all()?;
        eprintln!("xtask: every file of the cached kernels and of Incus has its recorded checksum");
    }
    eprintln!("xtask: everything is in place; BPF toolchain: {}", toolchain::detect()?);
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that a step's requirements are there.
pub(crate) fn ensure(uses: &[Use], kernels: &[Kernel]) -> Result<()> {
    ensure_all(Wanted { uses, kernels, hosts: &[] })
}

/// The same, real hosts among it.
pub(crate) fn ensure_all(wanted: Wanted<'_>) -> Result<()> {
    if Plan::observe(wanted)?.is_empty() {
        return Ok(());
    }
    let _lock = workspace::lock_cache()?;
    // Another step may have done it while this one waited.
    let plan = Plan::observe(wanted)?;
    if plan.is_empty() {
        return Ok(());
    }
    plan.print()?;
    plan.execute()?;
    let left = Plan::observe(wanted)?;
    if !left.is_empty() {
        left.print()?;
        bail!("setup ran through, but what is listed above is still missing");
    }
    Ok(())
}
