//! The transmission phase as a state machine: requests in, bytes out; bytes in, replies out.
//!
//! It does no I/O and reads no clock. What a server can do wrong is an error that ends the session; memory is bounded
//! by the requests under way and the limits in [`wire`](super::wire).

mod receive;

use super::error::NbdError;
use super::handshake::{Export, Framing};
use super::reading::ReadBuffer;
use super::wire::*;
use bytes::{BufMut, Bytes, BytesMut};
use receive::Incoming;
use std::collections::{BTreeMap, VecDeque};

/// What a server is asked to do. Ranges must lie inside the export and keep its block size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Read `length` bytes.
    Read {
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        length: u32,
    },
    /// Write bytes.
    Write {
        /// Offset of the first byte.
        offset: u64,
        /// Bytes to write.
        data: Bytes,
    },
    /// Make a range read as zeros; the server may punch a hole.
    WriteZeroes {
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes; below 2^32 without extended headers.
        length: u64,
    },
    /// Discard a range.
    Trim {
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes; below 2^32 without extended headers.
        length: u64,
    },
    /// Make completed writes durable.
    Flush,
    /// The extents of a range in every negotiated context.
    BlockStatus {
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes; below 2^32 without extended headers.
        length: u64,
    },
    /// Say goodbye. Has no reply.
    Disconnect,
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The bytes of a read, exactly as many as asked for.
    Read(Bytes),
    /// The request was done, and has no data.
    Done,
    /// For each context of [`Export::contexts`], in its order, runs from the start of the request. They cover at
    /// least one byte, perhaps less than asked for, never more.
    BlockStatus(Vec<Vec<Run>>),
}

/// Bytes in a row with one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of bytes; never 0.
    pub length: u64,
    /// Status flags of the context.
    pub flags: u64,
}

/// A request that was answered.
#[derive(Debug)]
pub struct Completed {
    /// The number [`Session::submit`] gave it.
    pub cookie: u64,
    /// The reply, or why this request failed.
    pub result: Result<Reply, NbdError>,
}

/// One connection in its transmission phase.
#[derive(Debug)]
pub struct Session {
    export: Export,
    output: VecDeque<Bytes>,
    in_flight: BTreeMap<u64, InFlight>,
    next_cookie: u64,
    incoming: Incoming,
}

impl Session {
    /// A session on what was negotiated.
    pub fn new(export: Export) -> Self {
        Self { export, output: VecDeque::new(), in_flight: BTreeMap::new(), next_cookie: 1, incoming: Incoming::Head }
    }

    /// The export as it was negotiated.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Pieces to send in order; the caller takes them out.
    pub fn output(&mut self) -> &mut VecDeque<Bytes> {
        &mut self.output
    }

    /// Requests without an answer yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The first request without an answer that may take long; if there is none, the first request without an answer.
    pub(super) fn longest(&self) -> Option<Command> {
        let mut commands = self.in_flight.values().map(|request| request.command);
        let first = commands.clone().next();
        commands.find(|command| command.may_take_long()).or(first)
    }

    /// Puts a request on the way and gives its cookie; [`NbdError::Unsuitable`] leaves the session as it was.
    pub fn submit(&mut self, request: Request) -> Result<u64, NbdError> {
        let (command, offset, length) = match &request {
            Request::Read { offset, length } => (Command::Read, *offset, u64::from(*length)),
            Request::Write { offset, data } => (Command::Write, *offset, data.len() as u64),
            Request::WriteZeroes { offset, length } => (Command::WriteZeroes, *offset, *length),
            Request::Trim { offset, length } => (Command::Trim, *offset, *length),
            Request::Flush => (Command::Flush, 0, 0),
            Request::BlockStatus { offset, length } => (Command::BlockStatus, *offset, *length),
            Request::Disconnect => (Command::Disconnect, 0, 0),
        };
        if let Some(why) = self.unsuitable(command, offset, length) {
            return Err(NbdError::Unsuitable { command, offset, length, why });
        }
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.encode(command, cookie, offset, length);
        let body = match request {
            Request::Read { offset, length } => Body::Read(ReadBuffer::new(offset, length)),
            Request::BlockStatus { .. } => {
                Body::Status(self.export.contexts.iter().map(|_| ContextRuns::default()).collect())
            }
            Request::Write { data, .. } => {
                self.output.push_back(data);
                Body::Plain
            }
            Request::Disconnect => return Ok(cookie),
            Request::WriteZeroes { .. } | Request::Trim { .. } | Request::Flush => Body::Plain,
        };
        self.in_flight.insert(cookie, InFlight { command, offset, length, chunks: 0, failed: None, body });
        Ok(cookie)
    }

    fn unsuitable(&self, command: Command, offset: u64, length: u64) -> Option<&'static str> {
        let (export, block) = (&self.export, u64::from(self.export.block_bytes_min));
        match command {
            Command::Disconnect => return None,
            _ if self.in_flight.len() >= IN_FLIGHT_MAX => return Some("too many requests under way"),
            Command::Flush => return (!export.flags.can_flush()).then_some("the server cannot flush"),
            Command::Write | Command::WriteZeroes | Command::Trim if export.flags.is_read_only() => {
                return Some("the export is read-only");
            }
            Command::WriteZeroes if !export.flags.can_zero() => return Some("the server cannot write zeroes"),
            Command::Trim if !export.flags.can_trim() => return Some("the server cannot trim"),
            Command::BlockStatus if export.contexts.is_empty() => return Some("no metadata context was negotiated"),
            _ => {}
        }
        let Some(end) = offset.checked_add(length).filter(|end| *end <= export.size && length > 0) else {
            return Some("not inside the export");
        };
        if !offset.is_multiple_of(block) || (!length.is_multiple_of(block) && end != export.size) {
            return Some("not a multiple of the server's minimum block size");
        }
        let payload = matches!(command, Command::Read | Command::Write);
        if payload && length > export.payload_bytes_max.into() {
            return Some("longer than the server's maximum payload");
        }
        (export.framing != Framing::Extended && length > u32::MAX.into()).then_some("longer than 32 bits can say")
    }

    fn encode(&mut self, command: Command, cookie: u64, offset: u64, length: u64) {
        let mut head = BytesMut::with_capacity(32);
        if self.export.framing == Framing::Extended {
            let payload = if command == Command::Write { REQUEST_FLAG_PAYLOAD_LENGTH } else { 0 };
            head.put_u32(EXTENDED_REQUEST_MAGIC);
            head.put_u16(payload);
            head.put_u16(command as u16);
            head.put_u64(cookie);
            head.put_u64(offset);
            head.put_u64(length);
        } else {
            head.put_u32(REQUEST_MAGIC);
            head.put_u16(0);
            head.put_u16(command as u16);
            head.put_u64(cookie);
            head.put_u64(offset);
            head.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        }
        self.output.push_back(head.freeze());
    }
}

#[derive(Debug)]
struct InFlight {
    command: Command,
    offset: u64,
    length: u64,
    chunks: u32,
    failed: Option<NbdError>,
    body: Body,
}

impl InFlight {
    /// The first error of a reply is the one that is told.
    fn fail(&mut self, errno: u32, message: String) {
        let (command, offset, length) = (self.command, self.offset, self.length);
        self.failed.get_or_insert(NbdError::Request { command, offset, length, errno, message });
    }
}

#[derive(Debug)]
enum Body {
    Read(ReadBuffer),
    Status(Vec<ContextRuns>),
    Plain,
}

/// Runs of one context, and how many bytes they cover.
#[derive(Debug, Default)]
struct ContextRuns {
    runs: Vec<Run>,
    covered: u64,
}
