//! `brig port-forward`: ports of this machine's loopback that lead into a pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::rc::Rc;

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, LocalSet};

use super::super::client::Client;
use super::super::error::CliError;
use super::super::{output, resolve};
use super::{TlsArgs, dial};
use crate::proto::v1;
use crate::stream::spdy;

const PROTOCOL: &str = "portforward.k8s.io";

/// What one read takes.
const CHUNK: usize = 64 << 10;

/// What to forward where.
#[derive(Debug, Args)]
pub(in crate::cli) struct PortForwardArgs {
    #[command(flatten)]
    tls: TlsArgs,
    /// The pod, by name, id or unique prefix of an id.
    pod: String,
    /// Ports of the pod, each with the local port that leads there; without one it is the same, and an empty one is
    /// chosen by the kernel.
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    ports: Vec<String>,
}

/// A local port and the pod's. A local port of 0 is chosen by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    local: u16,
    remote: u16,
}

/// Forwards until the pod or the daemon is gone.
pub(in crate::cli) async fn port_forward(
    client: Client,
    args: PortForwardArgs,
) -> Result<ExitCode, CliError> {
    let ports = args.ports.iter().map(|text| Ports::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let pod_sandbox_id = resolve::pod(&client, &args.pod).await?;
    let request = v1::PortForwardRequest {
        pod_sandbox_id,
        port: ports.iter().map(|ports| ports.remote.into()).collect(),
    };
    let answer = client.runtime.clone().port_forward(request).await;
    let url = answer.map_err(CliError::refused(format!("forward ports of {}", args.pod)))?.into_inner().url;
    let io = dial::spdy(&url, &args.tls, PROTOCOL).await?;
    let (connection, mut incoming) = spdy::Connection::new(io, spdy::Role::Client);
    let connection = Rc::new(connection);
    let local = LocalSet::new();
    local
        .run_until(async {
            let mut listening = JoinSet::new();
            for ports in ports {
                for (listener, address) in listen(ports.local).await? {
                    output::line(format!("Forwarding from {address} -> {}", ports.remote))?;
                    listening.spawn_local(accept(listener, ports.remote, Rc::clone(&connection)));
                }
            }
            // A server opens no streams; this returns when the connection is over.
            while let Some(stream) = incoming.accept().await {
                stream.refuse().await.ok();
            }
            Err(CliError::StreamBroken)
        })
        .await
}

impl Ports {
    fn parse(text: &str) -> Result<Self, CliError> {
        let refuse = || CliError::Argument {
            option: "port",
            value: text.to_owned(),
            must: "REMOTE, LOCAL:REMOTE or :REMOTE with ports from 1 to 65535",
        };
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(refuse);
        match text.split_once(':') {
            None => port(text).map(|port| Self { local: port, remote: port }),
            Some(("" | "0", remote)) => Ok(Self { local: 0, remote: port(remote)? }),
            Some((local, remote)) => Ok(Self { local: port(local)?, remote: port(remote)? }),
        }
    }
}

/// Listens on both loopback addresses, on one at least.
async fn listen(port: u16) -> Result<Vec<(TcpListener, SocketAddr)>, CliError> {
    let (mut listeners, mut failure, mut port) = (Vec::new(), None, port);
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let bound = TcpListener::bind((ip, port)).await.and_then(|listener| {
            let address = listener.local_addr()?;
            Ok((listener, address))
        });
        match bound {
            Ok((listener, address)) => {
                // What the kernel chose for the one is asked for the other.
                port = address.port();
                listeners.push((listener, address));
            }
            Err(error) => _ = failure.get_or_insert((SocketAddr::new(ip, port), error)),
        }
    }
    match failure {
        Some((address, source)) if listeners.is_empty() => {
            Err(CliError::Listen { address: address.to_string(), source })
        }
        _ => Ok(listeners),
    }
}

async fn accept(listener: TcpListener, remote: u16, connection: Rc<spdy::Connection>) {
    let mut request = 0_u64;
    let local = listener.local_addr().map_or(0, |address| address.port());
    let mut work = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    eprintln!("brig: cannot accept a connection on port {local}: {error}");
                    return;
                }
            },
            Some(_) = work.join_next() => continue,
        };
        output::line(format!("Handling connection for {local}")).ok();
        // Unique within the connection: a listener has its address to itself.
        let id =
            format!("{}-{request}", listener.local_addr().map_or_else(|_| String::new(), |a| a.to_string()));
        request += 1;
        let connection = Rc::clone(&connection);
        work.spawn_local(async move {
            if let Err(error) = carry(stream, local, remote, &id, &connection).await {
                eprintln!("brig: an error occurred forwarding {local} -> {remote}: {error}");
            }
        });
    }
}

/// One connection, to the end of both directions.
async fn carry(
    stream: TcpStream,
    local: u16,
    remote: u16,
    id: &str,
    connection: &spdy::Connection,
) -> std::io::Result<()> {
    let headers = |kind: &str| {
        let pairs = [("streamtype", kind), ("port", &remote.to_string()), ("requestid", id)];
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    };
    // The order is kubectl's.
    let (mut no_errors, mut errors) = connection.open(headers("error")).await?.split();
    no_errors.finish().await?;
    let (mut to, mut from) = connection.open(headers("data")).await?.split();
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.into_split();
    let there = async {
        let mut chunk = vec![0; CHUNK];
        loop {
            match read.read(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    if to.send(hyper::body::Bytes::copy_from_slice(&chunk[..length])).await.is_err() {
                        return;
                    }
                }
            }
        }
        to.finish().await.ok();
    };
    let back = async {
        while let Some(piece) = from.recv().await {
            if write.write_all(&piece).await.is_err() {
                return;
            }
        }
        write.shutdown().await.ok();
    };
    let told = async {
        let mut text = Vec::new();
        while let Some(piece) = errors.recv().await {
            text.extend_from_slice(&piece[..piece.len().min(CHUNK - text.len())]);
        }
        if !text.is_empty() {
            eprintln!(
                "brig: an error occurred forwarding {local} -> {remote}: {}",
                String::from_utf8_lossy(&text)
            );
        }
    };
    let ends = async {
        tokio::join!(back, told);
    };
    // Once nothing comes back, there is nobody to read what our side still sends.
    tokio::pin!(there);
    tokio::pin!(ends);
    tokio::select! {
        () = &mut there => ends.await,
        () = &mut ends => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_two_or_chosen_by_the_kernel() {
        for (text, local, remote) in [("80", 80, 80), ("8080:80", 8080, 80), (":80", 0, 80), ("0:80", 0, 80)]
        {
            assert_eq!(Ports::parse(text).unwrap(), Ports { local, remote }, "{text}");
        }
        for bad in ["", "0", "a", "80:", "80:0", "70000", "1:70000", "1:2:3", "-1"] {
            assert!(Ports::parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn both_loopback_addresses_get_the_port_that_the_kernel_chose() {
        let listeners = listen(0).await.unwrap();
        let ports: Vec<u16> = listeners.iter().map(|(_, address)| address.port()).collect();
        assert!(ports.iter().all(|port| *port == ports[0] && *port != 0), "{ports:?}");
        assert!(listen(ports[0]).await.is_err());
    }
}
