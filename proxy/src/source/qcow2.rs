//! An offline qcow2 image as source, through a `qemu-nbd` of our own, with a dirty bitmap kept in the image (T1–T4).
//!
//! The order is what makes it safe: look at the image → settle what earlier runs left → a witness, where there is none →
//! add the next bitmap → `qemu-nbd` on the image, which locks it against writers → only now look again and believe what
//! is seen → read → commit → end the process → remove the old bitmap. Wherever this stops, the next run finds either the
//! old bitmap still recording, or nothing it would believe.
//!
//! `qemu-img map` finds the clusters that lie in the file as they are. While `qemu-nbd` holds the lock, these are read
//! directly from the file, because the way through a socket copies every byte two more times, and costs as much as all
//! other work together. Everything else (compressed, in a backing file, a map too long) comes through `qemu-nbd`, and
//! so does what cannot be read directly.

use super::chain::{Chain, Place};
use super::evidence::{Evidence, file_identity};
use super::identity::{ImageFile, Stamp, identity, untold_identity};
use super::nbd::nbd_error;
use super::proof::{Doubt, Seen, SeenBitmap, note_no_checkpoint, proven_change};
use super::raw::read_extents;
use super::settle::{Settled, settle};
use super::{Described, SourceOptions};
use crate::nbd::{Extents, NbdDisk, NbdError};
use crate::qemu::{
    Access, Bitmap, ClusterMap, FileKind, Graph, ImageLayer, NbdServerProcess, ServeError, ServeOptions, ToolError,
    TrackingName, TwinName, WitnessName, add_bitmap, add_witness, cluster_map, image_info, remove_bitmap,
};
use bytes::Bytes;
use chunker::{Extent, ExtentSet, GRID_BYTES};
use mover::{
    Changed, CheckpointId, Error, ErrorKind, LayerIdentity, Outcome, ParentDisk, Past, Result, TrackingWish, blocking,
};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// An open qcow2 image.
#[derive(Debug)]
pub struct Qcow2Disk {
    path: PathBuf,
    /// The image by itself, for work on its bitmaps.
    image: Graph,
    server: NbdServerProcess,
    disk: Arc<NbdDisk>,
    file: Arc<File>,
    /// The second look at the image, under way since the image is locked.
    survey: Mutex<Survey>,
    chain: Vec<LayerIdentity>,
    stamps: Vec<Stamp>,
    evidence: Evidence,
    /// The bitmap that this session added, or why there is none.
    next: Result<TrackingName, String>,
    /// Names of the bitmaps that are removed again when no point is committed.
    added: Vec<String>,
    /// The repository's bitmaps that a committed point makes useless: the one the next is based on, the proven one.
    superseded: std::sync::Mutex<BTreeSet<TrackingName>>,
    /// Twins that are there, of bitmaps of the repository.
    twins: BTreeSet<TwinName>,
    /// Bitmaps that may prove a base.
    candidates: Vec<TrackingName>,
    /// Why no bitmap counts, where that is known without looking.
    unusable: Option<String>,
}

/// What is found out while the caller does other things.
#[derive(Debug)]
enum Survey {
    Running(JoinHandle<Result<Surveyed, SurveyError>>),
    Done(Arc<Surveyed>),
    Failed,
}

#[derive(Debug)]
struct Surveyed {
    extents: Extents,
    top: ImageLayer,
    clusters: ClusterMap,
}

#[derive(Debug)]
enum SurveyError {
    Tool(ToolError),
    Nbd(NbdError),
}

