//! The rules as switches.
//!
//! Most rules close more than one hole, and one half of a rule often hides that the other half is missing. So the
//! switch is a [`Clause`], and a [`Rule`] is the set of its clauses: taking out a rule takes out all of them, and
//! each clause is taken out alone as well.

use std::fmt;

/// The rules which the model can do without, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Rule {
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
    R11,
    R19,
}

impl Rule {
    /// Every rule, in order.
    pub const ALL: [Rule; 12] = [
        Rule::R1,
        Rule::R2,
        Rule::R3,
        Rule::R4,
        Rule::R5,
        Rule::R6,
        Rule::R7,
        Rule::R8,
        Rule::R9,
        Rule::R10,
        Rule::R11,
        Rule::R19,
    ];

    /// The clauses that make up this rule.
    pub fn clauses(self) -> impl Iterator<Item = Clause> {
        Clause::ALL.into_iter().filter(move |clause| clause.rule() == self)
    }
}

/// One thing a rule demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Clause {
    /// R1: whoever loses a number validates again before trying the next. Without it the record is validated once
    /// and then pushed until it gets a number.
    Revalidate,
    /// R1: replay skips what was not valid where it stands.
    ReplayVoids,
    /// R2: after an unclear answer the same bytes go to the same number until the answer is definite. Without it an
    /// unclear answer is reported as a failure.
    UntilDefinite,
    /// R2: when a record exists already under the number, it is read and compared. Without this, "exists" after an
    /// unclear answer counts as a success of the author.
    CompareOnExists,
    /// R2, as sharpened here: a writer that lost a number, or its session, reports a failure only when its point is not
    /// in the log. If the number was pruned, another author's record may be there now in place of the writer's own.
    LookBeforeFailing,
    /// R3: two digests at or above a record before it goes. Without it one is enough.
    TwoDigests,
    /// R3: after creating a record its writer lists the digests, and is fenced when one does not account for it.
    ListAfterCreate,
    /// R3, as sharpened here: the same after finding one's own bytes under the number (R2), which is how a writer
    /// learns of a create that arrived late.
    ListAfterOwnFound,
    /// R3, as sharpened here: a replayer lists the digests after reading the last record it finds, and starts again
    /// from the newest when that is beyond it. Without it a late create under a pruned number reads as the log's end.
    ListAfterRead,
    /// R4: a nonce in the header, so equal chunks never make an equal name.
    FreshName,
    /// R4: a dropped name is never added again.
    NeverAgain,
    /// R5: only orphans of an ended term are deleted.
    OrphanTermEnded,
    /// R5, as sharpened here: an orphan is dropped in the log before its object is deleted. So the log decides between
    /// a writer that adopts it and a sweep that deletes it.
    OrphanDroppedInLog,
    /// R6: the parents a session names are roots until it ends.
    ParentsPinned,
    /// R6: packs added since the oldest open session opened are not doomed.
    YoungPacksSpared,
    /// R6: a doom is valid only if every point that became a root since its mark was marked too.
    MarkCoversRoots,
    /// R6: a pack is dropped only when every session that was open when it was doomed has ended.
    DropWaits,
    /// R7: the writer skips a subtree only below a parent pinned by this session.
    DescendUnpinned,
    /// R7: commit walks the difference to the pinned parent. Without it the roots of the trees must be there.
    CommitWalks,
    /// R8: a refused commit leaves the session open for repair.
    RefusedRepairs,
    /// R8: the point id, chosen once, makes a second commit of the same point no commit.
    PointIdIsKey,
    /// R9: the place of a chunk follows from the log. Without it the place is an index entry: the first pack seen
    /// to hold the chunk, removed with that pack.
    PlaceFromLog,
    /// R9: a doom needs a place outside all doomed packs for every live chunk. Without it any stored pack will do.
    PlaceOutsideDoomed,
    /// R9: a pack in which a chunk was found damaged does not count as its place. The chunk is brought again, and the
    /// new copy does not count as a duplicate.
    PlaceIsSound,
    /// R9: a later sweep supersedes an earlier one.
    OneSweep,
    /// R10: readers open sessions, and their points are roots.
    ReaderPins,
    /// R10: a place that is gone is looked up again after catching up.
    LookAgain,
    /// R11: points a doom finalised are not unforgotten.
    FinalStaysForgotten,
    /// R11, as sharpened here: a doom that finalises a point unforgotten since its mark is void.
    FinalsStillForgotten,
    /// R11, as sharpened here: no session may name a final point.
    FinalNotNamed,
    /// R19: before a pack is dropped all that points need is looked at once more. Between doom and drop another place can
    /// turn out to be damaged.
    SecondLook,
}

