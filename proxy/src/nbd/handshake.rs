//! Fixed newstyle negotiation as a state machine: bytes in, bytes out.

use super::error::{NbdError, Refusal, peer_text};
use super::wire::*;
use bytes::{BufMut, BytesMut};

/// What a client wants of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Name of the export; may be empty.
    pub export: String,
    /// Metadata contexts to ask for, such as `base:allocation`. Those the server lacks are left out of
    /// [`Export::contexts`].
    pub contexts: Vec<String>,
    /// Most modern framing to ask for.
    pub framing: Framing,
}

/// How replies are framed; each includes the abilities of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Framing {
    /// Simple replies: no holes, no metadata.
    Simple,
    /// Structured replies: holes and metadata, lengths of 32 bits.
    Structured,
    /// Extended headers: 64-bit lengths.
    Extended,
}

/// What a server exports, as negotiated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Size in bytes; never 0.
    pub size: u64,
    /// What the server can do with the export.
    pub flags: ExportFlags,
    /// Offsets and lengths must be multiples of this, except at the end of the export.
    pub block_bytes_min: u32,
    /// Most bytes of one read or write.
    pub payload_bytes_max: u32,
    /// How replies are framed.
    pub framing: Framing,
    /// The contexts it has of those asked for.
    pub contexts: Vec<Context>,
}

/// A negotiated metadata context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// The server's number for it.
    pub id: u32,
    /// Its name as asked for.
    pub name: String,
}

/// Transmission flags of an export, as the protocol numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExportFlags(pub u16);

