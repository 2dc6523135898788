//! Any bytes as what a SPDY client says to a server.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| brig::fuzz::spdy_connection(input));
