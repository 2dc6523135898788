//! `brig run IMAGE [CMD…]`: a pod with one container, from the image to the exit code.
//!
//! The kubelet's part is played here: names, log folder, defaults of the security context, the pull when the image is
//! missing. A signal to `brig run` is a stop of the container; a second one kills it. The pod stays for `brig logs` and
//! `brig rm`, stopped, unless `--rm` is given.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::client::Client;
use super::error::CliError;
use super::logs::{self, LogReader, Printer};
use super::stream::{self, Ended, Interactive, Session, TlsArgs};
use super::{image, lifecycle, output};
use crate::container::bundle::{MASKED, READONLY};
use crate::id::PodId;
use crate::proto::v1;

/// Marks a pod that `brig run` made; the value is its name.
pub(super) const LABEL: &str = "io.brig.run";
/// What Docker grants between stop signal and SIGKILL.
const STOP_GRACE_S: u32 = 10;
/// The kernel's own default of `cpu.cfs_period_us`.
const CPU_PERIOD_US: i64 = 100_000;

/// What to run and how.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Remove the pod once the container has exited.
    #[arg(long)]
    rm: bool,
    /// Print the container's id and leave it running.
    #[arg(short, long, conflicts_with = "rm")]
    detach: bool,
    #[command(flatten)]
    interactive: Interactive,
    /// The handler, as a RuntimeClass names it; without it the daemon's default.
    #[arg(long, default_value = "")]
    handler: String,
    /// The pod's and the container's name; without it one is made from the image's.
    #[arg(long)]
    name: Option<String>,
    /// An environment variable; NAME alone takes it over from here. May be repeated.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// A folder or file of the host in the container. May be repeated.
    #[arg(short, long = "volume", value_name = "HOST:CONTAINER[:ro]")]
    volume: Vec<String>,
    /// A port of the host that leads to a port of the container. May be repeated.
    #[arg(short, long = "publish", value_name = "[IP:]HOST:CONTAINER[/udp]")]
    publish: Vec<String>,
    /// The working directory, instead of the image's.
    #[arg(short, long, default_value = "")]
    workdir: String,
    /// The most memory, such as 64m, 1g or "512 MiB".
    #[arg(long)]
    memory: Option<String>,
    /// The most CPUs, such as 0.5.
    #[arg(long)]
    cpus: Option<f64>,
    /// `pod` is an address of its own, `host` the host's network.
    #[arg(long, value_enum, default_value_t = Network::Pod)]
    network: Network,
    /// Everything the host's root may do. Disables most of the isolation.
    #[arg(long)]
    privileged: bool,
    /// Where logs of pods go, one folder each.
    #[arg(long, env = "BRIG_LOG_DIR", default_value = "/var/log/brig", value_name = "DIR")]
    log_dir: PathBuf,
    #[command(flatten)]
    tls: TlsArgs,
    /// The image, pulled when it is missing.
    image: String,
    /// The command and its arguments, instead of the image's.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Whose network a pod has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Network {
    Pod,
    Host,
}

pub(super) async fn run(client: Client, mut args: RunArgs) -> Result<ExitCode, CliError> {
    if !args.detach {
        args.interactive = args.interactive.possible();
    }
    // Everything that can be wrong with the arguments, before anything is made.
    let request = Request::new(&args)?;
    ensure_image(&client, &args.image).await?;
    let log_folder = Path::new(&request.pod.log_directory);
    std::fs::create_dir_all(log_folder).map_err(|source| CliError::File {
        what: "make the log folder",
        path: log_folder.to_owned(),
        source,
    })?;

    let Interactive { stdin, tty } = args.interactive;
    let attach = ((stdin || tty) && !args.detach).then_some((args.interactive, &args.tls));
    let started = start(&client, &request, &args.handler, attach).await;
    let (pod, container, session) = match started {
        Ok(ids) => ids,
        Err(err) => {
            let _ = std::fs::remove_dir(log_folder);
            return Err(err);
        }
    };
    if args.detach {
        output::line(container)?;
        return Ok(ExitCode::SUCCESS);
    }
    let ended = match session {
        None => watch(&client, &container, &request.log_path()).await,
        Some(session) => converse(&client, &container, session).await,
    };
    if args.rm {
        lifecycle::remove_pod(&client, &pod).await?;
    } else if ended.is_ok() {
        // Gives the address and the monitor back; log and exit code stay.
        lifecycle::stop_pod(&client, &pod, 0).await?;
    }
    let Some(status) = ended? else {
        return Err(CliError::Incomplete("the exit code: the container was removed by someone else"));
    };
    if status.exit_code != 0 && !matches!(status.reason.as_str(), "Error" | "Completed") {
        eprintln!("brig: the container ended with {}: {}", status.reason, status.message);
    }
    Ok(exit_code(status.exit_code))
}

