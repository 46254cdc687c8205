//! Which proxy does a job, where its administrator names none, and which jobs exclude each other.

use super::super::site::{OfferedMachine, ProxyChoice, same_machine};
use super::{Attendee, JOBS_MAX, Machine, Run, State, YOUTH};
use mover::{Error, JobKind, Name, Result};
use tokio::time::Instant;

/// A proxy that offers the machine.
struct Candidate<'a> {
    name: &'a Name,
    proxy: &'a Attendee,
    machine: &'a OfferedMachine,
    jobs: usize,
}

impl State {
    /// The proxy that is to do a job; none while proxies may still come that could.
    pub(super) fn choose(&self, run: &Run, choice: ProxyChoice, now: Instant) -> Result<Option<Name>> {
        let mut fits: Vec<Candidate<'_>> = self.candidates(run).collect();
        if fits.is_empty() {
            return if now < self.began + YOUTH { Ok(None) } else { Err(self.nobody_offers(run)) };
        }
        refuse_different(&fits, &run.job.machine)?;
        let (attends, rank) = fits.iter().map(Candidate::standing).max().expect("there is one");
        fits.retain(|it| it.standing() == (attends, rank));
        let with_room = fits.iter().filter(|it| it.jobs < JOBS_MAX);
        let chosen = match choice {
            ProxyChoice::RoundRobin => with_room.min_by_key(|it| it.proxy.given),
            ProxyChoice::LeastLoaded => with_room.min_by_key(|it| (it.jobs, it.proxy.given)),
        };
        let chosen = chosen.map(|it| it.name.clone());
        let full = || Error::busy(format!("each proxy that offers machine {} has {JOBS_MAX} jobs", run.job.machine));
        chosen.ok_or_else(|| full().hint("wait until some have ended, or use --wait")).map(Some)
    }

    fn candidates<'a>(&'a self, run: &'a Run) -> impl Iterator<Item = Candidate<'a>> {
        let labelled = self.proxies.iter().filter(|(_, it)| run.label.iter().all(|label| it.labels.contains(label)));
        labelled.filter_map(|(name, proxy)| {
            let machine = proxy.offers(&run.job.machine)?;
            Some(Candidate { name, proxy, machine, jobs: self.open_jobs(name) })
        })
    }

    fn nobody_offers(&self, run: &Run) -> Error {
        let label = run.label.as_ref().map_or(String::new(), |label| format!(" with label {label}"));
        let what = format!("no proxy{label} that attends this node offers machine {}", run.job.machine);
        let elsewhere = self.candidates(&Run { label: None, ..run.clone() }).next().map(|it| it.name.clone());
        let error = Error::not_found(what);
        match elsewhere {
            Some(proxy) => error.hint(format!("proxy {proxy} offers it, and does not have the label")),
            None => error.hint(
                "`windlass machine list` shows what is offered; add the machine to windlass-proxy.toml on its host",
            ),
        }
    }

    /// The machine that a job for this proxy is about. None when the proxy is not there yet.
    pub(super) fn machine_at(&self, proxy: &Name, called: &Name) -> Option<Machine> {
        let attendee = self.proxies.get(proxy)?;
        let offered = attendee.offers(called);
        let (id, name) = offered.map_or((None, called), |it| (it.id, &it.name));
        Some(Machine { owner: attendee.holder.owner_id(), id, name: name.clone() })
    }

    /// Two jobs of one machine at once would only find its disks busy.
    ///
    /// # Errors
    /// `Busy`, with the job that is under way.
    pub(super) fn refuse_second(&self, machine: Option<&Machine>, called: &Name) -> Result<()> {
        let Some(machine) = machine else { return Ok(()) };
        let looks = JobKind::Examine.code();
        let open =
            self.jobs.iter().filter(|(_, it)| !it.is_over() && it.about.as_ref().is_none_or(|it| it.kind != looks));
        let mut same = open.filter(|(_, it)| it.machine.as_ref().is_some_and(|other| other.is(machine)));
        let Some((id, entry)) = same.next() else { return Ok(()) };
        let what = format!("proxy {} already has job {id} of machine {called}", entry.proxy);
        Err(Error::busy(what).hint(format!("use --wait, or see how far it is with `windlass job follow {id}`")))
    }
}

impl Attendee {
    fn offers(&self, called: &Name) -> Option<&OfferedMachine> {
        let named = self.machines.iter().find(|it| it.name == *called);
        named.or_else(|| self.machines.iter().find(|it| it.is_called(called)))
    }
}

impl Candidate<'_> {
    /// One that attends is better than one whose connection was lost, and one that knows more of the machine is better.
    const fn standing(&self) -> (bool, u8) {
        (self.proxy.away.is_none(), self.machine.rank())
    }
}

impl Machine {
    fn is(&self, other: &Self) -> bool {
        self.owner == other.owner && same_machine((self.id, &self.name), (other.id, &other.name))
    }
}

/// Proxies of different owners never share a machine, and one of them must not get the jobs of another's by offering its
/// name.
fn refuse_different(fits: &[Candidate<'_>], called: &Name) -> Result<()> {
    let differ = |a: &Candidate<'_>, b: &Candidate<'_>| {
        a.proxy.holder.owner_id() != b.proxy.holder.owner_id() || !a.machine.is_same(b.machine)
    };
    for (at, one) in fits.iter().enumerate() {
        let Some(other) = fits[at + 1..].iter().find(|other| differ(one, other)) else { continue };
        let what = format!(
            "proxies {} and {} offer different machines called {called}, or the same under different owners",
            one.name, other.name
        );
        return Err(Error::usage(what).hint(
            "name the proxy with --proxy or its label with --proxy-label, or give the machine's id; proxies that share \
             machines need the same owner (`windlass token create --owner`)",
        ));
    }
    Ok(())
}
