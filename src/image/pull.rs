//! `PullImage`: from a reference to an image in the store.
//!
//! ```text
//! pull() ── joins or starts ──▶ Flight (a task of its own)
//!                                 resolve ▶ select platform ▶ config ▶ layers, some at a time ▶ store
//!                                 each layer: Blob ▶ channel ▶ a blocking thread that unpacks
//! ```
//!
//! The registry has to serve the manifest to *these* credentials before any layer that the store already has is
//! reused, so an image on the node is no way around its registry's permissions. Pulls of the same reference with the
//! same credentials for the same platform are one flight: whoever asks joins, whoever goes away leaves, and when all
//! have left the flight is cancelled. A cancelled or failed flight leaves nothing in the store: half-made layers are undone
//! by the store, finished ones are collected. Two flights that want the same layer unpack it once.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::reference::Reference;
use super::registry::auth::Auth;
use super::registry::manifest::{self, LayerDescriptor};
use super::registry::platform::Platform;
use super::registry::{Limits, Proxies, RegistryConfig, RegistryError, Session};
use super::{Image, Layer, LayerExpectation, NewImage, Store, StoreError, UnpackError};
use crate::id::Digest;
use crate::metrics::own::Own;
use crate::units;

/// Chunks of a body that wait for the unpacker: with hyper's frames of at most 400 KiB or so, a few MiB per layer.
const CHUNKS_WAITING_MAX: usize = 8;

/// How pulls behave; the defaults are what the configuration file's are.
#[derive(Debug, Clone)]
pub(crate) struct PullConfig {
    /// Directories of containerd-style `<host>/hosts.toml`, first come first served.
    pub(crate) certs_dirs: Vec<PathBuf>,
    /// Docker config.json files, for pulls whose request has no credential.
    pub(crate) auth_files: Vec<PathBuf>,
    /// Pairs of registry host and token server host that belong together though their names do not show it.
    pub(crate) token_realms: Vec<(String, String)>,
    /// What stands between this machine and registries.
    pub(crate) proxies: Proxies,
    /// Layers of one pull that are fetched at the same time.
    pub(crate) parallel_layers: usize,
    /// A transfer without a byte for this long is broken.
    pub(crate) stall_timeout: Duration,
    /// Most compressed bytes of one image. Unpacked sizes are the store's to bound.
    pub(crate) max_image_bytes: units::Bytes,
    /// Names of images that garbage collection must leave alone.
    pub(crate) pinned: Vec<String>,
    /// Tries per request, and the first wait between two.
    pub(crate) attempts: u32,
    pub(crate) backoff: Duration,
    /// Where pulls are counted.
    pub(crate) own: Own,
}

impl Default for PullConfig {
    fn default() -> Self {
        let Limits { stall_timeout, attempts, backoff } = Limits::default();
        Self {
            certs_dirs: Vec::new(),
            auth_files: Vec::new(),
            pinned: Vec::new(),
            token_realms: Vec::new(),
            proxies: Proxies::default(),
            // containerd's max_concurrent_downloads: enough to fill a link, few enough to be polite.
            parallel_layers: 3,
            stall_timeout,
            // Above the largest machine-learning images of today, below most disks.
            max_image_bytes: units::Bytes(128 << 30),
            attempts,
            backoff,
            own: Own::default(),
        }
    }
}

/// Pulls images into a store. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Puller {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    config: PullConfig,
    registry: Arc<RegistryConfig>,
    /// Guards which flights can be joined.
    flights: Mutex<HashMap<FlightKey, Arc<Flight>>>,
    /// One lock per layer that is being unpacked; entries without an owner are dropped on the way.
    layers: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    tasks: TaskTracker,
}

/// What a pull is doing, a layer at a time in the manifest's order. Empty until the manifest is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    pub(crate) layers: Vec<LayerProgress>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerProgress {
    /// Of the compressed blob, as the manifest has it.
    pub(crate) digest: Digest,
    /// Compressed bytes.
    pub(crate) current: u64,
    pub(crate) total: u64,
    pub(crate) phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Waiting,
    /// Downloading and unpacking are one.
    Downloading,
    /// The store had it.
    Present,
    Done,
}

