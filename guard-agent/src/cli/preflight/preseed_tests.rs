//! Preseeds as people write them, and readings that must not occur.

use proptest::prelude::*;

use super::*;
use crate::cli::preflight::members::{decode_token, parse_members, parse_token};

macro_rules! samples {
    ($($name:literal),* $(,)?) => { [$(($name, include_str!(concat!("samples/", $name)))),*] };
}

fn token() -> &'static str {
    include_str!("samples/token-printed.txt").lines().last().unwrap()
}

#[test]
fn every_way_to_write_it_says_the_same() {
    for (name, text) in samples![
        "cloud-init-base64.yaml",
        "cloud-init-preseed-key.yaml",
        "cloud-init-runcmd.yaml",
        "cloud-init-write-files.yaml",
        "join-script.sh",
        "preseed-anchor.yaml",
        "preseed-decoys.yaml",
        "preseed-flow.yaml",
        "preseed-folded-token.yaml",
        "preseed-inline-comments.yaml",
        "preseed-json.json",
        "preseed-literal-token.yaml",
        "preseed-merge-key.yaml",
        "preseed-quoted.yaml",
        "preseed-tabs.json",
    ] {
        let preseed = parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let token = decode_token(preseed.cluster_token.as_deref().unwrap())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(token.server_name, "n2", "{name}");
        // The token says it too.
        assert!(preseed.server_name.is_none_or(|server| server == "n2"), "{name}");
        assert_eq!(preseed.server_address.as_deref(), Some("10.0.0.7:8443"), "{name}");
        assert_eq!(
            preseed.inside.is_some(),
            name.starts_with("cloud-init") || name.ends_with(".sh"),
            "{name}"
        );
        // Incus is given a preseed, and no document around it.
        assert_eq!(parse(&preseed.text).unwrap().inside, None, "{name}");
    }
}

#[test]
fn shapes_that_incus_itself_prints_or_documents() {
    let documented = parse(include_str!("samples/preseed-docs-token.yaml")).unwrap();
    assert_eq!(documented.server_address.as_deref(), Some("192.0.2.102:8443"));
    assert_eq!(documented.cluster_token.as_deref(), Some(token()));
    let printed = parse(include_str!("samples/preseed-printed.yaml")).unwrap();
    assert_eq!(printed.server_name.as_deref(), Some("n2"));
    assert_eq!(printed.cluster_address.as_deref(), Some("10.0.0.1:8443"));
    assert_eq!(printed.cluster_token, None);
    assert!(printed.joins());
    assert_eq!(parse_token(include_str!("samples/token-printed.txt")).unwrap().server_name, "n2");
    assert_eq!(parse_members(include_str!("samples/members-3.json")).unwrap().len(), 3);
    assert!(!parse(include_str!("samples/preseed-new-cluster.yaml")).unwrap().joins());
}

#[test]
fn empty_values_are_none_and_scalars_stay_as_they_are_written() {
    let preseed = parse(
        "cluster: {server_name: 0x10, server_address: ~, cluster_token: '', cluster_address: null}",
    )
    .unwrap();
    assert_eq!(preseed.server_name.as_deref(), Some("0x10"));
    assert_eq!(
        (preseed.server_address, preseed.cluster_token, preseed.cluster_address),
        (None, None, None)
    );
}

#[test]
fn whatever_cannot_be_read_is_an_error() {
    type Expected = fn(&PreseedError) -> bool;
    let is_yaml: Expected = |error| matches!(error, PreseedError::Yaml { .. });
    let cases: [(&str, Expected); 10] = [
        ("cluster:\n  server_name: n1\n  server_name: n2\n", is_yaml),
        ("cluster: {server_name: n2", is_yaml),
        ("cluster:\n\tserver_name: n2\n", is_yaml),
        ("cluster: {server_name: [n2]}", is_yaml),
        ("cluster: {server_address: *nowhere}", is_yaml),
        ("cluster: {server_name: n1}\n---\ncluster: {server_name: n2}\n", |error| {
            *error == PreseedError::Documents { count: 2 }
        }),
        ("config: {}\n", |error| *error == PreseedError::NoCluster),
        ("", |error| *error == PreseedError::NoCluster),
        ("write_files: [{path: /a, content: 'cluster: ['}]", |error| {
            matches!(error, PreseedError::Inside { place, .. } if place == "write_files, \
                                                                            /a")
        }),
        (
            "write_files:\n- {path: /a, content: 'cluster: {server_name: n1}'}\n\
             - {path: /b, content: 'cluster: {server_name: n2}'}\n",
            |error| matches!(error, PreseedError::Several { places } if places.len() == 2),
        ),
    ];
    for (text, expected) in cases {
        let error = parse(text).unwrap_err();
        assert!(expected(&error), "{text}: {error:?}");
    }
}

#[test]
fn bombs_end_at_the_limits() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let references = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs += &format!("a{level}: &a{level} [{references}]\n");
    }
    let deep = "[".repeat(100_000);
    let many = "- x\n".repeat(200_000);
    for text in [laughs + "write_files: *a11\ncluster: *a11\n", deep, many] {
        assert!(matches!(parse(&text), Err(PreseedError::Yaml { .. })));
    }
}

#[test]
fn no_error_shows_a_secret() {
    let token = token();
    for text in [
        format!("cluster: {token}\n"),
        format!("cluster: {{cluster_token: [{token}]}}\n"),
        format!("cluster:\n  cluster_token: {token}\n  cluster_token: {token}\n"),
        format!("cluster:\n  cluster_token: \"{token}\n"),
        format!("cluster:\n  {token}: [\n"),
        format!("cluster: {{cluster_token: *{token}}}\n"),
        format!("cluster: {{cluster_token: !!int {token}}}\n"),
        format!("cluster: {{{token}: 1, {token}: 2}}\n"),
        format!("write_files: {token}\n"),
    ] {
        let error = parse(&text).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(&token[..12]), "{shown}");
    }
}

proptest! {
    #[test]
    fn any_text_is_a_preseed_or_an_error(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_near_preseed_too(text in "(#!|#cloud-config\n)?([a-z_]{1,8}|cluster|runcmd|<<|[-:{}\\[\\]*&!|>'\"# \n\t]){0,60}") {
        let _ = parse(&text);
    }

    #[test]
    fn a_cut_never_reads_as_another_address(at in 0..600_usize) {
        let text = include_str!("samples/preseed-decoys.yaml");
        let Some(cut) = text.get(..at) else { return Ok(()) };
        if let Ok(preseed) = parse(cut) {
            let whole = "10.0.0.7:8443";
            prop_assert!(preseed.server_address.is_none_or(|address| whole.starts_with(&address)));
        }
    }
}
