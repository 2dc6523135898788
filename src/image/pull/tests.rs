//! Pulls against a registry on loopback. Goal: every promise of pull.rs and registry/ as a client of a well-behaved,
//! a broken and a hostile registry sees it. Method: the fake registry's request log says what was really sent.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use super::*;
use crate::image::fake_image::{self as fake, Entry, ImageBuilder, Pack};
use crate::image::fake_registry::{Access, Fault, Gate, Registry};
use crate::image::reference::Reference;

/// A store, a puller and the folders that its settings come from.
pub(super) struct Bench {
    store: Store,
    data: tempfile::TempDir,
    pub(super) certs: tempfile::TempDir,
    pub(super) config: PullConfig,
}

impl Bench {
    pub(super) fn new() -> Self {
        let certs = tempfile::tempdir().unwrap();
        let config = PullConfig {
            certs_dirs: vec![certs.path().to_owned()],
            backoff: Duration::from_millis(1),
            ..PullConfig::default()
        };
        let data = tempfile::tempdir().unwrap();
        Self { store: Store::open(data.path()).unwrap(), data, certs, config }
    }

    fn puller(&self) -> Puller {
        Puller::new(self.store.clone(), self.config.clone())
    }

    /// Settings for one registry host.
    pub(super) fn hosts(&self, host: &str, toml: &str) {
        let dir = self.certs.path().join(host);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), toml).unwrap();
    }

    pub(super) async fn pull(&self, reference: &str, auth: Option<Auth>) -> Result<Arc<Image>, PullError> {
        self.puller().pull(&reference.parse().unwrap(), auth, None, None).await
    }

    /// The layers on disk by diff id, sorted; a half-made one would show by its name.
    fn unpacked(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.data.path().join("layers")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| format!("sha256:{}", entry.unwrap().file_name().into_string().unwrap()))
            .collect();
        names.sort();
        names
    }

    fn is_empty(&self) -> bool {
        self.store.list().is_empty()
    }
}

/// An entry that belongs to whoever runs the tests, so that unpacking it takes no privilege.
fn mine(entry: Entry) -> Entry {
    entry.owned_by(rustix::process::geteuid().as_raw().into(), rustix::process::getegid().as_raw().into())
}

pub(super) fn small_image(text: &str) -> fake::Image {
    ImageBuilder::new()
        .layer(&[mine(Entry::file("hello", text, 0o644))])
        .layer(&[mine(Entry::file("second", vec![7; 300_000], 0o644))])
        .build()
}

pub(super) fn publish(registry: &Registry, repository: &str, tag: &str, image: &fake::Image) {
    for blob in image.blobs() {
        registry.put_blob(blob.clone());
    }
    registry.put_manifest(repository, tag, image.manifest_type, image.manifest.clone());
}

pub(super) fn basic(username: &str, password: &str) -> Option<Auth> {
    Some(Auth { username: username.to_owned(), password: password.to_owned(), ..Auth::default() })
}

pub(super) fn text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn an_image_arrives_whole_in_every_packing() {
    for (pack, docker) in [
        (Pack::Gzip, false),
        (Pack::Zstd, false),
        (Pack::Plain, false),
        (Pack::Gzip, true),
        (Pack::Plain, true),
    ] {
        let (bench, registry) = (Bench::new(), Registry::start());
        let mut builder = ImageBuilder::new().layer(&[mine(Entry::dir("a", 0o755))]).pack(pack);
        if docker {
            builder = builder.docker();
        }
        let image = builder.build();
        publish(&registry, "team/app", "v1", &image);
        let name = format!("{}/team/app", registry.host());
        let pulled = bench.pull(&format!("{name}:v1"), None).await.unwrap();
        assert_eq!(pulled.id.as_str(), image.config_digest);
        assert_eq!(pulled.tags, [format!("{name}:v1")]);
        assert_eq!(pulled.repo_digests, [format!("{name}@{}", image.manifest_digest)]);
        assert_eq!(bench.unpacked(), image.diff_ids);
    }
}

