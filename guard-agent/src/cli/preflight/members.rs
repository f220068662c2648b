//! Data about the cluster to be joined: its list of members, and a join token. Pure.

use serde::Deserialize;
use thiserror::Error;

use crate::model::address::Address;
use crate::model::time::Time;

/// A member, as `incus cluster list --format json` shows it. Keys that are not needed are passed
/// over.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Member {
    pub server_name: String,
    /// `https://10.0.0.1:8443`.
    pub url: String,
    #[serde(default)]
    pub status: String,
}

impl Member {
    pub fn address(&self) -> Address {
        Address::parse(&self.url)
    }
}

/// A join token. Its secret is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The name that the new member will have.
    pub server_name: String,
    pub addresses: Vec<String>,
    pub fingerprint: String,
    pub expires_at: Option<Time>,
}

/// It could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    #[error("it is no list of members (incus cluster list --format json): {detail}")]
    Members { detail: String },
    #[error("it is no base64")]
    Base64,
    #[error("it is no join token: {detail}")]
    Token { detail: String },
}

/// Reads a list of members.
pub fn parse_members(text: &str) -> Result<Vec<Member>, ReadError> {
    serde_json::from_str(text).map_err(|error| ReadError::Members { detail: error.to_string() })
}

/// Reads a token as `incus cluster add` prints it: perhaps behind a line of text.
pub fn parse_token(text: &str) -> Result<Token, ReadError> {
    decode_token(text.split_whitespace().next_back().unwrap_or_default())
}

/// Reads a token as Incus itself reads it: base64 of JSON. Line breaks do not matter, blanks do.
pub fn decode_token(text: &str) -> Result<Token, ReadError> {
    #[derive(Deserialize)]
    struct Raw {
        server_name: String,
        #[serde(default)]
        fingerprint: String,
        addresses: Vec<String>,
        #[serde(default)]
        expires_at: Option<String>,
    }
    let digits: String = text.chars().filter(|digit| !matches!(digit, '\r' | '\n')).collect();
    let bytes = decode_base64(&digits).ok_or(ReadError::Base64)?;
    let token = |detail: String| ReadError::Token { detail };
    let raw: Raw = serde_json::from_slice(&bytes).map_err(|error| token(error.to_string()))?;
    // Go's zero time: the token does not expire.
    let expires = raw.expires_at.filter(|time| !time.starts_with("0001-"));
    let expires_at = match expires {
        Some(time) => {
            let parsed =
                time.parse().map_err(|error| token(format!("expires_at {time}: {error}")))?;
            Some(Time(parsed))
        }
        None => None,
    };
    Ok(Token {
        server_name: raw.server_name,
        addresses: raw.addresses,
        fingerprint: raw.fingerprint,
        expires_at,
    })
}

/// The standard alphabet, padded or not.
pub(super) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    if digits.is_empty() || digits.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits = 0_u32;
        for digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        let [_, first, second, third] = bits.to_be_bytes();
        bytes.extend_from_slice(&[first, second, third][..group.len() - 1]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let digit = |bits: u32| char::from(DIGITS[usize::try_from(bits & 63).unwrap()]);
        bytes
            .chunks(3)
            .map(|group| {
                let bits = (0..3)
                    .fold(0, |bits, index| bits << 8 | u32::from(*group.get(index).unwrap_or(&0)));
                let text: String = (0..4).rev().map(|index| digit(bits >> (6 * index))).collect();
                format!("{:=<4}", &text[..=group.len()])
            })
            .collect()
    }

    #[test]
    fn a_list_of_members() {
        let text = r#"[{"server_name":"n1","url":"https://10.0.0.1:8443","status":"Online","database":true,
            "roles":["database"],"message":"Fully operational"}]"#;
        let members = parse_members(text).unwrap();
        assert_eq!(
            (members[0].server_name.as_str(), members[0].address()),
            ("n1", Address::parse("10.0.0.1"))
        );
        assert!(parse_members("Error: not clustered").is_err());
    }

    #[test]
    fn a_token_as_incus_prints_it() {
        let json = r#"{"server_name":"n2","fingerprint":"ab","addresses":["10.0.0.1:8443"],"secret":"s",
            "expires_at":"2026-05-27T12:34:56.123456789Z"}"#;
        let printed = format!("Member n2 join token:\n{}\n", encode(json.as_bytes()));
        let token = parse_token(&printed).unwrap();
        assert_eq!((token.server_name.as_str(), token.addresses.len()), ("n2", 1));
        assert!(token.expires_at.unwrap().to_string().starts_with("2026-05-27T12:34:56"));
        let endless =
            encode(br#"{"server_name":"n2","addresses":[],"expires_at":"0001-01-01T00:00:00Z"}"#);
        assert_eq!(parse_token(&endless).unwrap().expires_at, None);
        assert_eq!(parse_token("n2!"), Err(ReadError::Base64));
        assert!(matches!(parse_token("aGVsbG8="), Err(ReadError::Token { .. })));
    }

    proptest! {
        #[test]
        fn base64_comes_back(bytes in prop::collection::vec(any::<u8>(), 1..60)) {
            prop_assert_eq!(decode_base64(&encode(&bytes)), Some(bytes));
        }

        #[test]
        fn anything_is_a_token_or_an_error(text in "\\PC{0,80}") {
            let _ = parse_token(&text);
            let _ = decode_token(&text);
        }
    }
}
