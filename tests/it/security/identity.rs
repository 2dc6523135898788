//! Users, groups, capabilities, no_new_privs.

use super::*;
use crate::fixture::image::Entry;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:100:App:/home/app:/bin/sh\n\
    4294967296:x:0:0:a number that is too large:/:/bin/sh\n1234:x:0:0:a number for a name:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nusers:x:100:\nwheel:x:10:app\nstaff:x:50:\n";

/// In the order that the kernel has the groups in: ascending.
const IDS: &str = "echo $(id -u) $(id -g) : $(grep ^Groups /proc/self/status | cut -f2)";

/// The capability masks of a process, in the order of /proc/PID/status.
const CAPS: &str = "grep ^Cap /proc/self/status | cut -f2 | tr '\\n' ' '";

#[test]
fn privileged_a_process_has_the_ids_and_groups_that_request_and_image_say() {
    on_every_handler(|node| {
        let name = image(node, "users", |image| {
            image
                .layer(&[
                    Entry::file("etc/passwd", PASSWD, 0o644),
                    Entry::file("etc/group", GROUP, 0o644),
                    // Whoever is in group 100 may not; everybody else may.
                    Entry::file("denied", "secret", 0o707).owned_by(0, 100),
                    Entry::file("staff", "ours", 0o640).owned_by(0, 50),
                ])
                .user("app:staff")
        });
        let pod = Pod::new(node, "users");
        let ids = |edit: &dyn Fn(&mut LinuxContainerSecurityContext)| {
            let edit = |c: &mut ContainerConfig| {
                c.image = of_image(&name);
                edit(context(c));
            };
            pod.sh(IDS, edit)
        };
        let number = |value| Some(Int64Value { value });
        assert_eq!(ids(&|_| {}), "1000 50 : 10 50");
        assert_eq!(ids(&|c| c.run_as_user = number(1000)), "1000 100 : 10 100");
        assert_eq!(ids(&|c| c.run_as_user = number(4242)), "4242 0 : 0");
        assert_eq!(ids(&|c| c.run_as_user = number(1234)), "1234 0 : 0", "a number is no name");
        assert_eq!(ids(&|c| c.run_as_username = "app".into()), "1000 100 : 10 100");
        let strict = SupplementalGroupsPolicy::Strict as i32;
        assert_eq!(
            ids(&|c| {
                (c.run_as_user, c.run_as_group) = (number(1000), number(7));
                c.supplemental_groups = vec![2000, 50];
            }),
            "1000 7 : 7 10 50 2000"
        );
        assert_eq!(
            ids(&|c| {
                (c.run_as_user, c.run_as_group) = (number(1000), number(7));
                (c.supplemental_groups, c.supplemental_groups_policy) = (vec![2000], strict);
            }),
            "1000 7 : 7 2000"
        );
        // CVE-2022-2995: the primary group counts as a supplementary one too, so a group that is denied stays denied.
        let (code, _) = pod.try_sh("cat /denied", |c| {
            c.image = of_image(&name);
            context(c).run_as_user = number(1000);
        });
        assert_ne!(code, 0);
        // What the kubelet does with fsGroup is to add it to the groups.
        let readable = pod.sh("cat /staff", |c| {
            c.image = of_image(&name);
            let context = context(c);
            (context.run_as_user, context.supplemental_groups) = (number(4242), vec![50]);
        });
        assert_eq!(readable, "ours");
        let id = pod.keep(|c| {
            c.image = of_image(&name);
            context(c).run_as_user = number(1000);
            context(c).supplemental_groups = vec![2000];
        });
        let user = node.status(&id).user.expect("a user").linux.expect("of Linux");
        assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 100, vec![100, 2000, 10]));
        assert_eq!(node.output(&id, IDS).trim(), "1000 100 : 10 100 2000");
        let refused = |edit: &dyn Fn(&mut LinuxContainerSecurityContext)| {
            pod.refused(|c| {
                c.image = of_image(&name);
                edit(context(c));
            })
        };
        assert!(refused(&|c| c.run_as_username = "ghost".into()).contains("\"ghost\""));
        assert!(refused(&|c| c.run_as_group = number(5)).contains("run_as_group"));
        assert!(refused(&|c| c.run_as_user = number(1 << 32)).contains("run_as_user"));
        assert!(refused(&|c| c.run_as_user = number(-1)).contains("run_as_user"));
        assert!(refused(&|c| c.supplemental_groups = vec![-1]).contains("supplemental_groups"));
    });
}

