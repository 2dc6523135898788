//! Images. On this branch the store is a stub with the API that pull.rs is written against.

pub(crate) mod pull;
pub(crate) mod reference;
pub(crate) mod registry;

#[cfg(test)]
#[path = "../../tests/it/fixture/image.rs"]
mod fake_image;
#[cfg(test)]
#[path = "../../tests/it/fixture/registry.rs"]
mod fake_registry;

mod stub;
pub(crate) use stub::*;
