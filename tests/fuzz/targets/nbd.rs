//! What an NBD server sends, in the handshake and after it. The first byte says how the client begins: at the greeting, or
//! with requests under way, in one of the framings.

use bytes::{BufMut, Bytes, BytesMut};
use proxy::nbd::{Context, Export, ExportFlags, Framing, Handshake, Hello, NbdError, Request, Session};

const SIZE: u64 = 1 << 20;

pub fn check(bytes: &[u8]) {
    let Some((how, mut rest)) = bytes.split_first() else { return };
    let framing = [Framing::Simple, Framing::Structured, Framing::Extended][usize::from(how >> 1) % 3];
    let names = ["base:allocation", "qemu:dirty-bitmap:a"].map(str::to_owned);
    let export = if how & 1 == 0 {
        let hello = Hello { export: "disk".into(), contexts: names.to_vec(), framing };
        let mut handshake = Handshake::new(hello).expect("inside its limits");
        loop {
            let Some((head, tail)) = rest.split_at_checked(handshake.want()) else { return };
            rest = tail;
            match handshake.feed(head) {
                Ok(None) => {}
                Ok(Some(export)) => break export,
                Err(_) => return,
            }
        }
    } else {
        let contexts = names.into_iter().zip(1..).map(|(name, id)| Context { id, name }).collect();
        let flags = ExportFlags(0x17f);
        Export { size: SIZE, flags, block_bytes_min: 1, payload_bytes_max: 1 << 20, framing, contexts }
    };
    let _ = answered(Session::new(export), rest);
}

/// As the socket's task does it: bytes of a read go where they belong, others are taken apart.
fn answered(mut session: Session, mut rest: &[u8]) -> Result<(), NbdError> {
    let length = 4096.min(session.export().size);
    for request in [
        Request::Read { offset: 0, length: length as u32 },
        Request::BlockStatus { offset: 0, length },
        Request::Write { offset: 0, data: Bytes::from_static(&[7; 512]) },
        Request::Read { offset: 0, length: 512.min(length) as u32 },
        Request::Flush,
    ] {
        // Not every server can all of it.
        let _ = session.submit(request);
    }
    let submitted = session.in_flight();
    let (mut input, mut completed) = (BytesMut::new(), 0);
    loop {
        while session.advance(&mut input)?.is_some() {
            completed += 1;
        }
        assert!(completed + session.in_flight() == submitted, "each request is answered once");
        if rest.is_empty() {
            return Ok(());
        }
        if let Some(mut landing) = session.landing() {
            let take = landing.remaining_mut().min(rest.len());
            landing.put_slice(&rest[..take]);
            rest = &rest[take..];
            completed += usize::from(session.landed(take)?.is_some());
        } else {
            let take = rest.len().min(64);
            input.extend_from_slice(&rest[..take]);
            rest = &rest[take..];
        }
    }
}
