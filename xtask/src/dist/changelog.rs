//! The changes of this version, from CHANGELOG.md, as the packages want them. Pure.

/// Columns of a line in Debian's changelog.
const WIDTH: usize = 78;

/// The list items of the changelog's topmost section, each in one line.
pub(super) fn newest(text: &str) -> Vec<String> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("## "));
    lines.next();
    let mut items: Vec<String> = Vec::new();
    let mut open = false;
    for line in lines.take_while(|line| !line.starts_with("## ")) {
        match line.strip_prefix("- ") {
            Some(item) => {
                items.push(item.trim().to_owned());
                open = true;
            }
            None if line.trim().is_empty() || line.starts_with('#') => open = false,
            None if open => {
                if let Some(item) = items.last_mut() {
                    item.push(' ');
                    item.push_str(line.trim());
                }
            }
            None => {}
        }
    }
    items
}

/// The file `changelog.Debian`. `date` is as RFC 5322 wants it.
pub(super) fn debian(items: &[String], version: &str, maintainer: &str, date: &str) -> String {
    let mut text = format!("guard-agent ({version}) unstable; urgency=medium\n\n");
    for item in items {
        let mut line = String::from("  *");
        for word in item.split_whitespace() {
            if line.chars().count() + 1 + word.chars().count() > WIDTH {
                text.push_str(&line);
                text.push('\n');
                line = String::from("   ");
            }
            line.push(' ');
            line.push_str(word);
        }
        text.push_str(&line);
        text.push('\n');
    }
    text.push_str(&format!("\n -- {maintainer}  {date}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_section_is_taken_whole_and_no_other() {
        let text = "# Changelog\n\nIntro\n\n## [Unreleased]\n\n### Added\n\n- One\n  goes on.\n- \
                    Two\n\n### Fixed\n\n- Three\n\n## [0.1.0]\n\n- Old\n";
        assert_eq!(newest(text), ["One goes on.", "Two", "Three"]);
    }

    #[test]
    fn lines_are_broken_where_debian_wants_it() {
        let long = "word ".repeat(40);
        let text = debian(&[long], "1-1", "A <a@b>", "Sun, 29 Nov 2026 05:01:36 +0000");
        assert!(
            text.starts_with(
                "guard-agent (1-1) unstable; urgency=medium\n\n  * \
                 word"
            ),
            "{text}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.ends_with("\n\n -- A <a@b>  Sun, 29 Nov 2026 05:01:36 +0000\n"), "{text}");
    }
}
