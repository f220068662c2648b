//! Fuzzes `guard_fuzz::preseed`; without libFuzzer it checks the files that it is given.
#![cfg_attr(fuzzing, no_main)]

guard_fuzz::target!(preseed);
