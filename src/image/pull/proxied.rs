//! Pulls through an HTTP proxy. Goal: what reaches the proxy and what reaches the registry behind it is what it should be.
//! Method: the registry is called registry.test, a name that nothing resolves; only the proxy knows that it means the fake
//! registry on loopback, so a pull that succeeds has gone through the proxy.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::tests::{Bench, authority, basic, publish, small_image, text};
use super::*;
use crate::image::fake_registry::{Access, Registry};

/// `printf 'operator:pass word' | base64`
const PROXY_CREDENTIAL: &str = "Basic b3BlcmF0b3I6cGFzcyB3b3Jk";

/// A proxy that takes every connection to the same place. Lives as long as the test's runtime.
struct Proxy {
    host: String,
    /// The heads of what it was asked, in order.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// One before the registry at `behind`.
    async fn before(behind: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (host, behind) = (listener.local_addr().unwrap().to_string(), behind.to_owned());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // Whoever hangs up in the middle is no failure of the proxy.
                tokio::spawn(pass(client, behind.clone(), Arc::clone(&log)));
            }
        });
        Self { host, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// The settings of a machine behind this proxy.
    fn variables(&self, credential: &str) -> Proxies {
        let url = format!("http://{credential}{}", self.host);
        Proxies::read(|name| matches!(name, "HTTPS_PROXY" | "HTTP_PROXY").then(|| url.clone()))
    }
}

/// One connection: the credential is checked, the rest goes to the registry.
async fn pass(mut client: TcpStream, behind: String, log: Arc<Mutex<Vec<String>>>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    log.lock().unwrap().push(head.clone());
    let line = |name: &str| {
        head.lines().find(|line| line.split(':').next().is_some_and(|own| own.eq_ignore_ascii_case(name)))
    };
    if line("proxy-authorization").and_then(|line| line.split_once(": ")).map(|(_, value)| value)
        != Some(PROXY_CREDENTIAL)
    {
        return client
            .write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            .await;
    }
    let mut registry = TcpStream::connect(behind).await?;
    if head.starts_with("CONNECT ") {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    } else {
        // The credential is the proxy's own, and one request per connection keeps this proxy simple.
        let own = line("proxy-authorization").unwrap();
        registry.write_all(head.replace(own, "Connection: close").as_bytes()).await?;
    }
    tokio::io::copy_bidirectional(&mut client, &mut registry).await.map(drop)
}

#[tokio::test]
async fn a_registry_with_tls_is_reached_through_a_tunnel() {
    let (ca, server) = authority();
    let registry = Registry::start_tls(server);
    registry.set_access(Access::Basic { username: "u".into(), password: "p".into() });
    publish(&registry, "app", "v1", &small_image("x"));
    let proxy = Proxy::before(&registry.host()).await;
    let mut bench = Bench::new();
    bench.config.proxies = proxy.variables("operator:pass%20word@");
    bench.hosts("registry.test", "server = \"https://registry.test\"\nca = \"ca.pem\"\n");
    std::fs::write(bench.certs.path().join("registry.test/ca.pem"), &ca).unwrap();

    bench.pull("registry.test/app:v1", basic("u", "p")).await.unwrap();

    let asked = proxy.asked();
    assert!(!asked.is_empty());
    for head in &asked {
        assert!(head.starts_with("CONNECT registry.test:443 HTTP/1.1\r\n"), "{head}");
    }
    assert!(registry.requests().iter().all(|request| request.header("proxy-authorization").is_none()));
}

#[tokio::test]
async fn a_registry_without_tls_is_asked_for_by_the_proxy() {
    let registry = Registry::start();
    publish(&registry, "app", "v1", &small_image("x"));
    let proxy = Proxy::before(&registry.host()).await;
    let mut bench = Bench::new();
    bench.config.proxies = proxy.variables("operator:pass%20word@");
    bench.hosts("registry.test:5000", "server = \"http://registry.test:5000\"\n");

    bench.pull("registry.test:5000/app:v1", None).await.unwrap();

    let asked = proxy.asked();
    assert!(
        asked[0].starts_with("GET http://registry.test:5000/v2/app/manifests/v1 HTTP/1.1\r\n"),
        "{asked:?}"
    );
    for head in &asked {
        assert!(head.to_ascii_lowercase().contains("\r\nhost: registry.test:5000\r\n"), "{head}");
    }
    assert_eq!(asked.len(), registry.requests().len());
}

#[tokio::test]
async fn a_registry_on_this_machine_is_asked_directly() {
    let registry = Registry::start();
    publish(&registry, "app", "v1", &small_image("x"));
    let proxy = Proxy::before(&registry.host()).await;
    let mut bench = Bench::new();
    bench.config.proxies = proxy.variables("operator:pass%20word@");
    bench.pull(&format!("{}/app:v1", registry.host()), None).await.unwrap();
    assert_eq!(proxy.asked(), Vec::<String>::new());
    assert!(registry.requests().iter().all(|request| request.header("proxy-authorization").is_none()));
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_without_its_password() {
    let registry = Registry::start();
    let proxy = Proxy::before(&registry.host()).await;
    let mut bench = Bench::new();
    bench.config.attempts = 1;
    bench.config.proxies = proxy.variables("operator:wrong@");
    let error = bench.pull("registry.test/app:v1", None).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unavailable);
    let text = text(&error);
    assert!(text.contains(&format!("go through the proxy http://{}/", proxy.host)), "{text}");
    assert!(text.contains("proxy authorization required"), "{text}");
    assert!(!text.contains("wrong"), "{text}");
    assert_eq!(registry.requests().len(), 0);
}

#[tokio::test]
async fn a_proxy_with_tls_is_held_to_the_machines_authorities_whatever_the_registry_is_held_to() {
    let (_, server) = authority();
    let proxy = Registry::start_tls(server);
    let mut bench = Bench::new();
    bench.config.attempts = 1;
    bench.config.proxies = Proxies::read(|name| (name == "https_proxy").then(|| proxy.url()));
    bench.hosts("registry.test", "server = \"https://registry.test\"\nskip_verify = true\n");
    let error = bench.pull("registry.test/app:v1", None).await.unwrap_err();
    assert!(text(&error).contains("UnknownIssuer"), "{}", text(&error));
    assert_eq!(proxy.requests().len(), 0);
}

#[tokio::test]
async fn a_variable_that_is_no_proxy_fails_the_pulls_that_need_it() {
    let mut bench = Bench::new();
    bench.config.attempts = 1;
    bench.config.proxies =
        Proxies::read(|name| (name == "HTTPS_PROXY").then(|| "socks5://proxy.test".to_owned()));
    let error = bench.pull("registry.test/app:v1", None).await.unwrap_err();
    assert!(text(&error).contains("HTTPS_PROXY is not a URL of an HTTP proxy"), "{}", text(&error));
}