async fn ensure_image(client: &Client, image: &str) -> Result<(), CliError> {
    let spec = v1::ImageSpec { image: image.to_owned(), ..Default::default() };
    let request = v1::ImageStatusRequest { image: Some(spec), verbose: false };
    let answer = client.images.clone().image_status(request).await;
    if answer.map_err(CliError::refused(format!("look up {image}")))?.into_inner().image.is_none() {
        image::pull_image(client.clone(), image, None, false).await?;
    }
    Ok(())
}

/// Makes and starts pod and container; what was made is removed again when a later step fails.
async fn start(
    client: &Client,
    request: &Request,
    handler: &str,
    attach: Option<(Interactive, &TlsArgs)>,
) -> Result<(String, String, Option<Session>), CliError> {
    let mut runtime = client.runtime.clone();
    let pod = runtime
        .run_pod_sandbox(v1::RunPodSandboxRequest {
            config: Some(request.pod.clone()),
            runtime_handler: handler.to_owned(),
        })
        .await
        .map_err(CliError::refused("run the pod"))?
        .into_inner()
        .pod_sandbox_id;
    let container = async {
        let create = v1::CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(request.container.clone()),
            sandbox_config: Some(request.pod.clone()),
        };
        let created =
            runtime.create_container(create).await.map_err(CliError::refused("create the container"))?;
        let container_id = created.into_inner().container_id;
        // Before the start, so that nothing is missed.
        let session = match attach {
            None => None,
            Some((interactive, tls)) => {
                Some(stream::attached(client, &container_id, tls, interactive).await?)
            }
        };
        let start = v1::StartContainerRequest { container_id: container_id.clone() };
        runtime.start_container(start).await.map_err(CliError::refused("start the container"))?;
        Ok((container_id, session))
    }
    .await;
    match container {
        Ok((container, session)) => Ok((pod, container, session)),
        Err(err) => {
            if let Err(cleanup) = lifecycle::remove_pod(client, &pod).await {
                eprintln!("brig: the pod {pod} is left over: {cleanup}");
            }
            lifecycle::remove_log(&request.log_path());
            Err(err)
        }
    }
}

/// Follows the log to the container's exit; the first signal to us stops the container, the next one kills it.
async fn watch(
    client: &Client,
    container: &str,
    log: &Path,
) -> Result<Option<v1::ContainerStatus>, CliError> {
    let handle = |kind| signal(kind).map_err(|source| CliError::Local("wait for signals", source));
    let (mut interrupt, mut terminate) = (handle(SignalKind::interrupt())?, handle(SignalKind::terminate())?);
    let stop = async {
        let mut grace_s = STOP_GRACE_S;
        let mut stops = Vec::new();
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            let (client, container) = (client.clone(), container.to_owned());
            // Not awaited, so that a second signal is heard while the first stop waits out its grace period.
            stops.push(tokio::spawn(
                async move { lifecycle::stop_container(&client, &container, grace_s).await },
            ));
            grace_s = 0;
        }
    };
    let mut reader = LogReader::open(log)?;
    let mut printer = Printer::default();
    tokio::select! {
        status = logs::follow(client, container, &mut reader, &mut printer) => status,
        () = stop => unreachable!("the stopper listens until it is dropped"),
    }
}