impl Clause {
    /// Every clause, in the order of its bit.
    pub const ALL: [Clause; 31] = [
        Clause::Revalidate,
        Clause::ReplayVoids,
        Clause::UntilDefinite,
        Clause::CompareOnExists,
        Clause::LookBeforeFailing,
        Clause::TwoDigests,
        Clause::ListAfterCreate,
        Clause::ListAfterOwnFound,
        Clause::ListAfterRead,
        Clause::FreshName,
        Clause::NeverAgain,
        Clause::OrphanTermEnded,
        Clause::OrphanDroppedInLog,
        Clause::ParentsPinned,
        Clause::YoungPacksSpared,
        Clause::MarkCoversRoots,
        Clause::DropWaits,
        Clause::DescendUnpinned,
        Clause::CommitWalks,
        Clause::RefusedRepairs,
        Clause::PointIdIsKey,
        Clause::PlaceFromLog,
        Clause::PlaceOutsideDoomed,
        Clause::PlaceIsSound,
        Clause::OneSweep,
        Clause::ReaderPins,
        Clause::LookAgain,
        Clause::FinalStaysForgotten,
        Clause::FinalsStillForgotten,
        Clause::FinalNotNamed,
        Clause::SecondLook,
    ];

    /// The rule this clause belongs to.
    pub fn rule(self) -> Rule {
        match self {
            Clause::Revalidate | Clause::ReplayVoids => Rule::R1,
            Clause::UntilDefinite | Clause::CompareOnExists | Clause::LookBeforeFailing => Rule::R2,
            Clause::TwoDigests | Clause::ListAfterCreate | Clause::ListAfterOwnFound | Clause::ListAfterRead => {
                Rule::R3
            }
            Clause::FreshName | Clause::NeverAgain => Rule::R4,
            Clause::OrphanTermEnded | Clause::OrphanDroppedInLog => Rule::R5,
            Clause::ParentsPinned | Clause::YoungPacksSpared | Clause::MarkCoversRoots | Clause::DropWaits => Rule::R6,
            Clause::DescendUnpinned | Clause::CommitWalks => Rule::R7,
            Clause::RefusedRepairs | Clause::PointIdIsKey => Rule::R8,
            Clause::PlaceFromLog | Clause::PlaceOutsideDoomed | Clause::PlaceIsSound | Clause::OneSweep => Rule::R9,
            Clause::ReaderPins | Clause::LookAgain => Rule::R10,
            Clause::FinalStaysForgotten | Clause::FinalsStillForgotten | Clause::FinalNotNamed => Rule::R11,
            Clause::SecondLook => Rule::R19,
        }
    }
}

/// The clauses in force.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rules {
    off: u32,
}

impl Rules {
    /// All of them.
    pub const fn all() -> Self {
        Rules { off: 0 }
    }

    /// The same without one clause.
    #[must_use]
    pub const fn without_clause(self, clause: Clause) -> Self {
        Rules { off: self.off | 1 << clause as u32 }
    }

    /// The same without any clause of one rule.
    #[must_use]
    pub fn without(self, rule: Rule) -> Self {
        rule.clauses().fold(self, Rules::without_clause)
    }

    /// Whether a clause is in force.
    pub const fn has(self, clause: Clause) -> bool {
        self.off & (1 << clause as u32) == 0
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("all rules")?;
        for clause in Clause::ALL.into_iter().filter(|clause| !self.has(*clause)) {
            write!(f, " without {clause:?}")?;
        }
        Ok(())
    }
}
