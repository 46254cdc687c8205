//! Messages on a stream: a header of 16 bytes, the body, the bulk.

mod error;

pub use error::FrameError;

use super::allowance::Allowance;
use super::budgets::Share;
use super::message::Message;
use bytes::{BufMut, Bytes, BytesMut};
use mover::{Error, Result};
use quinn::{RecvStream, SendStream};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout_at};

/// A message as it arrived.
#[derive(Debug)]
pub struct Frame<M> {
    /// The message itself.
    pub message: M,
    /// Bulk bytes that follow the body.
    pub bulk: Bytes,
    /// True when more messages follow on this stream.
    pub more: bool,
    /// The room that the bulk takes, where it is counted.
    pub room: Option<Share>,
}

/// Header and body of a message that has so many bulk bytes.
///
/// # Errors
/// `Internal` when it is over its limits.
pub fn encode<M: Message>(message: &M, bulk_bytes: u64, more: bool) -> Result<Bytes> {
    let (code, body) = (message.code(), message.encode()?);
    let limits = M::limits(code).expect("every message has limits");
    let bulk_bytes = u32::try_from(bulk_bytes).ok().filter(|it| *it <= limits.bulk_bytes_max);
    let bulk_bytes =
        bulk_bytes.ok_or_else(|| Error::internal(format!("message {code:#06x} with too much beside it")))?;
    let mut head = BytesMut::with_capacity(HEADER_BYTES + body.len());
    head.put_slice(&Header { code, more, body_bytes: body.len() as u32, bulk_bytes }.encode());
    head.put_slice(&body);
    Ok(head.freeze())
}

/// Decodes the message at the beginning of `bytes`. Gives the message, the length of its bulk, and whether more
/// messages follow; none while header and body are not whole.
///
/// # Errors
/// `Transport` when the bytes are no message.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<Option<(M, u64, bool)>> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let header = Header::decode::<M>(header)?;
    let Some(body) = rest.get(..header.body_bytes as usize) else { return Ok(None) };
    Ok(Some((decode_body(&header, body)?, header.bulk_bytes.into(), header.more)))
}

fn decode_body<M: Message>(header: &Header, body: &[u8]) -> Result<M> {
    M::decode(header.code, body).map_err(|error| Error::transport(error.message()))
}

/// Sends a message. The parts of `bulk` are not copied.
pub async fn send<M: Message>(
    stream: &mut SendStream,
    message: &M,
    mut bulk: Vec<Bytes>,
    more: bool,
) -> Result<(), FrameError> {
    let bulk_bytes = bulk.iter().map(|part| part.len() as u64).sum();
    bulk.insert(0, encode(message, bulk_bytes, more)?);
    stream.write_all_chunks(&mut bulk).await?;
    Ok(())
}

/// Receives a request. Its bulk waits until there is room for it, and nothing is allocated before.
pub async fn receive<M: Message>(stream: &mut RecvStream, allowance: &Allowance) -> Result<Frame<M>, FrameError> {
    let patience = allowance.patience();
    let header = header::<M>(stream, Some(patience)).await?;
    let message = body(stream, &header, patience).await?;
    let room = match header.bulk_bytes {
        0 => None,
        bytes => Some(allowance.room(bytes as usize).await.ok_or(FrameError::NoRoom)?),
    };
    let bulk = exactly(stream, header.bulk_bytes as usize, Some(patience)).await?;
    Ok(Frame { message, bulk, more: header.more, room })
}

/// Receives a message of an answer. The caller decides how long the message may take to begin. When it begins, `begun`
/// is called, and from then on it must come as fast as a request must.
pub async fn receive_reply<M: Message>(
    stream: &mut RecvStream,
    patience: Duration,
    begun: impl FnOnce(),
) -> Result<Frame<M>, FrameError> {
    let header = header::<M>(stream, None).await?;
    begun();
    let message = body(stream, &header, patience).await?;
    let bulk = exactly(stream, header.bulk_bytes as usize, Some(patience)).await?;
    Ok(Frame { message, bulk, more: header.more, room: None })
}

async fn header<M: Message>(stream: &mut RecvStream, patience: Option<Duration>) -> Result<Header, FrameError> {
    let header = exactly(stream, HEADER_BYTES, patience).await?;
    Ok(Header::decode::<M>(header.as_ref().try_into().expect("as long as asked for"))?)
}

async fn body<M: Message>(stream: &mut RecvStream, header: &Header, patience: Duration) -> Result<M, FrameError> {
    Ok(decode_body(header, &exactly(stream, header.body_bytes as usize, Some(patience)).await?)?)
}

/// The next `length` bytes in one piece. The bytes are copied once, into memory that was not cleared. The connection's
/// state is locked once for all bytes that are there, not for each packet. Within each `patience` a tenth of the bytes
/// must come. So a peer that sends a byte now and then does not hold room for ever, and a link of half a Mbit/s is fast
/// enough, even with its whole window on the way.
async fn exactly(stream: &mut RecvStream, length: usize, patience: Option<Duration>) -> Result<Bytes, FrameError> {
    let step = (length / STEPS).max(STEP_BYTES_MIN);
    let due = || patience.map(|patience| Instant::now() + patience);
    let (mut next, mut until) = (step, due());
    let mut whole = BytesMut::with_capacity(length);
    while whole.len() < length {
        let left = length - whole.len();
        let mut rest = (&mut whole).limit(left);
        let read = stream.read_buf(&mut rest);
        let read = match until {
            Some(until) => timeout_at(until, read).await.map_err(|_| FrameError::Slow)?,
            None => read.await,
        };
        if read.map_err(|error| FrameError::Lost(error.to_string()))? == 0 {
            return Err(FrameError::Lost("the stream ended inside a message".into()));
        }
        if whole.len() >= next {
            (next, until) = (whole.len() + step, due());
        }
    }
    Ok(whole.freeze())
}

/// What stands before each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    code: u16,
    more: bool,
    body_bytes: u32,
    bulk_bytes: u32,
}

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.code.to_le_bytes());
        bytes[6..8].copy_from_slice(&u16::from(self.more).to_le_bytes());
        bytes[8..12].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[12..].copy_from_slice(&self.bulk_bytes.to_le_bytes());
        bytes
    }

    fn decode<M: Message>(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let bad = |what: String| Error::transport(format!("the peer does not speak this protocol: {what}"));
        if bytes[..4] != MAGIC {
            return Err(bad("it does not begin like a message".into()));
        }
        let (code, flags) = (u16_at(4), u16_at(6));
        let limits = M::limits(code).ok_or_else(|| bad(format!("unknown message {code:#06x}")))?;
        if flags & !MORE != 0 {
            return Err(bad(format!("unknown flags {flags:#06x}")));
        }
        let (body_bytes, bulk_bytes) = (u32_at(8), u32_at(12));
        if body_bytes > limits.body_bytes_max || bulk_bytes > limits.bulk_bytes_max {
            return Err(bad(format!("message {code:#06x} of {body_bytes} and {bulk_bytes} bytes is over its limits")));
        }
        Ok(Self { code, more: flags & MORE != 0, body_bytes, bulk_bytes })
    }
}

const HEADER_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"WLM1";
/// Flag: more messages follow.
const MORE: u16 = 1;
/// Parts of a message, in each of which its sender has to show progress.
const STEPS: usize = 10;
/// Shorter ones come in one.
const STEP_BYTES_MIN: usize = 64 << 10;