#[tokio::test]
async fn by_digest_an_image_has_no_tag() {
    let (bench, registry) = (Bench::new(), Registry::start());
    let image = small_image("x");
    publish(&registry, "app", "v1", &image);
    let reference = format!("{}/app:v1@{}", registry.host(), image.manifest_digest);
    let pulled = bench.pull(&reference, None).await.unwrap();
    assert_eq!(pulled.tags, [] as [String; 0]);
    assert_eq!(registry.requests()[0].path, format!("/v2/app/manifests/{}", image.manifest_digest));
}

#[tokio::test]
async fn from_an_index_the_image_for_the_platform_is_taken() {
    let (bench, registry) = (Bench::new(), Registry::start());
    let arm =
        ImageBuilder::new().layer(&[mine(Entry::dir("arm", 0o755))]).platform("linux", "arm64", "v8").build();
    let attestation = ImageBuilder::new().platform("unknown", "unknown", "").build();
    let host = small_image("host");
    for image in [&arm, &attestation, &host] {
        publish(&registry, "app", "unused", image);
    }
    let index =
        registry.put_manifest("app", "multi", fake::OCI_INDEX, fake::index(&[&attestation, &arm, &host]));
    let reference: Reference = format!("{}/app:multi", registry.host()).parse().unwrap();
    let puller = bench.puller();
    let pulled = puller.pull(&reference, None, None, None).await.unwrap();
    assert_eq!(pulled.id.as_str(), host.config_digest);
    assert_eq!(pulled.repo_digests, [format!("{}/app@{index}", registry.host())]);

    let of = |architecture: &str| Platform {
        os: "linux".into(),
        architecture: architecture.into(),
        variant: String::new(),
    };
    let pulled = puller.pull(&reference, None, Some(of("arm64")), None).await.unwrap();
    assert_eq!(pulled.id.as_str(), arm.config_digest);
    let error = puller.pull(&reference, None, Some(of("s390x")), None).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::NoPlatform);
    assert!(text(&error).contains("has no image for linux/s390x; it has "), "{}", text(&error));
}

#[tokio::test]
async fn the_same_digest_from_two_registries_is_one_image_with_two_names() {
    let (bench, one, two) = (Bench::new(), Registry::start(), Registry::start());
    let image = small_image("same");
    publish(&one, "app", "v1", &image);
    publish(&two, "other/app", "v2", &image);
    let first = bench.pull(&format!("{}/app:v1", one.host()), None).await.unwrap();
    let second = bench.pull(&format!("{}/other/app:v2", two.host()), None).await.unwrap();
    assert_eq!(first.id, second.id);
    assert_eq!(second.repo_digests.len(), 2);
    assert_eq!(bench.unpacked().len(), 2, "the second pull unpacks nothing");
    assert_eq!(two.requests_for("/blobs/").len(), 1, "only the config is fetched again");
}

#[tokio::test]
async fn a_layer_on_the_node_does_not_replace_permission() {
    let (bench, registry) = (Bench::new(), Registry::start());
    let image = small_image("secret");
    publish(&registry, "app", "v1", &image);
    let reference = format!("{}/app:v1", registry.host());
    registry.set_access(Access::Basic { username: "u".into(), password: "p".into() });
    bench.pull(&reference, basic("u", "p")).await.unwrap();
    for auth in [None, basic("u", "wrong"), basic("someone", "p")] {
        let error = bench.pull(&reference, auth).await.unwrap_err();
        assert_eq!(error.kind(), PullErrorKind::Unauthorized, "{}", text(&error));
    }
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used_for_everything() {
    let (bench, registry) = (Bench::new(), Registry::start());
    let image = small_image("x");
    publish(&registry, "team/app", "v1", &image);
    let reference = format!("{}/team/app:v1", registry.host());
    let access = |user: Option<(&str, &str)>, refresh: Option<&str>| Access::Token {
        user: user.map(|(u, p)| (u.to_owned(), p.to_owned())),
        refresh: refresh.map(str::to_owned),
        realm: None,
        expires_in: Some(300),
    };
    registry.set_access(access(None, None));
    bench.pull(&reference, None).await.unwrap();
    let asked = registry.requests_for("/token");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].path, "/token?service=fake&scope=repository%3Ateam%2Fapp%3Apull");
    assert_eq!(asked[0].header("authorization"), None);

    registry.set_access(access(Some(("u", "p:w")), None));
    registry.revoke_tokens();
    bench.pull(&reference, basic("u", "p:w")).await.unwrap();
    let error = bench.pull(&reference, basic("u", "no")).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unauthorized);
    assert!(text(&error).contains("wrong user name or password"), "{}", text(&error));

    registry.set_access(access(None, Some("refresh-me")));
    let identity = Auth { identity_token: "refresh-me".into(), ..Auth::default() };
    bench.pull(&reference, Some(identity)).await.unwrap();
    assert_eq!(registry.requests_for("/token").last().unwrap().method, "POST");

    registry.set_access(Access::Bearer("ready".into()));
    let bearer = Auth { registry_token: "ready".into(), ..Auth::default() };
    bench.pull(&reference, Some(bearer)).await.unwrap();
}

