//! Copies of many points: in which order, and what the failure of one means for the others.

use crate::{CopyReport, Error, ErrorKind, Progress, RecoveryPoint, Repository, Result, Verification, copy};

/// Whether an error of one thing ends a job over many, because all that are left would fail in the same way.
pub const fn ends_all(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Cancelled
            | ErrorKind::Domain
            | ErrorKind::Fenced
            | ErrorKind::NotAuthorised
            | ErrorKind::RolledBack
            | ErrorKind::StoreFull
            | ErrorKind::Transport
    )
}

/// What became of many points.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyTally {
    /// Sums of the reports of all points that were copied.
    pub copied: CopyReport,
    /// Points that were in the target before.
    pub there: u64,
    /// Points that could not be copied.
    pub failed: u64,
}

impl CopyTally {
    /// Counts the result for one of `of` points. Gives its error back when the job goes on with the other points.
    ///
    /// # Errors
    /// That of `made` when it ends the whole job: the only point failed, or every other one would fail in the same way.
    pub fn count(&mut self, of: usize, made: Result<CopyReport>) -> Result<Option<Error>> {
        match made {
            Ok(report) => {
                self.there += u64::from(report.points == 0);
                self.copied.points += report.points;
                self.copied.chunks_moved += report.chunks_moved;
                self.copied.bytes_moved += report.bytes_moved;
                Ok(None)
            }
            Err(error) if of == 1 || ends_all(error.kind()) => Err(error),
            Err(error) => {
                self.failed += 1;
                Ok(Some(error))
            }
        }
    }
}

/// Puts points into the order in which they are copied, oldest first, so that the chunks which later points share with
/// them are there already.
pub fn in_copy_order(points: &mut [RecoveryPoint]) {
    points.sort_by_key(|point| (point.origin.1, point.snapshot_time));
}

/// Copies `points` one after the other, and gives what became of each to `done`, which may end the job.
///
/// # Errors
/// Those of `done`.
pub async fn copy_points<A: Repository, B: Repository>(
    from: &A,
    to: &B,
    points: &[RecoveryPoint],
    verification: Verification,
    progress: &Progress,
    mut done: impl AsyncFnMut(&RecoveryPoint, Result<CopyReport>) -> Result<()>,
) -> Result<()> {
    for point in points {
        let made = copy(from, to, point, verification, progress).await;
        done(point, made).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_befall_every_point_ends_the_job_and_nothing_else_does() {
        let failed = |kind| Err(Error::new(kind, "it failed"));
        let mut tally = CopyTally::default();
        for kind in [ErrorKind::Integrity, ErrorKind::StoreIo, ErrorKind::NotFound, ErrorKind::Version] {
            assert_eq!(tally.count(2, failed(kind)).unwrap().map(|error| error.kind()), Some(kind));
            assert_eq!(CopyTally::default().count(1, failed(kind)).unwrap_err().kind(), kind, "the only one");
        }
        assert_eq!(tally.failed, 4);
        for kind in [ErrorKind::StoreFull, ErrorKind::Transport, ErrorKind::NotAuthorised, ErrorKind::Domain] {
            assert_eq!(tally.count(2, failed(kind)).unwrap_err().kind(), kind);
        }
        assert!(tally.count(2, Ok(CopyReport { points: 1, chunks_moved: 2, bytes_moved: 3 })).unwrap().is_none());
        assert!(tally.count(2, Ok(CopyReport::default())).unwrap().is_none());
        assert_eq!((tally.there, tally.copied.points, tally.failed), (1, 1, 4));
    }
}
