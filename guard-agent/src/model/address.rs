//! Network addresses as Incus means them: host and port, compared by meaning and not by spelling.
//! Pure: no name is looked up.

use std::fmt;
use std::net::IpAddr;

/// Port of Incus if an address names none.
const PORT: &str = "8443";

/// An address of a server, as Incus keeps it in `cluster.https_address`, tokens and lists of
/// members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: Host,
    /// Digits without leading zeros; a service's name as it is written.
    port: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// `0.0.0.0`.
    AnyV4,
    /// `::`, or no host at all: IPv4 too.
    Any,
    Ip(IpAddr),
    /// In lower case, without the root's dot.
    Name(String),
}

/// Whether a server that listens on one address is reached by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    Yes,
    No,
    /// A name would have to be looked up.
    Unknown,
}

impl Address {
    /// Reads any text: an address, or the URL that a list of members has. Any other text is a
    /// host's name.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        let text = match text.split_at_checked(8) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https://") => rest,
            _ => text,
        };
        let (host, port) = split(text.trim_end_matches('/'));
        Self { host: Host::parse(host), port: normal_port(port) }
    }

    /// Whether it stands for all addresses of a server.
    pub fn is_wildcard(&self) -> bool {
        matches!(self.host, Host::Any | Host::AnyV4)
    }

    /// Whether it is a host's name, which means an address only where it is looked up.
    pub fn is_name(&self) -> bool {
        matches!(self.host, Host::Name(_))
    }

    /// Its IP address; none for a name or a wildcard.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.host {
            Host::Ip(ip) => Some(ip),
            _ => None,
        }
    }

    /// Whether a server that listens here is reached by `other`, as Incus decides it before a join.
    pub fn covers(&self, other: &Self) -> Covered {
        match (&self.host, &other.host) {
            _ if self.port != other.port => Covered::No,
            (Host::Any, _) => Covered::Yes,
            (Host::AnyV4, Host::AnyV4 | Host::Ip(IpAddr::V4(_))) => Covered::Yes,
            // Incus looks no name up here.
            (Host::AnyV4, _) => Covered::No,
            (own, others) if own == others => Covered::Yes,
            (Host::Name(_), _) | (_, Host::Name(_)) => Covered::Unknown,
            _ => Covered::No,
        }
    }
}

impl Host {
    fn parse(text: &str) -> Self {
        match text.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            Ok(IpAddr::V6(ip)) if ip.is_unspecified() => Self::Any,
            Ok(IpAddr::V4(ip)) if ip.is_unspecified() => Self::AnyV4,
            Ok(ip) => Self::Ip(ip),
            Err(_) if text.is_empty() => Self::Any,
            Err(_) => {
                let name = text.strip_suffix('.').filter(|name| !name.is_empty()).unwrap_or(text);
                Self::Name(name.to_lowercase())
            }
        }
    }
}

/// Host, without brackets, and port, empty if there is none.
fn split(text: &str) -> (&str, &str) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']'))
        && (rest.is_empty() || rest.starts_with(':'))
    {
        return (host, rest.trim_start_matches(':'));
    }
    match text.rsplit_once(':') {
        // Several colons: an IPv6 address without brackets, so without a port.
        Some((host, port)) if !host.contains(':') => (host, port),
        _ => (text, ""),
    }
}

