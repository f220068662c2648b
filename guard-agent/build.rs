//! Puts the kernel program's object where `bpf::object` embeds it.
//!
//! `cargo xtask build` sets `GUARD_EBPF_OBJECT`. Without it (plain `cargo test` on a machine
//! without a BPF toolchain) an empty object is embedded, and the agent says so when it is asked to
//! run.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=GUARD_EBPF_OBJECT");
    println!("cargo::rerun-if-env-changed=GUARD_BUILD_LABEL");
    let version = env::var("CARGO_PKG_VERSION").expect("cargo sets CARGO_PKG_VERSION");
    let build =
        env::var("GUARD_BUILD_LABEL").map_or(version.clone(), |label| format!("{version}+{label}"));
    println!("cargo::rustc-env=GUARD_BUILD={build}");
    let target =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("guard-ebpf.o");
    match env::var_os("GUARD_EBPF_OBJECT") {
        Some(object) => {
            let object = PathBuf::from(object);
            println!("cargo::rerun-if-changed={}", object.display());
            fs::copy(&object, &target)
                .unwrap_or_else(|error| panic!("copy {}: {error}", object.display()));
        }
        None => fs::write(&target, [])
            .unwrap_or_else(|error| panic!("write {}: {error}", target.display())),
    }
}
