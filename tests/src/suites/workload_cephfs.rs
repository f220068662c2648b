//! What people run in their volumes: version control, a database, a compiler, a package manager, backups. In a guest's
//! view of a guarded pool none of it is ever denied, whatever becomes of the agent.

use anyhow::{Context as _, Result, ensure};

use super::host_cephfs::Host;
use crate::harness::command;
use crate::harness::registry::Test;
use crate::peers::container;

pub const TESTS: &[Test] =
    &[Test::new("workload_in_a_guest_is_never_denied", in_a_guest).within_seconds(900).only_in_full()];

/// Each of it deletes, replaces and truncates much of what it writes. Everything is gone at the end.
const WORK: [(&str, &str); 6] = [
    (
        "git",
        "export HOME=/tmp GIT_CONFIG_GLOBAL=/dev/null
         git init -q repo && cd repo && git config user.email a@b && git config user.name a
         for n in 1 2 3 4 5; do echo $n >f$n; git add f$n; git commit -qm $n; done
         git rm -q f1 && git commit -qm removed && git branch side HEAD~2 && git checkout -q side
         git checkout -q - && git branch -qD side && git gc -q --prune=now
         cd .. && git clone -q repo clone && test ! -e clone/f1 && test -e clone/f5",
    ),
    (
        "sqlite",
        "/usr/bin/python3 -c '
import sqlite3
for mode in (\"DELETE\", \"TRUNCATE\", \"PERSIST\"):
    with sqlite3.connect(\"data.db\", isolation_level=None) as db:
        db.execute(\"PRAGMA journal_mode=\" + mode)
        db.execute(\"CREATE TABLE t (x)\")
        db.execute(\"BEGIN\")
        db.executemany(\"INSERT INTO t VALUES (?)\", [(n,) for n in range(2000)])
        db.execute(\"COMMIT\")
        db.execute(\"DELETE FROM t WHERE x % 2\")
        db.execute(\"VACUUM\")
        assert db.execute(\"SELECT count(*) FROM t\").fetchone() == (1000,)
        db.execute(\"DROP TABLE t\")
'",
    ),
    (
        "compiler",
        "export TMPDIR=$PWD; echo 'int main(void) { return 7; }' >a.c
         cc -c a.c -o a.o && cc a.o -o a; ./a || test $? = 7; mv a b; cc a.c -o a; mv -f a b; test -x b",
    ),
    (
        "package manager",
        "mkdir -p pkg/DEBIAN pkg/usr/share/x system/var/lib/dpkg/info system/var/lib/dpkg/updates
         touch system/var/lib/dpkg/status system/var/lib/dpkg/available; echo one >pkg/usr/share/x/file
         for version in 1 2; do
             printf 'Package: x\\nVersion: %s\\nArchitecture: all\\nMaintainer: a <a@b>\\nDescription: x\\n' $version \
                 >pkg/DEBIAN/control
             dpkg-deb -Znone -b pkg x.deb >/dev/null && dpkg --root=system --log=/dev/null -i x.deb >/dev/null
         done
         test -e system/usr/share/x/file && dpkg --root=system --log=/dev/null --purge x >/dev/null
         test ! -e system/usr/share/x/file",
    ),
    (
        "backup",
        "mkdir -p from/a from/b to; for n in 1 2 3 4 5 6; do echo $n >from/a/$n; done
         rsync -a --delete from/ to/ && rm -r from/a/1 from/b && echo other >from/a/2 && rsync -a --delete from/ to/
         test ! -e to/a/1 && test ! -e to/b && tar cf all.tar from && rm -r from && tar xf all.tar && tar xf all.tar
         test \"$(cat from/a/2)\" = other",
    ),
    ("everything goes", "rm -r /data/* && test -z \"$(ls -A /data)\""),
];

fn in_a_guest() -> Result<()> {
    let mut host = Host::new()?;
    work(&host).context("with the agent running")?;
    host.agent.take().context("no agent")?.kill()?;
    work(&host).context("with the agent killed")?;
    host.agent = Some(host.installation.start_upgraded()?);
    work(&host).context("with the agent upgraded")?;
    let denied = host.counted("denied")?;
    ensure!(denied == 0, "a guest was denied {denied} times");
    // The host's own deletion, of the same pool, is denied all the while.
    host.withstands(1, || command::run_failing("rm", &["-r", &host.pool.path().to_string_lossy()]))?;
    Ok(())
}

fn work(host: &Host) -> Result<()> {
    let volume = host.scratch("guest")?;
    container::with_the_hosts_programs(&volume, |data| {
        for (name, script) in WORK {
            let line = format!("set -e; mkdir -p {0}/work; cd {0}/work\n{script}", data.display());
            command::run("sh", &["-c", &line]).with_context(|| format!("{name} in a volume"))?;
        }
        Ok(())
    })?;
    host.is_intact()?;
    host.clear("guest")
}
