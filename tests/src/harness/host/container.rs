//! The image of a container that is a busybox and nothing else; nothing is fetched.

use anyhow::Result;

use super::machine::Machine;

/// The image's name.
pub const IMAGE: &str = "busybox";

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
