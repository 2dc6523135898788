//! The wire format is that of every other CRI client and server.
//!
//! Goal: a client built from the published types and Brig understand each other, field by field. Method: the types of
//! the `k8s-cri` crate, an older cri-api with 34 of the 41 RPCs, are the peer. Every message that both sides have is fed one field at a time, with
//! every field number and every wire type, alone and twice; both sides must accept or refuse it alike, and write the same
//! bytes again. That tells apart numbers, types, strings and bytes, 32 and 64 bits, single and repeated. A few
//! whole messages and golden bytes follow, so that a mistake common to both compilers would show too.

use std::collections::BTreeMap;

use brig::proto::v1;
use k8s_cri::v1 as peer;
use prost::Message;

/// Above the highest field number of any message (ImageSpec.image_ref is 20).
const FIELDS: u32 = 24;

/// The one field that newer versions widened: an environment variable's value was text and is bytes.
const TEXT_THEN_BYTES_NOW: (&str, u32) = ("KeyValue", 2);

/// Values by wire type, chosen so that each pair of protobuf types takes or writes at least one of them differently.
fn values() -> Vec<(u8, Vec<u8>)> {
    let varint = |number: u64| (0, varint(number));
    let delimited = |payload: &[u8]| {
        let mut value = varint_of(payload.len());
        value.extend(payload);
        (2, value)
    };
    vec![
        varint(1),
        varint(300),
        // More than 32 bits, and a negative number.
        varint((1 << 40) + 3),
        varint(u64::MAX),
        (1, 1.5f64.to_le_bytes().to_vec()),
        (5, 7u32.to_le_bytes().to_vec()),
        delimited(b""),
        delimited("text".as_bytes()),
        // Bytes but no text.
        delimited(&[0xff, 0xfe]),
        // A message or a list of numbers: field 1 is 1.
        delimited(&[0x08, 0x01]),
        // A message whose field 2 is a message, and one whose field 1 is a text.
        delimited(&[0x12, 0x02, 0x08, 0x01]),
        delimited(&[0x0a, 0x01, b'a']),
        // A map's entry from text to text.
        delimited(&[0x0a, 0x01, b'k', 0x12, 0x01, b'v']),
        // Further fields that nested messages have.
        delimited(&[0x18, 0x05]),
        delimited(&[0x22, 0x01, b'b']),
        delimited(&[0x2a, 0x02, 0x08, 0x09]),
    ]
}

fn varint(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(number, &mut bytes);
    bytes
}

fn varint_of(length: usize) -> Vec<u8> {
    varint(u64::try_from(length).expect("a length"))
}

/// Feeds both types the same bytes; `fields` counts those the peer knows.
fn compare<Theirs: Message + Default, Ours: Message + Default>(name: &str) -> usize {
    let mut fields = 0;
    for number in 1..=FIELDS {
        let mut known = false;
        for (wire_type, value) in values() {
            let mut once = varint(u64::from(number << 3) | u64::from(wire_type));
            once.extend(value);
            for bytes in [once.clone(), once.repeat(2)] {
                let (theirs, ours) = (Theirs::decode(&*bytes), Ours::decode(&*bytes));
                let Ok(theirs) = theirs else {
                    known = true;
                    let widened = (name, number) == TEXT_THEN_BYTES_NOW;
                    assert!(ours.is_err() || widened, "{name}.{number}: only the peer refuses {bytes:02x?}");
                    continue;
                };
                let written = theirs.encode_to_vec();
                if written.is_empty() {
                    // A field the peer does not know, or a default: what Brig adds must not disturb the peer.
                    if let Ok(ours) = ours {
                        assert!(Theirs::decode(&*ours.encode_to_vec()).is_ok(), "{name}.{number}");
                    }
                    continue;
                }
                known = true;
                let understood = Ours::decode(&*written).expect("Brig reads what the peer wrote");
                assert_eq!(understood.encode_to_vec(), written, "{name}.{number} from {bytes:02x?}");
                let Ok(ours) = ours else {
                    // In a nested message the peer skipped a field that only Brig knows, and knows with another type.
                    assert!(written.len() < bytes.len(), "{name}.{number}: only Brig refuses {bytes:02x?}");
                    continue;
                };
                let back = Theirs::decode(&*ours.encode_to_vec()).expect("the peer reads what Brig wrote");
                assert_eq!(back.encode_to_vec(), written, "{name}.{number} from {bytes:02x?}");
            }
        }
        fields += usize::from(known);
    }
    fields
}

