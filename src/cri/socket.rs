//! The unix socket that the daemon serves on.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

use super::ServeError;

/// Between two tries to accept a connection after one has failed, which means that file descriptors have run out.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Who may talk to the daemon is root in all but name: owner and group alone.
const SOCKET_MODE: u32 = 0o660;

/// Listens at `path`. A socket that nobody answers on is replaced.
pub(super) fn listen(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ServeError::Socket { action, path, source }
    };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(ServeError::InUse(path.to_owned()));
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed("create directory", folder))?;
    }
    // Under another name first: nobody can connect before the permissions are right, and the rename replaces a stale
    // socket in one step.
    let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
    let listener = UnixListener::bind(&unfinished).map_err(failed("bind to", &unfinished))?;
    let named = std::fs::set_permissions(&unfinished, Permissions::from_mode(SOCKET_MODE))
        .and_then(|()| std::fs::rename(&unfinished, path));
    if let Err(source) = named {
        std::fs::remove_file(&unfinished).ok();
        return Err(failed("name the socket", path)(source));
    }
    Ok(listener)
}

/// Accepted connections, for ever. A failure to accept (EMFILE, ENFILE) is waited out: ending the stream would end the
/// server (RUSTSEC-2024-0376 was that), and trying again at once would take a whole core.
pub(super) fn connections(
    listener: UnixListener,
) -> impl futures_util::Stream<Item = io::Result<UnixStream>> {
    futures_util::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), listener)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn the_socket_is_for_owner_and_group_and_connections_come_through() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/brig.sock");
        let listener = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let names: Vec<_> =
            std::fs::read_dir(path.parent().unwrap()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(names, ["brig.sock"]);
        let _client = UnixStream::connect(&path).await.unwrap();
        let mut connections = Box::pin(connections(listener));
        assert!(connections.next().await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_socket_that_answers_is_left_alone_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("brig.sock");
        let first = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(ServeError::InUse(at)) if at == path));
        drop(first);
        assert!(path.exists(), "closing a listener leaves its name");
        listen(&path).unwrap();
    }
}
