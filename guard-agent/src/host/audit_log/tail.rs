//! Reads a file of lines from its end, in blocks, so that a read of a large log costs only the
//! lines that are wanted.

use std::io::{self, Read, Seek, SeekFrom};

const BLOCK: u64 = 64 * 1024;

/// Lines of a file, last first. The first item is the text behind the last line feed (empty if the
/// file ends as it should).
#[derive(Debug)]
pub struct LinesFromEnd<F> {
    file: F,
    /// Everything from here on is in `held` or has been given out.
    start: u64,
    /// Bytes from `start` up to the line feed before the line given out last.
    held: Vec<u8>,
    /// Lowest position that is read.
    floor: u64,
    done: bool,
}

impl<F: Read + Seek> LinesFromEnd<F> {
    /// Reads back at most `bound` bytes; a line that is cut by the bound is not given out.
    pub fn new(mut file: F, bound: u64) -> io::Result<Self> {
        let end = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            start: end,
            held: Vec::new(),
            floor: end.saturating_sub(bound),
            done: false,
        })
    }

    /// The line before the one given out last; `None` at the beginning of the file or at the bound.
    pub fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut searched = self.held.len();
        while !self.done {
            if let Some(feed) = self.held[..searched].iter().rposition(|byte| *byte == b'\n') {
                let line = self.held.split_off(feed + 1);
                self.held.truncate(feed);
                return Ok(Some(line));
            }
            if self.start == self.floor {
                self.done = true;
                return Ok((self.floor == 0).then(|| std::mem::take(&mut self.held)));
            }
            searched = self.read_block()?;
        }
        Ok(None)
    }

    /// Puts the block before `start` in front of `held`; its length.
    fn read_block(&mut self) -> io::Result<usize> {
        let length = BLOCK.min(self.start - self.floor);
        self.start -= length;
        self.file.seek(SeekFrom::Start(self.start))?;
        let mut block = Vec::with_capacity(self.held.len() + BLOCK as usize);
        let read = (&mut self.file).take(length).read_to_end(&mut block)?;
        block.append(&mut self.held);
        self.held = block;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn backwards(bytes: &[u8], bound: u64) -> Vec<Vec<u8>> {
        let mut lines = LinesFromEnd::new(Cursor::new(bytes), bound).unwrap();
        std::iter::from_fn(|| lines.next_line().unwrap()).collect()
    }

    #[test]
    fn a_line_that_the_bound_cuts_is_left_out() {
        assert_eq!(backwards(b"one\ntwo\nthree\n", 10), [&b""[..], b"three"]);
        assert_eq!(backwards(b"one\ntwo\n", 8), [&b""[..], b"two", b"one"]);
        assert_eq!(backwards(b"", 8), [b""]);
    }

    #[test]
    fn lines_longer_than_a_block_come_whole() {
        let long = "x".repeat(3 * BLOCK as usize);
        let text = format!("a\n{long}\nb");
        let lines = backwards(text.as_bytes(), u64::MAX);
        assert_eq!(lines, [b"b".to_vec(), long.into_bytes(), b"a".to_vec()]);
    }

    proptest! {
        #[test]
        fn it_is_split_read_backwards(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200)) {
            let mut expected: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            expected.reverse();
            prop_assert_eq!(backwards(&bytes, u64::MAX), expected);
        }
    }
}
