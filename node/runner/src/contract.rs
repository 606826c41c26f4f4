//! The suite that every runner passes.
