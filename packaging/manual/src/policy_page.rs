//! guard-agent-policy(5), made of docs/POLICY.md, so that there is one text. A table becomes a list
//! of its first column, since a terminal is too narrow for three columns. Content that a man page
//! cannot show is an error, not left out.

use anyhow::{Result, bail};
use clap_mangen::roff::{Inline, Roff, bold, italic, line_break, roman};
use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use crate::pages::{Edition, MANUAL};

const NAME: &str = "guard-agent-policy";
/// Directory of the linked documents in the packages.
const DOCUMENTS: &str = "/usr/share/doc/guard-agent";

/// The page's text.
pub(crate) fn render(markdown: &str, edition: &Edition) -> Result<String> {
    let mut page = Page::default();
    page.roff
        .control("TH", [NAME, "5", &edition.date, &edition.source, MANUAL])
        .control("SH", ["NAME"])
        .text([roman(format!("{NAME} - policy file of guard-agent(8)"))])
        .control("SH", ["DESCRIPTION"]);
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        page.take(event)?;
    }
    page.roff.control("SH", ["SEE ALSO"]).text([roman("guard-agent(8), guardctl(8)")]);
    Ok(page.roff.render())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Literal,
    Emphasis,
}

/// A run of text in one style.
type Run = (Style, String);

#[derive(Default)]
struct Page {
    roff: Roff,
    /// The text since the last block began.
    runs: Vec<Run>,
    emphasis: bool,
    link: Option<String>,
    lists: usize,
    /// A table's head, once it has been read.
    head: Vec<String>,
    /// The cells of the row at hand.
    row: Vec<Vec<Run>>,
}

impl Page {
    fn take(&mut self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Start(tag) => self.start(tag)?,
            Event::End(tag) => self.end(tag),
            Event::Text(text) => self.push(Style::Plain, &text),
            Event::Code(text) => self.push(Style::Literal, &text),
            Event::SoftBreak => self.push(Style::Plain, " "),
            other => bail!("a man page has no {other:?}"),
        }
        Ok(())
    }

    fn start(&mut self, tag: Tag<'_>) -> Result<()> {
        match tag {
            Tag::Paragraph if self.lists == 0 => {
                self.roff.control("PP", []);
            }
            Tag::List(None) => self.lists += 1,
            Tag::Item if self.lists == 1 => {
                self.roff.control("IP", ["•", "2"]);
            }
            Tag::Emphasis | Tag::Strong => self.emphasis = true,
            Tag::Link { dest_url, .. } => self.link = Some(dest_url.into_string()),
            Tag::Paragraph
            | Tag::Heading { .. }
            | Tag::Table(_)
            | Tag::TableHead
            | Tag::TableRow
            | Tag::TableCell => {}
            other => bail!("a man page has no {other:?}"),
        }
        Ok(())
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Heading(level) => self.heading(level),
            TagEnd::Paragraph | TagEnd::Item => self.flush(),
            TagEnd::List(_) => self.lists -= 1,
            TagEnd::Emphasis | TagEnd::Strong => self.emphasis = false,
            TagEnd::Link => self.target(),
            TagEnd::TableCell => self.row.push(std::mem::take(&mut self.runs)),
            TagEnd::TableHead => {
                self.head = std::mem::take(&mut self.row).iter().map(|cell| plain(cell)).collect();
            }
            TagEnd::TableRow => self.entry(),
            _ => {}
        }
    }

    fn push(&mut self, style: Style, text: &str) {
        let style = if self.emphasis { Style::Emphasis } else { style };
        self.runs.push((style, text.to_owned()));
    }

    fn flush(&mut self) {
        let runs = std::mem::take(&mut self.runs);
        if !runs.is_empty() {
            self.roff.text(inlines(&runs));
        }
    }

    /// The document's title is the page's name, which stands already.
    fn heading(&mut self, level: HeadingLevel) {
        let text = plain(&std::mem::take(&mut self.runs));
        match level {
            HeadingLevel::H1 => {}
            HeadingLevel::H2 => {
                self.roff.control("SH", [text.to_uppercase().as_str()]);
            }
            _ => {
                self.roff.control("SS", [text.as_str()]);
            }
        }
    }

    fn target(&mut self) {
        if let Some(target) = self.link.take() {
            let place = if target.ends_with(".md") {
                format!(" ({DOCUMENTS}/{target})")
            } else {
                format!(" <{target}>")
            };
            self.push(Style::Plain, &place);
        }
    }

    /// One row: its first cell as the tag, the others below it, each behind its column's name.
    fn entry(&mut self) {
        let mut cells = std::mem::take(&mut self.row).into_iter();
        let tag = cells.next().unwrap_or_default();
        self.roff.control("TP", []).text([bold(plain(&tag))]);
        let mut text: Vec<Inline> = Vec::new();
        for (column, cell) in self.head.iter().skip(1).zip(cells) {
            if !text.is_empty() {
                text.push(line_break());
            }
            text.push(roman(format!("{column}: ")));
            text.extend(inlines(&cell));
        }
        self.roff.text(text);
    }
}

fn plain(runs: &[Run]) -> String {
    runs.iter().map(|(_, text)| text.as_str()).collect()
}

fn inlines(runs: &[Run]) -> Vec<Inline> {
    runs.iter()
        .map(|(style, text)| match style {
            Style::Plain => roman(text),
            Style::Literal => bold(text),
            Style::Emphasis => italic(text),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(markdown: &str) -> Result<String> {
        render(markdown, &Edition { date: "2026-01-02".into(), source: "guard-agent 1".into() })
    }

    #[test]
    fn a_table_becomes_a_list_of_its_first_column() {
        let text = page(
            "# T\n\n## Keys\n\n| Key | Default | Values |\n|---|---|---|\n\
             | `mode` | none | `\"sealed\"`, see [JOIN.md](JOIN.md) |\n",
        )
        .unwrap();
        assert!(
            text.contains(
                ".SH KEYS\n.TP\n\\fBmode\\fR\nDefault: none\n.br\nValues: \
                 "
            ),
            "{text}"
        );
        assert!(text.contains("JOIN.md (/usr/share/doc/guard\\-agent/JOIN.md)"), "{text}");
        assert!(!text.contains(".SH T\n"), "{text}");
    }

    #[test]
    fn a_line_that_begins_with_a_dot_is_text() {
        let text = page("a\n\n- `.snap` is *no* macro\n\n.B is text\n").unwrap();
        assert!(text.contains(".IP • 2\n\\fB.snap\\fR is \\fIno\\fR macro\n"), "{text}");
        assert!(text.contains("\n.PP\n\\&.B is text\n"), "{text}");
    }

    #[test]
    fn what_a_man_page_cannot_show_is_an_error() {
        for markdown in ["<b>html</b>", "1. numbered", "```\ncode\n```"] {
            assert!(page(markdown).is_err(), "{markdown}");
        }
    }
}
