//! Which pod has which address of the built-in bridge.
//!
//! ```text
//! DIR/10.87.0.2 -> <pod id>       one symbolic link per address: made and named in one atomic call, never half written
//! DIR/fd62:7269:6700::2 -> <pod id>
//! ```
//!
//! The directory lies in the run directory: it outlives a crash of the daemon and goes with a reboot, as the pods do.
//! Addresses are given out in rising order and the search wraps at the end of the subnet, so an address comes back as
//! late as possible: peers' neighbour caches and connection tracking have forgotten it by then.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;

use crate::id::PodId;

/// Host addresses of one subnet that are ever used: 2^32, so that an IPv6 subnet is searched in no time either.
const HOSTS_MAX: u128 = 1 << 32;

/// Why no address could be given out, kept or taken back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IpamError {
    #[error("no free address in subnet {subnet}: all {size} are taken; use a larger subnet")]
    Exhausted { subnet: IpNet, size: u128 },
    #[error("subnet {subnet} is too small for a bridge and one pod: at most /{longest}")]
    TooSmall { subnet: IpNet, longest: u8 },
    #[error("{call} address record {}", .path.display())]
    Record {
        call: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The addresses of all subnets, and who has them.
#[derive(Debug)]
pub(super) struct Ipam {
    dir: PathBuf,
    pools: Vec<Pool>,
}

#[derive(Debug)]
struct Pool {
    subnet: IpNet,
    /// First and last address a pod may have, as numbers.
    first: u128,
    last: u128,
    next: u128,
    taken: BTreeMap<u128, PodId>,
}

/// The bridge's own address: the subnet's first.
pub(super) fn gateway(subnet: &IpNet) -> IpAddr {
    address(subnet, number(subnet.network()) + 1)
}

/// Refuses a subnet without room for the bridge and a pod.
pub(super) fn check_subnet(subnet: &IpNet) -> Result<(), IpamError> {
    let longest = match subnet {
        IpNet::V4(_) => 30,
        IpNet::V6(_) => 126,
    };
    if subnet.prefix_len() > longest {
        return Err(IpamError::TooSmall { subnet: *subnet, longest });
    }
    Ok(())
}

impl Ipam {
    /// Reads what an earlier daemon gave out. A record of a subnet we no longer have, or of no readable pod, is left
    /// alone: it hinders nobody.
    pub(super) fn load(dir: PathBuf, subnets: &[IpNet]) -> Result<Self, IpamError> {
        let failed = |call, path: &PathBuf| {
            let path = path.clone();
            move |source| IpamError::Record { call, path, source }
        };
        std::fs::create_dir_all(&dir).map_err(failed("make the directory of", &dir))?;
        let mut pools = subnets.iter().map(Pool::new).collect::<Result<Vec<_>, _>>()?;
        for entry in std::fs::read_dir(&dir).map_err(failed("list", &dir))? {
            let entry = entry.map_err(failed("list", &dir))?;
            let Some(ip) = entry.file_name().to_str().and_then(|name| name.parse::<IpAddr>().ok()) else {
                continue;
            };
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let Some(pod) = target.to_str().and_then(|text| text.parse::<PodId>().ok()) else { continue };
            if let Some(pool) = pools.iter_mut().find(|pool| pool.holds(ip)) {
                pool.taken.insert(number(ip), pod);
            }
        }
        for pool in &mut pools {
            pool.next = pool.taken.last_key_value().map_or(pool.first, |(highest, _)| highest + 1);
        }
        Ok(Self { dir, pools })
    }

    /// One address of every subnet for `pod`, in the subnets' order, on disk before this returns. What the pod already
    /// has, it keeps.
    pub(super) fn allocate(&mut self, pod: &PodId) -> Result<Vec<(IpAddr, IpNet)>, IpamError> {
        let mut given = Vec::with_capacity(self.pools.len());
        for at in 0..self.pools.len() {
            let pool = &self.pools[at];
            if let Some((held, _)) = pool.taken.iter().find(|(_, holder)| *holder == pod) {
                given.push((address(&pool.subnet, *held), pool.subnet));
                continue;
            }
            match self.allocate_one(at, pod) {
                Ok(ip) => given.push((ip, self.pools[at].subnet)),
                Err(err) => {
                    // The pod gets all addresses or none. What cannot be deleted now goes at the next sweep.
                    let _ = self.release(pod);
                    return Err(err);
                }
            }
        }
        Ok(given)
    }

    fn allocate_one(&mut self, at: usize, pod: &PodId) -> Result<IpAddr, IpamError> {
        let pool = &mut self.pools[at];
        loop {
            let number = pool.free()?;
            let ip = address(&pool.subnet, number);
            let path = self.dir.join(ip.to_string());
            match std::os::unix::fs::symlink(pod.as_str(), &path) {
                Ok(()) => {
                    pool.taken.insert(number, pod.clone());
                    pool.next = number + 1;
                    return Ok(ip);
                }
                // A record we could not read: it is somebody's, so pass it by. At most every address once.
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
                    pool.taken.insert(number, unreadable_holder());
                    pool.next = number + 1;
                }
                Err(source) => return Err(IpamError::Record { call: "write", path, source }),
            }
        }
    }

    /// Marks addresses as the pod's, after its record was lost or written by an earlier daemon.
    pub(super) fn adopt(&mut self, pod: &PodId, addresses: &[IpAddr]) -> Result<(), IpamError> {
        for ip in addresses {
            let Some(pool) = self.pools.iter_mut().find(|pool| pool.holds(*ip)) else { continue };
            if pool.taken.insert(number(*ip), pod.clone()).as_ref() == Some(pod) {
                continue;
            }
            let path = self.dir.join(ip.to_string());
            let written = std::fs::remove_file(&path)
                .or_else(ignore_missing)
                .and_then(|()| std::os::unix::fs::symlink(pod.as_str(), &path));
            written.map_err(|source| IpamError::Record { call: "write", path, source })?;
        }
        Ok(())
    }

    /// Takes back every address of `pod`; none is fine.
    pub(super) fn release(&mut self, pod: &PodId) -> Result<(), IpamError> {
        for pool in &mut self.pools {
            let held: Vec<u128> =
                pool.taken.iter().filter(|(_, holder)| *holder == pod).map(|(number, _)| *number).collect();
            for number in held {
                let path = self.dir.join(address(&pool.subnet, number).to_string());
                std::fs::remove_file(&path).or_else(ignore_missing).map_err(|source| IpamError::Record {
                    call: "delete",
                    path,
                    source,
                })?;
                pool.taken.remove(&number);
            }
        }
        Ok(())
    }

    /// Every pod that has an address.
    pub(super) fn pods(&self) -> BTreeSet<PodId> {
        self.pools.iter().flat_map(|pool| pool.taken.values().cloned()).collect()
    }
}

