//! Imports between the agent's files form no cycle, and go down from wing to wing only: a file can
//! be understood after those that it rests on.
//!
//! A file imports another if it names something in it, in a `use`, an expression or a macro's
//! arguments. A module that only re-exports items of its own parts (`pub use`) imports nothing.
//! Tests are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use syn::visit::{self, Visit};
use syn::{Attribute, ItemMod, ItemUse, Macro, UseTree, Visibility};

const CRATE: &str = "guard-agent/src";

/// The wings, and the wings that each may import.
const WINGS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("host", &["model"]),
    ("cli", &["model", "host"]),
    ("daemon", &["model", "host"]),
];

/// Checks the agent's files below `root`, and says their number.
pub(super) fn check(root: &Path) -> Result<String> {
    let mut texts = Vec::new();
    for path in super::source_rules::sources(&root.join(CRATE))? {
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let place = path.strip_prefix(root.join(CRATE)).unwrap_or(&path).to_owned();
        let name = place.to_string_lossy().into_owned();
        let is_test = name.ends_with("tests.rs") || name.contains("/tests/");
        if !is_test && !name.starts_with("bin/") {
            texts.push((name, text));
        }
    }
    let imports = imports(&texts)?;
    let upwards = upwards(&imports);
    ensure!(upwards.is_empty(), "imports against the order of the wings: {upwards:?}");
    let in_cycle: BTreeSet<String> = imports
        .keys()
        .filter(|module| reached(&imports, module).contains(*module))
        .map(|module| module.join("::"))
        .collect();
    ensure!(in_cycle.is_empty(), "files that import each other, over others or not: {in_cycle:?}");
    let count: usize = imports.values().map(BTreeSet::len).sum();
    Ok(format!("{} files, {count} imports, none in a cycle", texts.len()))
}

/// Imports of a wing that the importing file's wing must not know.
fn upwards(imports: &Imports) -> Vec<String> {
    let allowed = |from: &str, to: &str| {
        from == to || WINGS.iter().any(|(wing, below)| *wing == from && below.contains(&to))
    };
    let mut found = Vec::new();
    for (from, targets) in imports {
        for to in targets {
            let (Some(wing), Some(other)) = (from.first(), to.first()) else { continue };
            if !allowed(wing, other) {
                found.push(format!("{} -> {}", from.join("::"), to.join("::")));
            }
        }
    }
    found
}

/// A module's path from the crate's root.
type Module = Vec<String>;
type Imports = BTreeMap<Module, BTreeSet<Module>>;

fn imports(texts: &[(String, String)]) -> Result<Imports> {
    let modules: BTreeSet<Module> = texts.iter().map(|(name, _)| module(name)).collect();
    let mut imports = Imports::new();
    for (name, text) in texts {
        let file = match syn::parse_file(text) {
            Ok(file) => file,
            Err(error) => bail!("{name}: {error}"),
        };
        let own = module(name);
        let mut reader = Reader { modules: &modules, own: own.clone(), found: BTreeSet::new() };
        reader.visit_file(&file);
        imports.insert(own, reader.found);
    }
    Ok(imports)
}

fn module(name: &str) -> Module {
    let path = name.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').filter(|part| *part != "lib").map(str::to_owned).collect()
}

