//! TLS: whom the server lets in, and `brig` as its client.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Ship;
use super::client::address;
use super::server::path;
use crate::cli::brig_on;
use crate::fixture::node::{Options, eventually};

/// An authority, and what it signs for a server or a client.
struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(rcgen::CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    fn issue(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

/// An HTTP request over TLS; the server's certificate has to be of `authority`. Answers the first line.
async fn over_tls(
    url: &str,
    authority: &Authority,
    client: Option<(String, String)>,
) -> Result<String, std::io::Error> {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("PEM"))
        .expect("an authority");
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(vec![certificate], key).expect("a certificate")
        }
    };
    let stream = TcpStream::connect(address(url)).await.expect("the server listens");
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    let mut stream =
        tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await?;
    stream.write_all(format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path(url)).as_bytes()).await?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer).await {
        Err(error) if answer.is_empty() => Err(error),
        _ => Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()),
    }
}

/// Files of certificates in a folder of their own.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a scratch directory"))
    }

    /// By rename, as everyone who replaces a certificate does it.
    fn put(&self, name: &str, text: &str) {
        let new = self.0.path().join("new");
        std::fs::write(&new, text).expect("a file");
        std::fs::rename(new, self.path(name)).expect("a file");
    }

    fn put_pair(&self, name: &str, (certificate, key): (String, String)) {
        self.put(&format!("{name}.pem"), &certificate);
        self.put(&format!("{name}-key.pem"), &key);
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// The configuration of a server with `server.pem` and `server-key.pem` that wants clients of `clients.pem`.
    fn config(&self) -> String {
        format!(
            "[stream]\ntls_cert = \"{}\"\ntls_key = \"{}\"\ntls_client_ca = \"{}\"",
            self.path("server.pem"),
            self.path("server-key.pem"),
            self.path("clients.pem")
        )
    }
}

#[test]
fn privileged_tls_wants_a_client_certificate_and_takes_new_files_as_they_come() {
    let (files, servers, clients) = (Files::new(), Authority::new(), Authority::new());
    files.put_pair("server", servers.issue("127.0.0.1"));
    files.put("clients.pem", &clients.pem());
    let config = files.config();
    let ship = Ship::with(Options { config, ..Options::default() }, "tls").running("exec sleep 1000");
    let ask = |authority, client| {
        let url = ship.exec_url("oe", &["true"]);
        ship.node.call(over_tls(&url, authority, client))
    };
    // Let in, and told that a stream needs an upgrade.
    let answer = ask(&servers, Some(clients.issue("kubelet"))).expect("TLS");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    ask(&servers, None).expect_err("a client without a certificate");
    ask(&servers, Some(servers.issue("kubelet"))).expect_err("a client of another authority");

    let others = Authority::new();
    let (certificate, key) = others.issue("127.0.0.1");
    files.put("server-key.pem", &key);
    // The pair does not fit, and the former one stays in force.
    ask(&servers, Some(clients.issue("kubelet"))).expect("TLS");
    files.put("server.pem", &certificate);
    let answer = ask(&others, Some(clients.issue("kubelet"))).expect("TLS with the new certificate");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    eventually(|| ship.node.log().contains("keeps its former certificate").then_some(()));
}

#[test]
fn privileged_a_daemon_that_stops_waits_for_no_hello() {
    let (files, servers, clients) = (Files::new(), Authority::new(), Authority::new());
    files.put_pair("server", servers.issue("127.0.0.1"));
    files.put("clients.pem", &clients.pem());
    let options = Options { config: files.config(), ..Options::default() };
    let mut ship = Ship::with(options, "tls-stop").running("exec sleep 1000");
    let url = ship.exec_url("oe", &["true"]);
    let (mut silent, mut halfway) = ship.node.call(async {
        let connect = || async { TcpStream::connect(address(&url)).await.expect("the server listens") };
        let (silent, mut halfway) = (connect().await, connect().await);
        // The head of a handshake and of the client's hello, which would have 512 bytes.
        halfway.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]).await.expect("the connection lasts");
        (silent, halfway)
    });
    // Connections are accepted as they come: once this one is served, the two are waited for.
    ship.node.call(over_tls(&url, &servers, Some(clients.issue("kubelet")))).expect("TLS");
    ship.node.stop_brigd();
    assert!(!ship.node.log().contains("was silent at TLS"), "they were waited for to the end");
    for stream in [&mut silent, &mut halfway] {
        let mut rest = Vec::new();
        ship.node.call(stream.read_to_end(&mut rest)).ok();
        assert_eq!(rest, b"");
    }
    ship.node.restart_brigd();
}

