use super::*;
use crate::{MachineId, Name, OwnerId, PointId, RepositoryId, clock_doubt};
use chunker::ChunkId;
use proptest::prelude::*;

const HOUR_NS: i64 = 3600 * 1_000_000_000;
const DAY_NS: i64 = 24 * HOUR_NS;
/// 2026-11-22T12:00:00Z, a Sunday.
const NOON: i64 = 1_795_348_800 * 1_000_000_000;

fn point(number: u8, machine: u8, time: i64) -> RecoveryPoint {
    RecoveryPoint {
        id: PointId([number; 16]),
        manifest: ChunkId([0; 32]),
        owner: OwnerId::default(),
        owner_name: None,
        stamped: OwnerId::default(),
        holder: None,
        machine: MachineId([machine; 16]),
        machine_name: "web".parse::<Name>().unwrap(),
        group: None,
        snapshot_time: Timestamp(time),
        commit_time: Timestamp(time),
        origin: (RepositoryId([1; 16]), Timestamp(time)),
        protected_until: Timestamp(0),
        bytes_logical: 0,
        bytes_new: 0,
        bytes_stored: 0,
        pinned: false,
        forgotten: false,
        labels: Default::default(),
        number: u64::from(number) + 1,
    }
}

/// Points of one machine, so many hours before noon; point n is the n-th.
fn before_noon(hours: &[i64]) -> Vec<RecoveryPoint> {
    let numbers = 0..u8::try_from(hours.len()).unwrap();
    hours.iter().zip(numbers).map(|(hours, number)| point(number, 1, NOON - hours * HOUR_NS)).collect()
}

fn kept(points: &[RecoveryPoint], keep: Keep) -> Vec<u8> {
    let verdicts = retain(points, &keep, Timestamp(NOON));
    assert!(verdicts.iter().map(|verdict| verdict.point.id).eq(points.iter().map(|point| point.id)));
    verdicts.iter().filter(|verdict| !verdict.reasons.is_empty()).map(|verdict| verdict.point.id.0[0]).collect()
}

#[test]
fn of_a_period_the_newest_counts_and_empty_ones_do_not() {
    // Today 12:00, 11:30 is not there; 11:00 twice; 0:00; yesterday 23:00; a week, a month, two months, a year ago.
    let points = before_noon(&[24 * 365, 24 * 60, 24 * 31, 24 * 7, 13, 12, 1, 1, 0]);
    let keep = Keep::default();
    assert_eq!(kept(&points, Keep { last: 2, ..keep }), [7, 8]);
    assert_eq!(kept(&points, Keep { hourly: 3, ..keep }), [5, 7, 8], "of two in one hour the later id");
    assert_eq!(kept(&points, Keep { daily: 2, ..keep }), [4, 8]);
    assert_eq!(kept(&points, Keep { weekly: 2, ..keep }), [3, 8], "Sunday and Saturday are one week");
    assert_eq!(kept(&points, Keep { monthly: 3, ..keep }), [1, 2, 8]);
    assert_eq!(kept(&points, Keep { yearly: 5, ..keep }), [0, 8]);
    assert_eq!(kept(&points, Keep { last: 1, yearly: 1, ..keep }), [8]);
    assert_eq!(kept(&points, Keep { daily: u32::MAX, ..keep }), [0, 1, 2, 3, 4, 8]);
    let why = retain(&points, &Keep { last: 1, daily: 1, ..keep }, Timestamp(NOON));
    assert_eq!(why[8].reasons, BTreeSet::from([Reason::Last, Reason::Daily]));
}

#[test]
fn pins_protection_and_groups_keep() {
    let mut points = before_noon(&[5, 4, 3, 2, 1]);
    points[0].pinned = true;
    points[1].protected_until = Timestamp(NOON + 1);
    points[2].protected_until = Timestamp(NOON);
    points.push(point(8, 2, NOON - 9 * HOUR_NS));
    points.push(point(9, 2, NOON - 8 * HOUR_NS));
    let keep = Keep { last: 1, ..Keep::default() };
    assert_eq!(kept(&points, keep), [0, 1, 4, 9], "each machine by itself");
    // The application's point of a group is the newest of its machine, so the machine's stays as well.
    for at in [3, 6] {
        points[at].group = Some(GroupId([7; 16]));
    }
    assert_eq!(kept(&points, keep), [0, 1, 3, 4, 9]);
    assert_eq!(retain(&points, &keep, Timestamp(NOON))[3].reasons, BTreeSet::from([Reason::Group]));
}