/// Why a pull failed. Cloned to everybody who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum PullError {
    #[error("pull {reference}")]
    Registry { reference: Reference, source: RegistryError },
    #[error("pull {reference}: layer {layer} cannot be unpacked")]
    Layer { reference: Reference, layer: Digest, source: Arc<UnpackError> },
    #[error("pull {reference}: keep the image")]
    Store { reference: Reference, source: Arc<StoreError> },
    #[error("pull {reference}: no space left for layer {layer}; remove images or make room")]
    NoSpace { reference: Reference, layer: Digest, source: Arc<UnpackError> },
    #[error("pull {reference}: cancelled")]
    Cancelled { reference: Reference },
    #[error("pull {reference}: {message}")]
    Internal { reference: Reference, message: String },
}

/// What the caller of a failed pull can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullErrorKind {
    NotFound,
    Unauthorized,
    /// No registry answered, or it says that it cannot: the kubelet's `RegistryUnavailable`.
    Unavailable,
    /// Content is not what its digest, size or type promise.
    Verification,
    NoPlatform,
    /// A layer that must not be unpacked, or whose content lies.
    BadLayer,
    NoSpace,
    Stalled,
    /// Something on this machine: settings, credentials, the store.
    Local,
    Cancelled,
}

impl PullErrorKind {
    /// As metrics name it.
    fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Unauthorized => "unauthorized",
            Self::Unavailable => "unavailable",
            Self::Verification => "verification",
            Self::NoPlatform => "no_platform",
            Self::BadLayer => "bad_layer",
            Self::NoSpace => "no_space",
            Self::Stalled => "stalled",
            Self::Local => "local",
            Self::Cancelled => "cancelled",
        }
    }
}

impl PullError {
    pub(crate) fn kind(&self) -> PullErrorKind {
        let source = match self {
            Self::Registry { source, .. } => source,
            Self::Layer { source, .. } => {
                return match **source {
                    UnpackError::TooLong { .. }
                    | UnpackError::TooShort { .. }
                    | UnpackError::WrongDigest { .. }
                    | UnpackError::WrongDiffId { .. } => PullErrorKind::Verification,
                    UnpackError::Io { .. } => PullErrorKind::Local,
                    UnpackError::Read { .. }
                    | UnpackError::Decompress { .. }
                    | UnpackError::TooLarge { .. }
                    | UnpackError::Bomb { .. }
                    | UnpackError::Entry { .. } => PullErrorKind::BadLayer,
                };
            }
            Self::NoSpace { .. } => return PullErrorKind::NoSpace,
            Self::Cancelled { .. } => return PullErrorKind::Cancelled,
            Self::Store { .. } | Self::Internal { .. } => return PullErrorKind::Local,
        };
        match source {
            RegistryError::NotFound { .. } => PullErrorKind::NotFound,
            RegistryError::Unauthorized { .. } | RegistryError::Realm { .. } => PullErrorKind::Unauthorized,
            RegistryError::Unreachable { .. }
            | RegistryError::Unavailable { .. }
            | RegistryError::Status { .. } => PullErrorKind::Unavailable,
            RegistryError::Stalled { .. } => PullErrorKind::Stalled,
            RegistryError::Verification { .. }
            | RegistryError::Document { .. }
            | RegistryError::Redirect { .. } => PullErrorKind::Verification,
            RegistryError::NoPlatform { .. } => PullErrorKind::NoPlatform,
            RegistryError::Settings { .. }
            | RegistryError::Tls { .. }
            | RegistryError::Credential { .. }
            | RegistryError::NoEndpoint { .. } => PullErrorKind::Local,
        }
    }
}

impl Puller {
    pub(crate) fn new(store: Store, config: PullConfig) -> Self {
        let registry = Arc::new(RegistryConfig {
            certs_dirs: config.certs_dirs.clone(),
            auth_files: config.auth_files.clone(),
            token_realms: config.token_realms.clone(),
            proxies: Arc::new(config.proxies.clone()),
            limits: Limits {
                stall_timeout: config.stall_timeout,
                attempts: config.attempts.max(1),
                backoff: config.backoff,
            },
        });
        let (flights, layers) = (Mutex::default(), Mutex::default());
        Self {
            inner: Arc::new(Inner { store, config, registry, flights, layers, tasks: TaskTracker::new() }),
        }
    }

