//! Workloads in people's volumes: version control, a database, a compiler, a package manager,
//! backups. In a guest's view of a guarded pool none of it is ever denied, in any state of the
//! agent.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::beside::{Beside, When, never_denied};
use crate::harness::cephfs_host::Host;
use crate::harness::command;
use crate::harness::registry::Test;
use crate::peers::container;

pub(super) const TESTS: &[Test] = &[
    Test::new("workload_in_a_guest_is_never_denied", in_a_guest).within_seconds(900).only_in_full(),
    Test::new("workload_of_postgresql_is_never_denied", postgresql)
        .within_seconds(900)
        .only_in_full(),
];

/// Each of it deletes, replaces and truncates much of its own files. Everything is gone at the end.
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
        "mkdir -p system/var/lib/dpkg/info system/var/lib/dpkg/updates
         touch system/var/lib/dpkg/status system/var/lib/dpkg/available
         as() { dpkg --root=system --log=/dev/null --force-confold \"$@\" >/dev/null; }
         pack() { # name, version, a field
             mkdir -p $1/DEBIAN && printf 'Package: %s\nVersion: %s\nArchitecture: all\n%sMaintainer: a <a@b>\n%s: x\n' \
         $1 $2 \"$3\" Description >$1/DEBIAN/control && dpkg-deb -Znone -b $1 $1-$2.deb \
         >/dev/null
         }
         mkdir -p lib/usr/lib/x lib/etc lib/DEBIAN app/usr/bin
         echo one >lib/usr/lib/x/file; echo old >lib/usr/lib/x/old; ln -s file lib/usr/lib/x/link
         echo conf >lib/etc/x.conf; echo /etc/x.conf >lib/DEBIAN/conffiles
         pack lib 1 ''; echo app >app/usr/bin/app; pack app 1 'Depends: lib
'
         as -i lib-1.deb app-1.deb; echo edited >system/etc/x.conf
         rm lib/usr/lib/x/old; echo two >lib/usr/lib/x/file; echo new >lib/etc/x.conf; pack lib 2 ''
         as -i lib-2.deb; test ! -e system/usr/lib/x/old; test \"$(cat system/usr/lib/x/link)\" = two
         test \"$(cat system/etc/x.conf)\" = edited; as -i lib-1.deb 2>/dev/null; test -e system/usr/lib/x/old
         ! as -r lib 2>/dev/null; as -r app; as -i lib-2.deb app-1.deb; as -r app lib
         test -e system/etc/x.conf; test ! -e system/usr/lib/x; as --purge app lib; test ! -e system/etc/x.conf",
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
    on_a_pool(|host, beside, _| {
        let volume = host.scratch("guest")?;
        beside.keeps(&volume.join("d0/e0/f0"))?;
        container::with_the_hosts_programs(&volume, |data| {
            for (name, script) in WORK {
                let line = format!(
                    "set -e; mkdir -p {0}/work; cd \
                     {0}/work\n{script}",
                    data.display()
                );
                command::run("sh", &["-c", &line])
                    .with_context(|| format!("{name} in a volume"))?;
            }
            Ok(())
        })?;
        host.clear("guest")
    })
}

/// Has a guest work on a pool with the agent running, killed and upgraded; the host's data stays.
pub(super) fn on_a_pool(work: impl Fn(&Host, &Beside, When) -> Result<()>) -> Result<()> {
    let mut host = Host::new()?;
    let agent = host.agent.take().context("no agent")?;
    never_denied(&host.installation, agent, |beside, when| {
        work(&host, beside, when)?;
        beside.keeps(&host.pool.path().join("custom/default_data/d0/e0/f0"))?;
        host.is_intact()
    })
}

const MISSING: &str =
    "PostgreSQL's server is not there: install Debian's package `postgresql` (`cargo xtask setup`)";
/// The server runs as nobody.
const AS_NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups env PGHOST=/data \
                         PGDATABASE=work";
/// In small, so that it writes, recycles and removes its log all the time. Its shared memory is
/// files, too.
const SETTINGS: &str = "listen_addresses = ''\nunix_socket_directories = '/data'\nshared_buffers = \
                        16MB\njit = off\ndynamic_shared_memory_type = mmap\nmin_wal_size = \
                        2MB\nmax_wal_size = 4MB\nmax_connections = 10\n";
