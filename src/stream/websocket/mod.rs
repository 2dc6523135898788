//! WebSocket as Kubernetes uses it: channels of an exec, attach or port-forward, and a tunnel for SPDY.
//!
//! The framing of RFC 6455 is `tungstenite`'s. What is ours is the layer above it: the first byte of a message is the
//! number of its channel ([`channels`]), or messages are pieces of one byte stream ([`tunnel`]).
//!
//! | subprotocol | message | end of one channel |
//! | --- | --- | --- |
//! | `v5.channel.k8s.io` | binary | `[255, channel]` from the client |
//! | `v4.channel.k8s.io`, `channel.k8s.io`, none | binary | cannot be said |
//! | `v4.base64.channel.k8s.io`, `base64.channel.k8s.io` | text, the channel as a digit, then base64 | cannot be said |
//! | `SPDY/3.1+portforward.k8s.io` | binary, no channel | |

mod channels;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod tunnel;

use hyper::header::HeaderValue;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

pub(crate) use channels::{Channels, Receiver, Sender};
pub(super) use tunnel::Tunnel;

/// The tunnel of a SPDY connection within a WebSocket.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What exec and attach speak, and the empty one for clients that name none.
pub(super) const REMOTE_COMMAND: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];

/// What port-forward speaks. A client that names none gets channels.
pub(super) const PORT_FORWARD: &[&str] = &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];

/// The channels of exec and attach (k8s.io/apimachinery remotecommand).
pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
pub(crate) const ERROR: u8 = 3;
pub(crate) const RESIZE: u8 = 4;

/// Bytes of one incoming message: what other runtimes take (golang.org/x/net/websocket DefaultMaxPayloadBytes). Clients
/// send some ten KiB at a time, but some libraries put a whole file into one message.
const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// Read at a time, allocated once per connection.
const READ_BYTES: usize = 64 << 10;

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        // Nothing waits for more: every message is flushed.
        .write_buffer_size(0)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
}

/// The answer to `Sec-WebSocket-Key` (RFC 6455 section 4.2.2).
pub(super) fn accept_key(key: &HeaderValue) -> HeaderValue {
    let accept = derive_accept_key(key.as_bytes());
    HeaderValue::from_str(&accept).expect("base64 fits into a header")
}