/// Passes what is typed and printed on to the container's exit; a signal to us stops the container.
async fn converse(
    client: &Client,
    container: &str,
    session: Session,
) -> Result<Option<v1::ContainerStatus>, CliError> {
    if let Ended::Signal(_) = session.carry().await? {
        lifecycle::stop_container(client, container, STOP_GRACE_S).await?;
    }
    logs::exited(client, container).await
}

/// A container's exit code as ours.
pub(super) fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// The two configurations that CRI takes.
#[derive(Debug, PartialEq)]
struct Request {
    pod: v1::PodSandboxConfig,
    container: v1::ContainerConfig,
}

impl Request {
    fn new(args: &RunArgs) -> Result<Self, CliError> {
        let unique = PodId::random();
        let name = match &args.name {
            Some(name) => name.clone(),
            None => format!("{}-{}", stem(&args.image), &unique.as_str()[..5]),
        };
        if !is_name(&name) {
            return Err(CliError::Argument {
                option: "--name",
                value: name,
                must: "1 to 63 letters, digits, dots, dashes or underscores, beginning with a letter or digit",
            });
        }
        let uid = unique.as_str()[..32].to_owned();
        let labels = BTreeMap::from([(LABEL.to_owned(), name.clone())]);
        let host_network = args.network == Network::Host;
        let namespaces = v1::NamespaceOption {
            network: if host_network { v1::NamespaceMode::Node } else { v1::NamespaceMode::Pod }.into(),
            pid: v1::NamespaceMode::Container.into(),
            ipc: v1::NamespaceMode::Pod.into(),
            ..Default::default()
        };
        let seccomp = v1::SecurityProfile {
            profile_type: if args.privileged {
                v1::security_profile::ProfileType::Unconfined
            } else {
                v1::security_profile::ProfileType::RuntimeDefault
            }
            .into(),
            ..Default::default()
        };
        let pod = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.clone(),
                uid: uid.clone(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: if host_network { String::new() } else { hostname(&name) },
            log_directory: args.log_dir.join(format!("{name}_{uid}")).to_string_lossy().into_owned(),
            port_mappings: args.publish.iter().map(|text| port_mapping(text)).collect::<Result<_, _>>()?,
            labels: labels.clone(),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces.clone()),
                    privileged: args.privileged,
                    seccomp: Some(seccomp.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let paths = |paths: &[&str]| match args.privileged {
            true => Vec::new(),
            false => paths.iter().map(|path| (*path).to_owned()).collect(),
        };
        let container = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name, attempt: 0 }),
            image: Some(v1::ImageSpec { image: args.image.clone(), ..Default::default() }),
            // As Docker: the words replace the image's command and its entrypoint stays.
            args: args.command.clone(),
            working_dir: args.workdir.clone(),
            envs: args.env.iter().filter_map(|text| env(text)).collect(),
            mounts: args.volume.iter().map(|text| volume(text)).collect::<Result<_, _>>()?,
            labels,
            stdin: args.interactive.stdin,
            // Whoever types is this command; a detached container waits for others.
            stdin_once: args.interactive.stdin && !args.detach,
            tty: args.interactive.tty,
            log_path: "0.log".to_owned(),
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(resources(args)?),
                security_context: Some(v1::LinuxContainerSecurityContext {
                    privileged: args.privileged,
                    namespace_options: Some(namespaces),
                    masked_paths: paths(&MASKED),
                    readonly_paths: paths(&READONLY),
                    seccomp: Some(seccomp),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        Ok(Self { pod, container })
    }

    fn log_path(&self) -> PathBuf {
        Path::new(&self.pod.log_directory).join(&self.container.log_path)
    }
}

/// The last part of an image's name without tag and digest: `registry:5000/a/web:1@sha256:…` is `web`.
fn stem(image: &str) -> String {
    let name = image.split('@').next().unwrap_or(image).rsplit('/').next().unwrap_or(image);
    let stem: String = name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    if is_name(&stem) { stem } else { "run".to_owned() }
}

fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// A name as a host name may look (RFC 1123).
fn hostname(name: &str) -> String {
    let dashed: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    dashed.trim_end_matches('-').to_lowercase()
}

/// `NAME=VALUE`, or `NAME` with the value it has here; `None` when it has none.
fn env(text: &str) -> Option<v1::KeyValue> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, value.to_owned()),
        None => (text, std::env::var(text).ok()?),
    };
    Some(v1::KeyValue { key: key.to_owned(), value: value.into() })
}

