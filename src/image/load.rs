//! Stub.
#[derive(Debug, thiserror::Error)]
#[error("loading is not there yet")]
pub(crate) struct LoadError;
impl super::Store {
    pub(crate) fn load(
        &self,
        _: &std::path::Path,
        _: Option<&super::reference::Reference>,
    ) -> Result<Vec<std::sync::Arc<super::Image>>, LoadError> {
        Err(LoadError)
    }
}
