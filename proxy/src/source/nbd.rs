//! An NBD export as source: somebody else's server, perhaps on another host.

use super::Described;
use super::evidence::Evidence;
use super::identity::untold_identity;
use super::proof::{Served, proven_change};
use crate::nbd::{NbdDisk, NbdError, NbdUri, Refusal};
use crate::qemu::TrackingName;
use bytes::Bytes;
use chunker::Extent;
use mover::{Changed, Error, ErrorKind, Name, ParentDisk, Past, Result, TrackingWish};

/// An open export.
#[derive(Debug)]
pub struct NbdExport {
    disk: NbdDisk,
    uri: NbdUri,
}

impl NbdExport {
    /// Connects to the server and negotiates the export.
    ///
    /// # Errors
    /// `Transport` when the server cannot be reached or talks nonsense, `Usage` when it has no such export.
    pub async fn open(uri: NbdUri, name: &Name, past: &impl Past) -> Result<(Self, Described)> {
        let mut bitmaps: Vec<String> = uri.bitmap.iter().cloned().collect();
        if let Some(tracking) = uri.bitmap.as_ref().and_then(|bitmap| bitmap.parse::<TrackingName>().ok()) {
            // What stands beside it tells whether it may be believed.
            let then = past.disk(name).await?.and_then(|disk| Evidence::read(&disk.format_options).ok());
            let witness = then.and_then(|then| then.witness).map(|witness| witness.to_string());
            bitmaps.extend([Some(tracking.twin().to_string()), witness].into_iter().flatten());
        }
        let disk = NbdDisk::open(&uri.server, &uri.export, &bitmaps, uri.patience()).await;
        let disk = disk.map_err(|error| nbd_error(error, ErrorKind::Source).context(&uri))?;
        let described = Described {
            size: disk.export().size,
            format: "nbd",
            chain: vec![untold_identity(uri.to_string())],
            ..Described::default()
        };
        Ok((Self { disk, uri }, described))
    }

    /// What `?bitmap=NAME` marks, when the name proves that it was begun at the parent's checkpoint.
    ///
    /// # Errors
    /// Those of the server; `Tracking`.
    pub async fn changed(&self, parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> Result<Changed> {
        let extents = self.disk.extents().await.map_err(|error| self.failed(error))?;
        let seen = Served { bitmap: self.uri.bitmap.as_deref(), size: self.disk.export().size, extents: &extents };
        let mut changed = match seen.proven(parent, wish) {
            Ok((name, dirty)) => proven_change(&name, dirty),
            Err(doubt) => doubt.changed(parent, wish)?,
        };
        changed.zeroes = extents.zeroes;
        Ok(changed)
    }

    /// Reads `extent`.
    ///
    /// # Errors
    /// `Source` when the server cannot read it, `Transport` when the connection broke.
    pub async fn read(&self, extent: Extent) -> Result<Bytes> {
        self.disk.read(extent).await.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: NbdError) -> Error {
        nbd_error(error, ErrorKind::Source).context(&self.uri)
    }
}

/// `error` of a remote server in the terms of a side (`Source` or `Target`).
pub(crate) fn nbd_error(error: NbdError, side: ErrorKind) -> Error {
    let text = error.to_string();
    match error {
        NbdError::Request { .. } if error.is_no_space() && side == ErrorKind::Target => {
            Error::new(ErrorKind::TargetFull, text)
        }
        NbdError::Request { .. } | NbdError::Unsuitable { .. } => Error::new(side, text),
        NbdError::Refused { refusal: Refusal::TlsRequired, .. } => {
            Error::usage(text).hint("NBD over TLS is not supported; use a unix socket or a tunnel")
        }
        NbdError::Refused { refusal: Refusal::UnknownExport, .. } => {
            Error::usage(text).hint("`nbdinfo --list URI` shows what the server exports")
        }
        NbdError::Silent { .. } => Error::transport(text)
            .hint("check whether the server still runs; ?timeout=SECONDS behind its address sets a longer limit"),
        NbdError::Refused { .. }
        | NbdError::Protocol(_)
        | NbdError::Limit { .. }
        | NbdError::Closed(_)
        | NbdError::Io(_) => Error::transport(text),
    }
}
