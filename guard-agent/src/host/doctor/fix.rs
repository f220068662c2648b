//! Instructions that put `bpf` into the active LSM list on this host.

use super::facts::{Bootloader, HostFacts};

/// The kernel parameter, and the way to set it with the host's boot loader.
pub(super) fn boot_parameter(facts: &HostFacts, list: &[String]) -> String {
    // `capability` is always there; naming it is allowed and changes nothing.
    let mut lsms: Vec<&str> = list.iter().map(String::as_str).filter(|lsm| *lsm != "bpf").collect();
    lsms.push("bpf");
    let parameter = format!("lsm={}", lsms.join(","));
    let replace = match facts.lsm_parameter() {
        Some(old) => format!("replace lsm={} by {parameter}", old.join(",")),
        None => format!("add {parameter}"),
    };
    let steps = match facts.bootloader {
        Bootloader::ProxmoxBootTool => {
            format!(
                "{replace} in the line of /etc/kernel/cmdline, then: proxmox-boot-tool refresh && \
                 reboot"
            )
        }
        Bootloader::GrubDebian => {
            format!(
                "{replace} in GRUB_CMDLINE_LINUX in /etc/default/grub, then: update-grub && reboot"
            )
        }
        Bootloader::Grubby => match facts.lsm_parameter() {
            Some(old) => format!(
                "grubby --update-kernel=ALL --remove-args=\"lsm={}\" --args=\"{parameter}\" && \
                 reboot",
                old.join(",")
            ),
            None => format!("grubby --update-kernel=ALL --args=\"{parameter}\" && reboot"),
        },
        Bootloader::Grub => format!(
            "{replace} in GRUB_CMDLINE_LINUX in /etc/default/grub, then: grub-mkconfig -o \
             /boot/grub/grub.cfg && reboot"
        ),
        Bootloader::SystemdBoot => {
            format!(
                "{replace} in the line of /etc/kernel/cmdline, then: kernel-install add-all && \
                 reboot"
            )
        }
        Bootloader::Unknown => {
            format!("{replace} on the kernel's command line in the boot loader, then reboot")
        }
    };
    format!("boot with {parameter}\n{steps}")
}
