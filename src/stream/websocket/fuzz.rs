//! What the fuzz target of `tests/fuzz` calls, and a short run of it without any tool: the corpus, then simple mutations of it.
//!
//! A property that does not hold is a panic; a connection that does not come to its end is one too.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{Channels, REMOTE_COMMAND};

/// Far more than any input takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// The input as all that a client says after the upgrade; its first byte chooses the protocol, and the size of the pieces
/// in which the rest arrives. Every channel comes to its end, and the server closes.
pub(crate) fn channels(input: &[u8]) {
    let Some((&mode, said)) = input.split_first() else { return };
    let protocol = REMOTE_COMMAND[usize::from(mode & 7) % REMOTE_COMMAND.len()];
    let piece = 1 << (mode >> 4);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let Ok(runtime) = runtime else { return };
    let whole = async {
        let (near, far) = tokio::io::duplex(piece);
        let (mut connection, receivers) = Channels::over(near, Role::Server, protocol, &[0, 4]).await;
        let (mut hear, mut say) = tokio::io::split(far);
        let client = async {
            // A server that has closed hears no more.
            say.write_all(said).await.ok();
            say.shutdown().await.ok();
        };
        let mut heard = Vec::new();
        let server = async {
            let mut read = 0;
            let all = receivers.into_iter().map(|mut receiver| async move {
                let mut length = 0;
                while let Some(data) = receiver.recv().await {
                    length += data.len();
                }
                length
            });
            for length in futures_util::future::join_all(all).await {
                read += length;
            }
            connection.closed().await;
            drop(connection);
            // Nothing is made of nothing.
            assert!(read <= said.len(), "{read} bytes of {}", said.len());
        };
        let hearing = async { hear.read_to_end(&mut heard).await.ok() };
        tokio::join!(client, server, hearing);
    };
    let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE, whole).await });
    assert!(ended.is_ok(), "the connection does not end");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Enough to matter and short enough for every run of the tests.
    const MUTATIONS: usize = 3000;

    /// A client's frame with a mask of zeroes.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
    }

    #[test]
    fn no_client_confuses_the_channels() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/websocket_channels");
        if std::env::var_os("BRIG_WRITE_CORPUS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            let seeds = [
                (
                    "exec-v5",
                    vec![
                        vec![0x60],
                        frame(0x82, b"\0ls\n"),
                        frame(0x82, b"\x04{}"),
                        frame(0x82, &[255, 0]),
                        frame(0x88, b""),
                    ],
                ),
                (
                    "base64",
                    vec![
                        vec![0x62],
                        frame(0x81, b"0aGVsbG8="),
                        frame(0x81, b"4e30"),
                        frame(0x81, b"0*"),
                        frame(0x88, b""),
                    ],
                ),
                (
                    "fragments",
                    vec![
                        vec![0x11],
                        frame(0x02, b"\0a"),
                        frame(0x89, b"ping"),
                        frame(0x00, b"b"),
                        frame(0x80, b"c"),
                    ],
                ),
                (
                    "lengths",
                    vec![
                        vec![0x40],
                        vec![0x82, 0xfe, 0, 5, 1, 2, 3, 4, 1, 2, 3, 4, 5],
                        vec![0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0],
                    ],
                ),
                ("no-mask", vec![vec![0x45], vec![0x82, 1, 0]]),
                ("end-of-nothing", vec![vec![0x50], frame(0x82, &[255]), frame(0x82, &[255, 9, 9])]),
            ];
            for (name, parts) in seeds {
                std::fs::write(folder.join(name), parts.concat()).unwrap();
            }
        }
        let mut files: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let corpus: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
        assert!(!corpus.is_empty());
        for input in &corpus {
            channels(input);
        }
        // Always the same ones: what fails here fails everywhere.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut below = |limit: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).unwrap() % limit.max(1)
        };
        for number in 0..MUTATIONS {
            let mut input = corpus[number % corpus.len()].clone();
            for _ in 0..=below(3) {
                let (at, length) = (below(input.len()), below(20));
                let end = (at + length).min(input.len());
                match below(4) {
                    0 => input[at] ^= 1 << below(8),
                    1 => input[at] = u8::try_from(below(256)).unwrap(),
                    2 => drop(input.drain(at..end)),
                    _ => input.extend_from_within(at..),
                }
                if input.is_empty() {
                    break;
                }
            }
            channels(&input);
        }
    }
}
