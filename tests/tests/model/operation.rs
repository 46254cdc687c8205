//! What can happen, and how it is drawn.

use mover::{Depth, TrackingWish};
use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;
use store::io::Fault;

/// One step of a history. Numbers stand for one of what is there at the time, whatever it is: so that a history stays
/// one when steps are left out of it.
#[derive(Debug, Clone)]
pub enum Operation {
    /// The machine writes.
    Write { at: Range, seed: u8, tracked: bool },
    /// The machine discards.
    Discard { at: Range, tracked: bool },
    /// A job from its beginning to its end.
    Run(Job),
    /// Two jobs at the same time; the first may be held at an operation on files while the other runs.
    Together(Job, Job, Option<u8>),
    /// A backup whose future is dropped after it was polled so often.
    Aborted { machine: u8, wish: TrackingWish, polls: u8, reopen: bool },
    /// Something goes wrong at an operation on files, and the repository is opened again.
    Faulty { fault: Fault, after: u8, opening: bool, jobs: Vec<Job> },
    /// A byte of a pack changes.
    Corrupt { pack: u8, at: u32, bit: u8, verify: bool },
    /// Views go while the repository is closed.
    Lose(Views),
    /// Views are copied while the repository is closed.
    Save,
    /// The copies are put back.
    RollBack(Views),
    /// The clock jumps.
    Jump { days: i16 },
    /// Another process opens a read session on a point, forgotten or not.
    Hold { point: u8 },
    /// It ends.
    Release { reader: u8 },
    /// The repository is closed and opened again.
    Reopen,
}

/// A job on a repository.
#[derive(Debug, Clone)]
pub enum Job {
    /// A machine is backed up.
    Backup { machine: u8, wish: TrackingWish },
    /// Points are forgotten.
    Forget { point: u8, many: u8 },
    /// A point is taken back, perhaps one that is gone.
    Unforget { point: u8, gone: bool },
    /// Space is reclaimed.
    Sweep { percent: u8, dry_run: bool, fence: bool },
    /// Everything is verified.
    Verify(Depth),
    /// A point is restored.
    Restore { point: u8 },
    /// The index is made again.
    Rebuild,
}

/// Blocks of a disk.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    pub machine: u8,
    pub disk: u8,
    pub block: u8,
    pub blocks: u8,
    /// It begins and ends inside of blocks.
    pub odd: bool,
}

/// Views of the log in RocksDB.
#[derive(Debug, Clone, Copy)]
pub struct Views {
    pub index: bool,
    pub references: bool,
}

/// What a history may come to, as far as it can be told before: it decides what is worth drawing.
#[derive(Debug, Clone, Default)]
pub struct Outlook {
    points: u8,
    forgotten: u8,
    readers: u8,
    saved: bool,
}

/// Histories.
pub struct Histories;

impl ReferenceStateMachine for Histories {
    type State = Outlook;
    type Transition = Operation;

    fn init_state() -> BoxedStrategy<Outlook> {
        Just(Outlook::default()).boxed()
    }

    fn transitions(outlook: &Outlook) -> BoxedStrategy<Operation> {
        let mut drawn = vec![
            (14, write().boxed()),
            (
                5,
                (range(), prop::bool::weighted(0.85))
                    .prop_map(|(at, tracked)| Operation::Discard { at, tracked })
                    .boxed(),
            ),
            (14, backup().prop_map(Operation::Run).boxed()),
            (3, aborted().boxed()),
            (1, jump().boxed()),
            (1, Just(Operation::Save).boxed()),
            (2, Just(Operation::Reopen).boxed()),
            (2, views().prop_map(Operation::Lose).boxed()),
        ];
        if outlook.points > 0 {
            drawn.extend([
                (6, forget().prop_map(Operation::Run).boxed()),
                (6, sweep().prop_map(Operation::Run).boxed()),
                (3, look().prop_map(Operation::Run).boxed()),
                (8, together().boxed()),
                (12, faulty().boxed()),
                (1, corrupt().boxed()),
                (2, point().prop_map(|point| Operation::Hold { point }).boxed()),
            ]);
        }
        if outlook.forgotten > 0 {
            drawn.push((5, unforget().prop_map(Operation::Run).boxed()));
        }
        if outlook.readers > 0 {
            drawn.push((3, (0..3u8).prop_map(|reader| Operation::Release { reader }).boxed()));
        }
        if outlook.saved {
            drawn.push((3, views().prop_map(Operation::RollBack).boxed()));
        }
        prop::strategy::Union::new_weighted(drawn).boxed()
    }

    fn apply(mut outlook: Outlook, operation: &Operation) -> Outlook {
        match operation {
            Operation::Run(job) => outlook.job(job),
            Operation::Together(one, other, _) => [one, other].into_iter().for_each(|job| outlook.job(job)),
            Operation::Hold { .. } => outlook.readers = outlook.readers.saturating_add(1),
            Operation::Release { .. } => outlook.readers = outlook.readers.saturating_sub(1),
            Operation::Save => outlook.saved = true,
            _ => {}
        }
        outlook
    }
}

impl Outlook {
    fn job(&mut self, job: &Job) {
        match job {
            Job::Backup { .. } => self.points = self.points.saturating_add(1),
            Job::Forget { many, .. } => {
                let many = self.points.min(*many);
                self.points -= many;
                self.forgotten = self.forgotten.saturating_add(many);
            }
            Job::Unforget { gone: false, .. } if self.forgotten > 0 => {
                self.forgotten -= 1;
                self.points = self.points.saturating_add(1);
            }
            _ => {}
        }
    }
}

