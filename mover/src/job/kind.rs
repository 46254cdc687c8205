//! Kinds of jobs.

/// What a job is for. Codes are part of the wire's protocol: they are never used for anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobKind {
    /// Disks of a machine become a recovery point.
    Backup,
    /// Recovery points are copied into another repository.
    Copy,
    /// A disk of a point is written to a target.
    Restore,
    /// A repository is looked through.
    Verify,
    /// Damaged chunks of a repository are brought from another copy.
    Repair,
    /// Points are forgotten.
    Forget,
    /// The space of chunks that no point needs is given back.
    Sweep,
    /// The index of a repository is made again.
    RebuildIndex,
    /// A machine is looked at, and nothing is changed.
    Examine,
}

impl JobKind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Backup,
        Self::Copy,
        Self::Restore,
        Self::Verify,
        Self::Repair,
        Self::Forget,
        Self::Sweep,
        Self::RebuildIndex,
        Self::Examine,
    ];

    /// Code of the kind in records and messages.
    pub const fn code(self) -> u16 {
        match self {
            Self::Backup => 1,
            Self::Copy => 2,
            Self::Restore => 3,
            Self::Verify => 4,
            Self::Repair => 5,
            Self::Forget => 6,
            Self::Sweep => 7,
            Self::RebuildIndex => 8,
            Self::Examine => 9,
        }
    }

    /// The kind with this code; none for one of a later version.
    pub fn of_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Its name, as the command that runs such a job has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Copy => "copy",
            Self::Restore => "restore",
            Self::Verify => "verify",
            Self::Repair => "repair",
            Self::Forget => "forget",
            Self::Sweep => "sweep",
            Self::RebuildIndex => "rebuild-index",
            Self::Examine => "examine",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_code_of_its_own() {
        for kind in JobKind::ALL {
            assert_eq!(JobKind::of_code(kind.code()), Some(kind), "{}", kind.as_str());
        }
        assert_eq!((JobKind::of_code(0), JobKind::of_code(10)), (None, None));
    }
}