/// All imports of a module, and the imports of those.
fn reached(imports: &Imports, from: &Module) -> BTreeSet<Module> {
    let (mut found, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        for next in imports.get(module).into_iter().flatten() {
            if found.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    found
}

struct Reader<'m> {
    modules: &'m BTreeSet<Module>,
    own: Module,
    found: BTreeSet<Module>,
}

impl Reader<'_> {
    /// The module that a path leads into, if it is one of the crate's and another than this.
    fn target(&self, path: &[String]) -> Option<Module> {
        let (mut at, mut rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (self.own.clone(), &path[1..]),
            "super" => (self.own.clone(), path),
            child => {
                let mut named = self.own.clone();
                named.push(child.to_owned());
                (self.modules.contains(&named).then_some(self.own.clone())?, path)
            }
        };
        while rest.first().is_some_and(|part| part == "super") {
            at.pop();
            rest = &rest[1..];
        }
        for part in rest {
            let mut inner = at.clone();
            inner.push(part.clone());
            if !self.modules.contains(&inner) {
                break;
            }
            at = inner;
        }
        // The root holds modules only.
        (at != self.own && !at.is_empty()).then_some(at)
    }

    fn note(&mut self, path: &[String]) {
        self.found.extend(self.target(path));
    }

    fn tree(&mut self, prefix: &[String], tree: &UseTree, is_public: bool) {
        let longer = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.tree(&longer(&path.ident), &path.tree, is_public),
            UseTree::Group(group) => {
                group.items.iter().for_each(|item| self.tree(prefix, item, is_public));
            }
            UseTree::Name(_) | UseTree::Rename(_) | UseTree::Glob(_) => {
                let path = match tree {
                    UseTree::Name(name) => longer(&name.ident),
                    UseTree::Rename(rename) => longer(&rename.ident),
                    _ => prefix.to_vec(),
                };
                let target = self.target(&path);
                let is_own = target.as_ref().is_some_and(|module| module.starts_with(&self.own));
                if !(is_public && is_own) {
                    self.found.extend(target);
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    /// `pub(in crate::a)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if !is_for_tests(&item.attrs) {
            self.tree(&[], &item.tree, !matches!(item.vis, Visibility::Inherited));
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            let parts: Vec<String> =
                path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.note(&parts);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        let tokens = item.tokens.to_string();
        let words: Vec<&str> = tokens.split_whitespace().collect();
        for (index, word) in words.iter().enumerate() {
            if matches!(*word, "crate" | "super") {
                let path = words[index..].chunks(2).take_while(|pair| {
                    pair[0].chars().all(|letter| letter.is_alphanumeric() || letter == '_')
                });
                let parts: Vec<String> = path.map(|pair| pair[0].to_owned()).collect();
                self.note(&parts);
            }
        }
        visit::visit_macro(self, item);
    }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[(&str, &str)]) -> Imports {
        let owned: Vec<_> =
            texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        imports(&owned).unwrap()
    }

    fn cycles(imports: &Imports) -> Vec<String> {
        let all = imports.keys().filter(|module| reached(imports, module).contains(*module));
        all.map(|module| module.join("::")).collect()
    }

    #[test]
    fn a_cycle_is_found_however_it_is_spelled() {
        for there in ["use super::b::B;", "fn f() { crate::a::b::g(); }", "use crate::a::{b::*};"] {
            for back in ["use super::c::C;", "fn f() { log!(\"\", super::c::g()); }"] {
                let found = of(&[("a/mod.rs", ""), ("a/c.rs", there), ("a/b.rs", back)]);
                assert_eq!(cycles(&found), ["a::b", "a::c"], "{there} {back}");
            }
        }
        let parent = of(&[("a.rs", "mod b; use b::B; pub struct A;"), ("a/b.rs", "use super::A;")]);
        assert_eq!(cycles(&parent), ["a", "a::b"]);
    }

    #[test]
    fn re_exports_tests_and_one_way_are_no_cycle() {
        let found = of(&[
            ("lib.rs", "pub mod a; pub mod d;"),
            ("a.rs", "mod b; pub use b::B; pub struct A;"),
            ("a/b.rs", "use super::A; #[cfg(test)] mod tests { use crate::d::D; }"),
            ("d.rs", "use crate::a::B; use std::fs;"),
        ]);
        assert!(cycles(&found).is_empty(), "{found:?}");
        assert_eq!(found.values().map(BTreeSet::len).sum::<usize>(), 2);
    }

    #[test]
    fn an_import_against_the_order_of_the_wings_is_named() {
        let found = of(&[
            ("model/mod.rs", ""),
            ("host/mod.rs", ""),
            ("cli/mod.rs", ""),
            ("daemon/mod.rs", ""),
            ("model/a.rs", "use crate::host::b::B;"),
            ("host/b.rs", "pub struct B; use crate::model::a::A;"),
            ("cli/c.rs", "use crate::host::b::B; fn f() { crate::daemon::d::g() }"),
            ("daemon/d.rs", "use crate::model::a::A;"),
        ]);
        assert_eq!(upwards(&found), ["cli::c -> daemon::d", "model::a -> host::b"]);
    }
}
