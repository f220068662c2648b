//! Fuzzes `guard_fuzz::record`; without libFuzzer it checks the files that it is given.
#![cfg_attr(fuzzing, no_main)]

guard_fuzz::target!(record);
