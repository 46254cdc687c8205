//! Numbers of the NBD protocol (the project's `doc/proto.md` and its `extension-ext-header` branch), and our limits.

/// Longest data of one option reply that is read.
pub const OPTION_REPLY_BYTES_MAX: u32 = 16 << 10;
/// Replies to one option before the server counts as endless.
pub const OPTION_REPLIES_MAX: u32 = 256;
/// Longest export name, context name or error text: the protocol's own string limit.
pub const STRING_BYTES_MAX: usize = 4096;
/// Metadata contexts asked for on one connection.
pub const CONTEXTS_MAX: usize = 16;
/// Chunks in the reply to one request: a 32 MiB read in pieces of 512 bytes.
pub const REPLY_CHUNKS_MAX: u32 = 65_536;
/// Block status descriptors in one chunk: the protocol's recommendation to servers.
pub const DESCRIPTORS_MAX: u32 = 1 << 20;
/// Longest body of an error chunk: code, length, text, offset.
pub const ERROR_CHUNK_BYTES_MAX: u32 = 6 + 4096 + 8;
/// Requests under way on one connection.
pub const IN_FLIGHT_MAX: usize = 64;
/// Most bytes of one read or write, whatever the server allows.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Largest export: the largest disk that a map can describe.
pub const EXPORT_BYTES_MAX: u64 = 1 << 56;
/// Largest minimum block size that is accepted: the protocol's own bound, and our grid.
pub const BLOCK_BYTES_MIN_MAX: u32 = 65_536;

pub(super) const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(super) const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
pub(super) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

pub(super) const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub(super) const FLAG_NO_ZEROES: u16 = 2;

pub(super) const REPLY_ACK: u32 = 1;
pub(super) const REPLY_INFO: u32 = 3;
pub(super) const REPLY_META_CONTEXT: u32 = 4;
pub(super) const REPLY_ERROR_BIT: u32 = 1 << 31;
pub(super) const ERROR_TLS_REQUIRED: u32 = REPLY_ERROR_BIT + 5;
pub(super) const ERROR_UNKNOWN_EXPORT: u32 = REPLY_ERROR_BIT + 6;
pub(super) const ERROR_SHUTDOWN: u32 = REPLY_ERROR_BIT + 7;

pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

pub(super) const REQUEST_FLAG_PAYLOAD_LENGTH: u16 = 1 << 5;
pub(super) const CHUNK_DONE: u16 = 1;
pub(super) const CHUNK_NONE: u16 = 0;
pub(super) const CHUNK_DATA: u16 = 1;
pub(super) const CHUNK_HOLE: u16 = 2;
pub(super) const CHUNK_STATUS: u16 = 5;
pub(super) const CHUNK_STATUS_EXTENDED: u16 = 6;
pub(super) const CHUNK_ERROR_BIT: u16 = 1 << 15;

/// What `base:allocation` says of an extent that reads as zeros.
pub const ALLOCATION_ZERO: u64 = 2;
/// What `qemu:dirty-bitmap:*` says of an extent that changed.
pub const BITMAP_DIRTY: u64 = 1;

/// Options of the handshake that this client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Opt {
    Go = 7,
    StructuredReply = 8,
    SetMetaContext = 10,
    ExtendedHeaders = 11,
}

impl Opt {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Go => "NBD_OPT_GO",
            Self::StructuredReply => "NBD_OPT_STRUCTURED_REPLY",
            Self::SetMetaContext => "NBD_OPT_SET_META_CONTEXT",
            Self::ExtendedHeaders => "NBD_OPT_EXTENDED_HEADERS",
        }
    }
}

/// Commands of the transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Read bytes.
    Read = 0,
    /// Write bytes.
    Write = 1,
    /// End the session.
    Disconnect = 2,
    /// Make completed writes durable.
    Flush = 3,
    /// Discard: content becomes undefined.
    Trim = 4,
    /// Make a range read as zeros.
    WriteZeroes = 6,
    /// Ask for the extents of a range.
    BlockStatus = 7,
}

impl Command {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::WriteZeroes => "write zeroes",
            Self::BlockStatus => "block status",
        }
    }

    /// What the client waits for, in the words of an error message.
    pub(super) const fn doing(self) -> &'static str {
        match self {
            Self::Read => "reading",
            Self::Write => "writing",
            Self::Disconnect => "disconnecting",
            Self::Flush => "flushing",
            Self::Trim => "trimming",
            Self::WriteZeroes => "writing zeroes",
            Self::BlockStatus => "telling block status",
        }
    }

    /// Whether a sound server may need long without a byte to be seen of it.
    pub(super) const fn may_take_long(self) -> bool {
        matches!(self, Self::Flush | Self::Trim | Self::WriteZeroes)
    }
}

/// Big-endian numbers of a control message whose length was checked.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}