macro_rules! compare_all {
    ($($name:ident)*) => {{
        let mut fields = 0;
        $(fields += compare::<peer::$name, v1::$name>(stringify!($name));)*
        fields
    }};
}

#[test]
fn every_field_of_every_message_is_the_peers() {
    let fields = compare_all! {
        AttachRequest AttachResponse AuthConfig Capability CdiDevice CheckpointContainerRequest
        CheckpointContainerResponse Container ContainerAttributes ContainerConfig ContainerEventResponse
        ContainerFilter ContainerMetadata ContainerMetrics ContainerResources ContainerStateValue
        ContainerStats ContainerStatsFilter ContainerStatsRequest ContainerStatsResponse ContainerStatus
        ContainerStatusRequest ContainerStatusResponse ContainerUser CpuUsage CreateContainerRequest
        CreateContainerResponse Device DnsConfig ExecRequest ExecResponse ExecSyncRequest ExecSyncResponse
        FilesystemIdentifier FilesystemUsage GetEventsRequest HugepageLimit IdMapping Image ImageFilter
        ImageFsInfoRequest ImageFsInfoResponse ImageSpec
        ImageStatusRequest ImageStatusResponse Int64Value KeyValue LinuxContainerConfig
        LinuxContainerResources LinuxContainerSecurityContext LinuxContainerUser LinuxPodSandboxConfig
        LinuxPodSandboxStats LinuxPodSandboxStatus LinuxRuntimeConfiguration LinuxSandboxSecurityContext
        ListContainerStatsRequest ListContainerStatsResponse ListContainersRequest ListContainersResponse
        ListImagesRequest ListImagesResponse ListMetricDescriptorsRequest ListMetricDescriptorsResponse
        ListPodSandboxMetricsRequest ListPodSandboxMetricsResponse ListPodSandboxRequest
        ListPodSandboxResponse ListPodSandboxStatsRequest ListPodSandboxStatsResponse MemoryUsage Metric
        MetricDescriptor Mount Namespace NamespaceOption NetworkConfig NetworkInterfaceUsage NetworkUsage
        PodIp PodSandbox PodSandboxAttributes PodSandboxConfig PodSandboxFilter PodSandboxMetadata
        PodSandboxMetrics PodSandboxNetworkStatus PodSandboxStateValue PodSandboxStats PodSandboxStatsFilter
        PodSandboxStatsRequest PodSandboxStatsResponse PodSandboxStatus PodSandboxStatusRequest
        PodSandboxStatusResponse PortForwardRequest PortForwardResponse PortMapping ProcessUsage
        PullImageRequest PullImageResponse RemoveContainerRequest RemoveContainerResponse RemoveImageRequest
        RemoveImageResponse RemovePodSandboxRequest RemovePodSandboxResponse ReopenContainerLogRequest
        ReopenContainerLogResponse RunPodSandboxRequest RunPodSandboxResponse RuntimeCondition RuntimeConfig
        RuntimeConfigRequest RuntimeConfigResponse RuntimeFeatures RuntimeHandler RuntimeHandlerFeatures
        RuntimeStatus SeLinuxOption SecurityProfile
        StartContainerRequest StartContainerResponse StatusRequest StatusResponse StopContainerRequest
        StopContainerResponse StopPodSandboxRequest StopPodSandboxResponse SwapUsage UInt64Value
        UpdateContainerResourcesRequest UpdateContainerResourcesResponse UpdateRuntimeConfigRequest
        UpdateRuntimeConfigResponse UserNamespace VersionRequest VersionResponse WindowsContainerConfig
        WindowsContainerResources WindowsContainerSecurityContext WindowsContainerStats
        WindowsCpuGroupAffinity WindowsCpuUsage WindowsFilesystemUsage WindowsMemoryUsage
        WindowsNamespaceOption WindowsNetworkInterfaceUsage WindowsNetworkUsage WindowsPodSandboxConfig
        WindowsPodSandboxStats WindowsProcessUsage WindowsSandboxSecurityContext
    };
    // All fields of all messages of the peer, so that a mistake in this test cannot make it pass for nothing.
    assert_eq!(fields, 432);
}

