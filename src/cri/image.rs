//! ImageService, one function per RPC, in the order of `proto/runtime/v1/api.proto`.

use std::collections::BTreeMap;

use tonic::{Request, Response, Status};

use super::Services;
use super::chunks::{Chunks, chunks};
use super::from_proto::image as from_proto;
use super::status::refused;
use super::to_proto;
use crate::image::reference::Reference;
use crate::proto::v1::image_service_server::ImageService;
use crate::proto::v1::*;
use crate::task::blocking;

type Answer<T> = Result<Response<T>, Status>;

#[derive(Debug)]
pub(super) struct Images {
    all: Services,
}

impl Images {
    pub(super) fn new(all: Services) -> Self {
        Self { all }
    }
}

#[tonic::async_trait]
impl ImageService for Images {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let images = self.listed(request.into_inner().filter)?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    type StreamImagesStream = Chunks<StreamImagesResponse>;

    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let items = self.listed(request.into_inner().filter)?;
        Ok(Response::new(chunks(items, |images| StreamImagesResponse { images })))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let request = request.into_inner();
        let spec = from_proto::image_spec("image", request.image).map_err(refused)?;
        let found = self.all.store.find(&spec.image).map_err(refused)?;
        let info = match &found {
            Some(image) if request.verbose => self.info(image).await?,
            _ => BTreeMap::new(),
        };
        // CRI v1: an image that is not there is no error.
        Ok(Response::new(ImageStatusResponse { image: found.map(|image| to_proto::image(&image)), info }))
    }

    /// Not detached: when the last client that waits for a pull goes away, the pull is cancelled and undone.
    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let request = request.into_inner();
        let spec = from_proto::image_spec("image", request.image).map_err(refused)?;
        let auth = from_proto::auth(request.auth).map_err(refused)?;
        let reference: Reference = spec.image.parse().map_err(refused)?;
        let image = self.all.puller.pull(&reference, auth, None, None).await.map_err(refused)?;
        Ok(Response::new(PullImageResponse { image_ref: image.id.to_string() }))
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let spec = from_proto::image_spec("image", request.into_inner().image).map_err(refused)?;
        let store = self.all.store.clone();
        // Whether it was there makes no difference to the answer.
        blocking(move || store.remove(&spec.image)).await.map_err(refused)?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        // One filesystem for both: the kubelet tells by equality that they are not split (KEP-4191).
        let usage = to_proto::fs_usage(&self.all.store.usage());
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}

impl Images {
    fn listed(&self, filter: Option<ImageFilter>) -> Result<Vec<Image>, Status> {
        let found = match from_proto::image_filter(filter).map_err(refused)? {
            None => self.all.store.list(),
            Some(wanted) => self.all.store.find(&wanted).map_err(refused)?.into_iter().collect(),
        };
        Ok(found.iter().map(|image| to_proto::image(image)).collect())
    }

    /// The image's record, and its config as the image has it.
    async fn info(&self, image: &crate::image::Image) -> Result<BTreeMap<String, String>, Status> {
        let (store, image) = (self.all.store.clone(), image.clone());
        let info = blocking(move || {
            let config = store.config(&image)?;
            Ok::<_, crate::image::StoreError>(serde_json::json!({ "record": image, "imageSpec": config }))
        });
        Ok(BTreeMap::from([("info".to_owned(), info.await.map_err(refused)?.to_string())]))
    }
}
