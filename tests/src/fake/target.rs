//! A target in memory that watches how it is written.

use super::Image;
use bytes::Bytes;
use chunker::{Extent, ExtentSet};
use mover::{Error, Result};
use std::sync::{Arc, Mutex};

/// A disk being restored. Writing a byte twice, or past the end, is a panic.
pub struct Target {
    screen: Screen,
    size: u64,
    /// Writes and zeroings that go well, and what comes then.
    fail_after: Option<(u64, Failure)>,
    /// Where it cannot be read.
    unreadable: ExtentSet,
    /// Whether it tells where it holds nothing.
    tells_holes: bool,
}

/// Makes the error that a target fails with.
pub type Failure = fn(&'static str) -> Error;

/// What became of a target: to be looked at from outside.
#[derive(Clone, Default)]
pub struct Screen(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    image: Image,
    /// Bytes written or made zero.
    covered: ExtentSet,
    bytes_written: u64,
    bytes_read: u64,
    calls: u64,
    finished: bool,
}

impl Target {
    /// A target that holds `size` bytes.
    pub fn new(size: u64) -> (Self, Screen) {
        let screen = Screen::default();
        screen.0.lock().expect("not poisoned").image = Image::new(size);
        (
            Self { screen: screen.clone(), size, fail_after: None, unreadable: ExtentSet::new(), tells_holes: true },
            screen,
        )
    }

    /// A target that holds this image already.
    pub fn holding(image: Image) -> (Self, Screen) {
        let (target, screen) = Self::new(image.size());
        screen.0.lock().expect("not poisoned").image = image;
        (target, screen)
    }

    /// The same, failing after a number of calls.
    #[must_use]
    pub fn fails_after(mut self, after: u64, with: Failure) -> Self {
        self.fail_after = Some((after, with));
        self
    }

    /// The same, not telling where it holds nothing.
    #[must_use]
    pub fn without_holes(mut self) -> Self {
        self.tells_holes = false;
        self
    }

    /// The same, unreadable there.
    #[must_use]
    pub fn unreadable_at(mut self, extent: Extent) -> Self {
        self.unreadable.insert(extent);
        self
    }

    /// The same, failing after a number of calls.
    pub fn failing(size: u64, after: u64, with: Failure) -> (Self, Screen) {
        let (target, screen) = Self::new(size);
        (target.fails_after(after, with), screen)
    }

    fn take(&self, extent: Extent, bytes: Option<&[u8]>) -> Result<()> {
        let mut seen = self.screen.0.lock().expect("not poisoned");
        seen.calls += 1;
        if let Some((after, with)) = self.fail_after
            && seen.calls > after
        {
            return Err(with("the target fails as planned"));
        }
        assert!(!seen.covered.intersects(extent), "{extent:?} is written twice");
        assert!(extent.length > 0 && extent.end() <= self.size, "{extent:?} is not in the target");
        seen.covered.insert(extent);
        match bytes {
            Some(bytes) => {
                seen.bytes_written += extent.length;
                seen.image.write(extent.offset, bytes);
            }
            None => seen.image.zero(extent),
        }
        Ok(())
    }
}

impl Screen {
    /// The image, when the target was finished.
    pub fn image(&self) -> Option<Image> {
        let seen = self.0.lock().expect("not poisoned");
        seen.finished.then(|| seen.image.clone())
    }

    /// Bytes written or made zero.
    pub fn covered(&self) -> ExtentSet {
        self.0.lock().expect("not poisoned").covered.clone()
    }

    /// The image as it is now, finished or not.
    pub fn now(&self) -> Image {
        self.0.lock().expect("not poisoned").image.clone()
    }

    /// Bytes read.
    pub fn bytes_read(&self) -> u64 {
        self.0.lock().expect("not poisoned").bytes_read
    }

    /// Bytes written, zeros not counted.
    pub fn bytes_written(&self) -> u64 {
        self.0.lock().expect("not poisoned").bytes_written
    }
}

impl mover::Target for Target {
    fn size(&self) -> u64 {
        self.size
    }

    async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        tokio::task::yield_now().await;
        self.take(Extent::new(offset, bytes.len() as u64), Some(&bytes))
    }

    async fn zero(&self, extent: Extent) -> Result<()> {
        tokio::task::yield_now().await;
        self.take(extent, None)
    }

    async fn read(&self, extent: Extent) -> Result<Bytes> {
        tokio::task::yield_now().await;
        let mut seen = self.screen.0.lock().expect("not poisoned");
        assert!(!seen.covered.intersects(extent), "{extent:?} is read after it was written");
        if self.unreadable.intersects(extent) {
            return Err(Error::target("the target cannot be read, as planned"));
        }
        seen.bytes_read += extent.length;
        Ok(seen.image.read(extent))
    }

    async fn zeroes(&self) -> Result<ExtentSet> {
        let zeroes = || self.screen.0.lock().expect("not poisoned").image.zeroes();
        Ok(if self.tells_holes { zeroes() } else { ExtentSet::new() })
    }

    async fn finish(self) -> Result<()> {
        self.screen.0.lock().expect("not poisoned").finished = true;
        Ok(())
    }
}