#[tokio::test]
async fn a_token_that_ends_during_the_pull_is_renewed() {
    let (bench, registry) = (Bench::new(), Registry::start());
    let image = small_image("x");
    publish(&registry, "app", "v1", &image);
    registry.set_access(Access::Token { user: None, refresh: None, realm: None, expires_in: None });
    let gate = Gate::closed();
    registry.fault(&image.config_digest, 1, Fault::HoldAfter(3, gate.clone()));
    let reference = format!("{}/app:v1", registry.host());
    let pull = tokio::spawn(async move { (bench.pull(&reference, None).await, bench) });
    registry.arrived(&image.config_digest, 1).await;
    registry.revoke_tokens();
    gate.open();
    pull.await.unwrap().0.unwrap();
    assert_eq!(registry.requests_for("/token").len(), 2);
}

#[tokio::test]
async fn a_credential_is_not_told_to_a_strangers_token_server() {
    let (bench, registry) = (Bench::new(), Registry::start());
    publish(&registry, "app", "v1", &small_image("x"));
    registry.set_access(Access::Token {
        user: Some(("u".into(), "p".into())),
        refresh: None,
        realm: Some("https://evil.example/token".into()),
        expires_in: None,
    });
    let error = bench.pull(&format!("{}/app:v1", registry.host()), basic("u", "p")).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unauthorized);
    assert!(text(&error).contains("list it in token_realms"), "{}", text(&error));
}