    /// Pulls an image, or joins the pull of it that is under way. `progress` is told what the pull does as it does it.
    ///
    /// Dropping the future leaves the pull; the last to leave cancels it, and what it had begun is undone in the
    /// background ([`Puller::idle`] waits for that).
    pub(crate) async fn pull(
        &self,
        reference: &Reference,
        auth: Option<Auth>,
        platform: Option<Platform>,
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<Arc<Image>, PullError> {
        let platform = platform.unwrap_or_else(Platform::host).normalised();
        let key = FlightKey { reference: reference.clone(), auth, platform };
        let seat = self.board(key);
        let mut seen = seat.flight.progress.subscribe();
        let mut outcome = seat.flight.outcome.subscribe();
        loop {
            if let Some(progress) = &progress {
                progress.send_replace(seen.borrow_and_update().clone());
            }
            if let Some(outcome) = outcome.borrow_and_update().as_ref() {
                return outcome.clone();
            }
            tokio::select! {
                changed = outcome.changed() => changed.expect("the seat keeps the flight and its channels"),
                changed = seen.changed(), if progress.is_some() => {
                    changed.expect("the seat keeps the flight and its channels");
                }
            }
        }
    }

    /// Waits until no pull is under way and everything a cancelled one began is undone.
    pub(crate) async fn idle(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.tasks.reopen();
    }

    /// Cancels every pull, for shutdown; [`Puller::idle`] waits for the end.
    pub(crate) fn cancel_all(&self) {
        for flight in self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner).values() {
            flight.cancel.cancel();
        }
    }

    /// A seat on the flight of this key; starts it if there is none.
    fn board(&self, key: FlightKey) -> Seat {
        let mut flights = self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key) {
            let mut seats = flight.seats.lock().unwrap_or_else(PoisonError::into_inner);
            if !flight.cancel.is_cancelled() {
                *seats += 1;
                self.inner.config.own.pull_joined();
                return Seat { flight: Arc::clone(flight) };
            }
        }
        let flight = Arc::new(Flight {
            cancel: CancellationToken::new(),
            seats: Mutex::new(1),
            outcome: watch::Sender::new(None),
            progress: watch::Sender::new(Progress::default()),
        });
        flights.insert(key.clone(), Arc::clone(&flight));
        drop(flights);

        let (inner, running) = (Arc::clone(&self.inner), Arc::clone(&flight));
        let span = tracing::info_span!("pull", reference = %key.reference);
        let task = async move {
            let began = Instant::now();
            let result = inner.fly(&key, &running).await;
            inner.count(&running, &result, began.elapsed());
            if result.is_err() {
                inner.sweep().await;
            }
            let mut flights = inner.flights.lock().unwrap_or_else(PoisonError::into_inner);
            // A cancelled flight may already have a successor.
            if flights.get(&key).is_some_and(|current| Arc::ptr_eq(current, &running)) {
                flights.remove(&key);
            }
            drop(flights);
            running.outcome.send_replace(Some(result));
        };
        self.inner.tasks.spawn(task.instrument(span));
        Seat { flight }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FlightKey {
    reference: Reference,
    auth: Option<Auth>,
    platform: Platform,
}

/// A pull under way.
#[derive(Debug)]
struct Flight {
    cancel: CancellationToken,
    /// How many wait for it.
    seats: Mutex<usize>,
    outcome: watch::Sender<Option<Result<Arc<Image>, PullError>>>,
    progress: watch::Sender<Progress>,
}

/// One who waits; the last to leave turns the flight back.
struct Seat {
    flight: Arc<Flight>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.flight.seats.lock().unwrap_or_else(PoisonError::into_inner);
        *seats -= 1;
        if *seats == 0 {
            // Still under the lock that boarding takes, so nobody sits down on a cancelled flight unawares.
            self.flight.cancel.cancel();
        }
    }
}

