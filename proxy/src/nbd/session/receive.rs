//! What a server sends in the transmission phase, taken apart and checked against the requests under way.

use super::{Body, Completed, ContextRuns, InFlight, Reply, Run, Session};
use crate::nbd::error::{NbdError, peer_text};
use crate::nbd::handshake::Framing;
use crate::nbd::reading::Landing;
use crate::nbd::wire::*;
use bytes::{Buf, BufMut, BytesMut};

impl Session {
    /// Takes what it can from `input` up to the end of a reply. `None`: it needs more bytes.
    /// Any error ends the session.
    pub fn advance(&mut self, input: &mut BytesMut) -> Result<Option<Completed>, NbdError> {
        loop {
            let before = (input.len(), self.incoming.rank());
            if let Some(completed) = self.step(input)? {
                return Ok(Some(completed));
            }
            if before == (input.len(), self.incoming.rank()) {
                return Ok(None);
            }
        }
    }

    /// Where the next bytes from the peer belong when they are data of a read: the caller may read right into it
    /// (after [`Session::advance`] has used up its input), then calls [`Session::landed`].
    pub fn landing(&mut self) -> Option<Landing<'_>> {
        match &mut self.incoming {
            Incoming::Data { piece, remaining, .. } if *remaining > 0 => Some(piece.limit(*remaining as usize)),
            _ => None,
        }
    }

    /// `bytes` more were read into the landing.
    pub fn landed(&mut self, bytes: usize) -> Result<Option<Completed>, NbdError> {
        if let Incoming::Data { remaining, .. } = &mut self.incoming {
            *remaining = u32::try_from(bytes)
                .ok()
                .and_then(|bytes| remaining.checked_sub(bytes))
                .ok_or(NbdError::Protocol("more data than announced"))?;
        }
        self.advance(&mut BytesMut::new())
    }

    fn step(&mut self, input: &mut BytesMut) -> Result<Option<Completed>, NbdError> {
        match std::mem::replace(&mut self.incoming, Incoming::Head) {
            Incoming::Head => self.head(input),
            Incoming::Body { chunk, length } => {
                if input.len() < length {
                    self.incoming = Incoming::Body { chunk, length };
                    return Ok(None);
                }
                let body = input.split_to(length);
                self.body(chunk, &body)
            }
            Incoming::Data { cookie, start, mut piece, mut remaining, done } => {
                let bytes = input.split_to(input.len().min(remaining as usize));
                piece.extend_from_slice(&bytes);
                remaining -= bytes.len() as u32;
                if remaining > 0 {
                    self.incoming = Incoming::Data { cookie, start, piece, remaining, done };
                    return Ok(None);
                }
                if let Body::Read(buffer) = &mut self.find(cookie)?.body {
                    buffer.put(start, piece);
                }
                self.finish_chunk(cookie, done)
            }
            Incoming::Descriptors { cookie, context, mut remaining, done } => {
                while remaining > 0 && input.len() >= self.descriptor_bytes() {
                    let run = match self.export.framing {
                        Framing::Extended => Run { length: input.get_u64(), flags: input.get_u64() },
                        _ => Run { length: input.get_u32().into(), flags: input.get_u32().into() },
                    };
                    remaining -= 1;
                    self.run(cookie, context, run)?;
                }
                if remaining > 0 {
                    self.incoming = Incoming::Descriptors { cookie, context, remaining, done };
                    return Ok(None);
                }
                self.finish_chunk(cookie, done)
            }
        }
    }

    fn head(&mut self, input: &mut BytesMut) -> Result<Option<Completed>, NbdError> {
        let Some(magic) = input.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes)) else {
            return Ok(None);
        };
        let (framing, bytes) = match (magic, self.export.framing) {
            (SIMPLE_REPLY_MAGIC, Framing::Simple | Framing::Structured) => (Framing::Simple, 16),
            (STRUCTURED_REPLY_MAGIC, Framing::Structured) => (Framing::Structured, 20),
            (EXTENDED_REPLY_MAGIC, Framing::Extended) => (Framing::Extended, 32),
            _ => return Err(NbdError::Protocol("bad magic in a reply")),
        };
        if input.len() < bytes {
            return Ok(None);
        }
        let head = input.split_to(bytes);
        let mut fields = Fields(&head[4..]);
        if framing == Framing::Simple {
            let (errno, cookie) = (fields.u32().unwrap_or(0), fields.u64().unwrap_or(0));
            return self.simple(errno, cookie);
        }
        let (flags, kind) = (fields.u16().unwrap_or(0), fields.u16().unwrap_or(0));
        let cookie = fields.u64().unwrap_or(0);
        let (offset, length) = match framing {
            Framing::Extended => (fields.u64(), fields.u64().unwrap_or(u64::MAX)),
            _ => (None, fields.u32().unwrap_or(u32::MAX).into()),
        };
        let request = self.find(cookie)?;
        if offset.is_some_and(|offset| offset != request.offset) {
            return Err(NbdError::Protocol("a reply with another offset than its request"));
        }
        request.chunks += 1;
        if request.chunks > REPLY_CHUNKS_MAX {
            let (have, max) = (request.chunks.into(), REPLY_CHUNKS_MAX.into());
            return Err(NbdError::Limit { what: "chunks of one reply", have, max });
        }
        self.chunk(Chunk { cookie, kind, length, done: flags & CHUNK_DONE != 0 })
    }

    fn simple(&mut self, errno: u32, cookie: u64) -> Result<Option<Completed>, NbdError> {
        let framing = self.export.framing;
        let request = self.find(cookie)?;
        if request.chunks > 0 {
            return Err(NbdError::Protocol("a simple reply after a structured one"));
        }
        if errno != 0 {
            request.fail(errno, String::new());
            return self.finish_chunk(cookie, true);
        }
        match &mut request.body {
            Body::Read(_) if framing != Framing::Simple => {
                Err(NbdError::Protocol("a simple reply to a read where structured replies were agreed"))
            }
            Body::Status(_) => Err(NbdError::Protocol("a simple reply to a block status request")),
            Body::Read(buffer) => {
                let (offset, length) = (request.offset, request.length as u32);
                let piece = buffer.take(offset, length).ok_or(NbdError::Protocol("data twice"))?;
                self.incoming = Incoming::Data { cookie, start: offset, piece, remaining: length, done: true };
                Ok(None)
            }
            Body::Plain => self.finish_chunk(cookie, true),
        }
    }

    /// The header of a chunk was read: what follows must fit its type and its request.
    fn chunk(&mut self, chunk: Chunk) -> Result<Option<Completed>, NbdError> {
        let status_kind = match self.export.framing {
            Framing::Extended => CHUNK_STATUS_EXTENDED,
            _ => CHUNK_STATUS,
        };
        let (descriptor_bytes, prefix) = (self.descriptor_bytes() as u64, self.status_prefix_bytes());
        let request = self.find(chunk.cookie)?;
        let length = match (chunk.kind, &request.body) {
            (CHUNK_NONE, _) if chunk.length != 0 || !chunk.done => {
                return Err(NbdError::Protocol("an empty chunk that is not empty or not the last"));
            }
            (CHUNK_NONE, _) => return self.finish_chunk(chunk.cookie, true),
            (CHUNK_DATA, Body::Read(_)) if chunk.length < 9 => {
                return Err(NbdError::Protocol("a data chunk without data"));
            }
            // One byte more than asked for would already be too much; the range itself is checked with the offset.
            (CHUNK_DATA, Body::Read(_)) if chunk.length - 8 > request.length => {
                return Err(NbdError::Protocol("more data than was asked for"));
            }
            (CHUNK_DATA, Body::Read(_)) => 8,
            (CHUNK_HOLE, Body::Read(_)) if chunk.length != 12 => {
                return Err(NbdError::Protocol("a hole chunk of a wrong length"));
            }
            (CHUNK_HOLE, Body::Read(_)) => 12,
            (kind, Body::Status(_)) if kind == status_kind => {
                let descriptors = chunk.length.saturating_sub(prefix as u64);
                if descriptors == 0 || !descriptors.is_multiple_of(descriptor_bytes) {
                    return Err(NbdError::Protocol("a block status chunk of a wrong length"));
                }
                if descriptors / descriptor_bytes > DESCRIPTORS_MAX.into() {
                    let (have, max) = (descriptors / descriptor_bytes, DESCRIPTORS_MAX.into());
                    return Err(NbdError::Limit { what: "block status descriptors", have, max });
                }
                prefix
            }
            (kind, _) if kind & CHUNK_ERROR_BIT != 0 => {
                if chunk.length < 6 || chunk.length > ERROR_CHUNK_BYTES_MAX.into() {
                    return Err(NbdError::Protocol("an error chunk of a wrong length"));
                }
                chunk.length as usize
            }
            _ => return Err(NbdError::Protocol("a chunk of a type that does not belong to the request")),
        };
        self.incoming = Incoming::Body { chunk, length };
        Ok(None)
    }

    /// The fixed part of a chunk's payload was read.
    fn body(&mut self, chunk: Chunk, body: &[u8]) -> Result<Option<Completed>, NbdError> {
        const SHORT: NbdError = NbdError::Protocol("a short chunk");
        let (framing, descriptor_bytes) = (self.export.framing, self.descriptor_bytes() as u64);
        let contexts: Vec<u32> = self.export.contexts.iter().map(|context| context.id).collect();
        let request = self.find(chunk.cookie)?;
        let mut fields = Fields(body);
        match (chunk.kind, &mut request.body) {
            (CHUNK_DATA, Body::Read(buffer)) => {
                let (start, remaining) = (fields.u64().ok_or(SHORT)?, (chunk.length - 8) as u32);
                let piece = buffer.take(start, remaining);
                let piece = piece.ok_or(NbdError::Protocol("data outside the request, or twice"))?;
                self.incoming = Incoming::Data { cookie: chunk.cookie, start, piece, remaining, done: chunk.done };
                Ok(None)
            }
            (CHUNK_HOLE, Body::Read(buffer)) => {
                let (start, length) = (fields.u64().ok_or(SHORT)?, fields.u32().ok_or(SHORT)?);
                let piece = buffer.take(start, length).filter(|_| length > 0);
                let mut piece = piece.ok_or(NbdError::Protocol("a hole of no bytes, outside the request, or twice"))?;
                piece.put_bytes(0, length as usize);
                buffer.put(start, piece);
                self.finish_chunk(chunk.cookie, chunk.done)
            }
            (CHUNK_STATUS | CHUNK_STATUS_EXTENDED, Body::Status(runs)) => {
                let id = fields.u32().ok_or(SHORT)?;
                let descriptors = (chunk.length - body.len() as u64) / descriptor_bytes;
                if framing == Framing::Extended && fields.u32().map(u64::from) != Some(descriptors) {
                    return Err(NbdError::Protocol("a wrong number of block status descriptors"));
                }
                let context = contexts.iter().position(|known| *known == id);
                let context = context.ok_or(NbdError::Protocol("status of a context that was not negotiated"))?;
                if runs[context].covered > 0 {
                    return Err(NbdError::Protocol("status of a context twice"));
                }
                let (cookie, done) = (chunk.cookie, chunk.done);
                self.incoming = Incoming::Descriptors { cookie, context, remaining: descriptors as u32, done };
                Ok(None)
            }
            _ => {
                let (errno, length) = (fields.u32().ok_or(SHORT)?, fields.u16().ok_or(SHORT)?);
                let text = fields.take(length.into());
                let text = text.ok_or(NbdError::Protocol("an error text longer than its chunk"))?;
                if errno == 0 {
                    return Err(NbdError::Protocol("an error chunk without an error"));
                }
                request.fail(errno, peer_text(text));
                self.finish_chunk(chunk.cookie, chunk.done)
            }
        }
    }

    fn run(&mut self, cookie: u64, context: usize, run: Run) -> Result<(), NbdError> {
        let size = self.export.size;
        let request = self.find(cookie)?;
        let (offset, length) = (request.offset, request.length);
        let Body::Status(runs) = &mut request.body else {
            return Err(NbdError::Protocol("status for a request of another kind"));
        };
        let ContextRuns { runs, covered } = &mut runs[context];
        if run.length == 0 {
            return Err(NbdError::Protocol("an extent of no bytes"));
        }
        if *covered >= length {
            return Err(NbdError::Protocol("extents past the end of the request"));
        }
        // Only the last may reach past the request, and none past the end of the export (rounded to its sectors).
        let end = (offset + *covered).checked_add(run.length);
        if end.is_none_or(|end| end > size.next_multiple_of(EXPORT_ROUNDING_BYTES)) {
            return Err(NbdError::Protocol("an extent past the end of the export"));
        }
        let run = Run { length: run.length.min(length - *covered), flags: run.flags };
        *covered += run.length;
        match runs.last_mut() {
            Some(last) if last.flags == run.flags => last.length += run.length,
            _ => runs.push(run),
        }
        Ok(())
    }

    /// A chunk ended: the reply is complete when it was the last one.
    fn finish_chunk(&mut self, cookie: u64, done: bool) -> Result<Option<Completed>, NbdError> {
        if !done {
            return Ok(None);
        }
        let Some(request) = self.in_flight.remove(&cookie) else {
            return Err(NbdError::Protocol("a reply to no request"));
        };
        let result = match (request.failed, request.body) {
            (Some(error), _) => Err(error),
            (None, Body::Plain) => Ok(Reply::Done),
            (None, Body::Read(buffer)) => {
                Ok(Reply::Read(buffer.finish().ok_or(NbdError::Protocol("less data than was asked for"))?))
            }
            (None, Body::Status(runs)) if runs.iter().any(|it| it.covered == 0) => {
                return Err(NbdError::Protocol("no status of a negotiated context"));
            }
            (None, Body::Status(runs)) => Ok(Reply::BlockStatus(runs.into_iter().map(|it| it.runs).collect())),
        };
        Ok(Some(Completed { cookie, result }))
    }

    fn find(&mut self, cookie: u64) -> Result<&mut InFlight, NbdError> {
        self.in_flight.get_mut(&cookie).ok_or(NbdError::Protocol("a reply to no request"))
    }

    fn descriptor_bytes(&self) -> usize {
        if self.export.framing == Framing::Extended { 16 } else { 8 }
    }

    fn status_prefix_bytes(&self) -> usize {
        if self.export.framing == Framing::Extended { 8 } else { 4 }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    cookie: u64,
    kind: u16,
    length: u64,
    done: bool,
}

/// What the next bytes are.
#[derive(Debug)]
pub(super) enum Incoming {
    Head,
    Body { chunk: Chunk, length: usize },
    Data { cookie: u64, start: u64, piece: BytesMut, remaining: u32, done: bool },
    Descriptors { cookie: u64, context: usize, remaining: u32, done: bool },
}

impl Incoming {
    /// Tells states apart: [`Session::advance`] goes on while the state moves without taking input.
    const fn rank(&self) -> (u8, u32) {
        match self {
            Self::Head => (0, 0),
            Self::Body { .. } => (1, 0),
            Self::Data { remaining, .. } => (2, *remaining),
            Self::Descriptors { remaining, .. } => (3, *remaining),
        }
    }
}

/// Servers report the last extent of an odd-sized image up to its last sector.
const EXPORT_ROUNDING_BYTES: u64 = 4096;
