//! Who a container runs as: the request, the image's `USER`, and `/etc/passwd` and `/etc/group` of the rootfs.
//!
//! The rootfs is hostile. Its two files are resolved inside it, must be regular, and are read up to a bound; a number is
//! a number and never looked up as a name, so a user called `0` changes nothing.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::spec::{RunAsUser, Security, SupplementalGroupsPolicy};

/// Why a container's user cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("{field} {value:?} is not a user or group id between 0 and {max}", max = ID_MAX)]
    OutOfRange { field: &'static str, value: String },
    #[error("{field} {name:?} is not in the image's {file}")]
    Unknown { field: &'static str, name: String, file: &'static str },
    #[error("{field} {value:?} is not of the form user[:group]")]
    Malformed { field: &'static str, value: String },
    #[error("{file} in the image is larger than {max} bytes", max = FILE_BYTES_MAX)]
    TooLarge { file: &'static str },
    #[error("{file} in the image is a {kind:?}, not a regular file")]
    NotRegular { file: &'static str, kind: FileType },
    #[error("read {file} in the image")]
    Read {
        file: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// The ids a container's process has.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct ContainerUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Sorted by first mention; the primary group is the first.
    pub(crate) supplemental_groups: Vec<u32>,
}

/// A user and what the image says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) user: ContainerUser,
    /// From `/etc/passwd`; `/` when it says nothing usable.
    pub(crate) home: PathBuf,
}

/// The kernel's -1 means "leave as it is" to many calls, and runtimes keep ids in signed integers.
const ID_MAX: u32 = i32::MAX as u32;
/// Distributions ship some 2 KiB; a directory of 10,000 users is 600 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Resolves the user of a container. Blocking. `rootfs` is the root directory, or a detached mount of it.
///
/// # Errors
///
/// Every [`UserError`]. A missing file is as an empty one, so it only matters when a name must be found in it.
pub(crate) fn resolve(
    rootfs: BorrowedFd<'_>,
    request: &Security,
    image_user: Option<&str>,
) -> Result<Resolved, UserError> {
    let passwd = Passwd(read(rootfs, PASSWD)?);
    let (name_or_id, image_group) = match &request.run_as_user {
        Some(RunAsUser::Uid(uid)) => {
            if *uid > ID_MAX {
                return Err(UserError::OutOfRange { field: "run_as_user", value: uid.to_string() });
            }
            (Some(uid.to_string()), None)
        }
        Some(RunAsUser::Name(name)) => (Some(name.clone()), None),
        None => {
            let text = image_user.unwrap_or("").trim();
            match text.split_once(':') {
                Some((_, group)) if group.contains(':') => {
                    return Err(UserError::Malformed { field: "image USER", value: text.to_owned() });
                }
                Some((user, group)) => (Some(user.to_owned()), Some(group).filter(|group| !group.is_empty())),
                None => (Some(text.to_owned()), None),
            }
        }
    };
    let field = match request.run_as_user {
        Some(RunAsUser::Uid(_)) => "run_as_user",
        Some(RunAsUser::Name(_)) => "run_as_username",
        None => "image USER",
    };
    let name_or_id = name_or_id.filter(|text| !text.is_empty()).unwrap_or_else(|| "0".to_owned());
    let (uid, entry) = match number(field, &name_or_id)? {
        Some(uid) => (uid, passwd.by_uid(uid)),
        None => match passwd.by_name(&name_or_id) {
            Some(entry) => (entry.uid, Some(entry)),
            None => return Err(UserError::Unknown { field, name: name_or_id, file: PASSWD }),
        },
    };

    // The group file is read only when something in it matters.
    let merge = request.supplemental_groups_policy == SupplementalGroupsPolicy::Merge;
    let named_group = image_group.filter(|_| request.run_as_group.is_none());
    let groups = if named_group.is_some() || (merge && entry.is_some()) {
        Groups(read(rootfs, GROUP)?)
    } else {
        Groups(String::new())
    };
    let gid = match (request.run_as_group, named_group) {
        (Some(gid), _) if gid > ID_MAX => {
            return Err(UserError::OutOfRange { field: "run_as_group", value: gid.to_string() });
        }
        (Some(gid), _) => gid,
        (None, Some(group)) => match number("image USER", group)? {
            Some(gid) => gid,
            None => groups.by_name(group).ok_or_else(|| UserError::Unknown {
                field: "image USER",
                name: group.to_owned(),
                file: GROUP,
            })?,
        },
        (None, None) => entry.as_ref().map_or(0, |entry| entry.gid),
    };

    let mut supplemental_groups = vec![gid];
    let from_image =
        entry.as_ref().filter(|_| merge).map(|entry| groups.of_member(entry.name)).unwrap_or_default();
    for group in request.supplemental_groups.iter().copied().chain(from_image) {
        if group > ID_MAX {
            return Err(UserError::OutOfRange { field: "supplemental_groups", value: group.to_string() });
        }
        if !supplemental_groups.contains(&group) {
            supplemental_groups.push(group);
        }
    }
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| home.starts_with('/') && !home.chars().any(char::is_control))
        .map_or_else(|| PathBuf::from("/"), PathBuf::from);
    Ok(Resolved { user: ContainerUser { uid, gid, supplemental_groups }, home })
}

/// `Some` for a text of digits, whatever its size; a sign makes it no name either.
fn number(field: &'static str, text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= ID_MAX && digits.len() == text.len() => Ok(Some(id)),
        _ => Err(UserError::OutOfRange { field, value: text.to_owned() }),
    }
}

struct Passwd(String);

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl Passwd {
    /// `name:password:uid:gid:comment:home:shell` (passwd(5)); lines that are not are skipped.
    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.0.lines().filter_map(|line| {
            let fields: Vec<&str> = line.splitn(7, ':').collect();
            let id = |at: usize| fields.get(at)?.parse::<u32>().ok().filter(|id| *id <= ID_MAX);
            let name = fields.first().filter(|name| !name.is_empty())?;
            Some(Entry { name, uid: id(2)?, gid: id(3)?, home: fields.get(5).copied().unwrap_or("") })
        })
    }

    fn by_uid(&self, uid: u32) -> Option<Entry<'_>> {
        self.entries().find(|entry| entry.uid == uid)
    }

    fn by_name(&self, name: &str) -> Option<Entry<'_>> {
        self.entries().find(|entry| entry.name == name)
    }
}