#[tokio::test]
async fn a_request_credential_for_another_server_is_not_sent() {
    let (bench, registry) = (Bench::new(), Registry::start());
    publish(&registry, "app", "v1", &small_image("x"));
    registry.set_access(Access::Basic { username: "u".into(), password: "p".into() });
    let auth = Auth { server_address: "other.example".into(), ..basic("u", "p").unwrap() };
    let error = bench.pull(&format!("{}/app:v1", registry.host()), Some(auth)).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unauthorized);
    assert!(registry.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn dockers_config_file_has_the_credential_of_its_host() {
    let (mut bench, registry) = (Bench::new(), Registry::start());
    publish(&registry, "team/app", "v1", &small_image("x"));
    registry.set_access(Access::Basic { username: "u".into(), password: "p".into() });
    let file = bench.certs.path().join("config.json");
    let auths = serde_json::json!({ "auths": { format!("{}/team", registry.host()): { "auth": "dTpw" } } });
    std::fs::write(&file, auths.to_string()).unwrap();
    bench.config.auth_files = vec![file];
    bench.pull(&format!("{}/team/app:v1", registry.host()), None).await.unwrap();
}

#[tokio::test]
async fn mirrors_are_tried_in_order_and_then_the_server() {
    let (bench, server) = (Bench::new(), Registry::start());
    let (empty, broken, good) = (Registry::start(), Registry::start(), Registry::start());
    let image = small_image("mirrored");
    publish(&good, "cache/team/app", "v1", &image);
    broken.fault("/", 1000, Fault::Status(503));
    bench.hosts(
        "registry.example",
        &format!(
            "server = \"{}\"\n[host.\"{}\"]\n[host.\"{}\"]\n[host.\"{}/v2/cache\"]\noverride_path = true\n\
             [host.\"{}/v2/cache\".header]\nx-key = \"k\"\n",
            server.url(),
            empty.url(),
            broken.url(),
            good.url(),
            good.url()
        ),
    );
    let pulled = bench.pull("registry.example/team/app:v1", None).await.unwrap();
    assert_eq!(pulled.tags, ["registry.example/team/app:v1"]);
    assert_eq!(empty.requests()[0].path, "/v2/team/app/manifests/v1?ns=registry.example");
    assert_eq!(broken.requests_for("/manifests/").len(), 1, "a mirror with a successor is asked once");
    assert_eq!(good.requests()[0].path, "/v2/cache/team/app/manifests/v1?ns=registry.example");
    assert_eq!(good.requests()[0].header("x-key"), Some("k"));
    assert_eq!(server.requests().len(), 0);

    good.fault("/", 1000, Fault::Status(404));
    publish(&server, "team/app", "v2", &image);
    bench.pull("registry.example/team/app:v2", None).await.unwrap();
    assert_eq!(server.requests()[0].path, "/v2/team/app/manifests/v2");
}

#[tokio::test]
async fn a_mirror_without_resolve_is_not_believed_about_tags() {
    let (bench, mirror, server) = (Bench::new(), Registry::start(), Registry::start());
    let (old, new) = (small_image("old"), small_image("new"));
    publish(&mirror, "app", "v1", &old);
    for blob in new.blobs() {
        mirror.put_blob(blob.clone());
    }
    publish(&server, "app", "v1", &new);
    bench.hosts(
        "registry.example",
        &format!("server = \"{}\"\n[host.\"{}\"]\ncapabilities = [\"pull\"]\n", server.url(), mirror.url()),
    );
    let pulled = bench.pull("registry.example/app:v1", None).await.unwrap();
    assert_eq!(pulled.id.as_str(), new.config_digest);
    assert_eq!(mirror.requests_for("/manifests/").len(), 0);
    assert_eq!(server.requests_for("/blobs/").len(), 0);
}

#[tokio::test]
async fn a_mirror_does_not_see_the_registrys_credential() {
    let (bench, mirror, server) = (Bench::new(), Registry::start(), Registry::start());
    publish(&mirror, "app", "v1", &small_image("x"));
    mirror.set_access(Access::Basic { username: "u".into(), password: "p".into() });
    server.set_access(Access::Basic { username: "u".into(), password: "p".into() });
    publish(&server, "app", "v1", &small_image("x"));
    bench.hosts("registry.example", &format!("server = \"{}\"\n[host.\"{}\"]\n", server.url(), mirror.url()));
    bench.pull("registry.example/app:v1", basic("u", "p")).await.unwrap();
    assert!(mirror.requests().iter().all(|request| request.header("authorization").is_none()));
    assert!(server.requests().iter().any(|request| request.header("authorization").is_some()));
}

#[tokio::test]
async fn a_redirect_to_another_host_carries_no_credential() {
    let (bench, registry, storage) = (Bench::new(), Registry::start(), Registry::start());
    let image = small_image("x");
    publish(&registry, "app", "v1", &image);
    publish(&storage, "store", "any", &image);
    registry.set_access(Access::Basic { username: "u".into(), password: "p".into() });
    bench.hosts(&registry.host(), &format!("server = \"{}\"\n[header]\nx-secret = \"s\"\n", registry.url()));
    let layer = &image.layers[0].0;
    registry.fault(layer, 9, Fault::Redirect(format!("{}/v2/store/blobs/{layer}?sig=1", storage.url())));
    let config = &image.config_digest;
    registry.fault(config, 1, Fault::Redirect(format!("/v2/elsewhere/blobs/{config}")));
    bench.pull(&format!("{}/app:v1", registry.host()), basic("u", "p")).await.unwrap();
    let seen = storage.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].header("authorization"), seen[0].header("x-secret")), (None, None));
    let same_host = registry.requests_for("/elsewhere/");
    assert_eq!(same_host.len(), 1, "a redirect within the host is one request");
    assert!(same_host[0].header("authorization").is_some());
    assert_eq!(same_host[0].header("x-secret"), Some("s"));
}

