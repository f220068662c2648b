//! Every file of the corpora, and random changes of them, without a fuzzer.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

/// Random changes of each corpus.
const CASES: u32 = 1000;
/// Of all corpora together: they are part of the sources.
const BYTES: usize = 300 * 1024;
/// For one input, with all of the machine's other work: a longer run does not end.
const LIMIT: Duration = Duration::from_secs(20);

macro_rules! replay {
    ($($target:ident),+) => { $(
        #[test]
        fn $target() {
            replay(stringify!($target), crate::$target::check);
        }
    )+ };
}
replay!(
    control,
    event_stream,
    incus_answers,
    journal,
    local_db,
    mountinfo,
    policy,
    preseed,
    record
);

#[test]
fn every_target_has_a_file_a_corpus_and_a_test() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |directory: &str, extension: &str| -> Vec<String> {
        let entries = fs::read_dir(manifest.join(directory)).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let names =
            entries.map(|entry| name(entry.unwrap()).trim_end_matches(extension).to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    let targets = names("fuzz_targets", ".rs");
    assert_eq!(names("corpus", ""), targets);
    let tests = include_str!("corpus.rs");
    let size = |target: &String| {
        read(&corpus_of(target)).iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    };
    let bytes: usize = targets.iter().map(size).sum();
    assert!(
        bytes <= BYTES,
        "the corpora have {bytes} bytes: leave out the largest, or those that reach least"
    );
    let names_of_tests: Vec<&str> = tests.split(|letter: char| !is_of_a_name(letter)).collect();
    for target in targets {
        assert!(names_of_tests.contains(&target.as_str()), "{target}");
    }
}

fn is_of_a_name(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

fn replay(target: &str, check: fn(&[u8])) {
    let corpus = read(&corpus_of(target));
    for (path, bytes) in &corpus {
        println!("{}", path.display());
        within_the_limit(check, bytes);
    }
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let inputs: Vec<Vec<u8>> = corpus.into_iter().map(|(_, bytes)| bytes).collect();
    let strategy = (any::<Index>(), prop::collection::vec(any::<Change>(), 1..6)).prop_map(
        move |(at, changes)| {
            let mut bytes = at.get(&inputs).clone();
            changes.iter().for_each(|change| change.apply(&mut bytes, &inputs));
            Input(bytes)
        },
    );
    let outcome = TestRunner::new(config).run(&strategy, |Input(bytes)| {
        within_the_limit(check, &bytes);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

fn within_the_limit(check: fn(&[u8]), bytes: &[u8]) {
    let start = Instant::now();
    check(bytes);
    assert!(start.elapsed() < LIMIT, "it took {:?}", start.elapsed());
}

fn corpus_of(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

fn read(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", directory.display());
    paths.into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

/// Bytes as a person can read them and put them back into a file.
struct Input(Vec<u8>);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// One change of an input.
#[derive(Clone, Debug)]
enum Change {
    Flip {
        at: Index,
        bit: u8,
    },
    Put {
        at: Index,
        bytes: Vec<u8>,
    },
    Insert {
        at: Index,
        bytes: Vec<u8>,
    },
    Remove {
        at: Index,
        length: usize,
    },
    Repeat {
        at: Index,
        length: usize,
    },
    /// Goes on as another file of the corpus does.
    Splice {
        at: Index,
        with: Index,
        from: Index,
    },
}

impl Arbitrary for Change {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        let bytes = || {
            // Signs and numbers that mean something to one decoder or another.
            let signs = b"\0\n\\\"'/{}[]:,=-#. 0189\xff\x7f\x80".to_vec();
            prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(signs)], 1..9)
        };
        prop_oneof![
            (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Self::Flip { at, bit }),
            (any::<Index>(), bytes()).prop_map(|(at, bytes)| Self::Put { at, bytes }),
            (any::<Index>(), bytes()).prop_map(|(at, bytes)| Self::Insert { at, bytes }),
            (any::<Index>(), 1..64_usize).prop_map(|(at, length)| Self::Remove { at, length }),
            (any::<Index>(), 1..64_usize).prop_map(|(at, length)| Self::Repeat { at, length }),
            any::<(Index, Index, Index)>().prop_map(|(at, with, from)| Self::Splice {
                at,
                with,
                from
            }),
        ]
        .boxed()
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let place = |at: &Index, length: usize| at.index(length + 1);
        match self {
            Self::Flip { at, bit } => {
                let at = place(at, bytes.len());
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit);
            }
            Self::Put { at, bytes: new } => {
                let at = place(at, bytes.len());
                bytes.iter_mut().skip(at).zip(new).for_each(|(byte, new)| *byte = *new);
            }
            Self::Insert { at, bytes: new } => {
                let at = place(at, bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Remove { at, length } => {
                let at = place(at, bytes.len());
                bytes.drain(at..bytes.len().min(at + length));
            }
            Self::Repeat { at, length } => {
                let at = place(at, bytes.len());
                let part = bytes[at..bytes.len().min(at + length)].to_vec();
                bytes.splice(at..at, part);
            }
            Self::Splice { at, with, from } => {
                bytes.truncate(place(at, bytes.len()));
                let other = with.get(corpus);
                bytes.extend_from_slice(&other[place(from, other.len())..]);
            }
        }
    }
}
