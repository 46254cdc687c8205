//! Where disks are restored to.

use crate::Result;
use bytes::Bytes;
use chunker::{Extent, ExtentSet};
use std::future::Future;

/// One disk that is being written.
///
/// Calls may overlap and come in any order, but never twice for one byte. Errors are of kind
/// [`ErrorKind::Target`](crate::ErrorKind::Target), [`TargetFull`](crate::ErrorKind::TargetFull),
/// [`Transport`](crate::ErrorKind::Transport) or [`Usage`](crate::ErrorKind::Usage).
pub trait Target: Send + Sync {
    /// Bytes it can hold.
    fn size(&self) -> u64;

    /// Writes `bytes` at `offset`.
    fn write(&self, offset: u64, bytes: Bytes) -> impl Future<Output = Result<()>> + Send;

    /// Makes a range read as zeros. If possible, the zeros are not stored.
    fn zero(&self, extent: Extent) -> impl Future<Output = Result<()>> + Send;

    /// The bytes of `extent` as the target holds them, exactly `extent.length` of them: for an update in place. Asked
    /// before those bytes are written.
    fn read(&self, extent: Extent) -> impl Future<Output = Result<Bytes>> + Send;

    /// Ranges that are known to read as zeros without reading them; none where that cannot be told. Asked before
    /// anything is written.
    fn zeroes(&self) -> impl Future<Output = Result<ExtentSet>> + Send;

    /// Makes everything durable under its final name. A target that is dropped without this call removes only what it
    /// created; what was there before stays.
    fn finish(self) -> impl Future<Output = Result<()>> + Send;
}