#[test]
fn privileged_a_user_in_the_image_that_is_no_id_is_refused_and_never_root() {
    on_handler("brig", "", |node| {
        let pod = Pod::new(node, "overflow");
        // CVE-2024-40635, CVE-2026-46680, CVE-2016-3697.
        for (n, user) in
            ["4294967296", "2147483648", "-1", "0x0", "99999999999999999999"].into_iter().enumerate()
        {
            let name = image(node, &format!("user{n}"), |image| {
                image.layer(&[Entry::file("etc/passwd", PASSWD, 0o644)]).user(user)
            });
            let why = pod.refused(|c| c.image = of_image(&name));
            assert!(why.contains(&format!("{user:?}")), "{why}");
        }
    });
}

#[test]
fn privileged_capabilities_are_the_default_ones_changed_by_the_request() {
    on_every_handler(|node| {
        let pod = Pod::with(node, "caps", |c| pod_context(c).privileged = true);
        let own: u64 = {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        let caps = |edit: &dyn Fn(&mut LinuxContainerSecurityContext)| -> Vec<u64> {
            let text = pod.sh(CAPS, |c| edit(context(c)));
            text.split_whitespace().map(|mask| u64::from_str_radix(mask, 16).unwrap()).collect()
        };
        let change = |add: &[&str], drop: &[&str], ambient: &[&str]| {
            let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            Some(Capability {
                add_capabilities: list(add),
                drop_capabilities: list(drop),
                add_ambient_capabilities: list(ambient),
            })
        };
        let (chown, net_admin, net_raw, bind) = (1 << 0, 1 << 12, 1 << 13, 1 << 10);
        // CapInh CapPrm CapEff CapBnd CapAmb.
        let all = |mask| vec![0, mask, mask, mask, 0];
        assert_eq!(caps(&|_| {}), all(0x5fb));
        assert_eq!(
            caps(&|c| c.capabilities = change(&["net_raw"], &["CAP_CHOWN"], &[])),
            all((0x5fb | net_raw) & !chown),
            "named in any form"
        );
        assert_eq!(caps(&|c| c.capabilities = change(&[], &["all"], &[])), all(0));
        assert_eq!(caps(&|c| c.capabilities = change(&["NET_ADMIN"], &["ALL"], &[])), all(net_admin));
        assert_eq!(caps(&|c| c.capabilities = change(&["ALL"], &[], &[])), all(own), "what the daemon has");
        assert_eq!(caps(&|c| c.capabilities = change(&["ALL"], &["NET_ADMIN"], &[])), all(own & !net_admin));
        assert_eq!(caps(&|c| c.privileged = true), all(own));
        let uid = Some(Int64Value { value: 1000 });
        // CVE-2018-1000400, CVE-2022-24769, CVE-2022-27652: a user other than root has none, inherits none.
        assert_eq!(caps(&|c| c.run_as_user = uid), vec![0, 0, 0, 0x5fb, 0]);
        assert_eq!(
            caps(&|c| {
                c.run_as_user = uid;
                c.capabilities = change(&[], &["ALL"], &["NET_BIND_SERVICE"]);
            }),
            vec![bind; 5],
            "ambient ones stay over the change of user"
        );
        let why = pod.refused(|c| context(c).capabilities = change(&["CAP_FLY"], &[], &[]));
        assert!(why.contains("add_capabilities[0]") && why.contains("CAP_FLY"), "{why}");
        // CVE-2022-29162: neither has what is executed later.
        let id = pod.keep(|c| context(c).run_as_user = uid);
        assert_eq!(
            node.output(&id, CAPS).split_whitespace().collect::<Vec<_>>()[..3],
            ["0000000000000000"; 3]
        );
        assert_eq!(node.output(&id, CAPS).split_whitespace().nth(4), Some("0000000000000000"));
    });
}

#[test]
fn privileged_no_new_privs_is_set_when_asked_for() {
    on_every_handler(|node| {
        let pod = Pod::new(node, "nnp");
        let flag = "grep NoNewPrivs /proc/self/status | cut -f2";
        assert_eq!(pod.sh(flag, |_| {}), "0");
        assert_eq!(pod.sh(flag, |c| context(c).no_new_privs = true), "1");
        let id = pod.keep(|c| context(c).no_new_privs = true);
        assert_eq!(node.output(&id, flag).trim(), "1");
    });
}