impl Qcow2Disk {
    /// Opens it: see the module's text.
    ///
    /// # Errors
    /// `Busy` when a running machine has it, `Usage` when it needs a secret, `Source`.
    pub async fn open(
        image: ImageFile,
        bitmap: Option<String>,
        options: &SourceOptions,
        past: &impl Past,
    ) -> Result<(Self, Described)> {
        let (path, image_warning) = (image.path.clone(), image.warning.clone());
        let Prepared { chain, alone, top, settled, candidates, unusable } =
            Prepared::look(&image, bitmap.as_deref(), options, past).await?;
        let Begun { next, witness, witnesses, added } =
            begin_tracking(&path, &alone, &top, (&settled.own, unusable.as_deref()), options).await;
        let (whole, layers, data_in_image) = (chain.graph()?, chain.formats(), chain.data_file().is_none());
        let mut twins: BTreeSet<TwinName> = top.bitmaps().iter().filter_map(|it| it.name.parse().ok()).collect();
        let names = candidates
            .iter()
            .flat_map(|name| [Some(name.to_string()), twins.get(&name.twin()).map(ToString::to_string)]);
        let names: Vec<String> = names.flatten().chain(witnesses.iter().map(ToString::to_string)).collect();
        twins.retain(|twin| settled.own.iter().any(|name| name.twin() == *twin));
        twins.extend(next.as_ref().map(TrackingName::twin));
        let served = serve(&image, chain, &whole, &names, options).await;
        let (server, disk, Locked { file, which, identities: chain, stamps }) = match served {
            Ok(served) => served,
            Err(error) => {
                abandon(&path, &alone, &added).await;
                return Err(error);
            }
        };
        let (disk, file) = (Arc::new(disk), Arc::new(file));
        let evidence = Evidence::of(layers, &top, which, witness);
        let survey = tokio::spawn(survey(disk.clone(), path.clone(), alone.clone(), data_in_image));
        let based_on = next.as_ref().map(|name| name.base).ok();
        let superseded = settled.own.iter().filter(|name| Some(name.checkpoint) == based_on).copied();
        let superseded = std::sync::Mutex::new(superseded.collect());
        let described = Described {
            size: disk.export().size,
            format: "qcow2",
            format_options: format!("{evidence},{}", top.format_options()),
            chain: chain.clone(),
            ..Described::default()
        };
        let described = described.warned(image_warning.into_iter().chain(warning(&top)).collect());
        let survey = Mutex::new(Survey::Running(survey));
        let opened = Self {
            path,
            image: alone,
            server,
            disk,
            file,
            survey,
            chain,
            stamps,
            evidence,
            next,
            added,
            superseded,
            twins,
            candidates,
            unusable,
        };
        Ok((opened, described))
    }

    /// What the bitmap of the parent's checkpoint marks, when everything proves it.
    ///
    /// # Errors
    /// `Source`; `Tracking` when a bitmap was demanded.
    pub async fn changed(&self, parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> Result<Changed> {
        let survey = self.surveyed().await?;
        let seen = self.seen(&survey);
        let mut changed = match seen.proven(&self.candidates, parent, wish) {
            Ok((name, dirty)) => {
                // Those of other repositories are not ours to remove.
                if parent.is_some_and(|parent| name.is_of(parent.repository)) {
                    self.superseded.lock().expect("no panic while held").insert(name);
                }
                proven_change(&name, dirty)
            }
            Err(doubt) => {
                if let Doubt::Lie(lie) = &doubt {
                    tracing::warn!(path = %self.path.display(), lie, "change tracking cannot be trusted");
                }
                doubt.changed(parent, wish)?
            }
        };
        changed.zeroes.clone_from(&survey.extents.zeroes);
        changed.checkpoint = self.begun(&seen).map(|name| (name.checkpoint, GRID_BYTES));
        if let Err(why_not) = &self.next {
            note_no_checkpoint(&mut changed, wish, why_not);
        }
        Ok(changed)
    }

    /// Reads `extent`.
    ///
    /// # Errors
    /// `Source`.
    pub async fn read(&self, extent: Extent) -> Result<Bytes> {
        if let Some(places) = self.surveyed().await?.clusters.in_file(extent) {
            let file = self.file.clone();
            match blocking(move || read_extents(&file, &places)).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => tracing::warn!(path = %self.path.display(), %error, ?extent, "read through qemu-nbd"),
            }
        }
        self.disk.read(extent).await.map_err(|error| local_error(error, &self.path))
    }

