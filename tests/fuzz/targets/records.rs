//! What a repository's directory holds: whatever is understood is bounded, and says the same when it is written again.

use store::format::config::ConfigFile;
use store::format::pack::{
    PackHeader, PackKind, decode_footer, encode_footer, footer_bytes, salvage_records, scan_records,
};
use store::format::record::LogRecord;
use store::state::{Digest, State};

pub fn check(bytes: &[u8]) {
    if let Ok(header) = PackHeader::decode(bytes) {
        assert!(bytes.starts_with(&header.encode()), "{header:?}");
        let salvaged = salvage_records(bytes);
        assert!(scan_records(bytes, &header.nonce).iter().all(|record| salvaged.contains(record)));
        assert!(salvaged.last().is_none_or(|last| last.end() <= bytes.len() as u64));
    }
    for kind in [PackKind::Data, PackKind::Page] {
        if let (Ok(entries), Ok(footer)) = (decode_footer(bytes, kind, bytes.len() as u64), footer_bytes(bytes)) {
            let footer = &bytes[bytes.len() - usize::try_from(footer).expect("inside")..];
            assert_eq!(encode_footer(&entries), footer);
        }
    }
    if let Ok((record, end)) = LogRecord::decode(bytes) {
        // A log that begins with it may refuse what it states.
        let mut state = State::new(record.repository, b"config");
        let _ = state.apply(&record, end.hash);
    }
    if let Ok(digest) = Digest::decode(bytes) {
        let packs = digest.state.packs().len();
        assert!(packs <= bytes.len());
    }
    let _ = ConfigFile::decode(bytes);
}