impl Inner {
    fn count(&self, flight: &Flight, result: &Result<Arc<Image>, PullError>, took: Duration) {
        for layer in &flight.progress.borrow().layers {
            match layer.phase {
                Phase::Waiting => {}
                // What came before a failure has been paid for as well.
                Phase::Downloading | Phase::Done => self.config.own.layer(Some(layer.current)),
                Phase::Present => self.config.own.layer(None),
            }
        }
        let outcome = result.as_ref().map_or_else(|error| error.kind().as_str(), |_| "done");
        self.config.own.pulled(outcome, took);
    }

    /// The pull itself. Ends only when everything that it started has ended.
    async fn fly(self: &Arc<Self>, key: &FlightKey, flight: &Arc<Flight>) -> Result<Arc<Image>, PullError> {
        let reference = &key.reference;
        let cancelled = || PullError::Cancelled { reference: reference.clone() };
        let plan = tokio::select! {
            () = flight.cancel.cancelled() => return Err(cancelled()),
            plan = self.plan(key) => plan.map_err(|source| PullError::Registry { reference: reference.clone(), source })?,
        };
        flight.progress.send_replace(Progress {
            layers: plan
                .layers
                .iter()
                .map(|(layer, _)| LayerProgress {
                    digest: layer.digest.clone(),
                    current: 0,
                    total: layer.size,
                    phase: Phase::Waiting,
                })
                .collect(),
        });

        // A child, so that one layer's failure stops its siblings and not a flight that others may still join.
        let cancel = flight.cancel.child_token();
        let slots = Arc::new(Semaphore::new(self.config.parallel_layers.max(1)));
        let mut tasks = JoinSet::new();
        for (at, (layer, diff_id)) in plan.layers.iter().cloned().enumerate() {
            let job = LayerJob {
                inner: Arc::clone(self),
                session: Arc::clone(&plan.session),
                flight: Arc::clone(flight),
                reference: reference.clone(),
                at,
                layer,
                diff_id,
                cancel: cancel.clone(),
            };
            let slots = Arc::clone(&slots);
            tasks.spawn(async move { (at, job.run(&slots).await) }.in_current_span());
        }
        let mut layers: Vec<Option<Layer>> = plan.layers.iter().map(|_| None).collect();
        let mut failure = None;
        while let Some(joined) = tasks.join_next().await {
            let error = match joined {
                Ok((at, Ok(layer))) => {
                    layers[at] = Some(layer);
                    continue;
                }
                Ok((_, Err(error))) => error,
                Err(panic) => {
                    PullError::Internal { reference: reference.clone(), message: panic.to_string() }
                }
            };
            // The first failure is the cause; what follows from cancelling the others is not.
            failure.get_or_insert(error);
            cancel.cancel();
        }
        if let Some(error) = failure {
            return Err(error);
        }
        if flight.cancel.is_cancelled() {
            return Err(cancelled());
        }
        let layers =
            layers.into_iter().map(|layer| layer.expect("no task failed, so every one left its layer"));
        let new = NewImage {
            manifest: plan.manifest.to_vec(),
            manifest_digest: plan.manifest_digest,
            config: plan.config,
            config_digest: plan.config_digest,
            layers: layers.collect(),
            // As containerd's ParseDockerRef: with a digest the tag is a comment.
            tags: if reference.digest().is_some() { Vec::new() } else { vec![reference.to_string()] },
            repo_digests: vec![reference.with_digest(&plan.top_digest).to_string()],
        };
        let store = self.store.clone();
        let pinned = reference.is_among(&self.config.pinned);
        let put = tokio::task::spawn_blocking(move || {
            let image = store.put_image(new)?;
            if pinned {
                store.set_pinned(&image.id, true)?;
            }
            Ok(image)
        })
        .await;
        match put {
            Ok(Ok(image)) => Ok(image),
            Ok(Err(source)) => {
                Err(PullError::Store { reference: reference.clone(), source: Arc::new(source) })
            }
            Err(panic) => {
                Err(PullError::Internal { reference: reference.clone(), message: panic.to_string() })
            }
        }
    }