fn normal_port(text: &str) -> String {
    match text.parse::<u16>() {
        Ok(number) => number.to_string(),
        Err(_) if text.is_empty() => PORT.to_owned(),
        Err(_) => text.to_lowercase(),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::AnyV4 => write!(f, "0.0.0.0:{}", self.port),
            Host::Any => write!(f, "[::]:{}", self.port),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            // One with a zone is no address for the standard library.
            Host::Name(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_form_for_all_spellings() {
        for (written, meant) in [
            ("10.0.0.1", "10.0.0.1:8443"),
            ("10.0.0.1:99", "10.0.0.1:99"),
            ("10.0.0.1:", "10.0.0.1:8443"),
            ("10.0.0.1:08443", "10.0.0.1:8443"),
            ("https://10.0.0.1:8443/", "10.0.0.1:8443"),
            ("HTTPS://10.0.0.1:8443", "10.0.0.1:8443"),
            ("n1", "n1:8443"),
            ("Biggie2.home:8443", "biggie2.home:8443"),
            ("biggie2.home.", "biggie2.home:8443"),
            ("fd00::1", "[fd00::1]:8443"),
            ("[fd00::1]", "[fd00::1]:8443"),
            ("[FD42:0:0::7]:8443", "[fd42::7]:8443"),
            ("[fd00::1]:99", "[fd00::1]:99"),
            ("[::ffff:10.0.0.1]:8443", "10.0.0.1:8443"),
            ("[FE80::1%eth0]:8443", "[fe80::1%eth0]:8443"),
            (":8443", "[::]:8443"),
            ("[::]", "[::]:8443"),
            ("[0:0::0]:99", "[::]:99"),
            ("0.0.0.0", "0.0.0.0:8443"),
            ("", "[::]:8443"),
            (" n1:https ", "n1:https"),
        ] {
            assert_eq!(Address::parse(written).to_string(), meant, "{written}");
        }
    }

    #[test]
    fn covered_as_incus_decides_it() {
        for (listens, asked, covered) in [
            (":8443", "10.0.0.7:8443", Covered::Yes),
            ("[::]:8443", "n2.example", Covered::Yes),
            ("[::]", "[fd42::7]:8443", Covered::Yes),
            (":8443", "10.0.0.7:8444", Covered::No),
            ("0.0.0.0:8443", "10.0.0.7", Covered::Yes),
            ("0.0.0.0:8443", "[fd42::7]", Covered::No),
            ("0.0.0.0:8443", "n2.example", Covered::No),
            ("[FD42:0:0::7]:8443", "[fd42::7]", Covered::Yes),
            ("10.0.0.7:8443", "10.0.0.8:8443", Covered::No),
            ("N2.example", "n2.example:8443", Covered::Yes),
            ("n2.example", "10.0.0.7:8443", Covered::Unknown),
            ("10.0.0.7:8443", "n2.example", Covered::Unknown),
            ("n2.example", "10.0.0.7:9443", Covered::No),
        ] {
            let found = Address::parse(listens).covers(&Address::parse(asked));
            assert_eq!(found, covered, "{listens} {asked}");
        }
    }

    #[test]
    fn anything_else_is_a_name() {
        for text in [":]A:", "[", "[]x", "a:b:c", "10.0.0.999"] {
            assert!(Address::parse(text).is_name(), "{text}");
        }
    }

    #[test]
    fn wildcards_are_no_address_of_one_server() {
        for text in [":8443", "0.0.0.0", "[::]", "::", ""] {
            assert!(Address::parse(text).is_wildcard(), "{text}");
        }
        assert!(!Address::parse("10.0.0.7").is_wildcard());
        assert!(Address::parse("n2").is_name());
    }

    proptest! {
        #[test]
        fn what_is_shown_means_the_same(
            host in prop_oneof![
                "[a-z0-9-]{1,8}(\\.[A-Za-z0-9-]{1,8}){0,2}",
                "\\[?[0-9a-f:]{0,16}\\]?",
                "[0-9.]{0,12}[0-9]",
            ],
            port in ":?[0-9]{0,6}"
        ) {
            let address = Address::parse(&format!("{host}{port}"));
            if !address.is_name() || !address.to_string().contains('[') {
                prop_assert_eq!(Address::parse(&address.to_string()), address);
            }
        }

        #[test]
        fn any_text_is_an_address(text in "\\PC{0,24}") {
            let _ = Address::parse(&text).to_string();
        }

        #[test]
        fn an_address_covers_itself(ip: std::net::Ipv6Addr, port: u16) {
            let address = Address::parse(&format!("[{ip}]:{port}"));
            prop_assert_eq!(address.covers(&address), Covered::Yes);
        }
    }
}