impl Pool {
    fn new(subnet: &IpNet) -> Result<Self, IpamError> {
        check_subnet(subnet)?;
        let network = number(subnet.network());
        let host_bits = u32::from(subnet.max_prefix_len() - subnet.prefix_len());
        let size = 1u128.checked_shl(host_bits).unwrap_or(HOSTS_MAX).min(HOSTS_MAX);
        // The network's own address, the bridge, and (IPv4) the broadcast address are nobody's.
        let first = network + 2;
        Ok(Self { subnet: *subnet, first, last: network + size - 2, next: first, taken: BTreeMap::new() })
    }

    fn holds(&self, ip: IpAddr) -> bool {
        self.subnet.contains(&ip) && (self.first..=self.last).contains(&number(ip))
    }

    fn free(&self) -> Result<u128, IpamError> {
        let from = if (self.first..=self.last).contains(&self.next) { self.next } else { self.first };
        let gap = |from: u128, to: u128| {
            let mut candidate = from;
            for (taken, _) in self.taken.range(from..=to) {
                if *taken != candidate {
                    break;
                }
                candidate += 1;
            }
            (candidate <= to).then_some(candidate)
        };
        gap(from, self.last)
            .or_else(|| gap(self.first, self.last))
            .ok_or(IpamError::Exhausted { subnet: self.subnet, size: self.last - self.first + 1 })
    }
}

/// Stands for a record that names no pod, so that no pod ever releases it and the next sweep drops it.
fn unreadable_holder() -> PodId {
    "0".repeat(64).parse().expect("64 zeros are 64 hex digits")
}

