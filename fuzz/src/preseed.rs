//! A preseed, also inside a document for cloud-init.

use guard_agent::cli::preflight::members;
use guard_agent::cli::preflight::preseed::{Preseed, parse};
use guard_agent::model::address::Address;

pub fn check(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let Ok(preseed) = parse(&text) else { return };
    for value in [&preseed.server_name, &preseed.server_address, &preseed.cluster_token] {
        assert!(value.as_ref().is_none_or(|value| !value.is_empty()), "{preseed:?}");
    }
    // Read again, the text that Incus gets gives the same preseed.
    let alone = Preseed { inside: None, ..preseed.clone() };
    assert_eq!(parse(&preseed.text), Ok(alone));
    if let Some(address) = &preseed.server_address {
        let _ = Address::parse(address).to_string();
    }
    if let Some(token) = &preseed.cluster_token {
        let _ = members::decode_token(token);
    }
}
