//! Any bytes as what a client says on a WebSocket with channels.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| brig::fuzz::websocket_channels(input));
