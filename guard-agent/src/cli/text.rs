//! Text for terminals: aligned tables, times and durations, and names that cannot move the cursor.

use std::fmt::Write as _;

use crate::model::time::Time;

/// A name that someone else chose (a path, a process), made harmless: control characters, and those
/// that reorder text, are shown as escapes.
pub fn safe(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                text.extend(character.escape_unicode());
            }
            _ if character.is_control() => text.extend(character.escape_default()),
            _ => text.push(character),
        }
    }
    text
}

/// A time to the second, in UTC.
pub fn time(time: Time) -> String {
    format!("{:.0}", time.0)
}

/// `1h30m`, `10m`, `45s`: the two largest units.
pub fn duration(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut text = String::new();
    let mut rest = seconds;
    for (size, unit) in units {
        let count = rest / size;
        if count > 0 && text.chars().filter(|c| c.is_alphabetic()).count() < 2 {
            let _ = write!(text, "{count}{unit}");
        }
        rest %= size;
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Columns that text for people has. Only a word (a path, say) that is longer than a line goes
/// beyond.
pub const COLUMNS: usize = 80;

/// Words in lines of [`COLUMNS`]: the first one behind `first`, the others behind as many blanks as
/// `indent` says.
pub fn wrap(first: &str, indent: usize, content: &str) -> String {
    let mut text = String::new();
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in content.split(' ').filter(|word| !word.is_empty()) {
        let between = usize::from(!is_empty);
        if !is_empty && line.chars().count() + between + word.chars().count() > COLUMNS {
            let _ = writeln!(text, "{}", line.trim_end());
            (line, is_empty) = (" ".repeat(indent), true);
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    let _ = writeln!(text, "{}", line.trim_end());
    text
}

/// Rows with aligned columns, each line behind `indent`. The first row is the heading.
pub fn table(indent: &str, rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", format!("{indent}{}", cells.join("  ")).trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(safe("café 日本"), "café 日本");
        assert_eq!(safe("a\u{1b}[2J\nb\u{9b}c\u{202e}d"), "a\\u{1b}[2J\\nb\\u{9b}c\\u{202e}d");
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (45, "45s"),
            (600, "10m"),
            (5_400, "1h30m"),
            (90_061, "1d1h"),
            (3_601, "1h1s"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn words_are_wrapped_and_never_cut() {
        let long = "x".repeat(90);
        assert_eq!(wrap("  a: ", 4, "one two"), "  a: one two\n");
        assert_eq!(wrap("  a: ", 4, ""), "  a:\n");
        assert_eq!(wrap("a ", 4, &format!("{long} b")), format!("a {long}\n    b\n"));
        let words = wrap("fix: ", 5, &"word ".repeat(40));
        assert!(words.lines().all(|line| line.chars().count() <= COLUMNS), "{words}");
        assert!(words.lines().skip(1).all(|line| line.starts_with("     word")), "{words}");
        assert_eq!(words.matches("word").count(), 40);
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(table("  ", &[row(["A", "B"]), row(["long", ""])]), "  A     B\n  long\n");
    }
}
