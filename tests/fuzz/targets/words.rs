//! Words that people and peers write: names, addresses, tokens, selectors, sizes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover::identity::Token;
use mover::wire::NodeAddress;
use mover::{Name, Selector, parse_bytes};

fuzz_target!(|text: &str| {
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
});
