//! A preseed for `incus admin init --preseed`, as YAML says it, by itself or inside a document for
//! cloud-init. Pure. Errors show the place of a problem and never its text: a preseed holds a join
//! token.

use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Options};
use thiserror::Error;

use super::members;

/// Bytes of a preseed, at most.
pub const LIMIT: u64 = 1 << 20;

/// The part of a preseed about the new node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preseed {
    /// A token's name goes before it.
    pub server_name: Option<String>,
    pub server_address: Option<String>,
    pub cluster_token: Option<String>,
    /// A member of the cluster to be joined; without it and a token a new cluster is made.
    pub cluster_address: Option<String>,
    /// The preseed itself, for Incus to read.
    pub text: String,
    /// The place in a document for cloud-init, or a script, that it was found in.
    pub inside: Option<String>,
}

/// Why it could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PreseedError {
    #[error("it is no YAML: {detail}")]
    Yaml { detail: String },
    #[error("it holds {count} documents: Incus reads one")]
    Documents { count: usize },
    #[error("it has no section `cluster`, and none of a preseed inside it has one")]
    NoCluster,
    #[error("it holds several preseeds: {}", places.join(", "))]
    Several { places: Vec<String> },
    #[error("{place}: {source}")]
    Inside {
        place: String,
        #[source]
        source: Box<PreseedError>,
    },
}

impl Preseed {
    /// Whether it asks for a join, and not for a cluster of its own.
    pub fn joins(&self) -> bool {
        self.cluster_token.is_some() || self.cluster_address.is_some()
    }
}

/// The keys at issue; the others are passed over. Incus itself refuses those that it does not know.
#[derive(Debug, Default, Deserialize)]
struct Document {
    cluster: Option<Cluster>,
    write_files: Option<Vec<WriteFile>>,
    bootcmd: Option<Value>,
    runcmd: Option<Value>,
    incus: Option<Init>,
    lxd: Option<Init>,
}

#[derive(Debug, Deserialize)]
struct Cluster {
    server_name: Option<String>,
    server_address: Option<String>,
    cluster_token: Option<String>,
    cluster_address: Option<String>,
}

/// A file that cloud-init writes.
#[derive(Debug, Deserialize)]
struct WriteFile {
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    encoding: Option<String>,
}

/// Input that cloud-init hands on to the daemon's client.
#[derive(Debug, Deserialize)]
struct Init {
    preseed: Option<String>,
}

/// Reads a preseed, or the only one inside a document for cloud-init or a script.
pub fn parse(text: &str) -> Result<Preseed, PreseedError> {
    // A script is no YAML.
    let document = if text.starts_with("#!") { Document::default() } else { document(text)? };
    if let Some(cluster) = document.cluster {
        return Ok(preseed(cluster, text.to_owned()));
    }
    let mut embedded = embedded(document);
    if text.starts_with("#!") {
        embedded.extend(here_documents(text).map(|content| ("the script".to_owned(), content)));
    }
    let mut found = Vec::new();
    let mut broken = None;
    for (place, content) in embedded {
        match self::document(&content) {
            Ok(Document { cluster: Some(cluster), .. }) => {
                found.push(Preseed { inside: Some(place), ..preseed(cluster, content) });
            }
            Ok(_) => {}
            // Other files need not be YAML.
            Err(error) if content.contains("cluster:") => {
                broken = broken.or(Some(PreseedError::Inside { place, source: Box::new(error) }));
            }
            Err(_) => {}
        }
    }
    match (found.pop(), broken) {
        (Some(only), _) if found.is_empty() => Ok(only),
        (Some(last), _) => {
            found.push(last);
            let places = found.into_iter().filter_map(|preseed| preseed.inside).collect();
            Err(PreseedError::Several { places })
        }
        (None, Some(broken)) => Err(broken),
        (None, None) => Err(PreseedError::NoCluster),
    }
}

