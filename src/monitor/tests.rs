//! Monitors as processes.
