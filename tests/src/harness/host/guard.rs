//! The package under test on a host.
