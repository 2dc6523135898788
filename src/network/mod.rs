mod bandwidth;
mod bridge;
mod ipam;
mod links;
mod netlink;
pub(crate) mod netns;
mod nft;
mod ports;
