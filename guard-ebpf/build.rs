//! Rebuilds the object when its label changes.

fn main() {
    println!("cargo::rerun-if-env-changed=GUARD_BUILD_LABEL");
}
