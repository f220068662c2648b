//! The daemon's process, in fake `/proc` trees.

use super::super::fake::Fake;
use super::*;

const DAEMON: &[&str] = &["/usr/libexec/incus/incusd", "--group", "incus-admin"];

fn see(fake: &Fake) -> Sighting {
    let table = fs::read(fake.options.proc_root.join("1/mountinfo")).unwrap();
    sight(&fake.options, &Snapshot::parse(&table), 100)
}

fn running(pid: u32) -> Daemon {
    let incarnation =
        Incarnation { boot_id: "b00t".to_owned(), pid, start_ticks: 5_000 + u64::from(pid % 100) };
    Daemon::Running { incarnation, age_seconds: 50 }
}

#[test]
fn the_daemon_of_the_units_cgroup() {
    let fake = Fake::member();
    assert_eq!(see(&fake).daemon, Daemon::Stopped);
    fake.process(410, 1, DAEMON);
    fake.cgroup(&[410]);
    let sighting = see(&fake);
    assert_eq!((sighting.daemon, sighting.listener), (running(410), Listener::NotDaemon));
    fs::write(fake.socket(), "").unwrap();
    fake.listens(410);
    assert_eq!(see(&fake).listener, Listener::Daemon(fake.socket()));
}

#[test]
fn helpers_that_outlive_the_daemon_are_not_it() {
    let fake = Fake::member();
    fake.process(411, 1, &["/usr/libexec/incus/incusd", "forkproxy", "--"]);
    fake.process(412, 1, &["[lxc monitor] /var/lib/incus/containers c1"]);
    fake.process(413, 1, &["/usr/libexec/incus/incusd", "waitready", "--timeout=600"]);
    fake.cgroup(&[411, 412, 413, 999]);
    assert_eq!(see(&fake).daemon, Daemon::Stopped);
    fake.process(420, 1, DAEMON);
    // Between fork and exec a child looks like its parent.
    fake.process(430, 420, DAEMON);
    fake.cgroup(&[411, 412, 413, 420, 430]);
    assert_eq!(see(&fake).daemon, running(420));
}

#[test]
fn the_dead_and_the_unclear() {
    let fake = Fake::member();
    fake.process(410, 1, &[]);
    fake.cgroup(&[410]);
    assert_eq!(see(&fake).daemon, Daemon::Unknown, "it is just starting, or ending");
    let stat = fs::read_to_string(fake.path(410).join("stat")).unwrap();
    fs::write(fake.path(410).join("stat"), stat.replace(" S ", " Z ")).unwrap();
    assert_eq!(see(&fake).daemon, Daemon::Stopped);
    fs::write(fake.path(410).join("stat"), "410 (incusd").unwrap();
    assert_eq!(see(&fake).daemon, Daemon::Unknown);
}

#[test]
fn without_a_unit_it_is_found_by_its_directory() {
    let fake = Fake::member();
    fake.process(410, 1, DAEMON);
    assert_eq!(see(&fake).daemon, running(410));
    fs::write(fake.path(410).join("environ"), "PATH=/bin\0").unwrap();
    assert_eq!(see(&fake).daemon, Daemon::Stopped, "that of another directory");
    let environ = format!("INCUS_DIR={}\0", fake.options.directory.display());
    fs::write(fake.path(410).join("environ"), environ).unwrap();
    fs::remove_file(fake.path(410).join("ns/mnt")).unwrap();
    std::os::unix::fs::symlink("mnt:[2]", fake.path(410).join("ns/mnt")).unwrap();
    assert_eq!(see(&fake).daemon, Daemon::Stopped, "that of an Incus in a container");
}

#[test]
fn a_renamed_executable_that_was_upgraded_under_it() {
    let mut fake = Fake::member();
    fake.process(410, 1, &["/srv/bin/storaged"]);
    let stat = fs::read_to_string(fake.path(410).join("stat")).unwrap();
    fs::write(fake.path(410).join("stat"), stat.replace("incusd", "main")).unwrap();
    std::os::unix::fs::symlink("/srv/bin/storaged (deleted)", fake.path(410).join("exe")).unwrap();
    fake.cgroup(&[410]);
    assert_eq!(see(&fake).daemon, Daemon::Stopped);
    fake.options.executables.push(PathBuf::from("/srv/bin/storaged"));
    assert_eq!(see(&fake).daemon, running(410));
}