fn ignore_missing(err: io::Error) -> io::Result<()> {
    if err.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(err) }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(subnet: &IpNet, number: u128) -> IpAddr {
    match subnet {
        IpNet::V4(_) => {
            IpAddr::V4(Ipv4Addr::from(u32::try_from(number).expect("numbers of an IPv4 subnet are 32 bits")))
        }
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn pod(n: u8) -> PodId {
        format!("{n:064x}").parse().unwrap()
    }

    fn subnets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    fn ips(given: &[(IpAddr, IpNet)]) -> Vec<String> {
        given.iter().map(|(ip, _)| ip.to_string()).collect()
    }

    #[test]
    fn a_pod_gets_one_address_of_each_subnet_and_an_address_comes_back_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::load(dir.path().join("a"), &subnets(&["10.1.0.0/29", "fd00::/64"])).unwrap();
        assert_eq!(ips(&ipam.allocate(&pod(1)).unwrap()), ["10.1.0.2", "fd00::2"]);
        assert_eq!(ips(&ipam.allocate(&pod(1)).unwrap()), ["10.1.0.2", "fd00::2"]);
        assert_eq!(ips(&ipam.allocate(&pod(2)).unwrap()), ["10.1.0.3", "fd00::3"]);
        ipam.release(&pod(1)).unwrap();
        ipam.release(&pod(1)).unwrap();
        for (n, last) in [(3, "10.1.0.4"), (4, "10.1.0.5"), (5, "10.1.0.6"), (6, "10.1.0.2")] {
            assert_eq!(ips(&ipam.allocate(&pod(n)).unwrap())[0], last);
        }
        let err = ipam.allocate(&pod(7)).unwrap_err();
        assert_eq!(
            err.to_string(),
            "no free address in subnet 10.1.0.0/29: all 5 are taken; use a larger subnet"
        );
    }

    #[test]
    fn a_pod_that_gets_no_second_address_keeps_no_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::load(dir.path().to_owned(), &subnets(&["fd00::/64", "10.1.0.0/30"])).unwrap();
        ipam.allocate(&pod(1)).unwrap();
        assert!(matches!(ipam.allocate(&pod(2)), Err(IpamError::Exhausted { size: 1, .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(ipam.pods(), [pod(1)].into());
    }

    #[test]
    fn what_was_given_out_survives_a_restart_and_junk_in_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let nets = subnets(&["10.1.0.0/24"]);
        let mut ipam = Ipam::load(dir.path().to_owned(), &nets).unwrap();
        ipam.allocate(&pod(1)).unwrap();
        std::fs::write(dir.path().join("10.1.0.3"), b"").unwrap();
        std::fs::write(dir.path().join("junk"), b"").unwrap();
        let mut ipam = Ipam::load(dir.path().to_owned(), &nets).unwrap();
        assert_eq!(ipam.pods(), [pod(1)].into());
        assert_eq!(ips(&ipam.allocate(&pod(2)).unwrap()), ["10.1.0.4"]);
    }

    #[test]
    fn a_subnet_without_room_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let err = Ipam::load(dir.path().to_owned(), &subnets(&["10.1.0.0/31"])).unwrap_err();
        assert_eq!(err.to_string(), "subnet 10.1.0.0/31 is too small for a bridge and one pod: at most /30");
    }

    proptest! {
        /// No two pods ever share an address, whatever the order of calls and restarts; model: a map.
        #[test]
        fn no_address_has_two_holders(steps in proptest::collection::vec((0u8..3, 1u8..12), 1..60)) {
            let dir = tempfile::tempdir().unwrap();
            let nets = subnets(&["10.9.0.0/29"]);
            let mut ipam = Ipam::load(dir.path().to_owned(), &nets).unwrap();
            let mut model: HashMap<PodId, IpAddr> = HashMap::new();
            for (verb, n) in steps {
                match verb {
                    0 => match ipam.allocate(&pod(n)) {
                        Ok(given) => {
                            let ip = given[0].0;
                            prop_assert!(model.iter().all(|(p, held)| *held != ip || *p == pod(n)));
                            model.insert(pod(n), ip);
                        }
                        Err(err) => {
                            prop_assert!(matches!(err, IpamError::Exhausted { .. }), "{}", err);
                            prop_assert_eq!(model.len(), 5);
                        }
                    },
                    1 => { ipam.release(&pod(n)).unwrap(); model.remove(&pod(n)); }
                    _ => ipam = Ipam::load(dir.path().to_owned(), &nets).unwrap(),
                }
                prop_assert_eq!(ipam.pods(), model.keys().cloned().collect::<BTreeSet<_>>());
            }
        }
    }
}
