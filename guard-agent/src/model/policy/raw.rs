//! The policy file's text → its values, key by key, each with its place in the text.
//!
//! Walks toml's spanned tables instead of deriving serde: serde stops at the first problem, and all
//! of them are to be shown at once. Unknown keys are refused. `validate` interprets the values.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Problems, nearest};

/// A value and its place.
pub(super) type At<T> = Spanned<T>;

#[derive(Debug, Default)]
pub(super) struct RawPolicy {
    pub(super) version: Option<At<i64>>,
    pub(super) roots: Vec<RawRoot>,
    pub(super) defaults: RawSettings,
    pub(super) default_ttl: Option<At<String>>,
    pub(super) max_ttl: Option<At<String>>,
    pub(super) canary_interval: Option<At<String>>,
    pub(super) full_records: Option<At<i64>>,
    pub(super) incident_interval: Option<At<String>>,
    pub(super) on_inactive: Option<At<String>>,
    pub(super) tier: Option<At<String>>,
}

#[derive(Debug)]
pub(super) struct RawRoot {
    /// Where `[[root]]` stands.
    pub(super) span: Range<usize>,
    pub(super) preset: Option<At<String>>,
    pub(super) path: Option<At<String>>,
    pub(super) actors: Option<Vec<RawActor>>,
    pub(super) guests: Option<At<Vec<At<String>>>>,
    pub(super) namespaces: Option<At<Vec<At<String>>>>,
    pub(super) join: Option<At<String>>,
    pub(super) incus_socket: Option<At<String>>,
    pub(super) incus_unit: Option<At<String>>,
    pub(super) on_join_failure: Option<At<String>>,
    pub(super) settings: RawSettings,
}

/// The keys of `[defaults]`, which hold for every root.
#[derive(Debug, Default)]
pub(super) struct RawSettings {
    pub(super) filesystems: Option<At<Vec<At<String>>>>,
    pub(super) mode: Option<At<String>>,
    pub(super) truncate: Option<At<String>>,
    pub(super) exported: Option<bool>,
}

#[derive(Debug)]
pub(super) struct RawActor {
    pub(super) span: Range<usize>,
    pub(super) cgroup: Option<At<String>>,
    pub(super) executable: Option<At<String>>,
}

/// Reads the text; errors go to `problems`. `None` if it is not TOML.
pub(super) fn read(text: &str, problems: &mut Problems<'_>) -> Option<RawPolicy> {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        problems.at(span, format!("not TOML: {}", error.message()), None);
    }
    // After a syntax error, the rest of the file would only give errors that are none.
    errors.is_empty().then(|| policy(&Table::new("the file", document.get_ref()), problems))
}

fn policy(file: &Table<'_>, problems: &mut Problems<'_>) -> RawPolicy {
    file.only(
        &["version", "root", "defaults", "lease", "canary", "audit", "agent", "enforcement"],
        problems,
    );
    let mut raw = RawPolicy {
        version: file.integer("version", problems),
        roots: roots(file, problems),
        ..RawPolicy::default()
    };
    if let Some(table) = file.table("defaults", problems) {
        table.only(&["filesystems", "mode", "truncate", "exported"], problems);
        raw.defaults = settings(&table, problems);
    }
    if let Some(table) = file.table("lease", problems) {
        table.only(&["default_ttl", "max_ttl"], problems);
        raw.default_ttl = table.string("default_ttl", problems);
        raw.max_ttl = table.string("max_ttl", problems);
    }
    if let Some(table) = file.table("canary", problems) {
        table.only(&["interval"], problems);
        raw.canary_interval = table.string("interval", problems);
    }
    if let Some(table) = file.table("audit", problems) {
        table.only(&["full_records", "incident_interval"], problems);
        raw.full_records = table.integer("full_records", problems);
        raw.incident_interval = table.string("incident_interval", problems);
    }
    if let Some(table) = file.table("agent", problems) {
        table.only(&["on_inactive"], problems);
        raw.on_inactive = table.string("on_inactive", problems);
    }
    if let Some(table) = file.table("enforcement", problems) {
        table.only(&["tier"], problems);
        raw.tier = table.string("tier", problems);
    }
    raw
}

fn roots(file: &Table<'_>, problems: &mut Problems<'_>) -> Vec<RawRoot> {
    const KEYS: [&str; 13] = [
        "preset",
        "path",
        "filesystems",
        "mode",
        "truncate",
        "exported",
        "actors",
        "guests",
        "namespaces",
        "join",
        "incus_socket",
        "incus_unit",
        "on_join_failure",
    ];
    let tables = file.tables("root", "[[root]]", problems).unwrap_or_default();
    let root = |(span, table): (Range<usize>, Table<'_>)| {
        table.only(&KEYS, problems);
        RawRoot {
            span,
            preset: table.string("preset", problems),
            path: table.string("path", problems),
            actors: actors(&table, problems),
            guests: table.strings("guests", problems),
            namespaces: table.strings("namespaces", problems),
            join: table.string("join", problems),
            incus_socket: table.string("incus_socket", problems),
            incus_unit: table.string("incus_unit", problems),
            on_join_failure: table.string("on_join_failure", problems),
            settings: settings(&table, problems),
        }
    };
    tables.into_iter().map(root).collect()
}

