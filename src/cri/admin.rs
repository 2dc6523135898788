//! Brig's own service for its command line, in the order of `proto/brig/v1/admin.proto`.

use std::path::PathBuf;

use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::Services;
use super::from_proto::{self, load_path};
use super::status::{Kind, refused, status};
use crate::image::pull::{self, Progress};
use crate::image::reference::Reference;
use crate::proto::admin::admin_server::Admin;
use crate::proto::admin::*;
use crate::proto::v1;
use crate::task::blocking;

type Answer<T> = Result<Response<T>, Status>;

#[derive(Debug)]
pub(super) struct Operator {
    all: Services,
}

impl Operator {
    pub(super) fn new(all: Services) -> Self {
        Self { all }
    }
}

#[tonic::async_trait]
impl Admin for Operator {
    async fn load(&self, request: Request<LoadRequest>) -> Answer<LoadResponse> {
        let request = request.into_inner();
        let path: PathBuf = load_path(request.path).map_err(refused)?;
        let name: Option<Reference> = match request.name {
            none if none.is_empty() => None,
            name => Some(name.parse().map_err(refused)?),
        };
        let store = self.all.store.clone();
        let loaded = blocking(move || store.load(&path, name.as_ref())).await.map_err(refused)?;
        let images =
            loaded.iter().map(|image| LoadedImage { id: image.id.to_string(), names: image.tags.clone() });
        Ok(Response::new(LoadResponse { images: images.collect() }))
    }

    type PullStream = BoxStream<'static, Result<PullProgress, Status>>;

    async fn pull(&self, request: Request<PullRequest>) -> Answer<Self::PullStream> {
        let request = request.into_inner();
        let spec = v1::ImageSpec { image: request.image, ..Default::default() };
        let spec = from_proto::image::image_spec("image", Some(spec)).map_err(refused)?;
        let reference: Reference = spec.image.parse().map_err(refused)?;
        let (username, password) = (request.username, request.password);
        let auth = v1::AuthConfig { username, password, ..Default::default() };
        let auth = from_proto::image::auth(Some(auth)).map_err(refused)?;
        let puller = self.all.puller.clone();
        let (sender, news) = watch::channel(Progress::default());
        let pull = async move { puller.pull(&reference, auth, None, Some(sender)).await };
        Ok(Response::new(progress(pull, news)))
    }

    async fn config(&self, _: Request<ConfigRequest>) -> Answer<ConfigResponse> {
        Ok(Response::new(ConfigResponse { toml: self.all.about.toml.clone() }))
    }

    async fn teardown(&self, _: Request<TeardownRequest>) -> Answer<TeardownResponse> {
        let pods = self.all.pods.list().len();
        if pods > 0 {
            let message = format!("the network is in use by {pods} pods; remove them first");
            return Err(status(Kind::FailedPrecondition, message));
        }
        self.all.pods.network().teardown().await.map_err(refused)?;
        let removed = vec!["the bridge with its addresses, routes and nftables table".to_owned()];
        Ok(Response::new(TeardownResponse { removed }))
    }
}

/// What a pull says while it goes on, and its image at the end. The pull stays with the stream: a client that goes away
/// cancels it unless another waits for the same image.
fn progress(
    pull: impl Future<Output = Result<std::sync::Arc<crate::image::Image>, pull::PullError>> + Send + 'static,
    news: watch::Receiver<Progress>,
) -> BoxStream<'static, Result<PullProgress, Status>> {
    let start = Some((Box::pin(pull), news, Progress::default()));
    stream::unfold(start, |state| async move {
        let (mut pull, mut news, told) = state?;
        loop {
            tokio::select! {
                ended = &mut pull => {
                    let layers = changed(&told, &news.borrow());
                    let last = ended.map(|image| PullProgress { layers, image_id: image.id.to_string() });
                    return Some((last.map_err(refused), None));
                }
                Ok(()) = news.changed() => {
                    let now = news.borrow_and_update().clone();
                    let layers = changed(&told, &now);
                    if !layers.is_empty() {
                        let message = PullProgress { layers, image_id: String::new() };
                        return Some((Ok(message), Some((pull, news, now))));
                    }
                }
            }
        }
    })
    .boxed()
}

fn changed(told: &Progress, now: &Progress) -> Vec<LayerProgress> {
    let fresh = now.layers.iter().enumerate().filter(|(i, layer)| told.layers.get(*i) != Some(layer));
    fresh
        .map(|(_, layer)| LayerProgress {
            digest: layer.digest.to_string(),
            bytes_done: layer.current,
            bytes_total: layer.total,
            state: match layer.phase {
                pull::Phase::Waiting => LayerState::LayerWaiting,
                pull::Phase::Downloading if layer.total > 0 && layer.current == layer.total => {
                    LayerState::LayerUnpacking
                }
                pull::Phase::Downloading => LayerState::LayerDownloading,
                pull::Phase::Present => LayerState::LayerPresent,
                pull::Phase::Done => LayerState::LayerDone,
            }
            .into(),
        })
        .collect()
}