#[tokio::test]
async fn a_malicious_registry_gets_nowhere() {
    let image = small_image("x");
    let layer = image.layers[1].0.clone();
    let manifest = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        change(&mut json);
        Fault::Replace(json.to_string().into_bytes())
    };
    let at_manifest = "/manifests/";
    type Kind = PullErrorKind;
    let cases: Vec<(&str, &str, Vec<Fault>, Kind, &str)> = vec![
        (
            "wrong content of a config",
            &image.config_digest,
            vec![Fault::Replace(vec![b'{'; image.config.len()])],
            Kind::Verification,
            "has digest sha256:",
        ),
        (
            "wrong length of a config",
            &image.config_digest,
            vec![Fault::Replace(b"{}".to_vec())],
            Kind::Verification,
            "the registry has 2 bytes of it",
        ),
        (
            "wrong content of a layer",
            &layer,
            vec![Fault::Replace(vec![1; image.layers[1].1.len()])],
            Kind::Verification,
            "the blob's digest is",
        ),
        (
            "longer layer",
            &layer,
            vec![Fault::Replace(vec![1; image.layers[1].1.len() + 1])],
            Kind::Verification,
            "the manifest says",
        ),
        ("endless layer", &layer, vec![Fault::Endless], Kind::Verification, "longer than"),
        (
            "layer that always breaks",
            &layer,
            vec![Fault::BreakAfter(10)],
            Kind::Unavailable,
            "cannot be reached",
        ),
        (
            "endless manifest",
            at_manifest,
            vec![Fault::Endless],
            Kind::Verification,
            "larger than 4194304 bytes",
        ),
        (
            "huge manifest",
            at_manifest,
            vec![Fault::Replace(vec![b' '; (4 << 20) + 1])],
            Kind::Verification,
            "larger than 4194304 bytes",
        ),
        (
            "wrong digest header",
            at_manifest,
            vec![Fault::Header("docker-content-digest", format!("sha256:{}", "0".repeat(64)))],
            Kind::Verification,
            "its header claims",
        ),
        (
            "wrong type",
            at_manifest,
            vec![Fault::Header("content-type", "text/html".into())],
            Kind::Verification,
            "cannot be used",
        ),
        (
            "other type",
            at_manifest,
            vec![Fault::Header("content-type", fake::OCI_INDEX.into())],
            Kind::Verification,
            "it calls itself",
        ),
        (
            "redirect loop",
            at_manifest,
            vec![Fault::Redirect("/v2/app/manifests/v1".into())],
            Kind::Verification,
            "more than 5 in a row",
        ),
        (
            "redirect to a file",
            at_manifest,
            vec![Fault::Redirect("file:///etc/passwd".into())],
            Kind::Verification,
            "redirect from",
        ),
        (
            "redirect with a user",
            at_manifest,
            vec![Fault::Redirect("http://u:p@localhost/".into())],
            Kind::Verification,
            "without a user name",
        ),
        ("server error", at_manifest, vec![Fault::Status(500)], Kind::Unavailable, "is unavailable"),
        ("teapot", at_manifest, vec![Fault::Status(418)], Kind::Unavailable, "status 418"),
        ("denied", at_manifest, vec![Fault::Status(403)], Kind::Unauthorized, "refuses access"),
        (
            "both meanings",
            at_manifest,
            vec![
                manifest(&|m| m["manifests"] = serde_json::json!([])),
                Fault::Header("docker-content-digest", "x".into()),
            ],
            Kind::Verification,
            "both an index",
        ),
        (
            "schema 1",
            at_manifest,
            vec![
                Fault::Replace(br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec()),
                Fault::Header("docker-content-digest", "x".into()),
            ],
            Kind::Verification,
            "schema 1",
        ),
        (
            "path in a digest",
            at_manifest,
            vec![
                manifest(&|m| m["layers"][0]["digest"] = "sha256:../../x".into()),
                Fault::Header("docker-content-digest", "x".into()),
            ],
            Kind::Verification,
            "not the JSON",
        ),
        (
            "one layer less",
            at_manifest,
            vec![
                manifest(&|m| {
                    m["layers"].as_array_mut().unwrap().pop();
                }),
                Fault::Header("docker-content-digest", "x".into()),
            ],
            Kind::Verification,
            "2 diff ids for 1 layers",
        ),
        (
            "enormous layer",
            at_manifest,
            vec![
                manifest(&|m| m["layers"][0]["size"] = u64::MAX.into()),
                Fault::Header("docker-content-digest", "x".into()),
            ],
            Kind::Verification,
            "more than the limit",
        ),
    ];
    for (name, at, faults, kind, part) in cases {
        let (bench, registry) = (Bench::new(), Registry::start());
        publish(&registry, "app", "v1", &image);
        for fault in faults {
            registry.fault(at, 1000, fault);
        }
        let error = bench.pull(&format!("{}/app:v1", registry.host()), None).await.unwrap_err();
        let text = text(&error);
        assert_eq!(error.kind(), kind, "{name}: {text}");
        assert!(text.contains(part), "{name}: {text}");
        assert!(bench.is_empty(), "{name}");
        assert!(registry.requests().len() < 40, "{name}: {} requests", registry.requests().len());
    }
}