    /// Compares size and times of every file of the chain with those at the beginning: the image lock keeps QEMU out,
    /// not everybody.
    ///
    /// # Errors
    /// `Source` when they differ.
    pub async fn check(&self) -> Result<()> {
        // A survey that was never asked for would be seen here at the latest.
        self.surveyed().await?;
        let stamps = self.stamps.clone();
        blocking(move || Stamp::check(&stamps)).await
    }

    /// Ends the process; then the bitmap goes that is not needed any more.
    ///
    /// # Errors
    /// `Source` when a bitmap cannot be removed; the next run settles it.
    pub async fn finish(self, outcome: Outcome) -> Result<()> {
        // A witness that says that the image was resized goes: it would say so for ever. What began under it proves nothing.
        let spoilt = match &mut *self.survey.lock().await {
            Survey::Done(survey) => {
                let seen = self.seen(survey);
                self.own_witness().filter(|name| seen.witness_holds(name).is_err())
            }
            Survey::Running(task) => {
                task.abort();
                None
            }
            Survey::Failed => None,
        };
        drop(self.disk);
        let stopped = self.server.stop().await;
        let (mut gone, mut names) = match (&self.next, outcome) {
            (_, Outcome::Abandoned) => (BTreeSet::new(), self.added),
            // Without a next one the old one goes on recording.
            (Err(_), Outcome::Committed) => (BTreeSet::new(), Vec::new()),
            (Ok(_), Outcome::Committed) => (self.superseded.into_inner().expect("no panic while held"), Vec::new()),
        };
        if let (Some(witness), Ok(next)) = (spoilt, &self.next) {
            gone.insert(*next);
            names.push(witness.to_string());
        }
        for name in gone {
            names.push(name.to_string());
            names.extend(self.twins.get(&name.twin()).map(TwinName::to_string));
        }
        for name in names.into_iter().collect::<BTreeSet<String>>() {
            let removed = remove_bitmap(&self.image, &name).await;
            removed.map_err(|error| error.about(&self.path, ErrorKind::Source))?;
        }
        stopped.map_err(|error| error.about(&self.path, ErrorKind::Source))
    }

    /// The witness of the repository that this session works under.
    fn own_witness(&self) -> Option<WitnessName> {
        self.next.as_ref().ok().and(self.evidence.witness)
    }

    async fn surveyed(&self) -> Result<Arc<Surveyed>> {
        let mut survey = self.survey.lock().await;
        let result = match &mut *survey {
            Survey::Done(done) => return Ok(done.clone()),
            Survey::Failed => {
                return Err(Error::source("the image could not be examined").context(self.path.display()));
            }
            Survey::Running(task) => task.await,
        };
        *survey = Survey::Failed;
        let done = match result {
            Ok(Ok(done)) => Arc::new(done),
            Ok(Err(SurveyError::Tool(error))) => return Err(error.about(&self.path, ErrorKind::Source)),
            Ok(Err(SurveyError::Nbd(error))) => return Err(local_error(error, &self.path)),
            Err(error) => return Err(Error::internal("examining the image ended unexpectedly").because(error)),
        };
        *survey = Survey::Done(done.clone());
        Ok(done)
    }

    /// The image and its bitmaps, as they are under the image's lock.
    fn seen<'a>(&'a self, survey: &'a Surveyed) -> Seen<'a> {
        let bitmap = |it: &'a Bitmap| (it.name.as_str(), seen(it, survey.extents.bitmap(&it.name)));
        let bitmaps = survey.top.bitmaps().iter().map(bitmap).collect();
        let unusable = self.unusable.as_deref();
        Seen { size: self.disk.export().size, chain: &self.chain, evidence: &self.evidence, unusable, bitmaps }
    }

    /// The bitmap that this session began, if a look under the image's lock shows that it works.
    fn begun(&self, seen: &Seen<'_>) -> Option<TrackingName> {
        let name = self.next.as_ref().ok()?;
        match seen.will_prove(name, self.own_witness().as_ref()) {
            Ok(()) => Some(*name),
            Err(why_not) => {
                tracing::warn!(path = %self.path.display(), why_not, "the next backup cannot use a bitmap");
                None
            }
        }
    }
}

