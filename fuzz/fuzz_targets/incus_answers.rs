//! Fuzzes `guard_fuzz::incus_answers`; without libFuzzer it checks the files that it is given.
#![cfg_attr(fuzzing, no_main)]

guard_fuzz::target!(incus_answers);
