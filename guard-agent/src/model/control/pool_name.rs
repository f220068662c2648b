//! Finds the pool that an operator means: by name, mountpoint, id or device. Pure.

use super::refusal::Refusal;
use crate::model::classify::names::unmarked;

/// Everything that a pool can be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolAddress<'a> {
    pub name: &'a str,
    /// Sixteen hexadecimal digits.
    pub pool_id: &'a str,
    /// `major:minor`.
    pub device: &'a str,
    pub mountpoints: &'a [String],
}

impl PoolAddress<'_> {
    fn is_called(&self, wanted: &str) -> bool {
        let trimmed = wanted.trim_end_matches('/');
        self.name == wanted
            || unmarked(self.name, self.pool_id, self.device) == wanted
            || self.pool_id == wanted
            || self.device == wanted
            || self
                .mountpoints
                .iter()
                .any(|mountpoint| mountpoint == wanted || mountpoint == trimmed)
    }

    fn full_name(&self) -> String {
        let place = self.mountpoints.first().map_or("no mountpoint", String::as_str);
        format!("{} ({place}, {}, id {})", self.name, self.device, self.pool_id)
    }
}

/// The index of the one pool that is called `wanted`.
pub fn find_pool(wanted: &str, pools: &[PoolAddress<'_>]) -> Result<usize, Refusal> {
    let mut found = pools.iter().enumerate().filter(|(_, pool)| pool.is_called(wanted));
    match (found.next(), found.next()) {
        (Some((index, _)), None) => Ok(index),
        (None, _) => {
            let pools = pools.iter().map(|pool| pool.name.to_owned()).collect();
            Err(Refusal::UnknownPool { pool: wanted.to_owned(), pools })
        }
        (Some(_), Some(_)) => {
            let candidates = pools.iter().filter(|pool| pool.is_called(wanted));
            let candidates = candidates.map(PoolAddress::full_name).collect();
            Err(Refusal::AmbiguousPool { pool: wanted.to_owned(), candidates })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_found_by_everything_it_is_called() {
        let one = ["/srv/one".to_owned(), "/mnt/alias".to_owned()];
        let two = ["/srv/two".to_owned()];
        let pool =
            |name, pool_id, device, mountpoints| PoolAddress { name, pool_id, device, mountpoints };
        let pools =
            [pool("default", "00aa", "0:44", &one[..]), pool("default", "00bb", "0:45", &two[..])];
        for (wanted, index) in [("/srv/one", 0), ("/mnt/alias/", 0), ("00bb", 1), ("0:45", 1)] {
            assert_eq!(find_pool(wanted, &pools), Ok(index), "{wanted}");
        }
        let unknown = find_pool("other", &pools[..1]).unwrap_err();
        assert_eq!(unknown.to_string(), "there is no pool `other`; pools: default");
        let ambiguous = find_pool("default", &pools).unwrap_err();
        assert_eq!(ambiguous.code(), "ambiguous-pool");
        assert!(ambiguous.to_string().contains("default (/srv/two, 0:45, id 00bb)"));
    }

    #[test]
    fn a_name_that_several_pools_have_is_refused_with_what_to_use() {
        let (one, two) = (["/srv/one".to_owned()], ["/srv/two".to_owned()]);
        let pool =
            |name, pool_id, device, mountpoints| PoolAddress { name, pool_id, device, mountpoints };
        let pools = [
            pool("data~1a2b3c4d", "1a2b3c4d00000001", "0:44", &one[..]),
            pool("data~5e6f7a8b", "5e6f7a8b00000001", "0:45", &two[..]),
        ];
        assert_eq!(find_pool("data~5e6f7a8b", &pools), Ok(1));
        let ambiguous = find_pool("data", &pools).unwrap_err();
        assert_eq!(ambiguous.code(), "ambiguous-pool");
        for id in ["1a2b3c4d00000001", "5e6f7a8b00000001"] {
            assert!(ambiguous.to_string().contains(id), "{ambiguous}");
        }
        assert_eq!(find_pool("data", &pools[..1]), Ok(0), "the other one has ended");
    }
}
