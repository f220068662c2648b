//! An overlay whose layers are all in a guest's volume, as a container in a container has it.
//! Nothing is ever denied, in any state of the agent. (CephFS cannot be an upper layer: see
//! `workload_views_cephfs`.)

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::harness::beside::never_denied;
use crate::harness::guarded::{Guarded, populate};
use crate::harness::registry::Test;
use crate::harness::{command, machine};
use crate::peers::container;

pub(super) const TESTS: &[Test] =
    &[Test::new("workload_of_an_overlay_in_a_guest_is_never_denied", overlay)
        .within_seconds(600)
        .only_in_full()];

/// Whiteouts, opaque directories, copies to the upper layer, and a second mount, which cleans up
/// after the first.
const WORK: &str = "set -e; cd /data; mkdir lower upper work; cp -r volume lower/a; cp -r volume lower/b
on() { mount -t overlay -o lowerdir=/data/lower,upperdir=/data/upper,workdir=/data/work$1 overlay /tmp/merged; }
mkdir -p /tmp/merged; on $OPTIONS; cd /tmp/merged
rm a/file0; rm -r b; mkdir b; echo x >b/file0; mv -f a/file1 a/file2; : >a/file3; truncate -s 1 a/file4
echo y >new; mv -f new a/file5; ln a/file6 c; rm a/file6 c; find a -name file7 -delete; rsync -a --delete b/ a/
test \"$(cat a/file0)\" = x; test ! -e a/file9; cd /; umount /tmp/merged; test -e /data/lower/b/file9; on $OPTIONS
test ! -e /tmp/merged/a/file9; rm -r /tmp/merged/*; test -z \"$(ls -A /tmp/merged)\"; umount /tmp/merged; rm -r /data/*";

fn overlay() -> Result<()> {
    command::run("modprobe", &["overlay"])?;
    let ground = Guarded::new("workload-overlay", "truncate = \"guard\"")?;
    let agent = ground.installation.start()?;
    let pool = ground.pool("pool")?;
    let guest = pool.path().join("guest");
    // By the container's root, which is root; and by one that is root only in a user namespace of
    // its own.
    let users = [
        (&["env", "OPTIONS="][..], "root"),
        (
            &["env", "OPTIONS=,userxattr", "unshare", "--user", "--map-root-user", "--mount"][..],
            "a user namespace's root",
        ),
    ];
    // tmpfs has attributes of users since 6.6. Without them an overlay of theirs removes no
    // directory of a lower layer.
    let old_kernel = machine::kernel()? == "6.1";
    let users = if old_kernel { &users[..1] } else { &users[..] };
    never_denied(&ground.installation, agent, |beside, _| {
        for (before, who) in users {
            populate(&guest)?;
            beside.keeps(&guest.join("volume/file0"))?;
            container::with_the_hosts_programs(&guest, |_| {
                let words = [&before[1..], &["sh", "-c", WORK]].concat();
                command::run(before[0], &words).with_context(|| format!("by {who}")).map(drop)
            })?;
            beside.keeps(&pool.path().join("file0"))?;
            let left = fs::read_dir(&guest).context("list the volume")?.count();
            ensure!(left == 0, "{left} names are left in the volume");
        }
        Ok(())
    })
}