fn actors(root: &Table<'_>, problems: &mut Problems<'_>) -> Option<Vec<RawActor>> {
    let tables = root.tables("actors", "an actor", problems)?;
    let actor = |(span, table): (Range<usize>, Table<'_>)| {
        table.only(&["cgroup", "executable"], problems);
        let (cgroup, executable) =
            (table.string("cgroup", problems), table.string("executable", problems));
        RawActor { span, cgroup, executable }
    };
    Some(tables.into_iter().map(actor).collect())
}

fn settings(table: &Table<'_>, problems: &mut Problems<'_>) -> RawSettings {
    RawSettings {
        filesystems: table.strings("filesystems", problems),
        mode: table.string("mode", problems),
        truncate: table.string("truncate", problems),
        exported: table.boolean("exported", problems),
    }
}

/// One table of the file, with the name that messages use for it.
struct Table<'t> {
    place: &'t str,
    table: &'t DeTable<'t>,
}

impl<'t> Table<'t> {
    fn new(place: &'t str, table: &'t DeTable<'t>) -> Self {
        Self { place, table }
    }

    /// Refuses every key that is not in the list.
    fn only(&self, keys: &[&str], problems: &mut Problems<'_>) {
        for key in self.table.keys().filter(|key| !keys.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref().as_ref();
            let hint = match nearest(name, keys.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here are {}", keys.join(", ")),
            };
            problems.at(key.span(), format!("unknown key `{name}` in {}", self.place), hint);
        }
    }

    fn value(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.get(key)
    }

    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        problems: &mut Problems<'_>,
        read: impl FnOnce(&'t DeValue<'t>) -> Option<T>,
    ) -> Option<At<T>> {
        let value = self.value(key)?;
        let result = read(value.get_ref());
        if result.is_none() {
            wrong_type(&format!("`{key}`"), expected, value, problems);
        }
        result.map(|inner| Spanned::new(value.span(), inner))
    }

    fn string(&self, key: &str, problems: &mut Problems<'_>) -> Option<At<String>> {
        self.read(key, "a string", problems, |value| value.as_str().map(str::to_owned))
    }

    fn boolean(&self, key: &str, problems: &mut Problems<'_>) -> Option<bool> {
        self.read(key, "true or false", problems, DeValue::as_bool).map(Spanned::into_inner)
    }

    fn integer(&self, key: &str, problems: &mut Problems<'_>) -> Option<At<i64>> {
        self.read(key, "a whole number", problems, |value| {
            let integer = value.as_integer()?;
            i64::from_str_radix(integer.as_str(), integer.radix()).ok()
        })
    }

    fn strings(&self, key: &str, problems: &mut Problems<'_>) -> Option<At<Vec<At<String>>>> {
        let array = self.read(key, "a list of strings", problems, DeValue::as_array)?;
        let span = array.span();
        let strings = array.into_inner().iter().filter_map(|value| {
            let text = value.get_ref().as_str();
            if text.is_none() {
                wrong_type(&format!("an item of `{key}`"), "a string", value, problems);
            }
            text.map(|text| Spanned::new(value.span(), text.to_owned()))
        });
        let strings = strings.collect();
        Some(Spanned::new(span, strings))
    }

    fn table(&self, key: &'t str, problems: &mut Problems<'_>) -> Option<Table<'t>> {
        let table = self.read(key, &format!("a table: [{key}]"), problems, DeValue::as_table)?;
        Some(Table::new(key, table.into_inner()))
    }

    fn tables(
        &self,
        key: &'t str,
        place: &'t str,
        problems: &mut Problems<'_>,
    ) -> Option<Vec<(Range<usize>, Table<'t>)>> {
        let expected =
            if key == "root" { "a list of tables: [[root]]" } else { "a list of tables" };
        let array = self.read(key, expected, problems, DeValue::as_array)?.into_inner();
        let tables = array.iter().filter_map(|value| {
            let table = value.get_ref().as_table();
            if table.is_none() {
                wrong_type(&format!("an item of `{key}`"), "a table", value, problems);
            }
            table.map(|table| (value.span(), Table::new(place, table)))
        });
        Some(tables.collect())
    }
}

fn wrong_type(
    what: &str,
    expected: &str,
    value: &Spanned<DeValue<'_>>,
    problems: &mut Problems<'_>,
) {
    let found = value.get_ref().type_str();
    problems.at(value.span(), format!("{what} must be {expected}, not {found}"), None);
}
