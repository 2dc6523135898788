//! The cgroup of a pod that the kubelet gave none: made when it is first needed, limited, and removed with the pod.
//!
//! Where systemd makes cgroups it is a slice of systemd's, else a directory of ours. Blocking.

use oci_spec::runtime::LinuxResources;

use crate::container::place::PodPlace;
use crate::sys::cgroup::{Cgroup, CgroupError, Hierarchy};
use crate::sys::systemd::{self, Started, Systemd, SystemdError};

/// Why a pod's own cgroup is not as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnCgroupError {
    #[error("change the pod's cgroup")]
    Cgroup(#[from] CgroupError),
    #[error("change the pod's slice")]
    Systemd(#[from] SystemdError),
}

/// Limits the pod's own cgroup, all or nothing; a pod in the kubelet's is left alone.
pub(super) fn limit(place: &PodPlace, limits: &LinuxResources) -> Result<(), OwnCgroupError> {
    let Some(path) = place.own_cgroup() else { return Ok(()) };
    let hierarchy = Hierarchy::of_host()?;
    let Some(slice) = place.own_slice() else {
        Cgroup::create(&hierarchy, &path)?.apply(limits)?;
        return Ok(());
    };
    let properties = systemd::of_resources(limits);
    let mut systemd = Systemd::connect()?;
    if systemd.start_transient(&slice, &properties)? == Started::Already {
        systemd.set_properties(&slice, &properties)?;
    }
    // systemd rounds, and has no property for some; so the files are written last.
    Cgroup::open(&hierarchy, &path)?.apply(limits)?;
    Ok(())
}

/// Removes the pod's own cgroup, with what is left below it; one that was never made is fine.
pub(super) fn remove(place: &PodPlace) -> Result<(), OwnCgroupError> {
    let Some(path) = place.own_cgroup() else { return Ok(()) };
    let slice = place.own_slice();
    if let Some(slice) = &slice {
        Systemd::connect()?.stop(slice)?;
    }
    match Cgroup::open(&Hierarchy::of_host()?, &path) {
        Ok(cgroup) => {
            cgroup.remove()?;
            if slice.is_none() {
                // The folder of all such cgroups, when this was the last. systemd's slice of them stays.
                cgroup.remove_empty_parents();
            }
            Ok(())
        }
        Err(CgroupError::Missing { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