impl ExportFlags {
    /// True when the server refuses writes.
    pub const fn is_read_only(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// True when the server can flush.
    pub const fn can_flush(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// True when the server can discard ranges.
    pub const fn can_trim(self) -> bool {
        self.0 & 1 << 5 != 0
    }

    /// True when the server can write zeroes.
    pub const fn can_zero(self) -> bool {
        self.0 & 1 << 6 != 0
    }

    /// What one connection flushed another one sees: several may share the work.
    pub const fn can_multi_conn(self) -> bool {
        self.0 & 1 << 8 != 0
    }
}

/// The negotiation. Feed it exactly [`Handshake::want`] bytes at a time, send what [`Handshake::output`] holds.
#[derive(Debug)]
pub struct Handshake {
    hello: Hello,
    state: State,
    output: BytesMut,
    framing: Framing,
    contexts: Vec<Context>,
    export: Option<(u64, ExportFlags)>,
    blocks: Option<(u32, u32)>,
}

impl Handshake {
    /// A negotiation that waits for the server's greeting. Fails when `hello` itself is over a limit.
    pub fn new(hello: Hello) -> Result<Self, NbdError> {
        let strings = || std::iter::once(&hello.export).chain(&hello.contexts);
        if let Some(long) = strings().map(String::len).find(|length| *length > STRING_BYTES_MAX) {
            return Err(NbdError::Limit { what: "a name", have: long as u64, max: STRING_BYTES_MAX as u64 });
        }
        if hello.contexts.len() > CONTEXTS_MAX {
            let have = hello.contexts.len() as u64;
            return Err(NbdError::Limit { what: "metadata contexts", have, max: CONTEXTS_MAX as u64 });
        }
        Ok(Self {
            hello,
            state: State::Greeting,
            output: BytesMut::new(),
            framing: Framing::Simple,
            contexts: Vec::new(),
            export: None,
            blocks: None,
        })
    }

    /// Number of bytes it waits for; never 0 and never over [`OPTION_REPLY_BYTES_MAX`].
    pub fn want(&self) -> usize {
        match self.state {
            State::Greeting => 18,
            State::Head { .. } => 20,
            State::Body { length, .. } => length as usize,
        }
    }

    /// Bytes to send; the caller takes them out.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Takes the bytes it waited for. Gives the export when the server entered the transmission phase.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<Export>, NbdError> {
        if bytes.len() != self.want() {
            return Err(NbdError::Protocol("short message in the handshake"));
        }
        match self.state {
            State::Greeting => self.greeting(bytes).map(|()| None),
            State::Head { option, replies } => self.head(option, replies, bytes),
            State::Body { option, kind, replies, .. } => self.reply(option, kind, replies, bytes),
        }
    }

    fn greeting(&mut self, bytes: &[u8]) -> Result<(), NbdError> {
        let mut fields = Fields(bytes);
        let (magic, style, flags) = (fields.u64(), fields.u64(), fields.u16().unwrap_or(0));
        if magic != Some(GREETING_MAGIC) {
            return Err(NbdError::Protocol("no NBD greeting; is it an NBD server?"));
        }
        if style == Some(OLDSTYLE_MAGIC) {
            return Err(NbdError::Protocol("it only speaks the oldstyle protocol, which has no export names"));
        }
        if style != Some(OPTION_MAGIC) {
            return Err(NbdError::Protocol("bad magic in the greeting"));
        }
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(NbdError::Protocol("it does not speak the fixed newstyle protocol"));
        }
        self.output.put_u32(u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)));
        match self.hello.framing {
            Framing::Extended => self.ask(Opt::ExtendedHeaders),
            Framing::Structured => self.ask(Opt::StructuredReply),
            Framing::Simple => self.ask(Opt::Go),
        }
        Ok(())
    }

    fn head(&mut self, option: Opt, replies: u32, bytes: &[u8]) -> Result<Option<Export>, NbdError> {
        let mut fields = Fields(bytes);
        let (magic, about) = (fields.u64(), fields.u32());
        let (Some(kind), Some(length)) = (fields.u32(), fields.u32()) else {
            return Err(NbdError::Protocol("short option reply"));
        };
        if magic != Some(OPTION_REPLY_MAGIC) {
            return Err(NbdError::Protocol("bad magic in an option reply"));
        }
        if about != Some(option as u32) {
            return Err(NbdError::Protocol("reply to an option that was not sent"));
        }
        if length > OPTION_REPLY_BYTES_MAX {
            let (have, max) = (length.into(), OPTION_REPLY_BYTES_MAX.into());
            return Err(NbdError::Limit { what: "an option reply", have, max });
        }
        if replies >= OPTION_REPLIES_MAX {
            return Err(NbdError::Limit {
                what: "option replies",
                have: u64::from(replies) + 1,
                max: OPTION_REPLIES_MAX.into(),
            });
        }
        if length == 0 {
            return self.reply(option, kind, replies, &[]);
        }
        self.state = State::Body { option, kind, replies, length };
        Ok(None)
    }

    fn reply(&mut self, option: Opt, kind: u32, replies: u32, body: &[u8]) -> Result<Option<Export>, NbdError> {
        if kind & REPLY_ERROR_BIT != 0 {
            return self.refused(option, kind, body).map(|()| None);
        }
        match (option, kind) {
            (_, REPLY_ACK) if !body.is_empty() => return Err(NbdError::Protocol("an acknowledgement with data")),
            (Opt::ExtendedHeaders, REPLY_ACK) => self.framed(Framing::Extended),
            (Opt::StructuredReply, REPLY_ACK) => self.framed(Framing::Structured),
            (Opt::SetMetaContext, REPLY_ACK) => self.ask(Opt::Go),
            (Opt::Go, REPLY_ACK) => return self.ready().map(Some),
            (Opt::SetMetaContext, REPLY_META_CONTEXT) => {
                self.context(body)?;
                self.state = State::Head { option, replies: replies + 1 };
            }
            (Opt::Go, REPLY_INFO) => {
                self.info(body)?;
                self.state = State::Head { option, replies: replies + 1 };
            }
            _ => return Err(NbdError::Protocol("an option reply of a type that does not belong there")),
        }
        Ok(None)
    }

    /// Extensions may be refused, and the session goes on without; everything else ends it.
    fn refused(&mut self, option: Opt, kind: u32, body: &[u8]) -> Result<(), NbdError> {
        let fatal = matches!(kind, ERROR_TLS_REQUIRED | ERROR_SHUTDOWN);
        match option {
            Opt::ExtendedHeaders if !fatal => self.ask(Opt::StructuredReply),
            Opt::StructuredReply if !fatal => self.ask(Opt::Go),
            Opt::SetMetaContext if !fatal && kind != ERROR_UNKNOWN_EXPORT => {
                self.contexts.clear();
                self.ask(Opt::Go);
            }
            _ => {
                let (refusal, meaning) = match kind {
                    ERROR_UNKNOWN_EXPORT => (Refusal::UnknownExport, "there is no such export"),
                    ERROR_TLS_REQUIRED => (Refusal::TlsRequired, "it wants TLS"),
                    ERROR_SHUTDOWN => (Refusal::Other, "it is shutting down"),
                    _ => (Refusal::Other, "not possible there"),
                };
                let reason = if body.is_empty() { meaning.to_owned() } else { peer_text(body) };
                return Err(NbdError::Refused { option: option.as_str(), reason, refusal });
            }
        }
        Ok(())
    }

    fn framed(&mut self, framing: Framing) {
        self.framing = framing;
        self.ask(if self.hello.contexts.is_empty() { Opt::Go } else { Opt::SetMetaContext });
    }

    fn context(&mut self, body: &[u8]) -> Result<(), NbdError> {
        let mut fields = Fields(body);
        let id = fields.u32().ok_or(NbdError::Protocol("short metadata context"))?;
        let name = self.hello.contexts.iter().find(|name| name.as_bytes() == fields.0);
        let name = name.ok_or(NbdError::Protocol("a metadata context that was not asked for"))?;
        if self.contexts.iter().any(|known| known.id == id || known.name == *name) {
            return Err(NbdError::Protocol("a metadata context twice"));
        }
        self.contexts.push(Context { id, name: name.clone() });
        Ok(())
    }

    fn info(&mut self, body: &[u8]) -> Result<(), NbdError> {
        let mut fields = Fields(body);
        match fields.u16() {
            Some(INFO_EXPORT) => {
                let (Some(size), Some(flags), []) = (fields.u64(), fields.u16(), fields.0) else {
                    return Err(NbdError::Protocol("export information of a wrong length"));
                };
                if self.export.replace((size, ExportFlags(flags))).is_some_and(|(before, _)| before != size) {
                    return Err(NbdError::Protocol("two sizes of one export"));
                }
            }
            Some(INFO_BLOCK_SIZE) => {
                let (Some(min), Some(_preferred), Some(max), []) = (fields.u32(), fields.u32(), fields.u32(), fields.0)
                else {
                    return Err(NbdError::Protocol("block sizes of a wrong length"));
                };
                if !min.is_power_of_two() || min > BLOCK_BYTES_MIN_MAX || max < min {
                    return Err(NbdError::Protocol("impossible block sizes"));
                }
                self.blocks = Some((min, max));
            }
            // Names, descriptions and what is not invented yet: the protocol wants them ignored.
            Some(_) => {}
            None => return Err(NbdError::Protocol("short export information")),
        }
        Ok(())
    }

    fn ready(&mut self) -> Result<Export, NbdError> {
        let (size, flags) = self.export.ok_or(NbdError::Protocol("no export information"))?;
        if size == 0 {
            return Err(NbdError::Protocol("an export of no bytes"));
        }
        if size > EXPORT_BYTES_MAX {
            return Err(NbdError::Limit { what: "an export", have: size, max: EXPORT_BYTES_MAX });
        }
        let (block_bytes_min, payload_bytes_max) = self.blocks.unwrap_or((1, PAYLOAD_BYTES_MAX));
        let payload_bytes_max = payload_bytes_max.min(PAYLOAD_BYTES_MAX) / block_bytes_min * block_bytes_min;
        let contexts = std::mem::take(&mut self.contexts);
        Ok(Export { size, flags, block_bytes_min, payload_bytes_max, framing: self.framing, contexts })
    }

    fn ask(&mut self, option: Opt) {
        let mut data = BytesMut::new();
        let put_text = |data: &mut BytesMut, text: &str| {
            data.put_u32(text.len() as u32);
            data.put_slice(text.as_bytes());
        };
        match option {
            Opt::ExtendedHeaders | Opt::StructuredReply => {}
            Opt::SetMetaContext => {
                put_text(&mut data, &self.hello.export);
                data.put_u32(self.hello.contexts.len() as u32);
                self.hello.contexts.iter().for_each(|name| put_text(&mut data, name));
            }
            Opt::Go => {
                put_text(&mut data, &self.hello.export);
                data.put_u16(1);
                data.put_u16(INFO_BLOCK_SIZE);
            }
        }
        self.output.put_u64(OPTION_MAGIC);
        self.output.put_u32(option as u32);
        self.output.put_u32(data.len() as u32);
        self.output.put_slice(&data);
        self.state = State::Head { option, replies: 0 };
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    Greeting,
    Head { option: Opt, replies: u32 },
    Body { option: Opt, kind: u32, replies: u32, length: u32 },
}