/// What is known of an image before anything is added to it.
struct Prepared {
    chain: Chain,
    /// The image by itself.
    alone: Graph,
    top: ImageLayer,
    settled: Settled,
    candidates: Vec<TrackingName>,
    /// Why no bitmap counts, where that is known already.
    unusable: Option<String>,
}

impl Prepared {
    /// Looks at the image, and settles what earlier runs left in it. With `only`, no other bitmap counts.
    async fn look(image: &ImageFile, only: Option<&str>, options: &SourceOptions, past: &impl Past) -> Result<Self> {
        let (walked, roots) = (image.clone(), options.image_roots.clone());
        let chain = blocking(move || Chain::walk(&walked, &roots)).await?;
        let path = &image.path;
        if chain.is_encrypted() {
            return Err(Error::usage(format!("{} is encrypted", path.display()))
                .hint("serve it with qemu-nbd and its secret, and give its NBD URI"));
        }
        let alone = chain.top_graph()?;
        let top = image_info(&alone).await.map_err(|error| error.about(path, ErrorKind::Source))?;
        let data = chain.data_file();
        let mut unusable =
            data.map(|file| format!("its data is in {}, which changes without the bitmap", file.display()));
        let settled = settle(path, &alone, top.bitmaps(), options.wanted.repository, past).await?;
        unusable = unusable.or_else(|| settled.unusable.clone());
        let mut candidates = candidates(top.bitmaps(), &settled.own, options);
        if let Some(only) = only {
            candidates.retain(|name| name.to_string() == only);
            if candidates.is_empty() && unusable.is_none() {
                unusable = Some(format!(
                    "bitmap {only} does not exist, is not sound, or does not have a name that Windlass gives"
                ));
            }
        }
        Ok(Self { chain, alone, top, settled, candidates, unusable })
    }
}

/// Starts `qemu-nbd` on the image, and looks at its files once more, now that nobody writes to them.
async fn serve(
    image: &ImageFile,
    chain: Chain,
    whole: &Graph,
    bitmaps: &[String],
    options: &SourceOptions,
) -> Result<(NbdServerProcess, NbdDisk, Locked)> {
    let serve = ServeOptions { image: whole, bitmaps, access: Access::Read };
    let (server, disk) = NbdServerProcess::start(&serve).await.map_err(|error| serve_error(error, &image.path))?;
    let (image, roots) = (image.clone(), options.image_roots.clone());
    let seen = blocking(move || Locked::look(&image, &chain, &roots)).await?;
    Ok((server, disk, seen))
}

/// Bitmaps that could prove a base: Windlass's, of any repository (a promoted copy has another id), not spoilt.
fn candidates(bitmaps: &[Bitmap], own: &[TrackingName], options: &SourceOptions) -> Vec<TrackingName> {
    let sound = bitmaps.iter().filter(|bitmap| bitmap.is_recording() && bitmap.is_consistent());
    let names = sound.filter_map(|bitmap| bitmap.name.parse::<TrackingName>().ok());
    // Our own that were settled away are not there any more.
    let mut names: Vec<_> = names.filter(|name| !name.is_of(options.wanted.repository) || own.contains(name)).collect();
    names.sort_by_key(|name| !name.is_of(options.wanted.repository));
    names.truncate(CANDIDATES_MAX);
    names
}

/// A bitmap for a proof, with what it marks.
fn seen<'a>(bitmap: &Bitmap, marks: Option<&'a ExtentSet>) -> SeenBitmap<'a> {
    let (recording, consistent) = (bitmap.is_recording(), bitmap.is_consistent());
    SeenBitmap { granularity: bitmap.granularity, recording, consistent, marks }
}