#[test]
fn enums_have_the_peers_numbers_and_names() {
    for number in 0..100 {
        macro_rules! same {
            ($($name:ident)*) => {$(
                let ours = v1::$name::try_from(number).ok().map(|value| value.as_str_name());
                let theirs = peer::$name::try_from(number).ok().map(|value| value.as_str_name());
                assert_eq!(ours, theirs, "{} {number}", stringify!($name));
            )*};
        }
        same! {
            Protocol MountPropagation NamespaceMode SupplementalGroupsPolicy PodSandboxState ContainerState
            ContainerEventType MetricType CgroupDriver
        }
        let ours = v1::security_profile::ProfileType::try_from(number).ok().map(|value| value.as_str_name());
        let theirs =
            peer::security_profile::ProfileType::try_from(number).ok().map(|value| value.as_str_name());
        assert_eq!(ours, theirs);
    }
}

#[test]
fn services_have_the_names_that_clients_call() {
    assert_eq!(v1::runtime_service_server::SERVICE_NAME, peer::runtime_service_server::SERVICE_NAME);
    assert_eq!(v1::image_service_server::SERVICE_NAME, peer::image_service_server::SERVICE_NAME);
}

#[test]
fn a_pod_that_an_older_client_asks_for_is_understood() {
    let asked = peer::RunPodSandboxRequest {
        config: Some(peer::PodSandboxConfig {
            metadata: Some(peer::PodSandboxMetadata {
                name: "web".into(),
                uid: "5f2b".into(),
                namespace: "default".into(),
                attempt: 3,
            }),
            hostname: "web-0".into(),
            log_directory: "/var/log/pods/web".into(),
            dns_config: Some(peer::DnsConfig {
                servers: vec!["10.0.0.10".into()],
                searches: vec!["svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            }),
            port_mappings: vec![peer::PortMapping {
                protocol: peer::Protocol::Udp.into(),
                container_port: 53,
                host_port: 5353,
                host_ip: "127.0.0.1".into(),
            }],
            labels: [("app".to_owned(), "web".to_owned())].into(),
            annotations: [("note".to_owned(), "as is".to_owned())].into(),
            linux: Some(peer::LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/pod5f2b".into(),
                security_context: Some(peer::LinuxSandboxSecurityContext {
                    namespace_options: Some(peer::NamespaceOption {
                        pid: peer::NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    run_as_user: Some(peer::Int64Value { value: 0 }),
                    supplemental_groups: vec![1, 1 << 31],
                    seccomp: Some(peer::SecurityProfile {
                        profile_type: peer::security_profile::ProfileType::Localhost.into(),
                        localhost_ref: "/p.json".into(),
                    }),
                    ..Default::default()
                }),
                sysctls: [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into(),
                resources: Some(peer::LinuxContainerResources {
                    cpu_quota: -1,
                    memory_limit_in_bytes: 1 << 40,
                    oom_score_adj: -997,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            windows: None,
        }),
        runtime_handler: "runc".into(),
    };
    let got = v1::RunPodSandboxRequest::decode(&*asked.encode_to_vec()).expect("the bytes of a request");
    let config = got.config.as_ref().expect("config");
    assert_eq!((got.runtime_handler.as_str(), config.hostname.as_str()), ("runc", "web-0"));
    assert_eq!(config.port_mappings[0].protocol(), v1::Protocol::Udp);
    assert_eq!(config.labels, BTreeMap::from([("app".to_owned(), "web".to_owned())]));
    let linux = config.linux.as_ref().expect("linux");
    assert_eq!(linux.resources.as_ref().expect("resources").cpu_quota, -1);
    let security = linux.security_context.as_ref().expect("security_context");
    assert_eq!(security.run_as_user, Some(v1::Int64Value { value: 0 }));
    assert_eq!(security.supplemental_groups, [1, 1 << 31]);
    assert_eq!(security.namespace_options.as_ref().expect("options").pid(), v1::NamespaceMode::Container);
    assert_eq!(peer::RunPodSandboxRequest::decode(&*got.encode_to_vec()).expect("our bytes"), asked);
}

#[test]
fn what_an_older_client_does_not_know_is_skipped() {
    let status = v1::ContainerStatus {
        id: "c".into(),
        exit_code: -1,
        image: Some(v1::ImageSpec {
            image: "busybox".into(),
            image_ref: "busybox@sha256:aa".into(),
            ..Default::default()
        }),
        stop_signal: v1::Signal::Sigrtmax.into(),
        ..Default::default()
    };
    let seen = peer::ContainerStatus::decode(&*status.encode_to_vec()).expect("our bytes");
    let expected = peer::ContainerStatus {
        id: "c".into(),
        exit_code: -1,
        image: Some(peer::ImageSpec { image: "busybox".into(), ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(seen, expected);
}

/// Written out by hand from the encoding rules of protobuf: key is number << 3 | wire type.
#[test]
fn golden_bytes_of_a_few_messages_stay_as_they_are() {
    let stop = v1::StopContainerRequest { container_id: "ab".into(), timeout: 30 };
    assert_eq!(stop.encode_to_vec(), [0x0a, 2, b'a', b'b', 0x10, 30]);

    let user = v1::LinuxContainerUser { uid: 1000, gid: 1000, supplemental_groups: vec![1000, 2000] };
    assert_eq!(user.encode_to_vec(), [0x08, 0xe8, 0x07, 0x10, 0xe8, 0x07, 0x1a, 4, 0xe8, 0x07, 0xd0, 0x0f]);

    let spec = v1::ImageSpec {
        image: "i".into(),
        annotations: BTreeMap::from([("b".into(), "2".into()), ("a".into(), "1".into())]),
        user_specified_image: "u".into(),
        runtime_handler: "h".into(),
        image_ref: "r".into(),
    };
    let mut expected = vec![0x0a, 1, b'i'];
    // Maps are written in key order, so that the same message is always the same bytes.
    expected.extend([0x12, 6, 0x0a, 1, b'a', 0x12, 1, b'1', 0x12, 6, 0x0a, 1, b'b', 0x12, 1, b'2']);
    expected.extend([0x92, 0x01, 1, b'u', 0x9a, 0x01, 1, b'h', 0xa2, 0x01, 1, b'r']);
    assert_eq!(spec.encode_to_vec(), expected);

    let psi = v1::PsiStats {
        full: None,
        some: Some(v1::PsiData { total: 3, avg10: 0.5, avg60: 0.0, avg300: 0.0 }),
    };
    let mut expected = vec![0x12, 11, 0x08, 3, 0x11];
    expected.extend(0.5f64.to_le_bytes());
    assert_eq!(psi.encode_to_vec(), expected);

    // A negative enum-free int32 takes ten bytes.
    let exited = v1::ExecSyncResponse { stdout: vec![0xff], stderr: vec![], exit_code: -1 };
    let mut expected = vec![0x0a, 1, 0xff, 0x18];
    expected.extend([0xff; 9]);
    expected.push(0x01);
    assert_eq!(exited.encode_to_vec(), expected);
    assert_eq!(v1::StopPodSandboxResponse {}.encode_to_vec(), Vec::<u8>::new());
}
