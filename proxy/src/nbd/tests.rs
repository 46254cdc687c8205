//! The state machines against bytes: servers as they should be, and as they should not.

use super::wire::*;
use super::*;
use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

/// What a server sends.
#[derive(Default, Clone)]
struct Sent(BytesMut);

impl Sent {
    fn greeting() -> Self {
        let mut sent = Self::default();
        sent.0.put_u64(GREETING_MAGIC);
        sent.0.put_u64(OPTION_MAGIC);
        sent.0.put_u16(3);
        sent
    }

    fn option(mut self, option: u32, kind: u32, data: &[u8]) -> Self {
        self.0.put_u64(OPTION_REPLY_MAGIC);
        self.0.put_u32(option);
        self.0.put_u32(kind);
        self.0.put_u32(data.len() as u32);
        self.0.put_slice(data);
        self
    }

    fn simple(mut self, errno: u32, cookie: u64, data: &[u8]) -> Self {
        self.0.put_u32(SIMPLE_REPLY_MAGIC);
        self.0.put_u32(errno);
        self.0.put_u64(cookie);
        self.0.put_slice(data);
        self
    }

    fn chunk(mut self, done: bool, kind: u16, cookie: u64, payload: &[u8]) -> Self {
        self.0.put_u32(STRUCTURED_REPLY_MAGIC);
        self.0.put_u16(done.into());
        self.0.put_u16(kind);
        self.0.put_u64(cookie);
        self.0.put_u32(payload.len() as u32);
        self.0.put_slice(payload);
        self
    }

    fn extended(mut self, done: bool, kind: u16, cookie: u64, offset: u64, payload: &[u8]) -> Self {
        self.0.put_u32(EXTENDED_REPLY_MAGIC);
        self.0.put_u16(done.into());
        self.0.put_u16(kind);
        self.0.put_u64(cookie);
        self.0.put_u64(offset);
        self.0.put_u64(payload.len() as u64);
        self.0.put_slice(payload);
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.put_slice(bytes);
        self
    }
}

const GO: u32 = 7;
const STRUCTURED: u32 = 8;
const SET_META: u32 = 10;
const EXTENDED: u32 = 11;
const UNSUPPORTED: u32 = REPLY_ERROR_BIT + 1;

fn hello(framing: Framing, contexts: &[&str]) -> Hello {
    Hello { export: "disk".into(), contexts: contexts.iter().map(|&it| it.to_owned()).collect(), framing }
}

