//! A container with a volume of the pool, from an image that is a busybox and nothing else; nothing
//! is fetched.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::cluster::{POOL, incus};
use super::machine::Machine;

/// Name of the image.
pub const IMAGE: &str = "busybox";
/// Its /root, as its host sees it.
const HOME: &str = "/var/lib/incus/storage-pools/local/containers/guest/rootfs/root";

/// An unprivileged container on n2, `guest`, with a volume of the pool at /data.
pub fn start(n1: &Machine, n2: &Machine) -> Result<()> {
    // A member that has joined later has to have it too.
    for member in n1.run("incus cluster list --format csv --columns n")?.lines() {
        incus(n1, &format!("storage create local dir --target {}", member.trim()))?;
    }
    incus(n1, "storage create local dir")?;
    import_image(n2)?;
    incus(n2, &format!("init {IMAGE} guest --storage local --target n2"))?;
    incus(n2, "start guest")?;
    incus(n2, &format!("storage volume create {POOL} data"))?;
    incus(n2, &format!("storage volume attach {POOL} data guest data /data"))
}

/// A loop in the guest that deletes in its volume once a second. It does not depend on the daemon.
#[derive(Debug)]
pub struct Work<'a> {
    host: &'a Machine,
}

impl<'a> Work<'a> {
    pub fn begin(host: &'a Machine) -> Result<Self> {
        let work = "cd /data; rm -f /root/failed /root/done; while sleep 1; do mkdir d && echo 1 \
                    >d/a && rm d/a && rm -r d && echo 1 >>/root/done || { echo 1 >>/root/failed; \
                    rm -rf d; }; done";
        let detached = format!("busybox setsid sh -c \"{work}\" </dev/null >/dev/null 2>&1 &");
        incus(host, &format!("exec guest -- /bin/sh -c '{detached}'"))?;
        Ok(Self { host })
    }

    /// It has done something since it was asked last, and nothing has failed.
    pub fn goes_on(&self) -> Result<()> {
        let done = format!("wc -l 2>/dev/null <{HOME}/done || echo 0");
        let before = self.host.run(&done)?;
        self.host.wait_for(
            "the guest deletes in its volume",
            Duration::from_secs(60),
            &format!("test $({done}) -gt {}", before.trim()),
        )?;
        let failed = self.host.run(&format!("wc -l 2>/dev/null <{HOME}/failed || echo 0"))?;
        ensure!(
            failed.trim() == "0",
            "a deletion in the guest's volume failed {} times",
            failed.trim()
        );
        Ok(())
    }
}

/// Makes the image, and brings it into the cluster.
pub fn import_image(host: &Machine) -> Result<()> {
    let script = format!(
        "set -e; d=$(mktemp -d); r=$d/rootfs
        mkdir -p $r/bin $r/sbin $r/dev $r/proc $r/sys $r/run $r/tmp $r/etc $r/root $r/data
        cp /bin/busybox $r/bin/; for a in sh sleep rm mv mkdir cat; do ln -s busybox $r/bin/$a; done
        printf '#!/bin/sh\\nexec sleep 1000000\\n' >$r/sbin/init; chmod 755 $r/sbin/init $d $r
        printf 'architecture: x86_64\\ncreation_date: 1\\nproperties: {{description: busybox}}\\n' >$d/metadata.yaml
        tar -C $d --owner=0 --group=0 -cf $d/image.tar metadata.yaml rootfs
        incus image import $d/image.tar --alias {IMAGE}; rm -rf $d"
    );
    host.run(&script).map(drop)
}
