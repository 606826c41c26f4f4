//! The Docker runner against a real engine.