/// A socket that process 410 listens on.
fn listens_on(fake: &Fake, paths: &[&str]) {
    let line = |(inode, path): (usize, &&str)| {
        format!(
            "0: 2 0 00010000 0001 01 {} \
             {path}\n",
            700 + inode
        )
    };
    let table: String = paths.iter().enumerate().map(line).collect();
    fs::write(fake.path(410).join("net/unix"), table).unwrap();
    for inode in 0..paths.len() {
        let link = format!("socket:[{}]", 700 + inode);
        std::os::unix::fs::symlink(link, fake.path(410).join(format!("fd/{inode}"))).unwrap();
    }
}

#[test]
fn the_socket_is_the_one_that_the_daemon_listens_on() {
    let mut fake = Fake::member();
    fake.process(410, 1, DAEMON);
    fake.cgroup(&[410]);
    // Fedora, EPEL: beside the sockets that guests see.
    listens_on(&fake, &["/var/lib/incus/guestapi/sock", "/run/incus/unix.socket"]);
    assert_eq!(see(&fake).listener, Listener::Daemon(PathBuf::from("/run/incus/unix.socket")));
    fake.options.socket = Some(PathBuf::from("/srv/incus.sock"));
    assert_eq!(see(&fake).listener, Listener::NotDaemon, "what policy names wins");
    fake.options.socket = None;
    fs::remove_dir_all(fake.path(410)).unwrap();
    fake.process(410, 1, DAEMON);
    let environ =
        format!("INCUS_DIR={}\0INCUS_SOCKET=/srv/incus.sock\0", fake.options.directory.display());
    fs::write(fake.path(410).join("environ"), environ).unwrap();
    listens_on(&fake, &["/run/other/unix.socket", "/srv/incus.sock"]);
    assert_eq!(see(&fake).listener, Listener::Daemon(PathBuf::from("/srv/incus.sock")));
}

#[test]
fn a_wrapped_daemon_without_a_unit() {
    let fake = Fake::member();
    fake.process(410, 1, &["/nix/store/x-incus/bin/incusd", "--group", "incus-admin"]);
    let stat = fs::read_to_string(fake.path(410).join("stat")).unwrap();
    fs::write(fake.path(410).join("stat"), stat.replace("incusd", ".incusd-wrapped")).unwrap();
    assert_eq!(see(&fake).daemon, running(410));
}

#[test]
fn the_pulse_changes_with_the_daemon() {
    let fake = Fake::member();
    let beat = || {
        pulse(
            &fake.options,
            &Snapshot::parse(&fs::read(fake.options.proc_root.join("1/mountinfo")).unwrap()),
            None,
        )
    };
    assert_eq!(beat(), []);
    fake.process(410, 1, DAEMON);
    fake.cgroup(&[410]);
    assert_eq!(beat(), [(410, 5_010)]);
    fs::remove_dir_all(fake.path(410)).unwrap();
    assert_eq!(beat(), []);
}

#[test]
fn the_real_proc_reads_as_the_fake_one_does() {
    let directory = tempfile::tempdir().unwrap();
    let mut options =
        Options::new(&directory.path().canonicalize().unwrap(), "no-such-unit.service");
    // Named: other tests of this process listen on sockets that are called so.
    options.socket = Some(options.directory.join(SOCKET));
    let table = fs::read("/proc/self/mountinfo").unwrap();
    let snapshot = Snapshot::parse(&table);
    assert_eq!(
        sight(&options, &snapshot, 100),
        Sighting { daemon: Daemon::Stopped, ..Sighting::unknown() }
    );
    let host = Host { options: &options, snapshot: &snapshot };
    let own = std::process::id();
    assert_eq!(host.listener(own), Listener::NotDaemon);
    let socket = options.directory.join(SOCKET);
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let client = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let accepted = listener.accept().unwrap();
    assert_eq!(host.listener(own), Listener::Daemon(socket));
    drop(listener);
    assert_eq!(host.listener(own), Listener::NotDaemon, "a connection that is left is no listener");
    drop((client, accepted));
    assert!(host.stat(own).unwrap().unwrap().start_ticks > 0);
}
