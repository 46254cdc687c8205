use super::*;
use crate::{MachineId, OwnerId, PointId, RepositoryId};
use chunker::ChunkId;
use proptest::prelude::*;

const MINUTE_NS: i64 = TOLERANCE_NS;

fn point(number: u64, time: i64) -> RecoveryPoint {
    RecoveryPoint {
        id: PointId(u128::from(number).to_be_bytes()),
        manifest: ChunkId([0; 32]),
        owner: OwnerId::default(),
        owner_name: None,
        stamped: OwnerId::default(),
        holder: None,
        machine: MachineId::default(),
        machine_name: "web".parse().unwrap(),
        group: None,
        snapshot_time: Timestamp(time),
        commit_time: Timestamp(time),
        origin: (RepositoryId::default(), Timestamp(time)),
        number,
        protected_until: Timestamp(0),
        bytes_logical: 0,
        bytes_new: 0,
        bytes_stored: 0,
        pinned: false,
        forgotten: false,
        labels: Default::default(),
    }
}

/// Points made one after the other, at these minutes.
fn at_minutes(minutes: &[i64]) -> Vec<RecoveryPoint> {
    (1..).zip(minutes).map(|(number, minute)| point(number, minute * MINUTE_NS)).collect()
}

fn suspects(points: &[RecoveryPoint], now: i64) -> Vec<u64> {
    let points: Vec<&RecoveryPoint> = points.iter().collect();
    suspect_times(&points, Timestamp(now * MINUTE_NS)).iter().map(|(point, _)| point.number).collect()
}

#[test]
fn copies_go_by_their_records_whatever_order_they_came_in() {
    let points = [point(7, 1), point(3, 9), point(5, 5)];
    let numbers = |points: &[RecoveryPoint]| -> Vec<u64> {
        in_order(points.iter().collect()).iter().map(|point| point.number).collect()
    };
    assert_eq!(numbers(&points), [3, 5, 7]);
    let mut unknown = points.clone();
    unknown[1].number = 0;
    assert_eq!(numbers(&unknown), [7, 5, 0], "by time, where one is not known");
}

#[test]
fn as_few_as_possible_are_suspect() {
    assert_eq!(suspects(&at_minutes(&[1, 2, 2, 3, 9]), 10), [0_u64; 0]);
    assert_eq!(suspects(&at_minutes(&[1, 2, 900, 3, 4]), 10), [3], "it has not come");
    assert_eq!(suspects(&at_minutes(&[1, 2, 900, 3, 4]), 1000), [3], "one that is far ahead");
    assert_eq!(suspects(&at_minutes(&[100, 200, 3, 300, 400]), 1000), [3], "one that is far back");
    assert_eq!(suspects(&at_minutes(&[100, 40, 101]), 1000).len(), 1);
    assert_eq!(suspects(&at_minutes(&[10, 9, 11]), 1000), [0_u64; 0], "less than clocks differ by");
    let mut mended = at_minutes(&[1, 2, 900, 3, 4]);
    mended[2].labels.insert(
        crate::record::labels::TIME_KEY.into(),
        crate::record::labels::time_value(Timestamp(2 * MINUTE_NS + 5)),
    );
    assert_eq!(suspects(&mended, 10), [0_u64; 0], "until it is put right");
    assert_eq!(mended[2].time(), Timestamp(2 * MINUTE_NS + 5));
}

proptest! {
    /// Without the suspects no time goes back by more than clocks may differ.
    #[test]
    fn what_is_left_never_goes_back(minutes in prop::collection::vec(-50..50_i64, 0..40)) {
        let points = at_minutes(&minutes);
        let suspects = suspects(&points, 100);
        let left: Vec<i64> = points.iter().filter(|it| !suspects.contains(&it.number)).map(|it| it.snapshot_time.0).collect();
        let mut latest = i64::MIN;
        for time in left {
            prop_assert!(latest.saturating_sub(time) <= 2 * TOLERANCE_NS);
            latest = latest.max(time);
        }
    }
}