#[tokio::test]
async fn a_foreign_layers_urls_are_never_asked() {
    let (bench, registry, elsewhere) = (Bench::new(), Registry::start(), Registry::start());
    let image = small_image("x");
    publish(&elsewhere, "app", "v1", &image);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    let layer = image.layers[0].0.clone();
    manifest["layers"][0]["urls"] = serde_json::json!([format!("{}/v2/app/blobs/{layer}", elsewhere.url())]);
    registry.put_manifest("app", "v1", image.manifest_type, manifest.to_string().into_bytes());
    registry.put_blob(image.config.clone());
    registry.put_blob(image.layers[1].1.clone());
    let error = bench.pull(&format!("{}/app:v1", registry.host()), None).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::NotFound);
    assert!(text(&error).contains("foreign layer"), "{}", text(&error));
    assert_eq!(elsewhere.requests().len(), 0);
}

#[tokio::test]
async fn a_broken_transfer_is_taken_up_where_it_broke() {
    for ignores_range in [false, true] {
        let (bench, registry) = (Bench::new(), Registry::start());
        let image = ImageBuilder::new()
            .layer(&[mine(Entry::file("big", vec![3; 500_000], 0o644))])
            .pack(Pack::Plain)
            .build();
        publish(&registry, "app", "v1", &image);
        let layer = &image.layers[0].0;
        registry.fault(layer, 2, Fault::BreakAfter(200_000));
        if ignores_range {
            registry.fault(layer, 9, Fault::IgnoreRange);
        }
        bench.pull(&format!("{}/app:v1", registry.host()), None).await.unwrap();
        let asked = registry.requests_for(layer);
        assert_eq!(asked.len(), 3);
        let (second, third) = (asked[1].header("range").unwrap(), asked[2].header("range").unwrap());
        assert_eq!(asked[0].header("range"), None);
        assert_eq!(
            (second, third),
            if ignores_range { (second, second) } else { ("bytes=200000-", "bytes=400000-") }
        );
    }
}

#[tokio::test]
async fn a_silent_registry_is_given_up() {
    let (mut bench, registry) = (Bench::new(), Registry::start());
    bench.config.stall_timeout = Duration::from_millis(50);
    let image = small_image("x");
    publish(&registry, "app", "v1", &image);
    let layer = &image.layers[1].0;
    registry.fault(layer, 9, Fault::HoldAfter(100, Gate::closed()));
    let error = bench.pull(&format!("{}/app:v1", registry.host()), None).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Stalled);
    assert!(text(&error).contains("sent nothing for 50ms"), "{}", text(&error));
    assert_eq!(registry.requests_for(layer).len(), 2, "a silent connection is replaced once");
}

