//! An offline qcow2 image as source, through a `qemu-nbd` of our own, with a dirty bitmap kept in the image (T1–T4).
//!
//! The order is what makes it safe: look at the image → settle what earlier runs left → add the next bitmap →
//! `qemu-nbd` on the image, which locks it against writers → only now look again and believe what is seen → read →
//! commit → end the process → remove the old bitmap. Wherever this stops, the next run finds either the old bitmap
//! still recording, or nothing it would believe.
//!
//! While `qemu-nbd` holds the lock, clusters that `qemu-img map` finds in the file as they are are read from there: the
//! way through a socket copies every byte twice more and costs as much as all else. Everything else (compressed, in a
//! backing file, a map too long) comes through `qemu-nbd`, and so does what cannot be read directly.

use super::identity::{ImageFile, Stamp, identity, remote_identity};
use super::nbd::nbd_error;
use super::raw::read_extents;
use super::settle::settle;
use super::{Described, SourceOptions};
use crate::nbd::{Extents, NbdDisk, NbdError};
use crate::qemu::{
    Access, Bitmap, ClusterMap, ImageLayer, NbdServerProcess, ServeError, ServeOptions, ToolError, TrackingName,
    add_bitmap, cluster_map, image_chain, remove_bitmap,
};
use bytes::Bytes;
use chunker::{Extent, ExtentSet, GRID_BYTES};
use mover::{
    ChangeTracking, Changed, CheckpointId, DiskRecord, Error, ErrorKind, LayerIdentity, Outcome, ParentDisk, Result,
    TrackingWish, blocking,
};
use std::collections::BTreeSet;
use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// An open qcow2 image.
#[derive(Debug)]
pub struct Qcow2Disk {
    path: PathBuf,
    server: NbdServerProcess,
    disk: Arc<NbdDisk>,
    file: Arc<File>,
    /// Under way since the image is locked.
    survey: Mutex<Survey>,
    chain: Vec<LayerIdentity>,
    stamps: Vec<Stamp>,
    /// The bitmap that this session added, or why there is none.
    next: Result<TrackingName, String>,
    /// The repository's bitmaps that a committed point makes useless: the one the next is based on, the proven one.
    superseded: std::sync::Mutex<BTreeSet<TrackingName>>,
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
    layers: Vec<ImageLayer>,
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
    pub async fn open<F, Fut>(
        image: ImageFile,
        bitmap: Option<String>,
        options: &SourceOptions,
        is_committed: &F,
    ) -> Result<(Self, Described)>
    where
        F: Fn(CheckpointId) -> Fut + Sync,
        Fut: Future<Output = Result<bool>> + Send,
    {
        let path = image.path;
        let tool = |error: ToolError| error.about(&path, ErrorKind::Source);
        let layers = image_chain(&path, "qcow2").await.map_err(tool)?;
        let top = &layers[0];
        if layers.iter().any(|layer| layer.encrypted) {
            return Err(Error::usage(format!("{} is encrypted", path.display()))
                .hint("serve it with qemu-nbd and its secret, and name it as NBD URI"));
        }
        let mut unusable =
            top.data_file().map(|file| format!("its data is in {file}, which changes without the bitmap"));
        let settled = settle(&path, top.bitmaps(), options.repository, is_committed).await?;
        unusable = unusable.or(settled.unusable);
        let mut candidates = candidates(top.bitmaps(), &settled.own, options);
        if let Some(only) = bitmap {
            candidates.retain(|name| name.to_string() == only);
            if candidates.is_empty() && unusable.is_none() {
                unusable = Some(format!("bitmap {only} is not there, not sound, or its name proves nothing"));
            }
        }
        let next = match (&unusable, options.wish) {
            (_, TrackingWish::Fingerprint) => Err("nothing is written into the image".to_owned()),
            (Some(why_not), _) => Err(why_not.clone()),
            (None, _) => add_next(&path, &settled.own, options).await?,
        };
        let names: Vec<String> = candidates.iter().map(TrackingName::to_string).collect();
        let serve = ServeOptions { path: &path, format: "qcow2", bitmaps: &names, access: Access::Read };
        let opened = async {
            let (server, disk) = NbdServerProcess::start(&serve).await.map_err(|error| serve_error(error, &path))?;
            // From here on nobody writes to it.
            let (chain, stamps) = identities(&path, &layers).await?;
            let file = File::open(&path).map_err(|error| cannot_look(&path, error))?;
            Ok::<_, Error>((server, disk, Arc::new(file), chain, stamps))
        };
        let (server, disk, file, chain, stamps) = match opened.await {
            Ok(opened) => opened,
            Err(error) => {
                abandon_next(&path, &next).await;
                return Err(error);
            }
        };
        let disk = Arc::new(disk);
        let survey = tokio::spawn(survey(disk.clone(), path.clone(), top.data_file().is_none()));
        let based_on = next.as_ref().map(|name| name.base).ok();
        let superseded = settled.own.iter().filter(|name| Some(name.checkpoint) == based_on).copied();
        let superseded = std::sync::Mutex::new(superseded.collect());
        let described = Described {
            size: disk.export().size,
            format: "qcow2",
            format_options: top.format_options(),
            chain: chain.clone(),
            warning: warning(top),
            ..Described::default()
        };
        let survey = Mutex::new(Survey::Running(survey));
        let opened = Self { path, server, disk, file, survey, chain, stamps, next, superseded, candidates, unusable };
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
                }
            }
            Err(why_not) => super::untracked(parent, wish, &why_not)?,
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
        blocking(move || stamps.iter().try_for_each(Stamp::check)).await
    }

    /// Ends the process; then the bitmap goes that is not needed any more.
    ///
    /// # Errors
    /// `Source` when a bitmap cannot be removed; the next run settles it.
    pub async fn finish(self, outcome: Outcome) -> Result<()> {
        if let Survey::Running(task) = self.survey.into_inner() {
            task.abort();
        }
        drop(self.disk);
        let stopped = self.server.stop().await;
        let gone = match (&self.next, outcome) {
            (Ok(next), Outcome::Abandoned) => BTreeSet::from([*next]),
            // Without a next one the old one goes on recording, and may prove a base again after an abandoned point.
            (Err(_), Outcome::Abandoned | Outcome::Committed) => BTreeSet::new(),
            (Ok(_), Outcome::Committed) => self.superseded.into_inner().expect("no panic while held"),
        };
        for name in gone {
            let removed = remove_bitmap(&self.path, &name.to_string()).await;
            removed.map_err(|error| error.about(&self.path, ErrorKind::Source))?;
        }
        stopped.map_err(|error| error.about(&self.path, ErrorKind::Source))
    }

    async fn surveyed(&self) -> Result<Arc<Surveyed>> {
        let mut survey = self.survey.lock().await;
        let result = match &mut *survey {
            Survey::Done(done) => return Ok(done.clone()),
            Survey::Failed => {
                return Err(Error::source("the image could not be looked at").context(self.path.display()));
            }
            Survey::Running(task) => task.await,
        };
        *survey = Survey::Failed;
        let done = match result {
            Ok(Ok(done)) => Arc::new(done),
            Ok(Err(SurveyError::Tool(error))) => return Err(error.about(&self.path, ErrorKind::Source)),
            Ok(Err(SurveyError::Nbd(error))) => return Err(local_error(error, &self.path)),
            Err(error) => return Err(Error::internal("looking at the image broke off").because(error)),
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
    ) -> Result<(TrackingName, ExtentSet), String> {
        if matches!(wish, TrackingWish::Fingerprint | TrackingWish::Full) {
            return Err("asked for".into());
        }
        let parent = parent.ok_or("the first backup of this disk")?.record;
        if let Some(why_not) = &self.unusable {
            return Err(why_not.clone());
        }
        let checkpoint = parent.tracking.checkpoint.ok_or("the parent began no checkpoint")?;
        let name = self.candidates.iter().find(|name| name.checkpoint == checkpoint);
        let name = *name.ok_or_else(|| format!("there is no sound bitmap of the parent's checkpoint {checkpoint}"))?;
        // Looked up in what was seen under the image's lock, not in what made it a candidate.
        let text = name.to_string();
        let bitmap = survey.layers[0].bitmap(&text).ok_or_else(|| format!("bitmap {text} vanished"))?;
        sound(bitmap, parent.tracking.granularity)?;
        self.same_disk(parent)?;
        let dirty = survey.extents.bitmap(&text).ok_or_else(|| format!("bitmap {text} is not exported"))?;
        Ok((name, dirty.clone()))
    }

    /// Size and backing chain must be what the parent recorded. The image file itself need not be the same: a copy
    /// carries its bitmaps along.
    fn same_disk(&self, parent: &DiskRecord) -> Result<(), String> {
        let size = self.disk.export().size;
        if parent.size != size {
            return Err(format!("the disk has {size} bytes and had {} in the parent", parent.size));
        }
        let (now, then) = (&self.chain[1..], parent.chain.get(1..).unwrap_or(&[]));
        if now.len() != then.len() {
            return Err(format!("the image has {} backing files and had {} in the parent", now.len(), then.len()));
        }
        for (now, then) in now.iter().zip(then) {
            if now.inode == 0 {
                return Err(format!("whether backing file {} changed cannot be told", now.path));
            }
            if now != then {
                return Err(format!("backing file {} is not what it was", then.path));
            }
        }
        Ok(())
    }

    /// The bitmap this session began, when it is seen to work under the image's lock.
    fn begun(&self, survey: &Surveyed) -> Option<TrackingName> {
        let name = self.next.as_ref().ok()?;
        let bitmap = survey.layers[0].bitmap(&name.to_string())?;
        match sound(bitmap, GRID_BYTES) {
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
    let mut names: Vec<_> = names.filter(|name| !name.is_of(options.repository) || own.contains(name)).collect();
    names.sort_by_key(|name| !name.is_of(options.repository));
    names.truncate(CANDIDATES_MAX);
    names
}

/// The outer error ends the backup, the inner text says why there is no next bitmap.
async fn add_next(path: &Path, own: &[TrackingName], options: &SourceOptions) -> Result<Result<TrackingName, String>> {
    let base = if let [only] = own { Some(only.checkpoint) } else { None };
    let name = TrackingName::new(options.repository, CheckpointId::random(&options.world), base);
    match add_bitmap(path, &name.to_string(), GRID_BYTES).await {
        Ok(()) => Ok(Ok(name)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no bitmap added: the next backup reads everything");
            Ok(Err(format!("the next bitmap cannot be added: {error}")))
        }
    }
}

async fn abandon_next(path: &Path, next: &Result<TrackingName, String>) {
    let Ok(name) = next else { return };
    if let Err(error) = remove_bitmap(path, &name.to_string()).await {
        tracing::warn!(path = %path.display(), %error, "a bitmap stays until the next backup");
    }
}

/// Looks at the image a second time, now that it is locked, and asks for its extents and clusters; all at once.
async fn survey(disk: Arc<NbdDisk>, path: PathBuf, data_in_image: bool) -> Result<Surveyed, SurveyError> {
    let clusters = async {
        if !data_in_image {
            return ClusterMap::default();
        }
        match cluster_map(&path).await {
            Ok(clusters) => clusters,
            Err(error) => {
                tracing::info!(path = %path.display(), %error, "everything is read through qemu-nbd");
                ClusterMap::default()
            }
        }
    };
    let (extents, layers, clusters) = tokio::join!(disk.extents(), image_chain(&path, "qcow2"), clusters);
    Ok(Surveyed { extents: extents.map_err(SurveyError::Nbd)?, layers: layers.map_err(SurveyError::Tool)?, clusters })
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

/// Identities of the chain, and stamps of all its files. A layer that is no file of this host has neither.
async fn identities(path: &Path, layers: &[ImageLayer]) -> Result<(Vec<LayerIdentity>, Vec<Stamp>)> {
    let mut places: Vec<String> = vec![path.to_string_lossy().into_owned()];
    places.extend(layers[1..].iter().map(|layer| layer.filename.clone()));
    let data: Vec<String> = layers.iter().filter_map(ImageLayer::data_file).map(str::to_owned).collect();
    let path = path.to_owned();
    blocking(move || {
        let failed = |error| cannot_look(&path, error);
        let (mut chain, mut stamps) = (Vec::new(), Vec::new());
        for (at, place) in places.iter().enumerate() {
            let file = if at == 0 { path.clone() } else { PathBuf::from(place) };
            match std::fs::metadata(&file) {
                Ok(metadata) => {
                    chain.push(identity(&file).map_err(failed)?);
                    stamps.push(Stamp::of(&file, &metadata));
                }
                Err(error) if at == 0 => return Err(failed(error)),
                Err(_) => chain.push(remote_identity(place.clone())),
            }
        }
        for file in data.iter().map(PathBuf::from) {
            if let Ok(metadata) = std::fs::metadata(&file) {
                stamps.push(Stamp::of(&file, &metadata));
            }
        }
        Ok((chain, stamps))
    })
    .await
}

fn cannot_look(path: &Path, error: std::io::Error) -> Error {
    Error::source("cannot be looked at").because(error).context(path.display())
}

fn warning(top: &ImageLayer) -> Option<String> {
    let ours = top.bitmaps().iter().filter(|bitmap| bitmap.name.parse::<TrackingName>().is_ok()).count();
    if top.is_corrupt() {
        return Some("QEMU marked the image as corrupt; see `qemu-img check`".to_owned());
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

/// The server is our own process: a broken connection is no matter of networks.
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