struct Groups(String);

impl Groups {
    /// `name:password:gid:member,member` (group(5)).
    fn entries(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.0.lines().filter_map(|line| {
            let mut fields = line.splitn(4, ':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let gid = fields.nth(1)?.parse::<u32>().ok().filter(|gid| *gid <= ID_MAX)?;
            Some((name, gid, fields.next().unwrap_or("")))
        })
    }

    fn by_name(&self, name: &str) -> Option<u32> {
        self.entries().find(|(known, ..)| *known == name).map(|(_, gid, _)| gid)
    }

    fn of_member(&self, user: &str) -> Vec<u32> {
        /// The kernel's NGROUPS_MAX.
        const GROUPS_MAX: usize = 65_536;
        self.entries()
            .filter(|(_, _, members)| members.split(',').any(|member| member.trim() == user))
            .map(|(_, gid, _)| gid)
            .take(GROUPS_MAX)
            .collect()
    }
}

fn read(rootfs: BorrowedFd<'_>, file: &'static str) -> Result<String, UserError> {
    let failed = |source: std::io::Error| UserError::Read { file, source };
    // By path alone first: opening a FIFO or a device of the image could block or do something.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place: OwnedFd = match rustix::fs::openat2(rootfs, file, flags, Mode::empty(), resolve) {
        Ok(place) => place,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(err) => return Err(failed(err.into())),
    };
    let stat = rustix::fs::fstat(&place).map_err(|err| failed(err.into()))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Err(UserError::NotRegular { file, kind });
    }
    let again = format!("/proc/self/fd/{}", place.as_fd().as_raw_fd());
    let open = std::fs::File::open(again).map_err(failed)?;
    let mut bytes = Vec::new();
    open.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(UserError::TooLarge { file });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const PASSWD_TEXT: &str = "root:x:0:0:root:/root:/bin/sh\n\
        app:x:1000:100:App:/home/app:/bin/sh\n\
        :x:7:7::/:\n\
        0:x:1234:1234:a name that is a number:/:\n\
        99999999999:x:0:0::/:\n\
        bad:x:notanumber:0::/:\n\
        nohome:x:1001:1001::relative/home:\n";
    const GROUP_TEXT: &str = "root:x:0:\nusers:x:100:app\nwheel:x:10:app,root\ndocker:x:999:someone\n";

    fn image(passwd: Option<&str>) -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        if let Some(text) = passwd {
            fs::write(dir.path().join("etc/passwd"), text).unwrap();
            fs::write(dir.path().join("etc/group"), GROUP_TEXT).unwrap();
        }
        let fd = fs::File::open(dir.path()).unwrap().into();
        (dir, fd)
    }

    fn resolved(request: Security, image_user: Option<&str>) -> Result<Resolved, String> {
        let (_dir, fd) = image(Some(PASSWD_TEXT));
        resolve(fd.as_fd(), &request, image_user).map_err(|err| err.to_string())
    }

    #[test]
    fn the_image_user_in_every_form_it_takes() {
        for (text, expected) in [
            (None, Ok((0, 0, vec![0, 10], "/root"))),
            (Some(""), Ok((0, 0, vec![0, 10], "/root"))),
            (Some("app"), Ok((1000, 100, vec![100, 10], "/home/app"))),
            (Some("1000"), Ok((1000, 100, vec![100, 10], "/home/app"))),
            (Some("1000:wheel"), Ok((1000, 10, vec![10, 100], "/home/app"))),
            (Some("app:7"), Ok((1000, 7, vec![7, 100, 10], "/home/app"))),
            (Some("4242"), Ok((4242, 0, vec![0], "/"))),
            (Some("nohome"), Ok((1001, 1001, vec![1001], "/"))),
            (Some("0"), Ok((0, 0, vec![0, 10], "/root"))),
            (
                Some("99999999999"),
                Err("image USER \"99999999999\" is not a user or group id between 0 and 2147483647"),
            ),
            (
                Some("4294967296"),
                Err("image USER \"4294967296\" is not a user or group id between 0 and 2147483647"),
            ),
            (Some("-1"), Err("image USER \"-1\" is not a user or group id between 0 and 2147483647")),
            (
                Some("1000:99999999999"),
                Err("image USER \"99999999999\" is not a user or group id between 0 and 2147483647"),
            ),
            (Some("nobody"), Err("image USER \"nobody\" is not in the image's /etc/passwd")),
            (Some("bad"), Err("image USER \"bad\" is not in the image's /etc/passwd")),
            (Some("app:nogroup"), Err("image USER \"nogroup\" is not in the image's /etc/group")),
            (Some("a:b:c"), Err("image USER \"a:b:c\" is not of the form user[:group]")),
        ] {
            let got = resolved(Security::default(), text);
            let expected = expected
                .map(|(uid, gid, groups, home)| Resolved {
                    user: ContainerUser { uid, gid, supplemental_groups: groups },
                    home: home.into(),
                })
                .map_err(str::to_owned);
            assert_eq!(got, expected, "{text:?}");
        }
    }

    #[test]
    fn the_request_goes_before_the_image_and_strict_leaves_its_groups_out() {
        let request = Security {
            run_as_user: Some(RunAsUser::Uid(1000)),
            supplemental_groups: vec![5000, 10],
            ..Security::default()
        };
        let user = resolved(request.clone(), Some("root:docker")).unwrap().user;
        assert_eq!(user, ContainerUser { uid: 1000, gid: 100, supplemental_groups: vec![100, 5000, 10] });
        let strict = Security {
            supplemental_groups_policy: SupplementalGroupsPolicy::Strict,
            run_as_group: Some(42),
            supplemental_groups: vec![5000],
            ..request
        };
        let user = resolved(strict, None).unwrap().user;
        assert_eq!(user, ContainerUser { uid: 1000, gid: 42, supplemental_groups: vec![42, 5000] });
        let named =
            |name: &str| Security { run_as_user: Some(RunAsUser::Name(name.into())), ..Security::default() };
        assert_eq!(resolved(named("app"), None).unwrap().user.uid, 1000);
        assert_eq!(
            resolved(named("ghost"), None).unwrap_err(),
            "run_as_username \"ghost\" is not in the image's /etc/passwd"
        );
        let high = Security { run_as_user: Some(RunAsUser::Uid(u32::MAX)), ..Security::default() };
        assert!(resolved(high, None).is_err());
    }

    #[test]
    fn an_image_without_files_has_users_by_number_only() {
        let (_dir, fd) = image(None);
        let user = |text| resolve(fd.as_fd(), &Security::default(), Some(text)).map(|found| found.user.uid);
        assert_eq!(user("5").unwrap(), 5);
        assert!(matches!(user("app"), Err(UserError::Unknown { .. })));
    }

    #[test]
    fn files_that_are_no_files_or_lead_out_of_the_image_are_refused() {
        let (dir, fd) = image(None);
        let path = dir.path().join("etc/passwd");
        let ask = || resolve(fd.as_fd(), &Security::default(), None);
        fs::create_dir(&path).unwrap();
        assert!(matches!(ask(), Err(UserError::NotRegular { kind: FileType::Directory, .. })));
        fs::remove_dir(&path).unwrap();
        // Opening this for reading would wait for a writer for ever.
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from(0o644), 0).unwrap();
        assert!(matches!(ask(), Err(UserError::NotRegular { kind: FileType::Fifo, .. })));
        fs::remove_file(&path).unwrap();
        // Resolves inside the image, where there is nothing.
        std::os::unix::fs::symlink("../../../../../etc/hostname", &path).unwrap();
        assert_eq!(ask().unwrap().user.uid, 0);
        fs::remove_file(&path).unwrap();
        fs::write(&path, vec![b'x'; (1 << 20) + 1]).unwrap();
        assert!(matches!(ask(), Err(UserError::TooLarge { .. })));
    }
}