/// Witnesses of any repository that could show that the disk kept its size.
fn witnesses(top: &ImageLayer) -> Vec<WitnessName> {
    let still = top.bitmaps().iter().filter(|it| seen(it, None).is_still());
    still.filter_map(|bitmap| bitmap.name.parse().ok()).filter(|it: &WitnessName| it.size == top.virtual_size).collect()
}

/// The repository's own witness. If none fits, removes those of the repository that do not fit, and makes a new one.
async fn witnessed(
    path: &Path,
    image: &Graph,
    top: &ImageLayer,
    witnesses: &mut Vec<WitnessName>,
    options: &SourceOptions,
) -> Result<WitnessName, String> {
    // Our own first: it is looked for there.
    witnesses.sort_by_key(|name| !name.is_of(options.wanted.repository));
    if let Some(own) = witnesses.first().filter(|name| name.is_of(options.wanted.repository)) {
        return Ok(*own);
    }
    let old = top.bitmaps().iter().filter_map(|bitmap| bitmap.name.parse::<WitnessName>().ok());
    for old in old.filter(|name| name.is_of(options.wanted.repository)) {
        let removed = remove_bitmap(image, &old.to_string()).await;
        removed.map_err(|error| format!("bitmap {old} does not fit and cannot be removed: {error}"))?;
    }
    let name = WitnessName::random(options.wanted.repository, top.virtual_size, &options.world);
    match add_witness(image, &name, GRID_BYTES).await {
        Ok(()) => {
            witnesses.insert(0, name);
            Ok(name)
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no witness added: the next backup reads everything");
            Err(format!("a witness of the image's size cannot be added: {error}"))
        }
    }
}

/// The bitmaps that record from now on, and the witnesses.
struct Begun {
    /// The next bitmap, or why there is none.
    next: Result<TrackingName, String>,
    /// The repository's own witness, where there is one.
    witness: Option<WitnessName>,
    /// The witnesses to look at under the lock, the repository's own first.
    witnesses: Vec<WitnessName>,
    /// Names of the bitmaps that were added to the image. They are removed again when no point is committed.
    added: Vec<String>,
}

/// Adds to the image the bitmaps that are to record from now on. Adds none when nothing may be written, or when
/// `unusable` says why a bitmap would be in vain. `own` are the repository's bitmaps that count.
async fn begin_tracking(
    path: &Path,
    image: &Graph,
    top: &ImageLayer,
    (own, unusable): (&[TrackingName], Option<&str>),
    options: &SourceOptions,
) -> Begun {
    let mut witnesses = witnesses(top);
    let next = match (unusable, options.wanted.wish) {
        (_, TrackingWish::Fingerprint) => Err("nothing is written into the image".to_owned()),
        (Some(why_not), _) => Err(why_not.to_owned()),
        (None, _) => match witnessed(path, image, top, &mut witnesses, options).await {
            Ok(witness) => add_next(path, image, own, &witness, options).await,
            Err(why_not) => Err(why_not),
        },
    };
    let witness = witnesses.iter().find(|name| name.is_of(options.wanted.repository)).copied();
    let mut added: Vec<String> = next.iter().flat_map(|name| [name.to_string(), name.twin().to_string()]).collect();
    // Where there was none before, none is left when nothing comes of this.
    let first = witness.filter(|it| own.is_empty() && top.bitmap(&it.to_string()).is_none());
    added.extend(first.map(|it| it.to_string()));
    witnesses.truncate(CANDIDATES_MAX);
    Begun { next, witness, witnesses, added }
}

/// Adds the next bitmap and its twin, or says why there are none.
async fn add_next(
    path: &Path,
    image: &Graph,
    own: &[TrackingName],
    witness: &WitnessName,
    options: &SourceOptions,
) -> Result<TrackingName, String> {
    let base = if let [only] = own { Some(only.checkpoint) } else { None };
    let name = TrackingName::new(options.wanted.repository, CheckpointId::random(&options.world), base);
    let witness = witness.to_string();
    for bitmap in [name.to_string(), name.twin().to_string()] {
        if let Err(error) = add_bitmap(image, &bitmap, GRID_BYTES, &witness).await {
            tracing::warn!(path = %path.display(), %error, "no bitmap added: the next backup reads everything");
            return Err(format!("the next bitmap cannot be added: {error}"));
        }
    }
    Ok(name)
}