fn volume(text: &str) -> Result<v1::Mount, CliError> {
    let refuse = || CliError::Argument {
        option: "--volume",
        value: text.to_owned(),
        must: "/HOST/PATH:/CONTAINER/PATH, with :ro at the end for read-only",
    };
    let mut parts = text.split(':');
    let (host, container, mode) = (parts.next(), parts.next(), parts.next());
    let readonly = match mode {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(refuse()),
    };
    match (host, container, parts.next()) {
        (Some(host), Some(container), None) if host.starts_with('/') && container.starts_with('/') => {
            Ok(v1::Mount {
                host_path: host.to_owned(),
                container_path: container.to_owned(),
                readonly,
                ..Default::default()
            })
        }
        _ => Err(refuse()),
    }
}

fn port_mapping(text: &str) -> Result<v1::PortMapping, CliError> {
    let refuse = || CliError::Argument {
        option: "--publish",
        value: text.to_owned(),
        must: "[IP:]HOST:CONTAINER with ports from 1 to 65535, and /udp or /sctp at the end for other than TCP",
    };
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => v1::Protocol::Tcp,
        "udp" => v1::Protocol::Udp,
        "sctp" => v1::Protocol::Sctp,
        _ => return Err(refuse()),
    };
    let port =
        |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).map(i32::from).ok_or_else(refuse);
    let (rest, container) = ports.rsplit_once(':').ok_or_else(refuse)?;
    // From the right, because an IPv6 address has colons of its own.
    let (host_ip, host) = rest.rsplit_once(':').unwrap_or(("", rest));
    let host_ip = host_ip.trim_start_matches('[').trim_end_matches(']');
    if !host_ip.is_empty() && host_ip.parse::<IpAddr>().is_err() {
        return Err(refuse());
    }
    Ok(v1::PortMapping {
        protocol: protocol.into(),
        container_port: port(container)?,
        host_port: port(host)?,
        host_ip: host_ip.to_owned(),
    })
}

fn resources(args: &RunArgs) -> Result<v1::LinuxContainerResources, CliError> {
    let mut resources = v1::LinuxContainerResources::default();
    if let Some(text) = &args.memory {
        resources.memory_limit_in_bytes = memory(text).ok_or_else(|| CliError::Argument {
            option: "--memory",
            value: text.clone(),
            must: "a number of bytes, or one with a unit such as 64m, 1g or \"512 MiB\"",
        })?;
    }
    if let Some(cpus) = args.cpus {
        // The kernel takes no quota under 1 ms, a hundredth of a CPU.
        if !(0.01..=4096.0).contains(&cpus) {
            let must = "from 0.01 to 4096";
            return Err(CliError::Argument { option: "--cpus", value: cpus.to_string(), must });
        }
        resources.cpu_period = CPU_PERIOD_US;
        resources.cpu_quota = (cpus * CPU_PERIOD_US as f64).round() as i64;
    }
    Ok(resources)
}