fn info_export(size: u64, flags: u16) -> Vec<u8> {
    [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
}

fn info_blocks(min: u32, max: u32) -> Vec<u8> {
    [&[0, 3][..], &min.to_be_bytes(), &4096_u32.to_be_bytes(), &max.to_be_bytes()].concat()
}

fn meta(id: u32, name: &str) -> Vec<u8> {
    [&id.to_be_bytes()[..], name.as_bytes()].concat()
}

/// Runs a handshake against prepared bytes; gives what the client sent too.
fn negotiate(hello: Hello, sent: &Sent) -> (Result<Export, NbdError>, Vec<u8>) {
    let (mut handshake, mut from, mut output) = (Handshake::new(hello).unwrap(), sent.0.clone(), Vec::new());
    loop {
        output.extend_from_slice(&handshake.output().split());
        if from.len() < handshake.want() {
            return (Err(NbdError::Closed("")), output);
        }
        match handshake.feed(&from.split_to(handshake.want())) {
            Ok(None) => {}
            Ok(Some(export)) => {
                assert!(from.is_empty(), "nothing is taken past the handshake");
                return (Ok(export), output);
            }
            Err(error) => return (Err(error), output),
        }
    }
}

#[test]
fn a_modern_server() {
    let dirty = "qemu:dirty-bitmap:b";
    let sent = Sent::greeting()
        .option(EXTENDED, REPLY_ACK, &[])
        .option(SET_META, REPLY_META_CONTEXT, &meta(4, "base:allocation"))
        .option(SET_META, REPLY_META_CONTEXT, &meta(9, dirty))
        .option(SET_META, REPLY_ACK, &[])
        .option(GO, REPLY_INFO, &info_export(1 << 40, 0x183))
        .option(GO, REPLY_INFO, &info_blocks(512, 1 << 26))
        .option(GO, REPLY_INFO, &[0, 9, 1, 2, 3])
        .option(GO, REPLY_ACK, &[]);
    let (export, output) = negotiate(hello(Framing::Extended, &["base:allocation", dirty]), &sent);
    let export = export.unwrap();
    assert_eq!((export.size, export.block_bytes_min), (1 << 40, 512));
    assert_eq!((export.framing, export.payload_bytes_max), (Framing::Extended, PAYLOAD_BYTES_MAX));
    assert!(export.flags.is_read_only() && export.flags.can_multi_conn() && !export.flags.can_flush());
    assert_eq!(export.contexts[1], Context { id: 9, name: dirty.into() });
    // Golden: what goes out is the protocol, byte for byte.
    let mut want = b"\0\0\0\x03IHAVEOPT\0\0\0\x0b\0\0\0\0".to_vec();
    want.extend(b"IHAVEOPT\0\0\0\x0a\0\0\0\x36\0\0\0\x04disk\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x13");
    want.extend(dirty.as_bytes());
    want.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x0c\0\0\0\x04disk\0\x01\0\x03");
    assert_eq!(output, want);
}

#[test]
fn an_old_server_gets_less() {
    let (go, contexts) =
        (|sent: Sent| sent.option(GO, REPLY_INFO, &info_export(9, 1)).option(GO, REPLY_ACK, &[]), ["a"]);
    let none = Sent::greeting().option(EXTENDED, UNSUPPORTED, b"no").option(STRUCTURED, UNSUPPORTED, &[]);
    let export = negotiate(hello(Framing::Extended, &contexts), &go(none)).0.unwrap();
    assert_eq!((export.framing, export.contexts.len(), export.block_bytes_min), (Framing::Simple, 0, 1));
    let structured = Sent::greeting().option(EXTENDED, UNSUPPORTED, &[]).option(STRUCTURED, REPLY_ACK, &[]);
    for answer in [REPLY_ACK, UNSUPPORTED] {
        let sent = go(structured.clone().option(SET_META, answer, &[]));
        let export = negotiate(hello(Framing::Extended, &contexts), &sent).0.unwrap();
        assert_eq!((export.framing, export.contexts.len()), (Framing::Structured, 0));
    }
}

#[test]
fn evil_handshakes_are_errors() {
    let plain = Sent::greeting;
    let framed = || plain().option(STRUCTURED, REPLY_ACK, &[]);
    let endless = |kind, data: &[u8]| {
        let mut sent = framed().option(SET_META, REPLY_ACK, &[]);
        for _ in 0..=OPTION_REPLIES_MAX {
            sent = sent.option(GO, kind, data);
        }
        sent
    };
    let go = |infos: &[Vec<u8>]| {
        let sent = framed().option(SET_META, REPLY_ACK, &[]);
        infos.iter().fold(sent, |sent, info| sent.option(GO, REPLY_INFO, info)).option(GO, REPLY_ACK, &[])
    };
    let huge = framed().bytes(&OPTION_REPLY_MAGIC.to_be_bytes()).bytes(&[0, 0, 0, 10, 0, 0, 0, 4, 255, 255, 255, 255]);
    let oldstyle = Sent::default().bytes(&GREETING_MAGIC.to_be_bytes()).bytes(&OLDSTYLE_MAGIC.to_be_bytes());
    for (what, sent, why) in [
        ("a web server", Sent::default().bytes(b"HTTP/1.1 400 Bad Request\r\n"), "no NBD greeting"),
        ("oldstyle", oldstyle.bytes(&[0; 2]), "oldstyle"),
        ("bad style", Sent::default().bytes(b"NBDMAGICI_HAVEOPT_"), "bad magic"),
        ("not fixed", Sent::default().bytes(b"NBDMAGICIHAVEOPT\0\0"), "fixed newstyle"),
        ("bad reply magic", plain().bytes(&[7; 20]), "bad magic"),
        ("reply to another option", plain().option(EXTENDED, REPLY_ACK, &[]), "not sent"),
        ("acknowledgement with data", plain().option(STRUCTURED, REPLY_ACK, b"x"), "acknowledgement with data"),
        ("reply of another type", plain().option(STRUCTURED, REPLY_INFO, b"x"), "does not belong"),
        ("huge reply", huge, "an option reply of 4294967295"),
        ("endless replies", endless(REPLY_INFO, &[0, 1, b'x']), "option replies of 257"),
        ("TLS wanted", plain().option(STRUCTURED, ERROR_TLS_REQUIRED, &[]), "wants TLS"),
        ("short context", framed().option(SET_META, REPLY_META_CONTEXT, &[0, 0]), "short metadata"),
        ("context not asked for", framed().option(SET_META, REPLY_META_CONTEXT, &meta(1, "x")), "not asked for"),
        (
            "context twice",
            framed().option(SET_META, REPLY_META_CONTEXT, &meta(1, "a")).option(
                SET_META,
                REPLY_META_CONTEXT,
                &meta(2, "a"),
            ),
            "twice",
        ),
        (
            "no such export",
            framed().option(SET_META, REPLY_ACK, &[]).option(GO, ERROR_UNKNOWN_EXPORT, &[]),
            "no such export",
        ),
        ("no export information", go(&[]), "no export information"),
        ("short information", go(&[vec![0]]), "short export information"),
        ("export information too long", go(&[[info_export(9, 1), vec![0]].concat()]), "wrong length"),
        ("size 0", go(&[info_export(0, 1)]), "no bytes"),
        ("absurd size", go(&[info_export(u64::MAX, 1)]), "an export of 18446744073709551615"),
        ("size changes", go(&[info_export(9, 1), info_export(8, 1)]), "two sizes"),
        ("block size 0", go(&[info_export(9, 1), info_blocks(0, 9)]), "impossible block sizes"),
        ("block size 3", go(&[info_export(9, 1), info_blocks(3, 9)]), "impossible block sizes"),
        ("block size 128 KiB", go(&[info_export(9, 1), info_blocks(1 << 17, 1 << 20)]), "impossible block sizes"),
        ("maximum below minimum", go(&[info_export(9, 1), info_blocks(512, 511)]), "impossible block sizes"),
        ("block sizes too short", go(&[info_export(9, 1), vec![0, 3, 0, 0]]), "wrong length"),
        ("silence", plain(), "ended"),
    ] {
        let error = negotiate(hello(Framing::Structured, &["a"]), &sent).0.expect_err(what);
        assert!(error.to_string().contains(why), "{what}: {error}");
    }
    assert!(Handshake::new(Hello { export: "x".repeat(4097), ..hello(Framing::Simple, &[]) }).is_err());
    assert!(Handshake::new(hello(Framing::Simple, &["c"; CONTEXTS_MAX + 1])).is_err());
}

#[test]
fn words_of_a_server_are_made_harmless() {
    let sent = Sent::greeting().option(GO, UNSUPPORTED, b"\x1b[31mred\n\xff");
    let error = negotiate(hello(Framing::Simple, &[]), &sent).0.unwrap_err().to_string();
    assert!(!error.contains('\x1b') && !error.contains('\n') && error.contains("red"), "{error:?}");
}

fn export(framing: Framing) -> Export {
    let context = |id, name: &str| Context { id, name: name.to_owned() };
    let contexts = match framing {
        Framing::Simple => vec![],
        _ => vec![context(1, "base:allocation"), context(2, "qemu:dirty-bitmap:b")],
    };
    let flags = ExportFlags(0x6d);
    Export { size: 1 << 20, flags, block_bytes_min: 1, payload_bytes_max: 1 << 16, framing, contexts }
}

/// Feeds bytes in pieces of `step`, partly through the landing as a socket would.
fn feed(session: &mut Session, sent: &[u8], step: usize) -> Result<Vec<Completed>, NbdError> {
    let (mut input, mut completed) = (BytesMut::new(), Vec::new());
    let mut rest = sent;
    loop {
        while let Some(done) = session.advance(&mut input)? {
            completed.push(done);
        }
        if rest.is_empty() {
            return Ok(completed);
        }
        if let Some(mut landing) = session.landing() {
            assert!(input.is_empty());
            let take = step.min(landing.remaining_mut()).min(rest.len());
            landing.put_slice(&rest[..take]);
            rest = &rest[take..];
            completed.extend(session.landed(take)?);
        } else {
            let take = step.min(rest.len());
            input.extend_from_slice(&rest[..take]);
            rest = &rest[take..];
        }
    }
}

fn status(context: u32, runs: &[(u32, u32)]) -> Vec<u8> {
    let runs = runs.iter().flat_map(|(length, flags)| [length.to_be_bytes(), flags.to_be_bytes()].concat());
    context.to_be_bytes().into_iter().chain(runs).collect()
}

fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], bytes].concat()
}

