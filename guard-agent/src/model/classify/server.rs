//! Names and addresses of file servers, compared by meaning and not by spelling. No name is looked
//! up.

use std::fmt;
use std::net::IpAddr;

/// A server's host, and its port where one is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    /// An IP address in its usual form, or a name in lower case without the root's dot.
    pub host: String,
    pub port: Option<u16>,
}

impl Server {
    /// Reads `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address. `None` if there is no
    /// host.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None if text.matches(':').count() == 1 => {
                text.split_once(':').map(|(host, port)| (host, Some(port)))?
            }
            None => (text, None),
        };
        let host = normal_host(host);
        (!host.is_empty()).then(|| Self { host, port: port.and_then(|port| port.parse().ok()) })
    }

    /// Whether it is this host itself: a tunnel's end, which says nothing of the server behind it.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host.contains(':'), self.port) {
            (true, Some(port)) => write!(out, "[{}]:{port}", self.host),
            (false, Some(port)) => write!(out, "{}:{port}", self.host),
            (true, None) => write!(out, "[{}]", self.host),
            (false, None) => out.write_str(&self.host),
        }
    }
}

fn normal_host(text: &str) -> String {
    match text.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().to_string(),
        Err(_) => text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase(),
    }
}

/// A path without doubled slashes, and without one at the end.
pub(super) fn normal_path(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form_for_all_spellings() {
        for (written, meant) in [
            ("10.0.0.1", "10.0.0.1"),
            ("NAS.Example.", "nas.example"),
            ("nas:2050", "nas:2050"),
            ("[FD00:0::1]", "[fd00::1]"),
            ("fd00:0:0::1", "[fd00::1]"),
            ("[fd00::1]:3300", "[fd00::1]:3300"),
            ("[::ffff:10.0.0.1]:6789", "10.0.0.1:6789"),
            ("fe80::1%eth0", "[fe80::1%eth0]"),
        ] {
            assert_eq!(Server::parse(written).unwrap().to_string(), meant, "{written}");
        }
        for nothing in ["", "[]", ".", ":2049"] {
            assert_eq!(Server::parse(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn the_host_itself() {
        let is_loopback = |text| Server::parse(text).unwrap().is_loopback();
        assert!(is_loopback("127.0.0.1:20049") && is_loopback("[::1]") && is_loopback("LocalHost"));
        assert!(!is_loopback("10.0.0.1") && !is_loopback("localhost.example"));
    }
}