#[tokio::test]
async fn an_unreachable_registry_and_a_missing_image_are_told_apart() {
    let bench = Bench::new();
    let registry = Registry::start();
    let error = bench.pull(&format!("{}/app:v1", registry.host()), None).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::NotFound);
    assert!(text(&error).contains("MANIFEST_UNKNOWN"), "{}", text(&error));
    let host = registry.host();
    drop(registry);
    let error = bench.pull(&format!("{host}/app:v1"), None).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unavailable);
}

#[tokio::test]
async fn settings_are_read_at_every_pull_and_a_wrong_one_fails_it() {
    let (bench, registry) = (Bench::new(), Registry::start());
    publish(&registry, "app", "v1", &small_image("x"));
    bench.hosts("registry.example", "servr = \"x\"");
    let error = bench.pull("registry.example/app:v1", None).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Local);
    assert!(text(&error).contains("did you mean \"server\"?"), "{}", text(&error));
    bench.hosts("registry.example", &format!("server = \"{}\"", registry.url()));
    bench.pull("registry.example/app:v1", None).await.unwrap();
}

#[tokio::test]
async fn concurrent_pulls_of_one_image_are_one() {
    let (bench, registry) = (Bench::new(), Registry::start());
    let image = small_image("x");
    publish(&registry, "app", "v1", &image);
    let gate = Gate::closed();
    registry.fault(&image.config_digest, 1, Fault::HoldAfter(0, gate.clone()));
    let reference: Reference = format!("{}/app:v1", registry.host()).parse().unwrap();
    let puller = bench.puller();
    let progress = watch::Sender::new(Progress::default());
    let mut watched = progress.subscribe();
    let first = puller.pull(&reference, None, None, None);
    let second = puller.pull(&reference, None, None, Some(progress));
    let mut third = Box::pin(puller.pull(&reference, None, None, None));
    // The third joins and leaves again; the others do not notice.
    std::future::poll_fn(|context| {
        assert!(third.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
    registry.arrived(&image.config_digest, 1).await;
    let (mut first, mut second) = (pin!(first), pin!(second));
    std::future::poll_fn(|context| {
        assert!(first.as_mut().poll(context).is_pending() && second.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
    drop(third);
    gate.open();
    let (first, second) = tokio::join!(first, second);
    assert!(Arc::ptr_eq(&first.unwrap(), &second.unwrap()));
    assert_eq!(registry.requests_for("/manifests/").len(), 1);
    let last = watched.borrow_and_update().clone();
    assert_eq!(last.layers.len(), 2);
    assert!(last.layers.iter().all(|l| l.phase == Phase::Done && l.current == l.total && l.total > 0));
}

#[tokio::test]
async fn different_credentials_are_different_pulls() {
    let (bench, registry) = (Bench::new(), Registry::start());
    publish(&registry, "app", "v1", &small_image("x"));
    registry.set_access(Access::Basic { username: "u".into(), password: "p".into() });
    let reference: Reference = format!("{}/app:v1", registry.host()).parse().unwrap();
    let puller = bench.puller();
    let (good, bad) = tokio::join!(
        puller.pull(&reference, basic("u", "p"), None, None),
        puller.pull(&reference, None, None, None)
    );
    good.unwrap();
    assert_eq!(bad.unwrap_err().kind(), PullErrorKind::Unauthorized);
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_is_cancelled_and_leaves_nothing() {
    let (bench, registry) = (Bench::new(), Registry::start());
    let image = small_image("x");
    publish(&registry, "app", "v1", &image);
    let (held, other) = (&image.layers[0].0, &image.layers[1].0);
    registry.fault(held, 9, Fault::HoldAfter(5, Gate::closed()));
    registry.fault(other, 9, Fault::HoldAfter(5, Gate::closed()));
    let reference: Reference = format!("{}/app:v1", registry.host()).parse().unwrap();
    let puller = bench.puller();
    let pull = tokio::spawn({
        let (puller, reference) = (puller.clone(), reference.clone());
        async move { puller.pull(&reference, None, None, None).await }
    });
    registry.arrived(held, 1).await;
    registry.arrived(other, 1).await;
    pull.abort();
    assert!(pull.await.unwrap_err().is_cancelled());
    puller.idle().await;
    assert!(bench.is_empty());
    assert_eq!(bench.unpacked(), [] as [String; 0]);
    assert!(puller.inner.flights.lock().unwrap().is_empty());

    // The next one starts anew and is not told of the cancelled one.
    registry.clear_faults();
    puller.pull(&reference, None, None, None).await.unwrap();
}

#[tokio::test]
async fn a_layer_of_two_images_is_unpacked_once() {
    let (bench, registry) = (Bench::new(), Registry::start());
    let shared = [mine(Entry::file("base", vec![9; 100_000], 0o644))];
    let one = ImageBuilder::new().layer(&shared).cmd(&["one"]).build();
    let two = ImageBuilder::new().layer(&shared).cmd(&["two"]).build();
    publish(&registry, "one", "v1", &one);
    publish(&registry, "two", "v1", &two);
    let layer = &one.layers[0].0;
    let gate = Gate::closed();
    registry.fault(layer, 1, Fault::HoldAfter(50, gate.clone()));
    let puller = bench.puller();
    let spawn = |name: &str| {
        let reference: Reference = format!("{}/{name}:v1", registry.host()).parse().unwrap();
        let puller = puller.clone();
        tokio::spawn(async move { puller.pull(&reference, None, None, None).await })
    };
    let first = spawn("one");
    registry.arrived(layer, 1).await;
    let second = spawn("two");
    registry.arrived(&two.config_digest, 1).await;
    gate.open();
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(registry.requests_for(layer).len(), 1);
    assert_eq!(bench.unpacked(), one.diff_ids);
}

/// A certificate authority and a server certificate for 127.0.0.1 and registry.test that it signed.
pub(super) fn authority() -> (String, rustls::ServerConfig) {
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "registry.test".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    (ca_certificate.pem(), config)
}

#[tokio::test]
async fn tls_is_verified_by_the_hosts_own_authority_or_not_at_all() {
    let (ca, server) = authority();
    let registry = Registry::start_tls(server);
    publish(&registry, "app", "v1", &small_image("x"));
    let reference = format!("{}/app:v1", registry.host());

    let unknown = Bench::new().pull(&reference, basic("u", "p")).await.unwrap_err();
    assert_eq!(unknown.kind(), PullErrorKind::Unavailable);
    assert!(text(&unknown).contains("UnknownIssuer"), "{}", text(&unknown));
    assert_eq!(registry.requests().len(), 0, "a certificate that does not verify never leads to plain HTTP");

    let trusted = Bench::new();
    trusted.hosts(&registry.host(), &format!("server = \"{}\"\nca = \"my-ca.pem\"\n", registry.url()));
    std::fs::write(trusted.certs.path().join(registry.host()).join("my-ca.pem"), &ca).unwrap();
    trusted.pull(&reference, None).await.unwrap();

    let docker_style = Bench::new();
    let dir = docker_style.certs.path().join(registry.host());
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("ca.crt"), &ca).unwrap();
    docker_style.pull(&reference, None).await.unwrap();

    let lax = Bench::new();
    lax.hosts(&registry.host(), &format!("[host.\"{}\"]\nskip_verify = true\n", registry.url()));
    lax.pull(&reference, None).await.unwrap();
}

#[tokio::test]
async fn https_does_not_lead_to_plain_http() {
    let (_, server) = authority();
    let registry = Registry::start_tls(server);
    let bench = Bench::new();
    bench.hosts(&registry.host(), &format!("server = \"{}\"\nskip_verify = true\n", registry.url()));
    registry.fault("/manifests/", 9, Fault::Redirect("http://storage.example/v2/x".into()));
    let error = bench.pull(&format!("{}/app:v1", registry.host()), None).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Verification);
    assert!(text(&error).contains("http://storage.example is plain HTTP"), "{}", text(&error));
}

#[test]
fn a_full_disk_is_found_at_the_bottom_of_an_error() {
    let full = UnpackError::Io { operation: "write", source: io::Error::from(io::ErrorKind::StorageFull) };
    assert!(is_no_space(&full));
    assert!(!is_no_space(&UnpackError::TooLarge { limit_bytes: 1 }));
}
