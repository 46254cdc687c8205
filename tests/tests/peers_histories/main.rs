//! Histories in which garbage collection took what backups of other systems needed, told again here, one test each: F26 to
//! F33. Each names what happened there, and which of our rules does not let it happen. In most of them one side stands
//! still at each of its operations on files in turn while the other does its work; [`case::Case::judge`] then reads the
//! log record by record, so that a mistake is found that a later step would make good.
//!
//!     cargo nextest run --release -p windlass-tests --test peers_histories
//!     WINDLASS_EVERY_OPERATION=1 cargo nextest run --release -p windlass-tests --test peers_histories
//!
//! The second tries all operations of a sweep, not a fifth of them. Each of these guards was taken out once to see the test
//! beside it fail:
//!
//! | guard | test |
//! |---|---|
//! | `roots_since`; with it `State::all_marked` | f26; f26, and for the second alone r6_what_became_a_root_after_the_mark_was_marked_too |
//! | `Inner::expendable` | f26 |
//! | `is_pinned`, points pinned at the mark | f26, r10_a_reader_comes |
//! | the mark before the look (`Inner::check_counted`) | f26, f30 |
//! | `droppable` | f27; for `State::check_dropped` r6_a_session_from_before_the_doom_keeps_its_packs |
//! | the walk at commit (`Session::missing_from`) | f27 |
//! | what was relied on is compared in the record's making (`Session::commit`) | f27 |
//! | R8, a refused commit leaves the session open | f27 |
//! | `Inner::orphan`; with it `State::check_dropped` | f28, f29 |
//! | no time of a file decides | f29 |
//! | `Inner::may_be_doomed`; with it `State::check_doomed` | f30 |
//! | the term of a record (`State::check`) | f32 |
//! | no age ends a session by itself (`Inner::begin_sweep`) | f33 |
//! | `is_just_what_is_forgotten`; with it `State::check_doomed` | r11, r10_a_reader_comes |
//! | `Inner::second_look` | r19 |
//! | `Looked::held` | what_is_needed_and_damaged_keeps_its_pack |
//! | `was_dropped` in `reader` | r10_who_cannot_write |
//! | `References::recover` | a_killed_sweep_has_taken_what_the_log_says_or_nothing_can_be_told |
//! | `Mem`: `losses` at commit | a_commit_relies_on_nothing_that_a_sweep_has_doomed_meanwhile |
//! | `Mem`: pins, young chunks, waits | a_reader_keeps_what_it_reads, what_an_open_session_brought_stays, a_promise_that_was_swept |

mod case;
mod clocks;
mod guards;
mod processes;

use case::{Case, Job, NEW, OF_A_COMMIT, OF_A_SWEEP, OLD, STAYS, at_every_operation};
use mover::{ErrorKind, PointChange, Repository};
use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};
use windlass_tests::kept::{files, replay};
use windlass_tests::program::beside;

/// Proxmox Backup Server up to 3.3, <https://forum.proxmox.com/threads/149332/> (PSA-2025-00019-1): the collector listed
/// what there was; a backup that came then took over the chunks of the one before, which was pruned before the collector
/// came to it. Nobody had marked them, and they were deleted.
///
/// R6: a doom is valid only if what became a root since the mark was marked too (`roots_since`, `State::all_marked`), and
/// packs are chosen again for it (`Inner::expendable`); the parents that a session names are roots until it ends
/// (`is_pinned`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f26_a_backup_takes_over_what_is_being_swept() {
    for (what, parents) in [("anew", &[][..]), ("on its parent", &[OLD])] {
        let begun = async || {
            let case = Case::new(&[1, 3]).await;
            // A parent that was forgotten is none: who builds on it has begun before.
            let job = if parents.is_empty() { None } else { Some(case.job(NEW, parents).await) };
            case.forget(OLD).await;
            (case, job)
        };
        let heir = async |case: &Case, job: &Option<Job>| match job {
            Some(job) => job.run().await.unwrap(),
            None => case.job(NEW, &[]).await.run().await.unwrap(),
        };
        let sweeps = async |case: &Case, _: &Option<Job>| _ = case.sweep().await;
        let operations = at_every_operation((what, OF_A_SWEEP), begun, sweeps, heir, async |_, _| {}).await;
        assert!(operations > 40, "{what}: {operations}");
    }
}

/// Proxmox Backup Server, <https://lists.proxmox.com/pipermail/pbs-devel/2025-November/015163.html>: the collector looked
/// when a chunk was last used; a backup that found the chunk there used it; the collector removed it, by what it had seen
/// before.
///
/// R6, R7: what an open session was told to be there is doomed at most, and not dropped before the session has ended
/// (`droppable`, `State::check_dropped`). Its commit looks again (`missing_for`), and nothing that it found may have become
/// doomed until the very record (`Session::commit`). R8: what it misses then is put again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f27_what_was_promised_is_swept_before_the_commit() {
    let told = async || {
        let case = Case::new(&[1, 2]).await;
        let job = case.job(NEW, &[]).await;
        assert_eq!(job.ask().await, 4, "the whole of the old point, its pages too");
        case.forget(OLD).await;
        (case, job)
    };
    let commits = async |_: &Case, job: &Job| job.commit().await.unwrap();
    let sweeps = async |case: &Case, _: &Job| _ = case.sweep().await;
    let operations =
        at_every_operation(("while it is swept", OF_A_SWEEP), told, sweeps, commits, async |_, _| {}).await;
    assert!(operations > 40, "{operations}");
    let operations =
        at_every_operation(("while it is committed", OF_A_COMMIT), told, commits, sweeps, async |_, _| {}).await;
    assert!(operations > 20, "{operations}");
}