    /// Everything that must be known, and was verified, before the first layer moves.
    async fn plan(&self, key: &FlightKey) -> Result<Plan, RegistryError> {
        let session =
            Session::open(Arc::clone(&self.registry), key.reference.clone(), key.auth.as_ref()).await?;
        let session = Arc::new(session);
        let top = session.resolve().await?;
        let top_digest = top.digest.clone();
        let chosen = session.select(top, &key.platform).await?;
        let manifest::Document::Image { config, layers } = chosen.document else {
            unreachable!("select returns an image")
        };
        let what = format!("image {}", key.reference);
        let unusable = |source| RegistryError::Document { what: what.clone(), source };
        let limit = self.config.max_image_bytes;
        let total = layers.iter().fold(config.size, |sum, layer| sum.saturating_add(layer.size));
        if total > limit.0 {
            return Err(unusable(manifest::DocumentError::TooLarge { total: units::Bytes(total), limit }));
        }
        let config_bytes = session.small_blob(&config.digest, config.size).await?;
        let head = manifest::parse_config(&config_bytes, layers.len()).map_err(unusable)?;
        if let Some(platform) = head.platform
            && key.platform.rank(&platform).is_none()
        {
            let (wanted, offered) = (key.platform.clone(), platform.to_string());
            return Err(RegistryError::NoPlatform { what, wanted, offered });
        }
        Ok(Plan {
            session,
            top_digest,
            manifest: chosen.bytes,
            manifest_digest: chosen.digest,
            config: config_bytes,
            config_digest: config.digest,
            layers: layers.into_iter().zip(head.diff_ids).collect(),
        })
    }

    /// Removes the layers that a failed pull had finished. What other pulls have leased stays.
    async fn sweep(&self) {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || store.collect()).await {
            Ok(Ok(())) => {}
            // The pull's own error is the one to report; what is left is collected with the next removal or start.
            Ok(Err(error)) => tracing::warn!(%error, "layers of a failed pull stay for now"),
            Err(panic) => tracing::warn!(%panic, "layers of a failed pull stay for now"),
        }
    }

    /// The lock of everybody who wants to unpack this layer.
    fn layer_lock(&self, diff_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(diff_id).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(diff_id.clone(), Arc::downgrade(&lock));
        lock
    }
}

struct Plan {
    session: Arc<Session>,
    /// Of the document that the reference itself names: an index or the manifest.
    top_digest: Digest,
    manifest: Bytes,
    manifest_digest: Digest,
    config: Vec<u8>,
    config_digest: Digest,
    layers: Vec<(LayerDescriptor, Digest)>,
}

struct LayerJob {
    inner: Arc<Inner>,
    session: Arc<Session>,
    flight: Arc<Flight>,
    reference: Reference,
    at: usize,
    layer: LayerDescriptor,
    diff_id: Digest,
    cancel: CancellationToken,
}

impl LayerJob {
    /// Leases the layer or makes it. Returns only when no thread of it is left.
    async fn run(self, slots: &Semaphore) -> Result<Layer, PullError> {
        let cancelled = || PullError::Cancelled { reference: self.reference.clone() };
        let lock = self.inner.layer_lock(&self.diff_id);
        // First the lock and then the slot, so that waiting for another pull's unpacking takes up no slot.
        let _mine = tokio::select! {
            () = self.cancel.cancelled() => return Err(cancelled()),
            mine = lock.lock() => mine,
        };
        if let Some(layer) = self.lease().await? {
            self.tell(|progress| (progress.phase, progress.current) = (Phase::Present, progress.total));
            return Ok(layer);
        }
        let _slot = tokio::select! {
            () = self.cancel.cancelled() => return Err(cancelled()),
            slot = slots.acquire() => slot.expect("the semaphore is never closed"),
        };
        self.tell(|progress| progress.phase = Phase::Downloading);
        let layer = self.download_and_unpack().await?;
        self.tell(|progress| (progress.phase, progress.current) = (Phase::Done, progress.total));
        Ok(layer)
    }

    async fn lease(&self) -> Result<Option<Layer>, PullError> {
        let (store, diff_id) = (self.inner.store.clone(), self.diff_id.clone());
        tokio::task::spawn_blocking(move || store.lease_layer(&diff_id))
            .await
            .map_err(|panic| self.internal(&panic))
    }

