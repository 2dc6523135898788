//! CNI against plugins that do what a test tells them, and against the real ones where they are installed.
//!
//! A fake plugin is a shell script: it appends `<verb> <name>` and its input to files beside it, then answers what the
//! file `<name>.<verb>` says, or a default.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::pod::spec::Protocol;

const PLUGIN: &str = r#"#!/bin/sh
me=${0##*/}
here=${0%/*}
verb=$CNI_COMMAND
echo "$verb $me" >> "$here/log"
cat > "$here/$me.$verb.stdin"
env > "$here/$me.$verb.env"
if [ -f "$here/$me.$verb" ]; then . "$here/$me.$verb"; exit $?; fi
case $verb in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}' ;;
ADD) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/ns"}],"ips":[{"address":"10.9.0.5/24","interface":0}]}' ;;
esac
"#;

struct Fixture {
    dir: tempfile::TempDir,
    pod: PodId,
    annotations: BTreeMap<String, String>,
    ports: Vec<PortMapping>,
    dns: DnsConfig,
    cidr: Vec<IpNet>,
}

impl Fixture {
    /// A network "net" of the plugins `one` and `two`.
    fn new(version: &str) -> Self {
        let fixture = Self {
            dir: tempfile::tempdir().unwrap(),
            pod: PodId::random(),
            annotations: BTreeMap::new(),
            ports: Vec::new(),
            dns: DnsConfig::default(),
            cidr: Vec::new(),
        };
        for name in ["conf", "bin"] {
            std::fs::create_dir(fixture.path(name)).unwrap();
        }
        for name in ["one", "two"] {
            let path = fixture.path("bin").join(name);
            std::fs::write(&path, PLUGIN).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        fixture.configure(&json!({
            "name": "net", "cniVersion": version,
            "plugins": [
                {"type": "one", "capabilities": {"portMappings": true, "dns": true, "io.kubernetes.cri.pod-annotations": true}},
                {"type": "two", "x": 1, "capabilities": {"bandwidth": true, "ipRanges": true, "cgroupPath": true}}
            ]
        }));
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, list: &Value) {
        std::fs::write(self.path("half"), list.to_string()).unwrap();
        std::fs::rename(self.path("half"), self.path("conf").join("10-net.conflist")).unwrap();
    }

    fn cni(&self) -> Cni {
        Cni::new(self.path("conf"), vec![self.path("bin")], self.path("cache"), Duration::from_secs(5))
    }

    /// Makes `plugin` run `script` for `verb`.
    fn answer(&self, plugin: &str, verb: &str, script: &str) {
        std::fs::write(self.path("bin").join(format!("{plugin}.{verb}")), script).unwrap();
    }

    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("bin/log")).unwrap_or_default();
        let _ = std::fs::remove_file(self.path("bin/log"));
        text.lines().filter(|line| !line.starts_with("VERSION")).map(str::to_owned).collect()
    }

    fn stdin(&self, plugin: &str, verb: &str) -> Value {
        let text = std::fs::read_to_string(self.path("bin").join(format!("{plugin}.{verb}.stdin"))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn env(&self, plugin: &str, verb: &str) -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(self.path("bin").join(format!("{plugin}.{verb}.env"))).unwrap();
        text.lines()
            .filter_map(|line| line.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }

    fn cached(&self) -> usize {
        std::fs::read_dir(self.path("cache/results")).map_or(0, Iterator::count)
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            pod: &self.pod,
            name: "web",
            namespace: "shop",
            uid: "u-1",
            netns: Path::new("/proc/self/ns/net"),
            ports: &self.ports,
            bandwidth: Bandwidth::default(),
            annotations: &self.annotations,
            dns: Some(&self.dns),
            cgroup_parent: "/kubepods/x",
            pod_cidr: &self.cidr,
        }
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn add_chains_results_and_del_goes_back_with_what_was_cached() {
    let mut fixture = Fixture::new("1.0.0");
    fixture.ports.push(PortMapping {
        protocol: Protocol::Udp,
        container_port: 53,
        host_port: 5353,
        host_ip: Some("192.0.2.1".parse().unwrap()),
    });
    fixture.annotations.insert("a".to_owned(), "b".to_owned());
    fixture.cidr.push("10.5.0.0/24".parse().unwrap());
    run(async {
        let cni = fixture.cni();
        let mut wanted = fixture.wanted();
        wanted.bandwidth = Bandwidth { ingress: Some(1000), egress: None };
        let attached = cni.add(&wanted).await.unwrap();
        assert_eq!(
            (attached.network.as_str(), attached.addresses),
            ("net", vec!["10.9.0.5".parse().unwrap()])
        );
        assert_eq!(fixture.log(), ["ADD one", "ADD two"]);
        let result = json!({
            "cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/ns"}],
            "ips": [{"address": "10.9.0.5/24", "interface": 0}]
        });
        assert_eq!(
            fixture.stdin("one", "ADD"),
            json!({
                "type": "one", "name": "net", "cniVersion": "1.0.0",
                "runtimeConfig": {
                    "portMappings": [
                        {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"}
                    ],
                    "dns": {"servers": [], "searches": [], "options": []},
                    "io.kubernetes.cri.pod-annotations": {"a": "b"}
                }
            })
        );
        assert_eq!(
            fixture.stdin("two", "ADD"),
            json!({
                "type": "two", "name": "net", "cniVersion": "1.0.0", "x": 1, "prevResult": result,
                "runtimeConfig": {
                    "bandwidth": {"ingressRate": 1000, "ingressBurst": 2_147_483_647u32},
                    "ipRanges": [[{"subnet": "10.5.0.0/24"}]],
                    "cgroupPath": "/kubepods/x"
                }
            })
        );
        let env = fixture.env("two", "ADD");
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID=u-1",
            fixture.pod
        );
        let bin = fixture.path("bin").display().to_string();
        for (key, value) in [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", fixture.pod.as_str()),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", &bin),
            ("CNI_ARGS", &args),
        ] {
            assert_eq!(env.get(key).map(String::as_str), Some(value), "{key}");
        }
        assert!(!env.contains_key("HOME") && !env.contains_key("CARGO_MANIFEST_DIR"), "{env:?}");

        // A new daemon, and a configuration that changed meanwhile.
        fixture.configure(&json!({"name": "other", "cniVersion": "1.0.0", "plugins": [{"type": "two"}]}));
        let cni = fixture.cni();
        cni.check(&fixture.pod, wanted.netns).await.unwrap();
        assert_eq!(fixture.log(), ["CHECK one", "CHECK two"]);
        cni.del(&fixture.pod, Some(Path::new("/nonexistent"))).await.unwrap();
        assert_eq!(fixture.log(), ["DEL two", "DEL one"]);
        assert_eq!(fixture.stdin("one", "DEL")["prevResult"], result);
        assert_eq!(fixture.stdin("one", "DEL")["runtimeConfig"]["portMappings"][0]["hostPort"], 5353);
        assert_eq!(
            (fixture.env("one", "DEL")["CNI_NETNS"].as_str(), fixture.env("one", "DEL")["CNI_ARGS"].as_str()),
            ("", &*args)
        );
        cni.del(&fixture.pod, None).await.unwrap();
        assert_eq!((fixture.log(), fixture.cached()), (vec![], 0));
    });
}

#[test]
fn every_kind_of_nonsense_is_one_clear_error_and_is_undone() {
    let big = format!("head -c {} /dev/zero | tr '\\0' ' '", exec::OUTPUT_BYTES_MAX + 1);
    for (script, message) in [
        (
            r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"try later","details":"pool is empty"}'; exit 1"#,
            "ADD CNI network net: plugin BIN/two failed, code 11: try later (pool is empty)",
        ),
        (
            "echo boo >&2; exit 3",
            "ADD CNI network net: plugin BIN/two ended with exit status: 3 and no CNI error; it wrote: boo",
        ),
        (
            "kill -9 $$",
            "ADD CNI network net: plugin BIN/two ended with signal: 9 (SIGKILL) and no CNI error; it wrote: ",
        ),
        (
            r#"echo '{"cniVersion":"1.0.0"}'"#,
            "plugin two of CNI network net: the result has no address for interface eth0",
        ),
        (
            r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.300/24"}]}'"#,
            "plugin two of CNI network net: ips[0].address of the result is \"10.9.0.300/24\", \
             expected an address with prefix length",
        ),
        (
            r#"echo '{"cniVersion":"7.0.0"}'"#,
            "plugin two of CNI network net: cniVersion of the result is \"7.0.0\", expected a version from 0.3.0 to 1.1.0",
        ),
        (
            r#"echo '{"cniVersion":"1.0.0"} and more'"#,
            "plugin two of CNI network net: the result is no JSON: trailing characters at line 1 column 24",
        ),
        (
            "true",
            "plugin two of CNI network net: the result is no JSON: EOF while parsing a value at line 1 column 0",
        ),
        (&big, "ADD CNI network net: plugin BIN/two printed more than 1048576 bytes and was killed"),
    ] {
        let fixture = Fixture::new("1.0.0");
        fixture.answer("two", "ADD", script);
        let err = run(fixture.cni().add(&fixture.wanted())).unwrap_err();
        let bin = fixture.path("bin").display().to_string();
        assert_eq!(chain(&err), message.replace("BIN", &bin));
        assert_eq!(fixture.log(), ["ADD one", "ADD two", "DEL two", "DEL one"], "{message}");
        assert_eq!(fixture.cached(), 0, "{message}");
    }
}

#[test]
fn what_cannot_be_undone_is_kept_until_a_sweep_undoes_it() {
    let fixture = Fixture::new("1.1.0");
    fixture.answer("two", "ADD", "exit 1");
    fixture.answer("one", "DEL", r#"echo '{"code":100,"msg":"no"}'; exit 1"#);
    run(async {
        let cni = fixture.cni();
        let err = cni.add(&fixture.wanted()).await.unwrap_err();
        assert!(matches!(err, CniError::NotUndone { .. }), "{err}");
        assert_eq!(fixture.cached(), 1);
        assert_eq!(fixture.log().len(), 4);
        let (gone, failures) = cni.sweep(|_| false).await;
        assert_eq!(
            (gone, failures.len(), fixture.log()),
            (0, 1, vec!["DEL two".to_owned(), "DEL one".to_owned()])
        );
        std::fs::remove_file(fixture.path("bin/one.DEL")).unwrap();
        let (gone, failures) = cni.sweep(|_| false).await;
        assert_eq!((gone, failures.len(), fixture.cached()), (1, 0, 0));
        assert_eq!(fixture.log(), ["DEL two", "DEL one", "GC one", "GC two"]);
        assert_eq!(fixture.stdin("one", "GC")["cni.dev/valid-attachments"], json!([]));
    });
}

#[test]
fn gc_names_the_living_and_respects_disable_gc_and_older_versions() {
    let fixture = Fixture::new("1.1.0");
    run(async {
        let cni = fixture.cni();
        cni.add(&fixture.wanted()).await.unwrap();
        fixture.log();
        let (gone, failures) = cni.sweep(|pod| *pod == fixture.pod).await;
        assert_eq!(
            (gone, failures.len(), fixture.log()),
            (0, 0, vec!["GC one".to_owned(), "GC two".to_owned()])
        );
        let valid = json!([{"containerID": fixture.pod, "ifname": "eth0"}]);
        assert_eq!(fixture.stdin("two", "GC")["cni.dev/valid-attachments"], valid);
        assert_eq!(fixture.cached(), 1);
        for (version, disable) in [("1.1.0", true), ("1.0.0", false)] {
            fixture.configure(
                &json!({"name": "net", "cniVersion": version, "disableGC": disable, "plugins": [{"type": "one"}]}),
            );
            let (gone, failures) = cni.sweep(|_| true).await;
            assert_eq!((gone, failures.len(), fixture.log()), (0, 0, vec![]));
        }
    });
}

#[test]
fn a_plugin_that_hangs_is_killed_with_its_children() {
    let fixture = Fixture::new("1.0.0");
    run(async {
        let cni = Cni::new(
            fixture.path("conf"),
            vec![fixture.path("bin")],
            fixture.path("cache"),
            Duration::from_millis(300),
        );
        cni.add(&fixture.wanted()).await.unwrap();
        fixture.answer("two", "DEL", "sleep 1000 & echo $! > \"$here/child\"; wait");
        let err = cni.del(&fixture.pod, None).await.unwrap_err();
        assert!(chain(&err).ends_with("did not end within 0 s and was killed"), "{}", chain(&err));
        let child = std::fs::read_to_string(fixture.path("bin/child")).unwrap();
        let stat = format!("/proc/{}/stat", child.trim());
        let started = Instant::now();
        // Killed is not yet reaped: whoever adopts it may take a moment.
        while std::fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z ")) {
            assert!(started.elapsed() < Duration::from_secs(5), "the plugin's child lives");
            tokio::task::yield_now().await;
        }
        assert_eq!(fixture.cached(), 1);
    });
}

#[test]
fn a_child_left_behind_with_the_pipe_does_not_hang_the_call() {
    let fixture = Fixture::new("1.0.0");
    let result = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.6/24"}]}"#;
    fixture.answer("two", "ADD", &format!("sleep 30 & echo $! > \"$here/child\"; echo '{result}'"));
    let started = Instant::now();
    let attached = run(fixture.cni().add(&fixture.wanted())).unwrap();
    assert_eq!(attached.addresses, ["10.9.0.6".parse::<IpAddr>().unwrap()]);
    assert!(started.elapsed() < Duration::from_secs(20));
    let child = std::fs::read_to_string(fixture.path("bin/child")).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(child).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[test]
fn readiness_follows_the_directory_the_plugins_and_their_status() {
    let fixture = Fixture::new("1.1.0");
    let not_ready = |readiness| match readiness {
        Readiness::NotReady(why) => why,
        other => panic!("{other:?}"),
    };
    run(async {
        let cni = fixture.cni();
        assert!(matches!(cni.readiness().await, Readiness::Ready));
        assert_eq!(fixture.log(), ["STATUS one", "STATUS two"]);
        fixture.answer("two", "STATUS", r#"echo '{"code":50,"msg":"agent is down"}'; exit 1"#);
        assert!(not_ready(cni.readiness().await).ends_with("two failed, code 50: agent is down"));
        std::fs::remove_file(fixture.path("bin/two")).unwrap();
        cni.reload();
        assert!(not_ready(cni.readiness().await).contains("no plugin two in "));
        let err = cni.add(&fixture.wanted()).await.unwrap_err();
        assert!(matches!(err, CniError::Exec { verb: "VERSION", .. }), "{err}");
        assert_eq!(fixture.cached(), 0);
        fixture.configure(&json!({"name": "net", "cniVersion": "1.1.0", "plugins": [{"type": "../one"}]}));
        assert!(not_ready(cni.readiness().await).contains("plugins[0].type is \"../one\""));
        assert!(matches!(cni.add(&fixture.wanted()).await, Err(CniError::NotReady(Some(_)))));
        fixture.answer("one", "VERSION", r#"echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0"]}'"#);
        fixture.configure(&json!({"name": "net", "cniVersion": "1.1.0", "plugins": [{"type": "one"}]}));
        assert_eq!(
            not_ready(cni.readiness().await),
            "plugin one of CNI network net does not speak version 1.1.0, only 0.4.0"
        );
        std::fs::remove_file(fixture.path("conf/10-net.conflist")).unwrap();
        assert!(matches!(cni.readiness().await, Readiness::Absent));
        assert!(matches!(cni.add(&fixture.wanted()).await, Err(CniError::NotReady(None))));
    });
}

#[test]
fn a_pod_name_that_would_smuggle_in_an_argument_is_refused() {
    let fixture = Fixture::new("1.0.0");
    let mut wanted = fixture.wanted();
    wanted.name = "x;IP=10.0.0.1";
    let err = run(fixture.cni().add(&wanted)).unwrap_err();
    assert!(err.to_string().starts_with("K8S_POD_NAME is \"x;IP=10.0.0.1\", which"), "{err}");
    assert_eq!((fixture.log(), fixture.cached()), (vec![], 0));
}

/// bridge + host-local + portmap as distributions package them, in namespaces of the test's own.
#[test]
fn privileged_the_real_plugins_attach_a_pod_and_leave_nothing() {
    use crate::network::tests::{Namespace, in_new_netns};
    let bin = ["/usr/lib/cni", "/opt/cni/bin"]
        .map(PathBuf::from)
        .into_iter()
        .find(|dir| dir.join("bridge").exists());
    let Some(bin) = bin else {
        eprintln!("skipped: no CNI plugins are installed");
        return;
    };
    let mut fixture = Fixture::new("1.0.0");
    fixture.configure(&json!({
        "name": "real", "cniVersion": "1.0.0",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true,
                "ipam": {
                    "type": "host-local", "dataDir": fixture.path("ipam"),
                    "ranges": [[{"subnet": "10.66.0.0/24"}], [{"subnet": "fd66::/64"}]]
                }
            },
            {"type": "portmap", "capabilities": {"portMappings": true}}
        ]
    }));
    fixture.ports.push(PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_port: 8080,
        host_ip: None,
    });
    in_new_netns(|| {
        let netns = Namespace::new();
        let path = netns.path();
        // Another process opens the path, so it must not mean "self".
        let path = PathBuf::from(path.to_str().unwrap().replace("self", &std::process::id().to_string()));
        let mut wanted = fixture.wanted();
        wanted.netns = &path;
        run(async {
            let cni =
                Cni::new(fixture.path("conf"), vec![bin], fixture.path("cache"), Duration::from_secs(30));
            let attached = cni.add(&wanted).await.unwrap_or_else(|err| panic!("{}", chain(&err)));
            assert_eq!(
                attached.addresses,
                ["10.66.0.2".parse::<IpAddr>().unwrap(), "fd66::2".parse().unwrap()]
            );
            let server = netns.run(|| std::net::TcpListener::bind("10.66.0.2:80").unwrap());
            let to = "10.66.0.2:80".parse().unwrap();
            std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
            drop(server);
            // CHECK goes through bridge and host-local; portmap 1.1 then looks for IPv4 rules among the IPv6 ones.
            let checked = cni.check(&fixture.pod, &path).await.map_err(|err| chain(&err));
            assert!(checked.clone().err().is_none_or(|err| err.contains("/portmap failed")), "{checked:?}");
            cni.del(&fixture.pod, Some(&path)).await.unwrap_or_else(|err| panic!("{}", chain(&err)));
        });
        assert_eq!(fixture.cached(), 0);
        let held = std::fs::read_dir(fixture.path("ipam/real")).unwrap().flatten();
        assert_eq!(held.filter(|e| e.file_name().to_string_lossy().contains("66")).count(), 0);
    });
}