/// Proxmox Backup Server with S3, <https://lists.proxmox.com/pipermail/pbs-devel/2025-October/014926.html> and two more
/// attempts: a chunk was on its way to the bucket, and the collector took it, or the mark that it is there, for left over.
///
/// R5: a pack that is not in the log is left over only when the term of its writer is over (`Inner::orphan`,
/// `State::check_dropped`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f28_a_sweep_meets_packs_on_their_way() {
    packs_on_their_way(None).await;
}

/// Proxmox Backup Server, <https://bugzilla.proxmox.com/show_bug.cgi?id=5982>: the file system did not note when files were
/// last used, and the collector took everything for old.
///
/// Nothing depends on what file systems say of times; `store::io::Io`, through which all files are used, cannot even ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f29_times_of_files_say_nothing() {
    let century = Duration::from_secs(100 * 365 * 86_400);
    for times in [SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + 2 * century] {
        packs_on_their_way(Some(times)).await;
    }
}

async fn packs_on_their_way(times: Option<SystemTime>) {
    let asked = async || {
        let case = Case::new(&[5, 6]).await;
        let job = case.job(NEW, &[]).await;
        assert_eq!(job.ask().await, 0);
        case.forget(OLD).await;
        (case, job)
    };
    let brings = async |_: &Case, job: &Job| {
        job.put().await.unwrap();
        job.commit().await.unwrap();
    };
    let sweeps = async |case: &Case, _: &Job| {
        if let Some(times) = times {
            set_times(case.folder(), times);
        }
        case.sweep().await;
    };
    let what = format!("with times {times:?}");
    let operations = at_every_operation((&what, OF_A_COMMIT), asked, brings, sweeps, async |_, _| {}).await;
    assert!(operations > 30, "{operations}");
}

/// Every file was used, and changed, then for the last time.
fn set_times(folder: &Path, times: SystemTime) {
    for name in files(folder) {
        // Some go meanwhile.
        let Ok(file) = File::options().write(true).open(folder.join(name)) else { continue };
        file.set_times(FileTimes::new().set_accessed(times).set_modified(times)).unwrap();
    }
}

/// Proxmox Backup Server, <https://git.proxmox.com/?p=proxmox-backup.git;a=commit;h=d3d566f7>: the time from which on chunks
/// count as used was taken after marking, not before: what was uploaded meanwhile was neither marked nor young.
///
/// R6: a sweep marks up to a record that it chooses first (`Inner::check_counted`), and dooms no pack that is younger, or
/// younger than the oldest open session (`Inner::may_be_doomed`, `State::check_doomed`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f30_what_comes_while_a_sweep_marks_is_young() {
    for late in [false, true] {
        let waiting = async || {
            let case = Case::new(&[1, 5]).await;
            let job = case.job(NEW, &[]).await;
            case.forget(OLD).await;
            (case, job)
        };
        let sweeps = async |case: &Case, _: &Job| _ = case.sweep().await;
        let brings = async |_: &Case, job: &Job| {
            job.ask().await;
            job.put().await.unwrap();
            job.flush().await.unwrap();
            if !late {
                job.commit().await.unwrap();
            }
        };
        let then = async |case: &Case, job: &Job| {
            if late {
                // What is durable, and belongs to no point yet, outlasts any sweep.
                case.sweep().await;
                job.commit().await.unwrap();
            }
        };
        let operations = at_every_operation(("on its way", OF_A_SWEEP), waiting, sweeps, brings, then).await;
        assert!(operations > 40, "{operations}");
    }
}

/// rustic beside restic, <https://github.com/rustic-rs/docs/issues/144>: `restic prune` took what a `rustic backup` relied
/// on, because one of the two does not look at the other's lock.
///
/// R1, R6: the lock only keeps work from being done in vain. A process that ignores it begins another term, and from its
/// first record on whatever the first one states is void (`State::check`), and is refused before it is written
/// (`CommitLog::append`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f32_another_program_sweeps_and_ignores_the_lock() {
    for flushed in [false, true] {
        let case = Case::new(&[1, 3]).await;
        let job = case.job(NEW, &[OLD]).await;
        job.ask().await;
        job.put().await.unwrap();
        if flushed {
            job.flush().await.unwrap();
        }
        fs::remove_file(case.folder().join("lock")).unwrap();
        other_program(&["forget", &OLD.to_string()], case.folder());
        other_program(&["sweep", "--repack-from", "1"], case.folder());
        let state = replay(case.folder());
        assert!(!state.points().contains_key(&OLD) && state.packs().values().all(|pack| pack.doomed.is_none()));
        let local = &case.lab.repository;
        let told = [
            job.commit().await.unwrap_err(),
            local.change_points(&[STAYS], PointChange::Forget).await.unwrap_err(),
            local.sweep(Default::default(), Default::default()).await.unwrap_err(),
        ];
        for error in told {
            assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
        }
        drop(job);
        let case = case.reopened().await;
        case.job(NEW, &[STAYS]).await.run().await.unwrap();
        case.settle(if flushed { "flushed" } else { "on its way" }).await;
    }
}

/// Runs `windlass` on a directory.
fn other_program(arguments: &[&str], repository: &Path) {
    let run = Command::new(beside("windlass")).args(arguments).arg("-r").arg(repository).output().unwrap();
    assert!(run.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
}