/// `k`, `m` and `g` are binary, as Docker has them.
fn memory(text: &str) -> Option<i64> {
    let text = text.to_lowercase();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: i64 = text[..end].parse().ok()?;
    let shift = match text[end..].trim() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn request(line: &[&str]) -> Result<Request, CliError> {
        Request::new(&Line::parse_from([&["run"], line].concat()).run)
    }

    #[test]
    fn words_after_the_image_are_the_command_even_if_they_look_like_options() {
        let made = request(&["--name", "web", "busybox", "sh", "-c", "echo --rm"]).unwrap();
        assert_eq!(made.container.args, ["sh", "-c", "echo --rm"]);
        assert_eq!(made.container.image.unwrap().image, "busybox");
        assert_eq!(made.pod.metadata.unwrap().name, "web");
        assert_eq!(made.pod.hostname, "web");
    }

    #[test]
    fn a_pod_is_confined_unless_privileged_is_asked_for() {
        let security = |made: Request| made.container.linux.unwrap().security_context.unwrap();
        let confined = security(request(&["busybox"]).unwrap());
        assert_eq!(confined.seccomp.unwrap().profile_type, 0);
        assert!(confined.masked_paths.contains(&"/proc/kcore".to_owned()));
        let privileged = security(request(&["--privileged", "busybox"]).unwrap());
        assert!(privileged.privileged && privileged.masked_paths.is_empty());
    }

    #[test]
    fn the_log_lies_in_a_folder_of_the_pods_own() {
        let made = request(&["--log-dir", "/l", "--name", "web", "busybox"]).unwrap();
        let uid = made.pod.metadata.as_ref().unwrap().uid.clone();
        assert_eq!(made.log_path(), PathBuf::from(format!("/l/web_{uid}/0.log")));
    }

    #[test]
    fn ports_have_host_container_address_and_protocol() {
        let mapping = |host_ip: &str, host_port, container_port, protocol: v1::Protocol| v1::PortMapping {
            protocol: protocol.into(),
            container_port,
            host_port,
            host_ip: host_ip.to_owned(),
        };
        for (text, expected) in [
            ("8080:80", mapping("", 8080, 80, v1::Protocol::Tcp)),
            ("53:53/udp", mapping("", 53, 53, v1::Protocol::Udp)),
            ("127.0.0.1:1:2", mapping("127.0.0.1", 1, 2, v1::Protocol::Tcp)),
            ("[::1]:1:2", mapping("::1", 1, 2, v1::Protocol::Tcp)),
        ] {
            assert_eq!(port_mapping(text).unwrap(), expected, "{text}");
        }
        for bad in ["80", "0:80", "80:0", "70000:1", "a:1:2", "1:2/icmp", ":", "1:2:3:4"] {
            assert!(port_mapping(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volumes_are_absolute_on_both_sides() {
        assert!(!volume("/a:/b").unwrap().readonly);
        assert!(volume("/a:/b:ro").unwrap().readonly);
        for bad in ["/a", "a:/b", "/a:b", "/a:/b:rx", "/a:/b:ro:x", ""] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_are_numbers_with_units() {
        assert_eq!(memory("64m"), Some(64 << 20));
        assert_eq!(memory("512 MiB"), Some(512 << 20));
        assert_eq!(memory("100"), Some(100));
        for bad in ["", "m", "0", "-1", "1t", "99999999999g"] {
            assert_eq!(memory(bad), None, "{bad}");
        }
        let made = request(&["--cpus", "0.5", "--memory", "1g", "busybox"]).unwrap();
        let resources = made.container.linux.unwrap().resources.unwrap();
        assert_eq!((resources.cpu_quota, resources.cpu_period), (50_000, 100_000));
        assert_eq!(resources.memory_limit_in_bytes, 1 << 30);
        assert!(request(&["--cpus", "0", "busybox"]).is_err());
    }

    #[test]
    fn names_come_from_the_image() {
        for (image, name) in [
            ("busybox", "busybox"),
            ("registry:5000/a/web-app:1.2", "web-app"),
            ("a/b@sha256:00", "b"),
            ("", "run"),
        ] {
            assert_eq!(stem(image), name, "{image}");
        }
        assert_eq!(hostname("My_App."), "my-app");
        for bad in ["", "-a", "a b", "../x", &"a".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
