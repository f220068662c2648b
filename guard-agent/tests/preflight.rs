//! `guardctl preflight` as a process, without an agent, beside a stand-in for the incus client.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const CLIENT: &str = r#"#!/bin/sh
echo "$*" >> "$0.asked"
case "$*" in
--version) echo 6.0.4 ;;
"cluster list seed: --format json") cat "$0.members" ;;
"query seed:/1.0")
    echo '{"api_extensions": ["a"], "environment": {"server_version": "7.0.2"}}' ;;
"query seed:/1.0/storage-pools?recursion=1")
    echo '[{"name": "shared", "driver": "cephfs", "config": {"cephfs.user.name": "nobody-here"}}]' ;;
*) echo "not expected: $*" >&2; exit 1 ;;
esac
"#;

/// Runs it; the states by code, what it says, and what the client was asked.
fn preflight(directory: &Path, arguments: &[&str]) -> (BTreeMap<String, String>, String, String) {
    let client = directory.join("incus");
    fs::write(&client, CLIENT).unwrap();
    fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).unwrap();
    let members = include_str!("../src/cli/preflight/samples/members-conflict-address.json");
    fs::write(directory.join("incus.members"), members).unwrap();
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let root = directory.join("root");
    fs::create_dir_all(&root).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_guardctl"))
        .env("PATH", path)
        .arg("--run-dir")
        .arg(directory)
        .args(["preflight", "--json", "--root"])
        .arg(root)
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let checks: Vec<Value> = serde_json::from_str(&text).unwrap();
    let text_of = |value: &Value| value.as_str().unwrap().to_owned();
    let states = checks.iter().map(|check| (text_of(&check["code"]), text_of(&check["state"])));
    (states.collect(), text, fs::read_to_string(directory.join("incus.asked")).unwrap_or_default())
}

fn sample(name: &str) -> String {
    format!("{}/src/cli/preflight/samples/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_remote_is_asked_and_a_cloud_init_document_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let preseed = sample("cloud-init-write-files.yaml");
    let (states, text, asked) =
        preflight(directory.path(), &["--preseed", &preseed, "--remote", "seed"]);
    for (code, state) in [
        ("agent-unreachable", "fail"),
        ("preseed", "ok"),
        ("token", "ok"),
        ("address-conflict", "fail"),
        ("version-differs", "fail"),
        ("ceph", "fail"),
    ] {
        assert_eq!(states.get(code).map(String::as_str), Some(state), "{code}: {text}");
    }
    assert!(
        text.contains("write_files, /root/join.yaml") && text.contains("6.0.4 here, 7.0.2"),
        "{text}"
    );
    assert!(!text.contains("eyJzZXJ2ZX"), "the token is shown: {text}");
    for question in ["cluster list seed:", "query seed:/1.0\n", "query seed:/1.0/storage-pools"] {
        assert!(asked.contains(question), "{question}: {asked}");
    }
    assert!(!asked.contains("remove"), "{asked}");
}

#[test]
fn an_entry_that_is_online_is_never_removed() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = [
        "--server-name",
        "n1",
        "--address",
        "10.0.0.1",
        "--remote",
        "seed",
        "--remove-stale-member",
    ];
    let (states, text, asked) = preflight(directory.path(), &arguments);
    assert_eq!(states.get("stale-member").map(String::as_str), Some("fail"), "{text}");
    assert_eq!(states.get("name-conflict").map(String::as_str), Some("fail"), "{text}");
    assert!(!asked.contains("remove"), "{asked}");
}

#[test]
fn a_preseed_that_is_no_yaml_forbids_the_join() {
    let directory = tempfile::tempdir().unwrap();
    let preseed = directory.path().join("preseed.yaml");
    fs::write(&preseed, "cluster: {server_name: n2\n").unwrap();
    let (states, text, asked) =
        preflight(directory.path(), &["--preseed", preseed.to_str().unwrap()]);
    assert_eq!(states.get("preseed").map(String::as_str), Some("fail"), "{text}");
    assert_eq!(asked, "--version\n", "without a remote only the client's version is asked for");
}
