//! Words that people and peers write: names, addresses, tokens, selectors, sizes.

use mover::{Name, Selector, parse_bytes};
use wire::NodeAddress;
use wire::identity::Token;

pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(name) = text.parse::<Name>() {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(address) = text.parse::<NodeAddress>() {
        let shown = address.to_string();
        assert_eq!(shown.parse::<NodeAddress>().expect("what is shown is understood").to_string(), shown);
    }
    if let Ok(token) = text.parse::<Token>() {
        let shown = token.to_string();
        assert_eq!(shown.parse::<Token>().expect("what is shown is understood").to_string(), shown);
    }
    let _ = text.parse::<Selector>();
    let _ = parse_bytes(text);
}