/// Two sites' machines, and two owners', though they have one id: junk of one costs the others nothing.
#[test]
fn lineages_do_not_push_each_other_out() {
    let mut points = before_noon(&[8, 7, 6, 5, 4, 3, 2, 1]);
    for at in [0, 1] {
        points[at].origin.0 = RepositoryId([2; 16]);
    }
    for at in [5, 6, 7] {
        points[at].owner = OwnerId([9; 16]);
    }
    assert_eq!(kept(&points, Keep { last: 1, ..Keep::default() }), [1, 4, 7]);
    assert_eq!(kept(&points, Keep { last: 3, ..Keep::default() }), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn copies_go_by_their_origin_unless_that_lies_ahead() {
    let mut points = before_noon(&[2, 1]);
    points[0].origin.1 = Timestamp(NOON - 100 * DAY_NS);
    points[1].origin.1 = Timestamp(NOON + 100 * DAY_NS);
    assert_eq!(retention_time(&points[0]), Timestamp(NOON - 100 * DAY_NS));
    assert_eq!(retention_time(&points[1]), points[1].commit_time);
}

/// An hour that was put back between two backups: the one made last stays (1.6 of what the field found).
#[test]
fn the_newest_is_the_one_made_last() {
    let points = before_noon(&[5, -24 * 365 * 5, 2, 3]);
    assert_eq!(kept(&points, Keep { last: 1, ..Keep::default() }), [3]);
    let mut mended = points.clone();
    mended[1].labels.insert(
        crate::record::labels::TIME_KEY.into(),
        crate::record::labels::time_value(Timestamp(NOON - 4 * HOUR_NS)),
    );
    assert_eq!(retention_time(&mended[1]), Timestamp(NOON - 4 * HOUR_NS));
    let newest = Some(Timestamp(NOON - 2 * HOUR_NS));
    assert!(clock_doubt(&points, newest, Timestamp(NOON)).is_some());
    assert_eq!(clock_doubt(&mended, newest, Timestamp(NOON)), None, "it was put right");
}

#[test]
fn clocks_that_moved_are_noticed() {
    let points = before_noon(&[30, 1]);
    let (newest, hour) = (Some(Timestamp(NOON - HOUR_NS)), HOUR_NS);
    let doubt = |now: i64| clock_doubt(&points, newest, Timestamp(now));
    for fine in [NOON - hour, NOON - 2 * hour, NOON, NOON + 22 * hour] {
        assert_eq!(doubt(fine), None, "{fine}");
    }
    assert!(doubt(NOON - 2 * hour - 1).unwrap().contains("2026-11-22T11:00:00 UTC"));
    assert!(doubt(NOON + 24 * hour * 365).unwrap().contains("365 days"));
    assert!(clock_doubt(&[], newest, Timestamp(NOON - 3 * hour)).unwrap().contains("went back"));
    assert_eq!(clock_doubt(&[], None, Timestamp(NOON)), None);
    // A day in which the clock was wrong, either way: what was committed first has the later time.
    let year = 24 * 365;
    for (committed, now) in [([48, 40, year, 1], NOON), ([48, -year, 30, 1], NOON + (year + 1) * hour)] {
        let mut points = before_noon(&committed);
        let doubt = clock_doubt(&points, newest, Timestamp(now)).unwrap();
        assert!(doubt.contains("the clock went back between them"), "{doubt}");
        points
            .iter_mut()
            .for_each(|point| point.forgotten = point.commit_time.0.abs_diff(NOON) > DAY_NS.unsigned_abs() * 3);
        assert_eq!(clock_doubt(&points, Some(Timestamp(now)), Timestamp(now)), None, "rules do not look at it");
    }
    assert_eq!(clock_doubt(&before_noon(&[3, 2, 3, 1]), newest, Timestamp(NOON)), None, "an hour back is put right");
    // Extreme times are doubted, not computed wrongly.
    assert!(clock_doubt(&[], Some(Timestamp(i64::MIN)), Timestamp(i64::MAX)).is_some());
    assert!(clock_doubt(&[], Some(Timestamp(i64::MAX)), Timestamp(i64::MIN)).is_some());
}

proptest! {
    /// Whatever the rules: the newest of each machine stays, more rules keep more, and no group is torn.
    #[test]
    fn rules_keep_what_they_promise(
        times in prop::collection::vec((0..4u8, any::<i64>(), any::<bool>(), prop::option::of(0..3u8)), 1..60),
        counts in prop::array::uniform6(0..5u32),
        more in prop::array::uniform6(0..3u32),
    ) {
        let made = |(at, (machine, time, pinned, group)): (usize, &(u8, i64, bool, Option<u8>))| RecoveryPoint {
            pinned: *pinned,
            group: group.map(|group| GroupId([group; 16])),
            ..point(u8::try_from(at).unwrap(), *machine, *time)
        };
        let points: Vec<_> = times.iter().enumerate().map(made).collect();
        let keep = |counts: [u32; 6]| {
            let [last, hourly, daily, weekly, monthly, yearly] = counts;
            Keep { last, hourly, daily, weekly, monthly, yearly }
        };
        let few = kept(&points, keep(counts));
        let many = kept(&points, keep(std::array::from_fn(|at| counts[at] + more[at])));
        prop_assert!(few.iter().all(|id| many.contains(id)));
        for machine in 0..4 {
            let of_machine = points.iter().filter(|point| point.machine.0[0] == machine);
            let newest = of_machine.max_by_key(|point| point.number);
            if let (Some(newest), false) = (newest, keep(counts).is_empty()) {
                prop_assert!(few.contains(&newest.id.0[0]));
            }
        }
        for group in 0..3 {
            let of_group = points.iter().filter(|point| point.group == Some(GroupId([group; 16])));
            let states: BTreeSet<bool> = of_group.map(|point| few.contains(&point.id.0[0])).collect();
            prop_assert!(states.len() < 2);
        }
    }
}