async fn abandon(path: &Path, image: &Graph, added: &[String]) {
    for bitmap in added {
        if let Err(error) = remove_bitmap(image, bitmap).await {
            tracing::warn!(path = %path.display(), %error, "a bitmap stays until the next backup");
        }
    }
}

/// Looks at the image a second time, now that it is locked, and asks for its extents and clusters; all at once.
async fn survey(disk: Arc<NbdDisk>, path: PathBuf, image: Graph, data_in_image: bool) -> Result<Surveyed, SurveyError> {
    let clusters = async {
        if !data_in_image {
            return ClusterMap::default();
        }
        match cluster_map(&image).await {
            Ok(clusters) => clusters,
            Err(error) => {
                tracing::info!(path = %path.display(), %error, "everything is read through qemu-nbd");
                ClusterMap::default()
            }
        }
    };
    let (extents, top, clusters) = tokio::join!(disk.extents(), image_info(&image), clusters);
    Ok(Surveyed { extents: extents.map_err(SurveyError::Nbd)?, top: top.map_err(SurveyError::Tool)?, clusters })
}

/// The files of an image, seen while it is locked.
struct Locked {
    /// The image, open for reading.
    file: File,
    /// Inode and time of birth: another file in its place has others.
    which: String,
    /// All of them, the image first.
    identities: Vec<LayerIdentity>,
    stamps: Vec<Stamp>,
}

impl Locked {
    /// Looks at them. The headers must name what they named before.
    fn look(image: &ImageFile, chain: &Chain, roots: &[PathBuf]) -> Result<Self> {
        if Chain::walk(image, roots)? != *chain {
            return Err(Error::source("it changed while it was opened").context(image.path.display()));
        }
        let (mut identities, mut stamps) = (Vec::new(), Vec::new());
        for (at, Place { path, kind }) in chain.places().enumerate() {
            let failed = |error| cannot_look(path, error);
            stamps.push(Stamp::of(path, &std::fs::metadata(path).map_err(failed)?));
            identities.push(match kind {
                // Whoever writes to a device leaves no trace in what can be seen of it.
                FileKind::Device if at > 0 => untold_identity(path.to_string_lossy().into_owned()),
                FileKind::Device | FileKind::Regular => identity(path).map_err(failed)?,
            });
        }
        let failed = |error| cannot_look(&image.path, error);
        let file = File::open(&image.path).map_err(failed)?;
        let which = file_identity(&file.metadata().map_err(failed)?);
        Ok(Self { file, which, identities, stamps })
    }
}

fn cannot_look(path: &Path, error: std::io::Error) -> Error {
    Error::source("cannot be examined").because(error).context(path.display())
}

fn warning(top: &ImageLayer) -> Option<String> {
    let ours = top.bitmaps().iter().filter(|bitmap| bitmap.name.parse::<TrackingName>().is_ok()).count();
    if top.is_corrupt() {
        return Some("QEMU marked the image as corrupt; run `qemu-img check`".to_owned());
    }
    (ours > BITMAPS_WARN)
        .then(|| format!("the image holds {ours} bitmaps of Windlass; `windlass tracking list` shows them"))
}

fn serve_error(error: ServeError, path: &Path) -> Error {
    match error {
        ServeError::Tool(error) => error.about(path, ErrorKind::Source),
        ServeError::Nbd(error) => local_error(error, path),
    }
}

/// The error for `path`. A broken connection is no network error here, because the server is our own process.
fn local_error(error: NbdError, path: &Path) -> Error {
    match error {
        NbdError::Request { .. } => nbd_error(error, ErrorKind::Source),
        _ => Error::source(error.to_string()),
    }
    .context(path.display())
}

/// Bitmaps exported together; each costs the server a pass over it.
const CANDIDATES_MAX: usize = 8;
const BITMAPS_WARN: usize = 8;
