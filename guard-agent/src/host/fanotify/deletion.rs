//! Events of deletions, as fanotify(7) gives them to a group that reports directories and names:
//! parsed. Pure.
//!
//! The kernel tells them after the fact and never waits for anybody.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::libc;

use super::event::{self, i32_at, u16_at, u32_at};

/// An event that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Deleted(Deletion),
    /// The kernel had no more room: deletions are missing from here on. Their number is unknown.
    Missed,
}

/// A name was removed from a directory, and nothing put in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// The process that did it, which may have ended since; 0 if it cannot be named.
    pub tgid: u32,
    pub is_directory: bool,
    /// The directory that held the name.
    pub parent: Handle,
    pub name: OsString,
}

/// A `struct file_handle`: names an inode within its superblock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    pub kind: i32,
    pub bytes: Vec<u8>,
}

/// Bytes of `struct fanotify_event_info_header`, and of the filesystem's id behind it.
const INFO_HEADER: usize = 4;
const FSID: usize = 8;

/// Parses the bytes of one read. An event that is cut off or of another version counts as missed.
pub fn parse(mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let Some((event, rest)) = first(bytes) else {
            events.push(Event::Missed);
            break;
        };
        events.push(event);
        bytes = rest;
    }
    events
}

fn first(bytes: &[u8]) -> Option<(Event, &[u8])> {
    let (head, rest) = event::first(bytes)?;
    if head.mask & libc::FAN_Q_OVERFLOW != 0 {
        return Some((Event::Missed, rest));
    }
    let (parent, name) = directory_and_name(head.records)?;
    let deletion = Deletion {
        tgid: u32::try_from(head.pid).ok()?,
        is_directory: head.mask & libc::FAN_ONDIR != 0,
        parent,
        name: OsStr::from_bytes(name).to_owned(),
    };
    Some((Event::Deleted(deletion), rest))
}

/// The record of the kind `DFID_NAME`, among those that follow the metadata.
fn directory_and_name(mut records: &[u8]) -> Option<(Handle, &[u8])> {
    loop {
        let length = usize::from(u16_at(records, 2)?);
        let (record, rest) = records.split_at_checked(length.max(INFO_HEADER))?;
        if record[0] == libc::FAN_EVENT_INFO_TYPE_DFID_NAME {
            let handle = record.get(INFO_HEADER + FSID..)?;
            let size = usize::try_from(u32_at(handle, 0)?).ok()?;
            let kind = i32_at(handle, 4)?;
            let (bytes, name) = handle.get(8..)?.split_at_checked(size)?;
            let end = name.iter().position(|byte| *byte == 0)?;
            return Some((Handle { kind, bytes: bytes.to_vec() }, &name[..end]));
        }
        records = rest;
    }
}

impl Handle {
    /// As `open_by_handle_at(2)` takes it.
    pub fn to_raw(&self) -> Vec<u8> {
        let size = u32::try_from(self.bytes.len()).expect("the kernel's handles are short");
        [&size.to_ne_bytes()[..], &self.kind.to_ne_bytes(), &self.bytes].concat()
    }
}

impl Deletion {
    /// Its path, if that of its directory is known; else the name alone.
    pub fn path(&self, directory: Option<&std::path::Path>) -> std::path::PathBuf {
        let name = OsString::from_vec(self.name.as_bytes().to_vec());
        directory.map_or_else(|| name.clone().into(), |directory| directory.join(&name))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::event::tests::event;
    use super::*;

    fn record(kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let mut body = [0; FSID].to_vec();
        body.extend(u32::try_from(handle.len()).unwrap().to_ne_bytes());
        body.extend(7_i32.to_ne_bytes());
        body.extend(handle);
        body.extend(name);
        body.push(0);
        body.resize(body.len().next_multiple_of(4), 0);
        let mut bytes = vec![kind, 0];
        bytes.extend(u16::try_from(INFO_HEADER + body.len()).unwrap().to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    fn deletion(name: &[u8], is_directory: bool) -> Event {
        let parent = Handle { kind: 7, bytes: vec![1, 2, 3] };
        let name = OsStr::from_bytes(name).to_owned();
        Event::Deleted(Deletion { tgid: 42, is_directory, parent, name })
    }

    #[test]
    fn events_are_read_one_after_the_other() {
        let named = |name: &[u8]| record(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &[1, 2, 3], name);
        // A record of another kind before it is passed over.
        let both = [record(libc::FAN_EVENT_INFO_TYPE_FID, &[9], b""), named(b"b\xff")].concat();
        let bytes = [
            event(libc::FAN_DELETE, 42, &named(b"a")),
            event(libc::FAN_DELETE | libc::FAN_ONDIR, 42, &both),
            event(libc::FAN_Q_OVERFLOW, 0, &[]),
        ];
        assert_eq!(
            parse(&bytes.concat()),
            [deletion(b"a", false), deletion(b"b\xff", true), Event::Missed]
        );
        let Event::Deleted(first) = &parse(&bytes[0])[0] else { panic!("no deletion") };
        assert_eq!(first.path(Some(Path::new("/v"))), Path::new("/v/a"));
        assert_eq!(first.path(None), Path::new("a"));
        assert_eq!(
            first.parent.to_raw(),
            [&3_u32.to_ne_bytes()[..], &7_i32.to_ne_bytes(), &[1, 2, 3]].concat()
        );
    }

    proptest! {
        #[test]
        fn what_is_cut_off_is_missed_and_nothing_is_made_up(cut in 1..60_usize, junk: Vec<u8>) {
            let whole = event(libc::FAN_DELETE, 42, &record(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &[1, 2, 3], b"name"));
            let cut = cut.min(whole.len() - 1);
            prop_assert_eq!(parse(&whole[..cut]), [Event::Missed]);
            let _ = parse(&junk);
            let mut versioned = whole;
            versioned[4] = 99;
            prop_assert_eq!(parse(&versioned), [Event::Missed]);
        }
    }
}
