//! What the node tells administrators of its proxies and jobs.

use super::super::job::Event;
use super::super::site::{JobStage, JobStatus, ProxyStatus};
use super::{Attendee, Entry, Stage, State};
use mover::{Error, JobId, Name, Result};
use tokio::time::Instant;

impl State {
    /// Names of all proxies, in order.
    pub fn proxies(&self) -> Vec<Name> {
        self.proxies.keys().cloned().collect()
    }

    /// A proxy; none when it is not there any more.
    pub fn proxy(&self, name: &Name, now: Instant) -> Option<ProxyStatus> {
        let Attendee { holder, labels, machines, since, away, .. } = self.proxies.get(name)?;
        Some(ProxyStatus {
            name: name.clone(),
            owner: holder.owner.clone().unwrap_or_else(|| name.clone()),
            labels: labels.clone(),
            attends: away.is_none(),
            since_ms: since_ms(away.unwrap_or(*since), now),
            jobs: u32::try_from(self.open_jobs(name)).unwrap_or(u32::MAX),
            machines: machines.clone(),
        })
    }

    /// Ids of all jobs, in the order in which the node heard of them.
    pub fn jobs(&self) -> Vec<JobId> {
        let mut jobs: Vec<_> = self.jobs.iter().map(|(id, entry)| (entry.number, *id)).collect();
        jobs.sort_unstable();
        jobs.into_iter().map(|(_, id)| id).collect()
    }

    /// A job that somebody wants to follow; none while the node is young and the job's proxy may still tell of it: whoever
    /// followed it before the node was restarted is often back before the proxy.
    ///
    /// # Errors
    /// Those of [`Self::job`].
    pub fn followed(&self, id: JobId, now: Instant) -> Result<Option<JobStatus>> {
        match self.job(id, now) {
            Err(_) if now < self.young_until() => Ok(None),
            told => told.map(Some),
        }
    }

    /// A job.
    ///
    /// # Errors
    /// `NotFound` when it is not known, or not any more.
    pub fn job(&self, id: JobId, now: Instant) -> Result<JobStatus> {
        let entry = self.jobs.get(&id).ok_or_else(|| Error::not_found(format!("job {id} is not known")))?;
        let about = entry.about.as_ref();
        Ok(JobStatus {
            id,
            proxy: entry.proxy.clone(),
            machine: about.map(|it| it.machine.clone()),
            repository: about.map(|it| it.repository.clone()),
            kind: about.map_or(0, |it| it.kind),
            by: entry.by.clone(),
            stage: entry.told_stage(),
            counters: entry.progress.1,
            warnings: u32::try_from(entry.warnings.len()).unwrap_or(u32::MAX),
            asked_ms: since_ms(entry.asked, now),
            given_ms: entry.given.map(|at| since_ms(at, now)),
            ended_ms: match &entry.stage {
                Stage::Over(_, at) => Some(since_ms(*at, now)),
                _ => None,
            },
        })
    }
}

impl Entry {
    fn told_stage(&self) -> JobStage {
        match &self.stage {
            Stage::Waiting => JobStage::Waiting,
            Stage::Given(_) if self.cancelled.is_some() => JobStage::Cancelling,
            Stage::Given(_) => JobStage::Given,
            Stage::Over(Event::Failed(failed), _) => JobStage::Failed(failed.clone()),
            Stage::Over(..) => JobStage::Done,
        }
    }
}

fn since_ms(then: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(then).as_millis()).unwrap_or(u64::MAX)
}
