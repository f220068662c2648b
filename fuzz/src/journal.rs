//! The text of a node's journal.

use guard_agent::model::join::Journal;

const ROOT: &str = "/var/lib/incus";

pub fn check(text: &[u8]) {
    let Ok(journal) = Journal::parse(text, ROOT) else { return };
    assert_eq!(journal.root, ROOT);
    let printed = journal.to_text();
    assert_eq!(Journal::parse(printed.as_bytes(), ROOT), Ok(journal));
    assert!(Journal::parse(printed.as_bytes(), "/elsewhere").is_err());
    assert!(
        Journal::parse(&[text, b"x"].concat(), ROOT).is_err(),
        "nothing may stand behind a journal"
    );
    // Cut off in the middle, it is none.
    let end = printed.trim_end().len();
    for length in [0, 1, end / 2, end - 1] {
        assert!(Journal::parse(&printed.as_bytes()[..length], ROOT).is_err());
    }
}
