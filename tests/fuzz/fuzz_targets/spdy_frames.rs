//! Any bytes as SPDY frames.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| brig::fuzz::spdy_frames(input));