fn write() -> impl Strategy<Value = Operation> {
    // Few different contents: what was dead comes back.
    let seed = prop_oneof![3 => 0..6u8, 1 => 0..40u8];
    (range(), seed, prop::bool::weighted(0.93)).prop_map(|(at, seed, tracked)| Operation::Write { at, seed, tracked })
}

fn range() -> impl Strategy<Value = Range> {
    (machine(), 0..2u8, 0..12u8, 1..6u8, prop::bool::weighted(0.2))
        .prop_map(|(machine, disk, block, blocks, odd)| Range { machine, disk, block, blocks, odd })
}

fn machine() -> std::ops::Range<u8> {
    0..2
}

fn point() -> std::ops::Range<u8> {
    0..16
}

fn wish() -> impl Strategy<Value = TrackingWish> {
    prop_oneof![
        4 => Just(TrackingWish::Auto),
        2 => Just(TrackingWish::Bitmap),
        2 => Just(TrackingWish::Fingerprint),
        2 => Just(TrackingWish::Full),
    ]
}

fn backup() -> impl Strategy<Value = Job> {
    (machine(), wish()).prop_map(|(machine, wish)| Job::Backup { machine, wish })
}

fn forget() -> impl Strategy<Value = Job> {
    (point(), 1..4u8).prop_map(|(point, many)| Job::Forget { point, many })
}

fn unforget() -> impl Strategy<Value = Job> {
    (point(), prop::bool::weighted(0.2)).prop_map(|(point, gone)| Job::Unforget { point, gone })
}

fn sweep() -> impl Strategy<Value = Job> {
    let percent = prop_oneof![Just(1), Just(50), Just(100), 1..100u8];
    (percent, prop::bool::weighted(0.15), prop::bool::weighted(0.1)).prop_map(|(percent, dry_run, fence)| Job::Sweep {
        percent,
        dry_run,
        fence,
    })
}

fn depth() -> impl Strategy<Value = Depth> {
    prop_oneof![
        Just(Depth::Structure),
        (1..=100u8).prop_map(|percent| Depth::ReadData { percent }),
        Just(Depth::Decode)
    ]
}

fn look() -> impl Strategy<Value = Job> {
    prop_oneof![
        3 => depth().prop_map(Job::Verify),
        2 => point().prop_map(|point| Job::Restore { point }),
        1 => Just(Job::Rebuild),
    ]
}

fn job() -> impl Strategy<Value = Job> {
    prop_oneof![5 => backup(), 2 => forget(), 1 => unforget(), 5 => sweep(), 2 => look()]
}

fn together() -> impl Strategy<Value = Operation> {
    let beside = prop_oneof![4 => backup(), 2 => forget(), 2 => unforget(), 2 => look()];
    let pair = prop_oneof![
        4 => (sweep(), beside),
        2 => (backup(), sweep()),
        2 => (backup(), backup()),
        1 => (backup(), forget()),
    ];
    let hold = prop_oneof![1 => Just(None), 2 => (0..60u8).prop_map(Some)];
    (pair, hold).prop_map(|((one, other), hold)| Operation::Together(one, other, hold))
}

fn aborted() -> impl Strategy<Value = Operation> {
    (machine(), wish(), 0..60u8, any::<bool>()).prop_map(|(machine, wish, polls, reopen)| Operation::Aborted {
        machine,
        wish,
        polls,
        reopen,
    })
}

fn faulty() -> impl Strategy<Value = Operation> {
    let fault = prop_oneof![
        3 => Just(Fault::Cut),
        2 => Just(Fault::Full),
        2 => Just(Fault::Fail),
        1 => Just(Fault::Unclear),
    ];
    let after = prop_oneof![2 => 0..30u8, 2 => 0..90u8, 1 => any::<u8>()];
    let jobs = prop_oneof![4 => prop::collection::vec(job(), 1), 2 => prop::collection::vec(job(), 0..4)];
    (fault, after, prop::bool::weighted(0.15), jobs).prop_map(|(fault, after, opening, jobs)| Operation::Faulty {
        fault,
        after,
        opening,
        jobs,
    })
}

fn corrupt() -> impl Strategy<Value = Operation> {
    // The first bytes, too, in which a pack says what it is.
    let at = prop_oneof![3 => any::<u32>(), 1 => 0..150u32];
    (0..40u8, at, 0..8u8, any::<bool>()).prop_map(|(pack, at, bit, verify)| Operation::Corrupt {
        pack,
        at,
        bit,
        verify,
    })
}

fn views() -> impl Strategy<Value = Views> {
    prop_oneof![Just((true, false)), Just((false, true)), Just((true, true))]
        .prop_map(|(index, references)| Views { index, references })
}

fn jump() -> impl Strategy<Value = Operation> {
    prop_oneof![-4000..4000i16, -3..3i16].prop_map(|days| Operation::Jump { days })
}

impl Operation {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Write { .. } => "write",
            Self::Discard { .. } => "discard",
            Self::Run(job) => job.name(),
            Self::Together(..) => "together",
            Self::Aborted { .. } => "aborted",
            Self::Faulty { .. } => "faulty",
            Self::Corrupt { .. } => "corrupt",
            Self::Lose(_) => "lose",
            Self::Save => "save",
            Self::RollBack(_) => "roll back",
            Self::Jump { .. } => "jump",
            Self::Hold { .. } => "hold",
            Self::Release { .. } => "release",
            Self::Reopen => "reopen",
        }
    }
}

impl Job {
    const fn name(&self) -> &'static str {
        match self {
            Self::Backup { .. } => "backup",
            Self::Forget { .. } => "forget",
            Self::Unforget { .. } => "unforget",
            Self::Sweep { .. } => "sweep",
            Self::Verify(_) => "verify",
            Self::Restore { .. } => "restore",
            Self::Rebuild => "rebuild",
        }
    }
}