    async fn download_and_unpack(&self) -> Result<Layer, PullError> {
        let (sender, receiver) = mpsc::channel(CHUNKS_WAITING_MAX);
        let unpacking = {
            let (store, flight, at) = (self.inner.store.clone(), Arc::clone(&self.flight), self.at);
            let expect = LayerExpectation {
                blob_digest: self.layer.digest.clone(),
                blob_size: self.layer.size,
                diff_id: self.diff_id.clone(),
            };
            tokio::task::spawn_blocking(move || {
                let reader = ChannelReader { receiver, current: Bytes::new(), ended: false };
                store.unpack_layer(reader, expect, &|bytes| {
                    flight.progress.send_modify(|progress| progress.layers[at].current = bytes);
                })
            })
        };
        let downloaded = tokio::select! {
            () = self.cancel.cancelled() => Err(None),
            downloaded = self.feed(&sender) => downloaded.map_err(Some),
        };
        drop(sender);
        // Whatever happened, wait for the thread: it still owns a half-made directory.
        let unpacked = unpacking.await.map_err(|panic| self.internal(&panic))?;
        let (reference, layer) = (self.reference.clone(), self.layer.digest.clone());
        match (downloaded, unpacked) {
            // The unpacker hung up first, so its reason is the cause.
            (Ok(()), Ok(unpacked)) => Ok(unpacked),
            (Ok(()), Err(source)) if is_no_space(&source) => {
                Err(PullError::NoSpace { reference, layer, source: Arc::new(source) })
            }
            (Ok(()), Err(source)) => Err(PullError::Layer { reference, layer, source: Arc::new(source) }),
            (Err(Some(source)), _) => Err(PullError::Registry { reference, source: self.explain(source) }),
            (Err(None), _) => Err(PullError::Cancelled { reference }),
        }
    }

    /// Moves the blob into the channel. Ends well, too, when the unpacker hangs up: then the unpacker has the error.
    async fn feed(&self, sender: &mpsc::Sender<Message>) -> Result<(), RegistryError> {
        let mut blob = self.session.blob(&self.layer.digest, self.layer.size);
        loop {
            let chunk = tokio::select! {
                () = sender.closed() => return Ok(()),
                chunk = blob.chunk() => chunk?,
            };
            let Some(bytes) = chunk else { break };
            if sender.send(Message::Data(bytes)).await.is_err() {
                return Ok(());
            }
        }
        let _ = sender.send(Message::End).await;
        Ok(())
    }

    /// A registry may not keep foreign layers; say so where it would otherwise look like its fault.
    fn explain(&self, error: RegistryError) -> RegistryError {
        match error {
            RegistryError::NotFound { what, endpoint, .. } if self.layer.foreign => RegistryError::NotFound {
                what,
                endpoint,
                message: "it is a foreign layer, and Brig does not follow a manifest's urls".to_owned(),
            },
            error => error,
        }
    }

    fn tell(&self, change: impl FnOnce(&mut LayerProgress)) {
        self.flight.progress.send_modify(|progress| change(&mut progress.layers[self.at]));
    }

    fn internal(&self, panic: &tokio::task::JoinError) -> PullError {
        PullError::Internal { reference: self.reference.clone(), message: panic.to_string() }
    }
}

enum Message {
    Data(Bytes),
    /// All of it has been sent. A channel that closes without this was cut off.
    End,
}

/// The blocking end of a layer's channel.
struct ChannelReader {
    receiver: mpsc::Receiver<Message>,
    current: Bytes,
    ended: bool,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(Message::Data(bytes)) => self.current = bytes,
                Some(Message::End) => self.ended = true,
                // Not an end of file: a layer that looks whole must never come of half a download.
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the download was given up",
                    ));
                }
            }
        }
        let taken = self.current.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&self.current.split_to(taken));
        Ok(taken)
    }
}

/// Whether a full disk or quota is at the bottom of an error.
fn is_no_space(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            return true;
        }
        if let Some(errno) = error.downcast_ref::<rustix::io::Errno>()
            && matches!(*errno, rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod proxied;
#[cfg(test)]
mod tests;
