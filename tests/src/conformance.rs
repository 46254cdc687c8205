//! What every repository must do: cases over the traits, run for each implementation by `conformance!`.

#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod commit;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod copying;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod dedup;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod delta;
mod directory;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod faults;
mod kit;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod lineage;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod reading;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod repairing;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod round_trip;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod sharing;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod sweeping;

pub use directory::InDirectory;
pub use kit::{DISK_BYTES, Fixture, Lab, begin, manifest, options};

/// Makes one test of each case for a [`Fixture`]. Called in a module of its own.
#[macro_export]
macro_rules! conformance {
    ($fixture:ty) => {
        $crate::conformance! { $fixture;
            round_trip {
                full_and_increments unaligned_sizes tall_maps all_zero_disk growing_and_shrinking changes_need_a_word discards attachments
                tracking_wishes random_histories
            }
            dedup {
                identical_second_backup_stores_nothing second_machine_of_a_template_stores_under_a_percent
                equal_blocks_are_one_chunk broken_off_at_the_end_stores_nothing_twice
                broken_off_and_changed_never_mixes_two_moments suspects_are_healed_under_a_bitmap
            }
            commit {
                committing_twice_gives_the_same_point unknown_chunks_are_listed_and_can_be_put
                absent_pages_are_not_descended_into a_page_does_not_vouch_for_its_subtree
                refused_commit_is_repaired_by_backup a_lost_page_is_made_again
                an_abandoned_session_leaves_no_point
                a_dropped_session_leaves_no_point groups_are_all_or_nothing lying_puts_are_refused
                checksums_are_compared_even_when_the_sender_is_trusted nonsense_is_not_committed the_point_is_as_drafted
                texts_are_not_cut attachments_are_as_long_as_they_say
            }
            sharing {
                a_chunk_of_another_session_is_waited_for
                what_another_session_stored_meanwhile_is_stored_once
                a_putter_that_goes_away_takes_nobody_along
                machines_at_the_same_time reads_go_on_during_backups
            }
            reading {
                unknown_points lists_in_order_of_commit_and_by_name every_distinct_id_once_or_more
                log_head_moves_with_commits_only reopened_it_is_the_same totals
                an_index_made_again_beside_a_backup_knows_everything
                verification_tells_what_is_damaged
            }
            repairing {
                what_is_damaged_is_brought_from_another_copy what_the_other_copy_lacks_stays_wanted
            }
            faults {
                source_vanishes source_cannot_read source_is_torn source_cannot_be_released target_is_full_or_fails
                target_too_small lying_tracking_is_found_out an_audit_finds_what_tracking_hid
                a_damaged_map_is_found_by_the_audit broken_at_every_operation one_rotten_chunk_of_two_copies
                withheld_and_repeated_chunks chunks_withheld_by_one_copy a_copy_that_dies_in_the_middle
                content_that_is_not_what_its_id_says
            }
            delta {
                only_what_differs_is_fetched_and_written zeros_are_told_from_what_was_there
                a_target_of_another_size broken_off_and_finished_by_the_same_call a_target_that_cannot_be_read
            }
            sweeping {
                forgotten_points_come_back_until_a_sweep what_is_forgotten_and_committed_again_is_back pins_hold_and_unknown_points_are_told what_points_share_stays
                a_reader_keeps_what_it_reads what_an_open_session_brought_stays
                a_promise_that_was_swept_is_found_by_the_commit sweeps_go_on_beside_backups
            }
            lineage {
                a_stranger_of_the_same_name_is_no_parent what_was_brought_back_is_no_parent
                a_copy_does_not_bring_back_what_was_forgotten times_that_have_not_come_are_refused
                a_machine_that_was_handed_over_begins_anew copies_stand_in_the_order_of_their_origin
                labels_are_kept_and_go_with_copies
            }
            copying {
                blobs_go_verbatim copying_twice_does_nothing only_what_is_missing_moves broken_copy_is_resumed
                other_domains_are_refused pinned_subtrees_are_not_walked a_page_in_the_target_does_not_vouch
                refused_commit_is_repaired_by_copy newer_point_first origin_survives_a_chain
                manifests_of_later_versions_go_byte_for_byte
            }
        }
    };
    ($fixture:ty; $($group:ident { $($case:ident)* })*) => { $(
        mod $group {
            #[allow(unused_imports, reason = "the fixture may be named by a full path")]
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    $crate::conformance::$group::$case($crate::conformance::Lab::<$fixture>::new().await).await;
                }
            )*
        }
    )* };
}

#[cfg(test)]
mod tests {
    /// A case that nobody runs is worse than none.
    #[test]
    fn every_case_is_run() {
        let list = include_str!("conformance.rs");
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/conformance");
        let mut cases = 0;
        for group in std::fs::read_dir(folder).unwrap() {
            let path = group.unwrap().path();
            // Not cases, but what they are made with.
            if path.ends_with("kit.rs") || path.ends_with("directory.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for line in text.lines() {
                let Some(rest) = line.strip_prefix("pub async fn ") else { continue };
                let name = rest.split(['<', '(']).next().expect("a name");
                assert!(list.split_whitespace().any(|word| word == name), "{name} is not in the list");
                cases += 1;
            }
        }
        assert!(cases > 50, "{cases} cases");
    }
}
