//! Properties that hold for any bytes from outside: one module for each source of bytes, with one
//! function `check` that panics where its property fails.
//!
//! The same functions run in three ways: by libFuzzer (`cargo xtask fuzz`, or `cargo fuzz run
//! TARGET`), over the committed corpora and random changes of them (`cargo test`), and over single
//! files (`cargo run -p guard-fuzz --bin TARGET -- FILE…`). `corpus/TARGET` holds real samples and
//! inputs that the fuzzer has found to reach more; a file that once showed a fault stays there.

#![forbid(unsafe_code)]

pub mod control;
#[cfg(test)]
mod corpus;
pub mod event_stream;
pub mod incus_answers;
pub mod journal;
pub mod local_db;
pub mod mountinfo;
pub mod policy;
pub mod preseed;
pub mod record;

#[cfg(fuzzing)]
pub use libfuzzer_sys;

/// Makes a target of a module of this crate.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::$name::check(bytes));

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            $crate::check_files($crate::$name::check)
        }
    };
}

/// Checks the content of each file that the command line names.
pub fn check_files(check: fn(&[u8])) -> std::process::ExitCode {
    for path in std::env::args_os().skip(1) {
        match std::fs::read(&path) {
            Ok(bytes) => check(&bytes),
            Err(error) => {
                eprintln!("read {}: {error}", path.display());
                return std::process::ExitCode::FAILURE;
            }
        }
        println!("{}: holds", path.display());
    }
    std::process::ExitCode::SUCCESS
}
