//! Storages that break one promise each. They show that the cases look at every promise.

use super::{Failing, InDirectory, Storage};
use mover::{Error, Result};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use store::format::pack::{PackKind, PackName};
use store::io::Names;
use store::objects::{Created, Incoming, Object, ObjectName, Objects, Space};

/// One list for the kinds and for all of them, so that none is left untried.
macro_rules! wrongs {
    ($( $(#[$about:meta])* $name:ident, )*) => {
        /// What a storage does wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Wrong {
            /// Nothing.
            Nothing,
            $( $(#[$about])* $name, )*
        }

        /// All of them but `Nothing`.
        pub const WRONGS: &[Wrong] = &[$(Wrong::$name),*];
    };
}

wrongs! {
    /// Creating writes over what is there.
    CreateReplaces,
    /// Creating always answers that the name was free.
    CreateIsAlwaysNew,
    /// Creating answers that other bytes have the name when they are the caller's own.
    CreateForgetsItsOwn,
    /// Creating looks at the length only.
    CreateComparesLengths,
    /// Creating looks whether the name is free, and writes in a second step.
    CreateLooksFirst,
    /// Creating does nothing.
    CreateDoesNothing,
    /// Creating writes all but the last byte.
    CreateLosesAByte,
    /// Creating reports success when it fails.
    CreateHidesErrors,
    /// Replacing does nothing.
    ReplaceDoesNothing,
    /// Replacing leaves what is there.
    ReplaceKeepsTheOld,
    /// Replacing removes the old bytes first.
    ReplaceRemovesFirst,
    /// Reading ignores `bytes_max`.
    ReadHasNoLimit,
    /// Reading cuts an object that is longer than `bytes_max`.
    ReadCuts,
    /// Reading gives an error for an object that is not there.
    ReadMissesLoudly,
    /// Reading gives none when there was an error.
    ReadHidesErrors,
    /// The hash is not compared.
    HashIsIgnored,
    /// Opening a pack that is not there gives another error than `Integrity`.
    OpenMissesAsAFailure,
    /// Reading a range beyond the end gives fewer bytes.
    RangesEndEarly,
    /// Reading a range begins at another offset.
    RangesMove,
    /// The reported length of a pack is too large.
    LengthsAreWrong,
    /// An open pack cannot be read after it is removed.
    OpenPacksVanish,
    /// One pack is not listed.
    ListForgetsAPack,
    /// Packs of other first bytes are listed.
    ListMixesPacks,
    /// Records are listed from the last to the first.
    ListIsTurned,
    /// Records outside the range are listed too.
    ListHasNoRange,
    /// More records are listed than were asked for.
    ListHasNoEnd,
    /// Digests are not in order.
    DigestsAreInNoOrder,
    /// A list that cannot be read is empty.
    ListHidesErrors,
    /// Removing does nothing.
    RemoveDoesNothing,
    /// Removing fails when there is nothing.
    RemoveMissesLoudly,
    /// Setting aside leaves the object.
    SetAsideCopies,
    /// Setting aside gives no error for an object that is not there.
    SetAsideMissesQuietly,
    /// A pack loses what is appended after the first part.
    AppendForgets,
    /// A pack gets each part twice.
    AppendDoubles,
    /// Appended bytes cannot be read before the pack is published.
    IncomingIsHidden,
    /// Publishing does nothing.
    PublishDoesNothing,
    /// Publishing reports success when it fails.
    PublishHidesErrors,
    /// A pack has its name before it is published.
    PublishIsEarly,
    /// A pack cannot be read as incoming after it is published.
    PublishClosesIt,
    /// A pack that another process left accepts more bytes.
    LeftTakesMore,
    /// Packs that a process left are not listed.
    LeftIsForgotten,
    /// An error of listing left packs gives an empty list.
    LeftHidesErrors,
    /// A settled pack is still listed as left.
    SettleDoesNothing,
    /// Settling removes the pack.
    SettleRemovesThePack,
    /// Giving up a reserve that is not there any more answers that there was one.
    ReserveIsEndless,
    /// A reserve cannot be kept again.
    ReserveIsKeptOnce,
}

/// A directory with something wrong.
pub struct Broken {
    directory: InDirectory,
    wrong: Wrong,
    shared: Arc<Shared>,
}

/// What all processes of it share.
#[derive(Default)]
struct Shared {
    /// Those that have looked, and have not written yet.
    looked: AtomicUsize,
    kept_once: AtomicBool,
    removed: Mutex<HashSet<PackName>>,
}

impl Broken {
    /// A new one.
    pub fn new(wrong: Wrong) -> Self {
        Self { directory: InDirectory::in_memory(Names::Links), wrong, shared: Arc::default() }
    }

    fn around(&self, sound: Arc<dyn Objects>) -> Arc<dyn Objects> {
        Arc::new(Around { sound, wrong: self.wrong, shared: self.shared.clone() })
    }
}

impl Storage for Broken {
    fn open(&self) -> Arc<dyn Objects> {
        self.around(self.directory.open())
    }

    fn failing(&self) -> Failing {
        let Failing { objects, faults } = self.directory.failing();
        Failing { objects: self.around(objects), faults }
    }
}

#[derive(Clone)]
struct Around {
    sound: Arc<dyn Objects>,
    wrong: Wrong,
    shared: Arc<Shared>,
}

impl Around {
    fn list<T>(&self, listed: Result<Vec<T>>) -> Result<Vec<T>> {
        match listed {
            Err(_) if self.wrong == Wrong::ListHidesErrors => Ok(Vec::new()),
            listed => listed,
        }
    }

    fn created(&self, name: ObjectName, bytes: &[u8]) -> Result<Created> {
        let there = || self.sound.read(name, u64::MAX).ok().flatten();
        match self.wrong {
            Wrong::CreateReplaces => self.sound.remove(name).and_then(|()| self.sound.create(name, bytes)),
            Wrong::CreateIsAlwaysNew => self.sound.create(name, bytes).map(|_| Created::New),
            Wrong::CreateForgetsItsOwn if there().is_some() => Ok(Created::Exists),
            Wrong::CreateComparesLengths => match there() {
                Some(found) if found.len() == bytes.len() => Ok(Created::New),
                _ => self.sound.create(name, bytes),
            },
            Wrong::CreateLooksFirst => {
                let found = there();
                self.shared.looked.fetch_add(1, SeqCst);
                // So that others look as well, if there are any.
                let began = Instant::now();
                while self.shared.looked.load(SeqCst) < 2 && began.elapsed() < Duration::from_millis(20) {
                    std::thread::yield_now();
                }
                let made = match found {
                    Some(found) if found != bytes => Ok(Created::Exists),
                    _ => self.sound.remove(name).and_then(|()| self.sound.create(name, bytes)).map(|_| Created::New),
                };
                self.shared.looked.fetch_sub(1, SeqCst);
                made
            }
            Wrong::CreateDoesNothing => Ok(Created::New),
            Wrong::CreateLosesAByte => self.sound.create(name, &bytes[..bytes.len().saturating_sub(1)]),
            Wrong::CreateHidesErrors => Ok(self.sound.create(name, bytes).unwrap_or(Created::New)),
            _ => self.sound.create(name, bytes),
        }
    }

    fn looked_up(&self, name: ObjectName, bytes_max: u64, read: Result<Option<Vec<u8>>>) -> Result<Option<Vec<u8>>> {
        match (self.wrong, read) {
            (Wrong::ReadHasNoLimit, _) => self.sound.read(name, u64::MAX),
            (Wrong::ReadCuts, Err(_)) => {
                let cut = |mut bytes: Vec<u8>| {
                    bytes.truncate(usize::try_from(bytes_max).unwrap_or(usize::MAX));
                    bytes
                };
                self.sound.read(name, u64::MAX).map(|read| read.map(cut))
            }
            (Wrong::ReadMissesLoudly, Ok(None)) => Err(Error::store_io(format!("{name} is not there"))),
            (Wrong::ReadHidesErrors, Err(_)) => Ok(None),
            (_, read) => read,
        }
    }

    fn incoming(&self, sound: Arc<dyn Incoming>, left: bool) -> Arc<dyn Incoming> {
        let of = self.clone();
        Arc::new(BrokenIncoming { of, sound, left, parts: AtomicUsize::new(0), name: Mutex::default() })
    }

    fn object(&self, sound: Arc<dyn Object>, name: Option<PackName>) -> Arc<dyn Object> {
        Arc::new(BrokenObject { of: self.clone(), sound, name })
    }
}

impl Objects for Around {
    fn place(&self) -> String {
        self.sound.place()
    }

    fn create(&self, name: ObjectName, bytes: &[u8]) -> Result<Created> {
        self.created(name, bytes)
    }

    fn replace(&self, name: ObjectName, bytes: &[u8]) -> Result<()> {
        match self.wrong {
            Wrong::ReplaceDoesNothing => Ok(()),
            Wrong::ReplaceKeepsTheOld if matches!(self.sound.read(name, u64::MAX), Ok(Some(_))) => Ok(()),
            Wrong::ReplaceRemovesFirst => self.sound.remove(name).and_then(|()| self.sound.replace(name, bytes)),
            _ => self.sound.replace(name, bytes),
        }
    }

    fn read(&self, name: ObjectName, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        self.looked_up(name, bytes_max, self.sound.read(name, bytes_max))
    }

    fn read_hashed(&self, name: ObjectName, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        let read = match self.wrong {
            Wrong::HashIsIgnored => self.sound.read(name, bytes_max),
            _ => self.sound.read_hashed(name, bytes_max),
        };
        self.looked_up(name, bytes_max, read)
    }

    fn open_pack(&self, name: &PackName) -> Result<Arc<dyn Object>> {
        match self.sound.open_pack(name) {
            Err(_) if self.wrong == Wrong::OpenMissesAsAFailure => Err(Error::store_io("it is not there")),
            open => Ok(self.object(open?, Some(*name))),
        }
    }

    fn begin_pack(&self, kind: PackKind) -> Result<Arc<dyn Incoming>> {
        Ok(self.incoming(self.sound.begin_pack(kind)?, false))
    }

    fn left_packs(&self) -> Result<Vec<Arc<dyn Incoming>>> {
        let left = match (self.wrong, self.sound.left_packs()) {
            (Wrong::LeftIsForgotten, left) => left.map(|_| Vec::new()),
            (Wrong::LeftHidesErrors, Err(_)) => Ok(Vec::new()),
            (_, left) => left,
        };
        Ok(left?.into_iter().map(|left| self.incoming(left, true)).collect())
    }

    fn packs(&self, first: u8) -> Result<Vec<PackName>> {
        let mut listed = self.list(self.sound.packs(first))?;
        match self.wrong {
            Wrong::ListForgetsAPack => drop(listed.pop()),
            Wrong::ListMixesPacks => listed.extend(self.sound.packs(first.wrapping_add(1))?),
            _ => {}
        }
        Ok(listed)
    }

    fn records(&self, numbers: Range<u64>, most: usize) -> Result<Vec<u64>> {
        let mut listed = self.list(match self.wrong {
            Wrong::ListHasNoRange => self.sound.records(0..u64::MAX, most),
            Wrong::ListHasNoEnd => self.sound.records(numbers, usize::MAX),
            _ => self.sound.records(numbers, most),
        })?;
        if self.wrong == Wrong::ListIsTurned {
            listed.reverse();
        }
        Ok(listed)
    }

    fn digests(&self) -> Result<Vec<u64>> {
        let mut listed = self.list(self.sound.digests())?;
        if self.wrong == Wrong::DigestsAreInNoOrder {
            listed.sort_unstable_by_key(u64::to_string);
        }
        Ok(listed)
    }

    fn remove(&self, name: ObjectName) -> Result<()> {
        if let ObjectName::Pack(pack) = name {
            self.shared.removed.lock().expect("no holder panics").insert(pack);
        }
        match self.wrong {
            Wrong::RemoveDoesNothing => Ok(()),
            Wrong::RemoveMissesLoudly if matches!(self.sound.read(name, u64::MAX), Ok(None)) => {
                Err(Error::store_io(format!("{name} is not there")))
            }
            _ => self.sound.remove(name),
        }
    }

    fn set_aside(&self, name: ObjectName) -> Result<()> {
        match self.wrong {
            Wrong::SetAsideCopies => {
                let bytes = self.sound.read(name, u64::MAX)?;
                self.sound.set_aside(name)?;
                self.sound.create(name, &bytes.unwrap_or_default()).map(drop)
            }
            Wrong::SetAsideMissesQuietly => self.sound.set_aside(name).or(Ok(())),
            _ => self.sound.set_aside(name),
        }
    }

    fn expect_record(&self, sequence: u64) -> Result<()> {
        self.sound.expect_record(sequence)
    }

    fn make_durable(&self, names: &[ObjectName]) -> Result<()> {
        self.sound.make_durable(names)
    }

    fn space(&self) -> Result<Space> {
        self.sound.space()
    }

    fn keep_reserve(&self, bytes: u64) -> bool {
        let is_second = self.shared.kept_once.swap(true, SeqCst);
        match self.wrong {
            Wrong::ReserveIsKeptOnce if is_second => false,
            _ => self.sound.keep_reserve(bytes),
        }
    }

    fn give_up_reserve(&self) -> bool {
        self.sound.give_up_reserve() || self.wrong == Wrong::ReserveIsEndless
    }
}

struct BrokenObject {
    of: Around,
    sound: Arc<dyn Object>,
    name: Option<PackName>,
}

impl Object for BrokenObject {
    fn length(&self) -> Result<u64> {
        Ok(self.sound.length()? + u64::from(self.of.wrong == Wrong::LengthsAreWrong))
    }

    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let is_gone = |name| self.of.shared.removed.lock().expect("no holder panics").contains(&name);
        match self.of.wrong {
            Wrong::OpenPacksVanish if self.name.is_some_and(is_gone) => Err(Error::integrity("it is gone")),
            Wrong::RangesEndEarly => {
                let left = self.sound.length()?.saturating_sub(offset);
                self.sound.read(offset, length.min(usize::try_from(left).unwrap_or(usize::MAX)))
            }
            Wrong::RangesMove if offset > 0 => self.sound.read(offset - 1, length),
            _ => self.sound.read(offset, length),
        }
    }
}

struct BrokenIncoming {
    of: Around,
    sound: Arc<dyn Incoming>,
    /// It is what another process left.
    left: bool,
    parts: AtomicUsize,
    /// The name that it has.
    name: Mutex<Option<PackName>>,
}

impl Incoming for BrokenIncoming {
    fn append(&self, bytes: &[u8]) -> Result<()> {
        let part = self.parts.fetch_add(1, SeqCst);
        match self.of.wrong {
            Wrong::AppendForgets if part > 0 => Ok(()),
            Wrong::AppendDoubles => self.sound.append(bytes).and_then(|()| self.sound.append(bytes)),
            Wrong::LeftTakesMore if self.left => Ok(()),
            Wrong::PublishIsEarly => {
                self.sound.append(bytes)?;
                let open = self.sound.open()?;
                let all = open.read(0, usize::try_from(open.length()?).expect("short"))?;
                let early = self.of.sound.begin_pack(PackKind::Page)?;
                early.append(&all)?;
                early.publish(&super::named(&all))?;
                early.settle();
                Ok(())
            }
            _ => self.sound.append(bytes),
        }
    }

    fn open(&self) -> Result<Arc<dyn Object>> {
        let is_published = self.name.lock().expect("no holder panics").is_some();
        match self.of.wrong {
            Wrong::IncomingIsHidden if !is_published && !self.left => Err(Error::store_io("it is not complete")),
            Wrong::PublishClosesIt if is_published => Err(Error::store_io("it is complete")),
            _ => Ok(self.of.object(self.sound.open()?, None)),
        }
    }

    fn publish(&self, name: &PackName) -> Result<()> {
        *self.name.lock().expect("no holder panics") = Some(*name);
        match self.of.wrong {
            Wrong::PublishDoesNothing => Ok(()),
            Wrong::PublishHidesErrors => self.sound.publish(name).or(Ok(())),
            _ => self.sound.publish(name),
        }
    }

    fn settle(&self) {
        match (self.of.wrong, *self.name.lock().expect("no holder panics")) {
            (Wrong::SettleDoesNothing, _) => return,
            (Wrong::SettleRemovesThePack, Some(name)) => drop(self.of.sound.remove(ObjectName::Pack(name))),
            _ => {}
        }
        self.sound.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// The first case that such a storage does not pass.
    fn caught(wrong: Wrong) -> Option<&'static str> {
        let fails = |case: super::super::Case| catch_unwind(AssertUnwindSafe(|| case(&Broken::new(wrong)))).is_err();
        crate::objects!(list).into_iter().find(|(_, case)| fails(*case)).map(|(name, _)| name)
    }

    #[test]
    fn a_storage_that_breaks_nothing_passes() {
        assert_eq!(caught(Wrong::Nothing), None);
    }

    #[test]
    fn no_broken_storage_passes() {
        let passed: Vec<Wrong> = WRONGS.iter().copied().filter(|wrong| caught(*wrong).is_none()).collect();
        assert!(passed.is_empty(), "{passed:?} passed");
    }
}
