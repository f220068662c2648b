//! The lines that wait to be written: each goes out whole, in order, by one `write`.
//!
//! Lines that cannot be written now (disk full, I/O error) wait and are tried again; lines that no
//! longer fit are dropped and counted. The writer is an argument: no file is known here.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};

/// Lines in the order of their sequence, not written yet.
#[derive(Debug)]
pub struct LineQueue {
    waiting: VecDeque<String>,
    capacity: usize,
    /// The file ends inside a line: the next write ends that line first.
    torn: bool,
    write_failures: u64,
    dropped: u64,
}

impl LineQueue {
    /// A queue in which at most `capacity` lines wait. `torn`: the file ends inside a line.
    pub fn new(capacity: usize, torn: bool) -> Self {
        Self { waiting: VecDeque::new(), capacity, torn, write_failures: 0, dropped: 0 }
    }

    /// Takes a line (with its line feed). A full queue drops it: the first records of a trouble say
    /// more than the last ones.
    pub fn push(&mut self, line: String) {
        if self.waiting.len() >= self.capacity {
            self.dropped += 1;
        } else {
            self.waiting.push_back(line);
        }
    }

    /// Another file is written now.
    pub fn reset_torn(&mut self, torn: bool) {
        self.torn = torn;
    }

    /// Writes the waiting lines; stops at the first failure.
    pub fn drain(&mut self, out: &mut impl Write) -> io::Result<()> {
        while let Some(line) = self.waiting.front() {
            let written = if self.torn {
                write_whole(out, format!("\n{line}").as_bytes())
            } else {
                write_whole(out, line.as_bytes())
            };
            match written {
                Ok(()) => {
                    self.torn = false;
                    self.waiting.pop_front();
                }
                Err((error, started)) => {
                    self.torn |= started;
                    self.write_failures += 1;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Lines that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Writes that failed since the start.
    pub fn write_failures(&self) -> u64 {
        self.write_failures
    }

    /// Lines that were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// One `write` of everything. The error says whether a part went out.
fn write_whole(out: &mut impl Write, bytes: &[u8]) -> Result<(), (io::Error, bool)> {
    loop {
        return match out.write(bytes) {
            Ok(written) if written == bytes.len() => Ok(()),
            Ok(written) => Err((ErrorKind::WriteZero.into(), written > 0)),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err((error, false)),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A disk on which each write takes as many bytes as the script says; `None`: an error.
    struct Disk {
        bytes: Vec<u8>,
        script: Vec<Option<usize>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = match self.script.pop() {
                None => bytes.len(),
                Some(None) => return Err(ErrorKind::StorageFull.into()),
                Some(Some(limit)) => limit.min(bytes.len()),
            };
            self.bytes.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_keeps_lines_and_the_bound_drops_the_newest() {
        let mut queue = LineQueue::new(2, false);
        let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        for line in ["1\n", "2\n", "3\n"] {
            queue.push(line.to_owned());
            assert_eq!(queue.drain(&mut full).unwrap_err().kind(), ErrorKind::StorageFull);
        }
        assert_eq!((queue.waiting(), queue.write_failures(), queue.dropped()), (2, 3, 1));
        let mut out = Vec::new();
        queue.drain(&mut out).unwrap();
        assert_eq!(out, b"1\n2\n");
    }

    proptest! {
        #[test]
        fn every_line_ends_up_whole_and_in_order(
            script in prop::collection::vec(prop::option::of(0..6usize), 0..40),
            count in 1..20usize,
        ) {
            let mut disk = Disk { bytes: Vec::new(), script };
            let mut queue = LineQueue::new(count, false);
            let lines: Vec<String> = (0..count).map(|number| format!("<line {number}>")).collect();
            for line in &lines {
                queue.push(format!("{line}\n"));
                let _ = queue.drain(&mut disk);
            }
            while queue.waiting() > 0 {
                let _ = queue.drain(&mut disk);
            }
            let text = String::from_utf8(disk.bytes).unwrap();
            let whole: Vec<&str> = text.lines().filter(|line| line.ends_with('>')).collect();
            prop_assert_eq!(whole, lines.iter().map(String::as_str).collect::<Vec<_>>());
            prop_assert!(text.ends_with('\n'));
        }
    }
}