/// Files are replaced, emptied and, at checkpoints, removed. Ends with where the table is.
const FILL: &str = "CREATE TABLE t (x int, y text);
INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(1, 5000) n;
CREATE INDEX ON t (x);
CREATE UNLOGGED TABLE u AS SELECT * FROM t;
DELETE FROM t WHERE x % 2 = 0;
VACUUM FULL t;
TRUNCATE u;
SET work_mem = '64kB';
DO $$ BEGIN PERFORM count(*) FROM (SELECT y || x FROM t ORDER BY 1) s; END $$;
CHECKPOINT;
SELECT pg_relation_filepath('t');";

/// The server that may still run when a test has failed.
#[derive(Debug, Default)]
struct Server(Cell<Option<Pid>>);

impl Server {
    fn runs(&self, host: &Host) -> Result<()> {
        let file = host.on_ceph().join("guest/db/postmaster.pid");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let pid = text.lines().next().context("no pid")?.parse().context("the server's pid")?;
        self.0.set(Some(Pid::from_raw(pid)));
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = self.0.get() {
            // Best effort: it may have ended already.
            let _ = kill(pid, Signal::SIGQUIT);
        }
    }
}

fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context(MISSING)?;
    let mut places = versions.flatten().map(|version| version.path().join("bin"));
    places.find(|place| place.join("initdb").exists()).context(MISSING)
}

/// One server on a volume, which runs on while the agent is killed and upgraded; killed itself, it
/// recovers.
fn postgresql() -> Result<()> {
    let programs = programs()?;
    let server = Server::default();
    on_a_pool(|host, beside, when| {
        let volume = host.pool.path().join("guest");
        let sh = |script: &str| -> Result<String> {
            let mut said = String::new();
            let line = format!(
                "set -e; cd /tmp; PATH={}:$PATH; as() {{ {AS_NOBODY} \"$@\"; }}\n\
                 sql() {{ as psql -XAtq -v ON_ERROR_STOP=1 \"$@\"; }}\n{script}",
                programs.display()
            );
            container::with_the_hosts_programs(&volume, |_| {
                said = command::run("bash", &["-c", &line]).with_context(|| {
                    let log = fs::read_to_string("/data/log").unwrap_or_default();
                    format!("PostgreSQL in a volume; its log:\n{log}")
                })?;
                Ok(())
            })?;
            Ok(said)
        };
        if when == When::Running {
            fs::create_dir(&volume).context("make a volume")?;
            sh("chown 65534:65534 /data; as initdb -D /data/db -A trust --no-locale -N \
                --wal-segsize=1 >/dev/null")?;
            fs::write(volume.join("db/postgresql.auto.conf"), SETTINGS)
                .context("write its settings")?;
            sh("as pg_ctl -D /data/db -l /data/log -w -t 300 start >/dev/null")?;
            server.runs(host)?;
        }
        sh("as createdb work; as pgbench -i -q -s 1 2>/dev/null; as pgbench -n -c 2 -t 20 \
            >/dev/null")?;
        let said = sh(&format!("sql <<'END'\n{FILL}\nEND"))?;
        let table = volume.join("db").join(said.trim());
        beside.keeps(&table)?;
        sh("sql -c 'DROP TABLE t' -c CHECKPOINT")?;
        ensure!(!table.exists(), "{} is still there", table.display());
        if when == When::Killed {
            // Its processes die where they are; the next ones clean up.
            sh("as pg_ctl -D /data/db -l /data/log -w -t 300 -m immediate restart >/dev/null")?;
            server.runs(host)?;
        }
        sh("sql -c 'TRUNCATE pgbench_history' -c 'VACUUM FULL pgbench_accounts' -c 'SELECT pg_switch_wal()' >/dev/null
            sql -d postgres -c 'DROP DATABASE work' -c CHECKPOINT; sql -d postgres -c 'SELECT 1' >/dev/null")?;
        if when == When::Upgraded {
            sh("as pg_ctl -D /data/db -w -t 300 -m fast stop >/dev/null; as rm -r /data/*; test \
                 -z \"$(ls -A /data)\"")?;
            server.0.set(None);
            host.clear("guest")?;
        }
        Ok(())
    })
}
