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
use super::evidence::{Doubt, Evidence, NO_WITNESS, RESIZED, believable, file_identity};
use super::identity::{ImageFile, Stamp, identity, untold_identity};
use super::nbd::nbd_error;
use super::raw::read_extents;
use super::settle::settle;
use super::{Described, SourceOptions};
use crate::nbd::{Extents, NbdDisk, NbdError};
use crate::qemu::{
    Access, Bitmap, ClusterMap, FileKind, Graph, ImageLayer, NbdServerProcess, ServeError, ServeOptions, ToolError,
    TrackingName, TwinName, WitnessName, add_bitmap, add_witness, cluster_map, image_info, remove_bitmap,
};
use bytes::Bytes;
use chunker::{Extent, ExtentSet, GRID_BYTES};
use mover::{
    ChangeTracking, Changed, CheckpointId, DiskRecord, Error, ErrorKind, LayerIdentity, Outcome, ParentDisk, Past,
    Result, TrackingWish, blocking,
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
        let (walked, roots) = (image.clone(), options.image_roots.clone());
        let chain = blocking(move || Chain::walk(&walked, &roots)).await?;
        let (path, image_warning) = (image.path.clone(), image.warning.clone());
        if chain.is_encrypted() {
            return Err(Error::usage(format!("{} is encrypted", path.display()))
                .hint("serve it with qemu-nbd and its secret, and give its NBD URI"));
        }
        let (whole, alone) = (chain.graph()?, chain.top_graph()?);
        let top = image_info(&alone).await.map_err(|error| error.about(&path, ErrorKind::Source))?;
        let data_in_image = chain.data_file().is_none();
        let mut unusable = chain
            .data_file()
            .map(|file| format!("its data is in {}, which changes without the bitmap", file.display()));
        let settled = settle(&path, &alone, top.bitmaps(), options.wanted.repository, past).await?;
        unusable = unusable.or(settled.unusable);
        let mut candidates = candidates(top.bitmaps(), &settled.own, options);
        if let Some(only) = bitmap {
            candidates.retain(|name| name.to_string() == only);
            if candidates.is_empty() && unusable.is_none() {
                unusable = Some(format!(
                    "bitmap {only} does not exist, is not sound, or does not have a name that Windlass gives"
                ));
            }
        }
        let Begun { next, witness, witnesses, added } =
            begin_tracking(&path, &alone, &top, (&settled.own, unusable.as_deref()), options).await;
        let layers = chain.formats();
        let mut twins: BTreeSet<TwinName> = top.bitmaps().iter().filter_map(|it| it.name.parse().ok()).collect();
        let names = candidates
            .iter()
            .flat_map(|name| [Some(name.to_string()), twins.get(&name.twin()).map(ToString::to_string)]);
        let names: Vec<String> = names.flatten().chain(witnesses.iter().map(ToString::to_string)).collect();
        twins.retain(|twin| settled.own.iter().any(|name| name.twin() == *twin));
        twins.extend(next.as_ref().map(TrackingName::twin));
        let serve = ServeOptions { image: &whole, bitmaps: &names, access: Access::Read };
        let opened = async {
            let (server, disk) = NbdServerProcess::start(&serve).await.map_err(|error| serve_error(error, &path))?;
            // From here on nobody writes to it.
            let roots = options.image_roots.clone();
            let seen = blocking(move || Locked::look(&image, &chain, &roots)).await?;
            Ok::<_, Error>((server, disk, seen))
        };
        let (server, disk, Locked { file, which, identities: chain, stamps }) = match opened.await {
            Ok(opened) => opened,
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
        let mut changed = match self.proven(parent, wish, &survey) {
            Ok((name, dirty)) => {
                // Those of other repositories are not ours to remove.
                if parent.is_some_and(|parent| name.is_of(parent.repository)) {
                    self.superseded.lock().expect("no panic while held").insert(name);
                }
                Changed {
                    mode: ChangeTracking::Bitmap,
                    reason: format!("bitmap {name} was begun at the parent's checkpoint"),
                    dirty,
                    zeroes: ExtentSet::new(),
                    checkpoint: None,
                    lie: None,
                }
            }
            Err(doubt) => {
                if let Doubt::Lie(lie) = &doubt {
                    tracing::warn!(path = %self.path.display(), lie, "change tracking cannot be trusted");
                }
                doubt.changed(parent, wish)?
            }
        };
        changed.zeroes.clone_from(&survey.extents.zeroes);
        changed.checkpoint = self.begun(&survey).map(|name| (name.checkpoint, GRID_BYTES));
        if let (Err(why_not), TrackingWish::Auto | TrackingWish::Bitmap | TrackingWish::Full) = (&self.next, wish)
            && changed.reason != *why_not
        {
            changed.reason.push_str("; no checkpoint was begun: ");
            changed.reason.push_str(why_not);
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
            Survey::Done(survey) => self.own_witness().filter(|name| witness_holds(survey, name).is_err()),
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

    /// The bitmap that proves what changed since `parent`, and what it marks; or why there is none.
    fn proven(
        &self,
        parent: Option<ParentDisk<'_>>,
        wish: TrackingWish,
        survey: &Surveyed,
    ) -> Result<(TrackingName, ExtentSet), Doubt> {
        if matches!(wish, TrackingWish::Fingerprint | TrackingWish::Full) {
            return Err("requested".into());
        }
        let parent = parent.ok_or("the first backup of this disk")?.record;
        if let Some(why_not) = &self.unusable {
            return Err(why_not.clone().into());
        }
        let checkpoint = parent.tracking.checkpoint.ok_or("the parent began no checkpoint")?;
        let name = self.candidates.iter().find(|name| name.checkpoint == checkpoint);
        let name = *name.ok_or_else(|| format!("there is no sound bitmap of the parent's checkpoint {checkpoint}"))?;
        // Looked up in what was seen under the image's lock, not in what made it a candidate.
        let text = name.to_string();
        let bitmap = survey.top.bitmap(&text).ok_or_else(|| format!("bitmap {text} disappeared"))?;
        sound(bitmap, parent.tracking.granularity)?;
        self.same_disk(parent)?;
        let then = Evidence::read(&parent.format_options)?;
        self.evidence.continues(&then)?;
        let witness = then.witness.ok_or(NO_WITNESS)?;
        let marked = marked(survey, &witness)?;
        let dirty = survey.extents.bitmap(&text).ok_or_else(|| format!("bitmap {text} is not exported"))?;
        let twin = twin_marks(survey, &name, parent.tracking.granularity)?;
        believable(&name, dirty, &twin, &witness, &marked)?;
        Ok((name, dirty.clone()))
    }

    /// Size, backing files and data files must be what the parent recorded. Of the image itself the evidence tells.
    fn same_disk(&self, parent: &DiskRecord) -> Result<(), String> {
        let size = self.disk.export().size;
        if parent.size != size {
            return Err(format!("the disk has {size} bytes and had {} in the parent", parent.size));
        }
        let (now, then) = (&self.chain[1..], parent.chain.get(1..).unwrap_or(&[]));
        if now.len() != then.len() {
            return Err(format!("the image has {} files below it and had {} in the parent", now.len(), then.len()));
        }
        for (now, then) in now.iter().zip(then) {
            if now.inode == 0 {
                return Err(format!("it is not known whether {} below the image changed", now.path));
            }
            if now != then {
                return Err(format!("{} below the image is not what it was", then.path));
            }
        }
        Ok(())
    }

    /// The bitmap that this session began, if a look under the image's lock shows that it works.
    fn begun(&self, survey: &Surveyed) -> Option<TrackingName> {
        let name = self.next.as_ref().ok()?;
        let bitmap = survey.top.bitmap(&name.to_string())?;
        let witnessed = self.own_witness().ok_or_else(|| "there is no witness".to_owned());
        let witnessed = witnessed.and_then(|witness| witness_holds(survey, &witness));
        let twin = witnessed.and_then(|_| twin_there(survey, name, GRID_BYTES));
        match twin.and_then(|()| sound(bitmap, GRID_BYTES)) {
            Ok(()) => Some(*name),
            Err(why_not) => {
                tracing::warn!(path = %self.path.display(), why_not, "the next backup cannot use a bitmap");
                None
            }
        }
    }
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

/// Witnesses of any repository that could show that the disk kept its size.
fn witnesses(top: &ImageLayer) -> Vec<WitnessName> {
    let still = top.bitmaps().iter().filter(|bitmap| is_still(bitmap));
    still.filter_map(|bitmap| bitmap.name.parse().ok()).filter(|it: &WitnessName| it.size == top.virtual_size).collect()
}

/// A witness records nothing, and is whole.
fn is_still(bitmap: &Bitmap) -> bool {
    !bitmap.is_recording() && bitmap.is_consistent() && bitmap.granularity == u64::from(GRID_BYTES)
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

/// Whether a witness shows its mark and no other.
fn witness_holds(survey: &Surveyed, name: &WitnessName) -> Result<(), String> {
    if marked(survey, name)? == name.mark(GRID_BYTES) { Ok(()) } else { Err(RESIZED.into()) }
}

/// What a witness marks, as it is seen under the image's lock.
fn marked(survey: &Surveyed, name: &WitnessName) -> Result<ExtentSet, String> {
    let text = name.to_string();
    let bitmap = survey.top.bitmap(&text).ok_or_else(|| format!("witness {text} is gone"))?;
    let marked = survey.extents.bitmap(&text).filter(|_| is_still(bitmap));
    marked.cloned().ok_or_else(|| format!("witness {text} is not sound"))
}

/// Whether a bitmap's twin is there, and records.
fn twin_there(survey: &Surveyed, name: &TrackingName, granularity: u32) -> Result<(), String> {
    let text = name.twin().to_string();
    let twin = survey.top.bitmap(&text).ok_or_else(|| format!("bitmap {text}, the twin, is gone"))?;
    sound(twin, granularity)
}

/// What a bitmap's twin marks.
fn twin_marks(survey: &Surveyed, name: &TrackingName, granularity: u32) -> Result<ExtentSet, String> {
    twin_there(survey, name, granularity)?;
    let text = name.twin().to_string();
    survey.extents.bitmap(&text).cloned().ok_or_else(|| format!("bitmap {text} is not exported"))
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

fn sound(bitmap: &Bitmap, granularity: u32) -> Result<(), String> {
    if !bitmap.is_consistent() {
        return Err(format!("bitmap {} was not saved cleanly", bitmap.name));
    }
    if !bitmap.is_recording() {
        return Err(format!("bitmap {} is not recording", bitmap.name));
    }
    if bitmap.granularity != u64::from(granularity) {
        return Err(format!("bitmap {} has granularity {}, not {granularity}", bitmap.name, bitmap.granularity));
    }
    Ok(())
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