fn preseed(cluster: Cluster, text: String) -> Preseed {
    let some = |value: Option<String>| {
        value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    Preseed {
        server_name: some(cluster.server_name),
        server_address: some(cluster.server_address),
        cluster_token: some(cluster.cluster_token),
        cluster_address: some(cluster.cluster_address),
        text,
        inside: None,
    }
}

fn document(text: &str) -> Result<Document, PreseedError> {
    let documents: Vec<Option<Document>> =
        serde_saphyr::from_multiple_with_options(text, options())
            .map_err(|error| PreseedError::Yaml { detail: describe(&error) })?;
    let mut documents: Vec<Document> = documents.into_iter().flatten().collect();
    match documents.len() {
        0 => Ok(Document::default()),
        1 => Ok(documents.remove(0)),
        count => Err(PreseedError::Documents { count }),
    }
}

/// Place and kind of an error. The library's own text may quote the preseed.
fn describe(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    let error = error.without_snippet();
    let kind = match error {
        Error::DuplicateMappingKey { .. } => "a key stands there twice",
        Error::UnknownAnchor { .. } | Error::AliasError { .. } => "an alias without an anchor",
        Error::Eof { .. } => "it ends too early",
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => "larger than any preseed",
        Error::Unexpected { .. } | Error::SerdeInvalidType { .. } | Error::InvalidScalar { .. } => {
            "a value of another kind than Incus expects"
        }
        _ => "not understood",
    };
    match error.location() {
        Some(place) => format!("line {}, column {}: {kind}", place.line(), place.column()),
        None => kind.to_owned(),
    }
}

/// Limits far above any preseed, and far below a harmful size.
fn options() -> Options {
    serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::Error,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_events: 100_000,
            max_nodes: 50_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_documents: 16,
            max_total_scalar_bytes: 4 << 20,
            max_merge_keys: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
        },
    }
}

/// Each text in a document for cloud-init that may be a preseed, with its place.
fn embedded(document: Document) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for file in document.write_files.into_iter().flatten() {
        let place =
            format!("write_files, {}", file.path.as_deref().unwrap_or("a file without path"));
        let encoding = file.encoding.as_deref().unwrap_or("text/plain").to_lowercase();
        let content = file.content.and_then(|content| match encoding.as_str() {
            "b64" | "base64" => {
                let digits: String = content.split_whitespace().collect();
                String::from_utf8(members::decode_base64(&digits)?).ok()
            }
            "text/plain" => Some(content),
            _ => None,
        });
        found.extend(content.map(|content| (place, content)));
    }
    for (key, value) in [("bootcmd", document.bootcmd), ("runcmd", document.runcmd)] {
        let mut commands = Vec::new();
        strings(value.as_ref(), &mut commands);
        let contents = commands.into_iter().flat_map(here_documents);
        found.extend(contents.map(|content| (key.to_owned(), content)));
    }
    for (key, init) in [("incus", document.incus), ("lxd", document.lxd)] {
        let content = init.and_then(|init| init.preseed);
        found.extend(content.map(|content| (format!("{key}, preseed"), content)));
    }
    found
}

/// All strings in a value.
fn strings<'a>(value: Option<&'a Value>, found: &mut Vec<&'a str>) {
    match value {
        Some(Value::String(text)) => found.push(text),
        Some(Value::Array(values)) => values.iter().for_each(|value| strings(Some(value), found)),
        _ => {}
    }
}

/// The here-documents of a shell script.
fn here_documents(script: &str) -> impl Iterator<Item = String> + '_ {
    let mut lines = script.lines();
    std::iter::from_fn(move || {
        let (end, has_tabs) = lines.by_ref().find_map(delimiter)?;
        let content = lines.by_ref().map(|line| match has_tabs {
            true => line.trim_start_matches('\t'),
            false => line,
        });
        let content: Vec<&str> = content.take_while(|line| *line != end).collect();
        Some(content.join("\n") + "\n")
    })
}

/// The word that ends the here-document that a line begins, and whether tabs before its lines are
/// left out.
fn delimiter(line: &str) -> Option<(&str, bool)> {
    let (_, rest) = line.split_once("<<")?;
    let (rest, has_tabs) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    let rest = rest.trim_start();
    let word = match rest.split_at_checked(1) {
        Some((quote @ ("'" | "\""), rest)) => rest.split(quote).next()?,
        _ => rest
            .trim_start_matches('\\')
            .split(|c: char| c.is_whitespace() || "|;&<>()".contains(c))
            .next()?,
    };
    (!word.is_empty()).then_some((word, has_tabs))
}

#[cfg(test)]
#[path = "preseed_tests.rs"]
mod tests;
