// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the GIDs that tenants have to those that the HCA has. A GID that the host owns itself (macvlan,
//! a VF's network device) is its own image; others need an entry in the map.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rdma_midlayer::types::Gid;

/// A GID of a tenant's network, and the one on the wire that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GidMapping {
    /// The network of the tenant: the same virtual GID may mean another host in each.
    pub network: u64,
    /// As the tenants know it.
    pub virtual_gid: Gid,
    /// As the wire knows it.
    pub physical: Gid,
}

/// The map; changeable while QPs are connected: a change counts for those connected later.
#[derive(Default)]
pub struct GidMap(Mutex<HashMap<(u64, Gid), Gid>>);

/// Why a file is no map.
#[derive(Debug, thiserror::Error)]
pub enum GidMapError {
    /// It can't be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A line is not three words: network, virtual GID, physical GID.
    #[error("line {0}: expected: NETWORK VIRTUAL-GID PHYSICAL-GID")]
    Syntax(usize),
    /// A GID of a network stands for two.
    #[error("line {0}: the virtual GID is there already, with another physical one")]
    Twice(usize),
}

impl GidMap {
    fn map(&self) -> MutexGuard<'_, HashMap<(u64, Gid), Gid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a mapping, or changes it.
    pub fn set(&self, mapping: GidMapping) {
        self.map().insert((mapping.network, mapping.virtual_gid), mapping.physical);
    }

    /// Takes a mapping out; whether it was there.
    pub fn remove(&self, network: u64, virtual_gid: Gid) -> bool {
        self.map().remove(&(network, virtual_gid)).is_some()
    }

    /// All mappings, sorted.
    pub fn list(&self) -> Vec<GidMapping> {
        let mut list: Vec<_> = self
            .map()
            .iter()
            .map(|((network, virtual_gid), physical)| GidMapping {
                network: *network,
                virtual_gid: *virtual_gid,
                physical: *physical,
            })
            .collect();
        list.sort_by_key(|m| (m.network, m.virtual_gid.0));
        list
    }

    /// Adds the mappings of a text: a line each, three words; `#` begins a comment. On an error nothing
    /// has changed.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn add_text(&self, text: &str) -> Result<(), GidMapError> {
        let mut new: HashMap<(u64, Gid), Gid> = HashMap::new();
        for (n, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            let words: Vec<_> = line.split_whitespace().collect();
            let parsed = match words.as_slice() {
                [network, virtual_gid, physical] => {
                    network.parse::<u64>().ok().zip(parse_gid(virtual_gid)).zip(parse_gid(physical))
                }
                _ => None,
            };
            let ((network, virtual_gid), physical) = parsed.ok_or(GidMapError::Syntax(n + 1))?;
            if new.insert((network, virtual_gid), physical).is_some_and(|old| old != physical) {
                return Err(GidMapError::Twice(n + 1));
            }
        }
        self.map().extend(new);
        Ok(())
    }

    /// As `add_text`, of a file. May sleep.
    ///
    /// # Errors
    /// As `add_text`, or what reading answers.
    pub fn add_file(&self, path: &Path) -> Result<(), GidMapError> {
        self.add_text(&std::fs::read_to_string(path)?)
    }

    /// What a GID of a network is on the wire.
    pub fn physical(&self, network: u64, gid: Gid) -> Gid {
        self.map().get(&(network, gid)).copied().unwrap_or(gid)
    }
}

/// A GID as people write it: an IPv4 or an IPv6 address.
pub fn parse_gid(text: &str) -> Option<Gid> {
    match text.parse().ok()? {
        IpAddr::V4(v4) => Some(Gid(Ipv4Addr::to_ipv6_mapped(&v4).octets())),
        IpAddr::V6(v6) => Some(Gid(v6.octets())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(text: &str) -> Gid {
        parse_gid(text).unwrap()
    }

    #[test]
    fn tenants_with_the_same_gid_go_different_ways() {
        let map = GidMap::default();
        map.add_text("# lab\n1 10.0.0.1 192.168.7.1\n\n2 10.0.0.1 fe80::2 # the other\n").unwrap();
        assert_eq!(map.physical(1, gid("10.0.0.1")), gid("192.168.7.1"));
        assert_eq!(map.physical(2, gid("10.0.0.1")), gid("fe80::2"));
        assert_eq!(map.physical(3, gid("10.0.0.1")), gid("10.0.0.1"), "its own image");
        assert_eq!(map.list().len(), 2);
        assert!(map.remove(1, gid("10.0.0.1")));
        assert!(!map.remove(1, gid("10.0.0.1")));
        assert_eq!(map.physical(1, gid("10.0.0.1")), gid("10.0.0.1"));
    }

    #[test]
    fn a_file_that_is_wrong_changes_nothing() {
        let map = GidMap::default();
        let wrong =
            ["1 10.0.0.1", "x 10.0.0.1 10.0.0.2", "1 10.0.0 10.0.0.2", "1 ::1 ::2\n1 ::1 ::3"];
        for text in wrong {
            assert!(map.add_text(&format!("7 10.0.0.9 10.0.0.8\n{text}")).is_err(), "{text}");
            assert_eq!(map.list(), []);
        }
    }
}