/// Exit code, stdout and stderr.
fn outcome(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn privileged_brig_speaks_tls_and_says_what_is_missing() {
    let (files, servers, clients) = (Files::new(), Authority::new(), Authority::new());
    files.put_pair("server", servers.issue("127.0.0.1"));
    files.put("clients.pem", &clients.pem());
    files.put("servers.pem", &servers.pem());
    files.put_pair("operator", clients.issue("operator"));
    files.put_pair("stranger", servers.issue("stranger"));
    let options = || Options { config: files.config(), ..Options::default() };
    let ship = Ship::with(options(), "tls-brig").running("nc -ll -p 7 -e cat & wait");
    let node = &ship.node;
    eventually(|| {
        node.output(&ship.container, "cat /proc/net/tcp /proc/net/tcp6").contains(":0007").then_some(())
    });
    let brig = |certificate: Option<&str>, authority: Option<&str>, arguments: &[&str]| {
        let mut command = brig_on(node);
        command.args(arguments);
        if let Some(name) = certificate {
            command.env("BRIG_TLS_CERT", files.path(&format!("{name}.pem")));
            command.env("BRIG_TLS_KEY", files.path(&format!("{name}-key.pem")));
        }
        if let Some(name) = authority {
            command.env("BRIG_TLS_CA", files.path(name));
        }
        command
    };
    let exec = ["exec", &ship.container, "sh", "-c", "echo out; echo err >&2; exit 5"];
    let run = |mut command: Command| outcome(&command.output().expect("brig starts"));
    assert_eq!(
        run(brig(Some("operator"), Some("servers.pem"), &exec)),
        (Some(5), "out\n".into(), "err\n".into())
    );
    // The same by options.
    let (ca, cert) = (files.path("servers.pem"), files.path("operator.pem"));
    let key = files.path("operator-key.pem");
    let options = ["exec", "--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key, &ship.container, "true"];
    assert_eq!(run(brig(None, None, &options)), (Some(0), String::new(), String::new()));

    // Each refusal has its remedy, and is a failure of brig's own.
    let refused = |certificate, authority, more: &[&str], remedy: &str| {
        let arguments = [&["exec"], more, &exec[1..]].concat();
        let (code, stdout, stderr) = run(brig(certificate, authority, &arguments));
        assert_eq!((code, stdout.as_str()), (Some(125), ""), "{stderr}");
        assert!(stderr.starts_with("brig: ") && stderr.contains(remedy), "no {remedy:?} in {stderr}");
    };
    let (operator, authority) = (Some("operator"), Some("servers.pem"));
    refused(operator, None, &[], "name the authority of its certificate with --tls-ca");
    refused(operator, Some("clients.pem"), &[], "name the authority of its certificate with --tls-ca");
    refused(operator, authority, &["--tls-server-name", "example.org"], "with --tls-server-name");
    refused(operator, authority, &["--tls-sni", "no name"], "must be a DNS name or an IP address");
    refused(None, authority, &[], "wants a certificate of one of its tls_client_ca");
    refused(Some("stranger"), authority, &[], "refuses our certificate");
    refused(operator, Some("none.pem"), &[], "cannot read the authorities from");
    refused(operator, Some("operator-key.pem"), &[], "holds no certificate");

    // A forwarded port and an attach, which `run -i` is, go the same way.
    let mut forward = brig(operator, authority, &["port-forward", &ship.pod, ":7"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("brig starts");
    let mut stdout = BufReader::new(forward.stdout.take().expect("a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a line");
    let address = line.trim().strip_prefix("Forwarding from ").and_then(|line| line.split_once(" -> "));
    let mut stream = std::net::TcpStream::connect(address.expect("an address").0).expect("brig listens");
    stream.write_all(b"through TLS").expect("the connection lasts");
    let mut echo = [0; 11];
    stream.read_exact(&mut echo).expect("the echo");
    assert_eq!(&echo, b"through TLS");
    forward.kill().expect("our child");
    forward.wait().expect("our child");
    let image = &node.image;
    let mut run_it = brig(operator, authority, &["run", "--rm", "-i", image, "sh", "-c", "md5sum; exit 6"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("brig starts");
    run_it.stdin.take().expect("a pipe").write_all(b"hello").expect("brig reads");
    assert_eq!(
        outcome(&run_it.wait_with_output().expect("our child")),
        (Some(6), "5d41402abc4b2a76b9719d911017c592  -\n".into(), String::new())
    );
}
