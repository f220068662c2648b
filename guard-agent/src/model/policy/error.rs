//! The refusal of a policy file: every problem, with place and hint.
//!
//! Knows nothing of a policy's meaning.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;

/// One problem in a policy file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Line, from 1; `None` if the problem is the file's as a whole.
    pub line: Option<usize>,
    /// Column in characters, from 1.
    pub column: Option<usize>,
    /// The problem.
    pub what: String,
    /// The correction.
    pub hint: Option<String>,
}

/// Every problem of one policy file. Its `Display` is the message to the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyErrors {
    file: PathBuf,
    problems: Vec<Problem>,
}

impl PolicyErrors {
    /// The file as a whole is wrong.
    pub(crate) fn whole_file(file: PathBuf, what: String, hint: Option<String>) -> Self {
        Self { file, problems: vec![Problem { line: None, column: None, what, hint }] }
    }

    /// The file that was read.
    pub fn file(&self) -> &std::path::Path {
        &self.file
    }

    /// The problems in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl std::error::Error for PolicyErrors {}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            write!(out, "{}", self.file.display())?;
            if let (Some(line), Some(column)) = (problem.line, problem.column) {
                write!(out, ":{line}:{column}")?;
            }
            write!(out, ": {}", problem.what)?;
            if let Some(hint) = &problem.hint {
                write!(out, "\n    hint: {hint}")?;
            }
        }
        Ok(())
    }
}

/// Problems of one file that are told. A file that is no policy at all may have any number.
const TOLD: usize = 100;

/// Collects problems while a file is read.
#[derive(Debug)]
pub(super) struct Problems<'t> {
    text: &'t str,
    found: Vec<(usize, Problem)>,
    /// Those beyond the ones that are told.
    more: usize,
}

impl<'t> Problems<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, found: Vec::new(), more: 0 }
    }

    /// Notes a problem at a range of bytes of the text.
    pub(super) fn at(
        &mut self,
        span: Range<usize>,
        what: impl Into<String>,
        hint: impl Into<Option<String>>,
    ) {
        if self.found.len() >= TOLD {
            self.more += 1;
            return;
        }
        let (line, column) = position(self.text, span.start);
        let (line, column) = (Some(line), Some(column));
        self.found
            .push((span.start, Problem { line, column, what: what.into(), hint: hint.into() }));
    }

    /// Notes a problem of the file as a whole.
    pub(super) fn whole(&mut self, what: impl Into<String>, hint: impl Into<Option<String>>) {
        let problem = Problem { line: None, column: None, what: what.into(), hint: hint.into() };
        self.found.push((0, problem));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All problems, in the order of the file.
    pub(super) fn into_errors(mut self, file: PathBuf) -> PolicyErrors {
        self.found.sort_by_key(|(offset, _)| *offset);
        if self.more > 0 {
            let what = format!("{} further problems are not shown", self.more);
            self.found.push((0, Problem { line: None, column: None, what, hint: None }));
        }
        PolicyErrors {
            file,
            problems: self.found.into_iter().map(|(_, problem)| problem).collect(),
        }
    }
}

fn position(text: &str, offset: usize) -> (usize, usize) {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The candidate most like `word`, if one is near enough to be a slip of the keyboard.
pub(super) fn nearest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    let bound = (word.chars().count() / 3).max(2);
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= bound && *distance < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, from) in left.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, to) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_nothing_else() {
        let keys = ["actors", "path", "mode", "filesystems"];
        assert_eq!(nearest("acters", keys), Some("actors"));
        assert_eq!(nearest("filesystem", keys), Some("filesystems"));
        assert_eq!(nearest("colour", keys), None);
    }

    #[test]
    fn position_counts_characters() {
        assert_eq!(position("a\nöö x", 7), (2, 4));
        assert_eq!(position("", 9), (1, 1));
    }
}
