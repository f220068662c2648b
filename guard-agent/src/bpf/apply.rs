//! Carries out a plan (being written).