fn hole(offset: u64, length: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat()
}

fn failure(errno: u32, words: &[u8]) -> Vec<u8> {
    [&errno.to_be_bytes()[..], &(words.len() as u16).to_be_bytes(), words].concat()
}

const READ: Request = Request::Read { offset: 100, length: 8 };
const STATUS: Request = Request::BlockStatus { offset: 4096, length: 8192 };

#[test]
fn replies_however_they_are_cut() {
    for step in [1, 2, 3, 7, 16, 33, 1000] {
        let mut session = Session::new(export(Framing::Structured));
        let cookies: Vec<u64> = [READ, STATUS, Request::Flush, READ, READ].map(|it| session.submit(it).unwrap()).into();
        assert_eq!(cookies, [1, 2, 3, 4, 5]);
        let sent = Sent::default()
            .chunk(false, CHUNK_DATA, 1, &data(104, b"efgh"))
            .chunk(false, CHUNK_STATUS, 2, &status(2, &[(4096, 0), (512, 1), (512, 1), (1 << 20, 0)][..3]))
            .simple(0, 3, &[])
            .chunk(false, CHUNK_HOLE, 4, &hole(100, 8))
            .chunk(true, CHUNK_DATA, 1, &data(100, b"abcd"))
            .chunk(true, CHUNK_ERROR_BIT + 2, 5, &[failure(5, b"bad sector"), vec![0; 8]].concat())
            .chunk(true, CHUNK_NONE, 4, &[])
            .chunk(true, CHUNK_STATUS, 2, &status(1, &[(100, 3), (1_000_000, 2)]));
        let completed = feed(&mut session, &sent.0, step).unwrap();
        let order: Vec<u64> = completed.iter().map(|it| it.cookie).collect();
        assert_eq!(order, [3, 1, 5, 4, 2]);
        for Completed { cookie, result } in completed {
            match (cookie, result) {
                (1, Ok(Reply::Read(bytes))) => assert_eq!(&bytes[..], b"abcdefgh"),
                (4, Ok(Reply::Read(bytes))) => assert_eq!(&bytes[..], [0; 8]),
                (3, Ok(Reply::Done)) => {}
                (5, Err(error)) => assert!(error.to_string().contains("input/output error: bad sector")),
                (2, Ok(Reply::BlockStatus(contexts))) => {
                    let run = |length, flags| Run { length, flags };
                    assert_eq!(contexts[0], [run(100, 3), run(8092, 2)]);
                    assert_eq!(contexts[1], [run(4096, 0), run(1024, 1)]);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(session.in_flight(), 0);
    }
}

#[test]
fn extended_and_simple_framing() {
    let mut session = Session::new(export(Framing::Extended));
    session.submit(STATUS).unwrap();
    session.submit(READ).unwrap();
    let wide = |context: u32, count: u32, runs: &[(u64, u64)]| {
        let runs = runs.iter().flat_map(|(length, flags)| [length.to_be_bytes(), flags.to_be_bytes()].concat());
        context.to_be_bytes().into_iter().chain(count.to_be_bytes()).chain(runs).collect::<Vec<u8>>()
    };
    let sent = Sent::default()
        .extended(false, CHUNK_STATUS_EXTENDED, 1, 4096, &wide(1, 1, &[(8192, 0)]))
        .extended(true, CHUNK_DATA, 2, 100, &data(100, b"abcdefgh"))
        .extended(true, CHUNK_STATUS_EXTENDED, 1, 4096, &wide(2, 2, &[(4096, 1), (4096, 0)]));
    assert_eq!(feed(&mut session, &sent.0, 5).unwrap().len(), 2);

    let mut session = Session::new(export(Framing::Simple));
    session.submit(READ).unwrap();
    session.submit(READ).unwrap();
    let sent = Sent::default().simple(5, 2, &[]).simple(0, 1, b"abcdefgh");
    let completed = feed(&mut session, &sent.0, 3).unwrap();
    assert!(completed[0].result.as_ref().is_err_and(NbdError::is_request));
    assert_eq!(completed[1].result.as_ref().unwrap(), &Reply::Read(Bytes::from_static(b"abcdefgh")));
}

#[test]
fn requests_are_the_protocol_byte_for_byte() {
    let mut session = Session::new(export(Framing::Structured));
    session.submit(Request::Write { offset: 0x0102, data: Bytes::from_static(b"xyz") }).unwrap();
    session.submit(Request::WriteZeroes { offset: 5, length: 6 }).unwrap();
    let output: Vec<u8> = session.output().drain(..).flatten().collect();
    let mut want = b"\x25\x60\x95\x13\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x01\x02\0\0\0\x03xyz".to_vec();
    want.extend(b"\x25\x60\x95\x13\0\0\0\x06\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x05\0\0\0\x06");
    assert_eq!(output, want);
    let mut session = Session::new(export(Framing::Extended));
    session.submit(Request::Write { offset: 1, data: Bytes::from_static(b"xyz") }).unwrap();
    session.submit(Request::Disconnect).unwrap();
    let output: Vec<u8> = session.output().drain(..).flatten().collect();
    let mut want = b"\x21\xe4\x1c\x71\0\x20\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x03xyz".to_vec();
    want.extend(b"\x21\xe4\x1c\x71\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(output, want);
}

#[test]
fn unsuitable_requests_are_not_sent() {
    let read = |offset, length| Request::Read { offset, length };
    let limited = Export { block_bytes_min: 512, flags: ExportFlags(2), ..export(Framing::Structured) };
    for request in [
        read(0, 0),
        read(1 << 20, 512),
        read(u64::MAX, 512),
        read(512, 1),
        read(1, 512),
        read(0, (1 << 16) + 512),
        Request::Write { offset: 0, data: Bytes::from_static(&[0; 512]) },
        Request::WriteZeroes { offset: 0, length: 512 },
        Request::Trim { offset: 0, length: 512 },
        Request::Flush,
        Request::BlockStatus { offset: 0, length: 0 },
    ] {
        let mut session = Session::new(limited.clone());
        assert!(matches!(session.submit(request.clone()), Err(NbdError::Unsuitable { .. })), "{request:?}");
        assert!(session.output().is_empty());
    }
    let mut session = Session::new(export(Framing::Simple));
    assert!(session.submit(STATUS).is_err(), "no context was negotiated");
    for _ in 0..IN_FLIGHT_MAX {
        session.submit(READ).unwrap();
    }
    assert!(session.submit(READ).is_err(), "too many");
    let mut session = Session::new(Export { size: 1 << 40, ..export(Framing::Structured) });
    assert!(session.submit(Request::WriteZeroes { offset: 0, length: 1 << 33 }).is_err(), "over 32 bits");
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn evil_replies_are_errors() {
    let none = Sent::default;
    let read = |payload: &[u8]| none().chunk(false, CHUNK_DATA, 1, payload);
    let extents = |payload: &[u8]| none().chunk(false, CHUNK_STATUS, 2, payload);
    let huge = |kind: u16, cookie: u64| {
        let head = [&STRUCTURED_REPLY_MAGIC.to_be_bytes()[..], &[0, 0], &kind.to_be_bytes(), &cookie.to_be_bytes()];
        none().bytes(&head.concat()).bytes(&u32::MAX.to_be_bytes())
    };
    let many =
        (0..=REPLY_CHUNKS_MAX).fold(none(), |sent, _| sent.chunk(false, CHUNK_ERROR_BIT + 1, 1, &failure(5, b"")));
    let long_words = [failure(5, b"abc"), vec![0; 5000]].concat();
    let lying_words = [&5_u32.to_be_bytes()[..], &100_u16.to_be_bytes(), b"abc"].concat();
    // Requests under way: 1 reads 8 bytes at 100, 2 asks for the status of 8192 bytes at 4096, 3 flushes.
    for (what, sent, why) in [
        ("bad magic", none().bytes(&[1; 16]), "bad magic"),
        ("another framing", none().extended(true, CHUNK_NONE, 1, 100, &[]), "bad magic"),
        ("wrong cookie", none().simple(0, 77, &[]), "no request"),
        ("wrong cookie in a chunk", none().chunk(true, CHUNK_NONE, 77, &[]), "no request"),
        ("reply twice", none().simple(0, 3, &[]).simple(0, 3, &[]), "no request"),
        ("simple reply to a read", none().simple(0, 1, b"abcdefgh"), "simple reply to a read"),
        ("simple reply to block status", none().simple(0, 2, &[]), "simple reply to a block status"),
        ("simple after structured", read(&data(100, b"abcd")).simple(5, 1, &[]), "after a structured"),
        ("end without data", none().chunk(true, CHUNK_NONE, 1, &[]), "less data"),
        ("short data", none().chunk(true, CHUNK_DATA, 1, &data(100, b"abcdefg")), "less data"),
        ("long data", read(&data(100, b"abcdefghi")), "more data"),
        ("data before the range", read(&data(99, b"abcd")), "outside the request"),
        ("data past the range", read(&data(105, b"abcd")), "outside the request"),
        ("data far outside", read(&data(u64::MAX, b"ab")), "outside the request"),
        ("data twice", read(&data(100, b"abcd")).chunk(false, CHUNK_DATA, 1, &data(103, b"xx")), "twice"),
        ("chunk without data", read(&data(100, b"")), "without data"),
        ("chunk without offset", read(&[0; 4]), "without data"),
        ("hole outside", none().chunk(false, CHUNK_HOLE, 1, &hole(100, 9)), "outside the request"),
        ("hole of no bytes", none().chunk(false, CHUNK_HOLE, 1, &hole(100, 0)), "a hole of no bytes"),
        ("hole over data", read(&data(100, b"ab")).chunk(false, CHUNK_HOLE, 1, &hole(101, 2)), "twice"),
        ("long hole chunk", none().chunk(false, CHUNK_HOLE, 1, &[0; 13]), "hole chunk of a wrong length"),
        ("data for a flush", none().chunk(false, CHUNK_DATA, 3, &data(0, b"a")), "does not belong"),
        ("status for a read", none().chunk(false, CHUNK_STATUS, 1, &status(1, &[(1, 0)])), "does not belong"),
        ("64-bit status", none().chunk(false, CHUNK_STATUS_EXTENDED, 2, &[0; 24]), "does not belong"),
        ("unknown chunk", none().chunk(false, 9, 1, &[]), "does not belong"),
        ("unknown chunk of 4 GiB", huge(9, 1), "does not belong"),
        ("data of 4 GiB", huge(CHUNK_DATA, 1), "more data"),
        ("status of 4 GiB", huge(CHUNK_STATUS, 2), "wrong length"),
        ("error of 4 GiB", huge(CHUNK_ERROR_BIT + 1, 1), "error chunk of a wrong length"),
        ("empty chunk not last", none().chunk(false, CHUNK_NONE, 3, &[]), "not the last"),
        ("empty chunk with bytes", none().chunk(true, CHUNK_NONE, 3, &[0]), "not empty"),
        ("endless chunks", many, "chunks of one reply"),
        ("long error text", none().chunk(true, CHUNK_ERROR_BIT + 1, 1, &long_words), "error chunk of a wrong length"),
        ("lying error text", none().chunk(true, CHUNK_ERROR_BIT + 1, 1, &lying_words), "longer than its chunk"),
        ("short error", none().chunk(true, CHUNK_ERROR_BIT + 1, 1, &[0; 5]), "error chunk of a wrong length"),
        ("error 0", none().chunk(true, CHUNK_ERROR_BIT + 1, 1, &failure(0, b"")), "without an error"),
        ("zero-length extent", extents(&status(1, &[(4096, 0), (0, 0)])), "an extent of no bytes"),
        ("extents past the request", extents(&status(1, &[(8192, 0), (1, 0)])), "past the end of the request"),
        ("extent past the export", extents(&status(1, &[(1 << 20, 0)])), "past the end of the export"),
        ("extent of 4 GiB", extents(&status(1, &[(u32::MAX, 0)])), "past the end of the export"),
        ("no extents", extents(&status(1, &[])), "wrong length"),
        ("half an extent", extents(&[0; 9]), "wrong length"),
        ("unknown context", extents(&status(7, &[(4096, 0)])), "not negotiated"),
        ("context twice", extents(&status(1, &[(1, 0)])).chunk(false, CHUNK_STATUS, 2, &status(1, &[(1, 0)])), "twice"),
        ("context missing", none().chunk(true, CHUNK_STATUS, 2, &status(1, &[(1, 0)])), "no status of a negotiated"),
    ] {
        for step in [1, 16, 4096] {
            let mut session = Session::new(export(Framing::Structured));
            for request in [READ, STATUS, Request::Flush] {
                session.submit(request).unwrap();
            }
            let error = feed(&mut session, &sent.0, step).map(|_| ()).expect_err(what);
            assert!(error.to_string().contains(why), "{what}: {error}");
            assert!(!error.is_request(), "{what}: the connection is over");
        }
    }
    let mut session = Session::new(export(Framing::Extended));
    session.submit(READ).unwrap();
    let moved = Sent::default().extended(true, CHUNK_NONE, 1, 101, &[]);
    assert!(feed(&mut session, &moved.0, 9).unwrap_err().to_string().contains("another offset"));
    let mut session = Session::new(Export { size: 1 << 40, ..export(Framing::Extended) });
    session.submit(STATUS).unwrap();
    let lying = [&1_u32.to_be_bytes()[..], &2_u32.to_be_bytes(), &[0; 16]].concat();
    let counted = Sent::default().extended(true, CHUNK_STATUS_EXTENDED, 1, 4096, &lying);
    assert!(feed(&mut session, &counted.0, 9).unwrap_err().to_string().contains("wrong number"));
}

#[test]
fn a_million_extents_are_taken_and_more_are_not() {
    let size = 4 << 20;
    let request = Request::BlockStatus { offset: 0, length: size };
    let reply = |runs: u32| {
        let runs: Vec<_> = (0..runs).map(|at| (1, at % 2)).collect();
        Sent::default().chunk(false, CHUNK_STATUS, 1, &status(1, &runs))
    };
    let begin = || {
        let mut session = Session::new(Export { size, ..export(Framing::Structured) });
        session.submit(request.clone()).unwrap();
        session
    };
    feed(&mut begin(), &reply(DESCRIPTORS_MAX).0, 100_000).unwrap();
    let error = feed(&mut begin(), &reply(DESCRIPTORS_MAX + 1).0, 100_000).unwrap_err();
    assert!(matches!(error, NbdError::Limit { .. }), "{error}");
}

/// Pieces that make a fuzzed reply get past the first checks now and then.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let magic = prop::sample::select(vec![SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, EXTENDED_REPLY_MAGIC]);
    let kind = prop::sample::select(vec![0_u16, 1, 2, 5, 6, 0x8001, 0x8002, 0x9000, 3]);
    let small = prop::sample::select(vec![0_u32, 1, 4, 8, 12, 20, 24, 100, 4096, 70_000]);
    let chunk = (magic, 0..2_u16, kind, 0..5_u64, small.clone(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(
        |(magic, flags, kind, cookie, length, payload)| {
            let head = [&magic.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes(), &cookie.to_be_bytes()];
            [&head.concat()[..], &length.to_be_bytes(), &payload].concat()
        },
    );
    prop_oneof![
        chunk,
        prop::collection::vec(any::<u8>(), 0..64),
        small.prop_map(|number| number.to_be_bytes().to_vec()),
        Just(100_u64.to_be_bytes().to_vec()),
    ]
}

proptest! {
    #[test]
    fn no_bytes_make_a_session_panic(
        pieces in prop::collection::vec(pieces(), 0..12),
        framing in prop::sample::select(vec![Framing::Simple, Framing::Structured, Framing::Extended]),
        step in 1..50_usize,
    ) {
        let mut session = Session::new(export(framing));
        for request in [READ, STATUS, Request::Flush, Request::Read { offset: 0, length: 1 << 16 }] {
            let _ = session.submit(request);
        }
        for completed in feed(&mut session, &pieces.concat(), step).into_iter().flatten() {
            if let Ok(Reply::BlockStatus(contexts)) = completed.result {
                for runs in contexts {
                    let covered: u64 = runs.iter().map(|run| run.length).sum();
                    prop_assert!(covered > 0 && covered <= 8192 && runs.iter().all(|run| run.length > 0));
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_a_handshake_panic(
        replies in prop::collection::vec((0..12_u32, 0..8_u32, any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)), 0..12),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut sent = Sent::greeting();
        for (option, kind, failed, data) in replies {
            sent = sent.option(option, if failed { REPLY_ERROR_BIT + kind } else { kind }, &data);
        }
        let _ = negotiate(hello(Framing::Extended, &["base:allocation"]), &sent.bytes(&noise));
        let _ = negotiate(hello(Framing::Structured, &["a"]), &Sent::default().bytes(&noise));
    }
}
