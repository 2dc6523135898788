//! `brig pull`, `brig load` and `brig rmi`: images in and out.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::client::Client;
use super::error::CliError;
use super::output;
use crate::proto::{admin, v1};

/// What to pull.
#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// The image, as Docker and Kubernetes write it.
    image: String,
    /// USER:PASSWORD for the registry; without it the daemon's own credentials are looked up.
    #[arg(long, env = "BRIG_CREDENTIALS", hide_env_values = true, value_name = "USER:PASSWORD")]
    credentials: Option<String>,
    /// Print only the image's id.
    #[arg(short, long)]
    quiet: bool,
}

/// What to load.
#[derive(Debug, Args)]
pub(super) struct LoadArgs {
    /// A docker-archive or oci-archive tar, or the folder of an OCI layout, on the daemon's machine.
    path: PathBuf,
    /// A name for an archive that carries none.
    #[arg(long, default_value = "")]
    name: String,
}

/// What to remove.
#[derive(Debug, Args)]
pub(super) struct RmiArgs {
    /// Images by any name, or id.
    #[arg(required = true)]
    images: Vec<String>,
}

pub(super) async fn pull(client: Client, args: PullArgs) -> Result<ExitCode, CliError> {
    let credentials = match &args.credentials {
        None => None,
        Some(text) => Some(text.split_once(':').ok_or_else(|| CliError::Argument {
            option: "--credentials",
            // Not the value: it may be the password alone.
            value: "…".to_owned(),
            must: "USER:PASSWORD",
        })?),
    };
    let id = pull_image(client, &args.image, credentials, args.quiet).await?;
    output::line(id)?;
    Ok(ExitCode::SUCCESS)
}

/// Pulls with a bar per layer on a terminal and a line per finished layer elsewhere, both on stderr; returns the id.
pub(super) async fn pull_image(
    mut client: Client,
    image: &str,
    credentials: Option<(&str, &str)>,
    quiet: bool,
) -> Result<String, CliError> {
    let (username, password) = credentials.unwrap_or_default();
    let request = admin::PullRequest {
        image: image.to_owned(),
        username: username.to_owned(),
        password: password.to_owned(),
    };
    let what = || CliError::refused(format!("pull {image}"));
    let mut news = client.admin.pull(request).await.map_err(what())?.into_inner();
    let mut layers = Layers::new(quiet);
    while let Some(message) = news.message().await.map_err(what())? {
        for layer in &message.layers {
            layers.show(layer);
        }
        if !message.image_id.is_empty() {
            return Ok(message.image_id);
        }
    }
    Err(CliError::Incomplete("the image's id"))
}

/// The layers of a pull, on stderr. Bars vanish when this is dropped.
struct Layers {
    /// `None` where nobody looks.
    bars: Option<MultiProgress>,
    lines: bool,
    by_digest: HashMap<String, (ProgressBar, admin::LayerState)>,
}

impl Layers {
    fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            bars: (terminal && !quiet).then(MultiProgress::new),
            lines: !terminal && !quiet,
            by_digest: HashMap::new(),
        }
    }

    fn show(&mut self, layer: &admin::LayerProgress) {
        let name = layer.digest.trim_start_matches("sha256:");
        let name = name.get(..13).unwrap_or(name).to_owned();
        let bars = &self.bars;
        let (bar, last) = self.by_digest.entry(layer.digest.clone()).or_insert_with(|| {
            let bar = match bars {
                Some(bars) => bars.add(ProgressBar::new(layer.bytes_total)),
                None => ProgressBar::hidden(),
            };
            let style = "{prefix} {bar:32} {binary_bytes:>11} of {binary_total_bytes:<11} {msg}";
            bar.set_style(
                ProgressStyle::with_template(style).expect("the template is a constant that works"),
            );
            bar.set_prefix(name.clone());
            (bar, admin::LayerState::LayerWaiting)
        });
        bar.set_length(layer.bytes_total);
        bar.set_position(layer.bytes_done);
        let state = layer.state();
        let word = match state {
            admin::LayerState::LayerWaiting => "waiting",
            admin::LayerState::LayerDownloading => "downloading",
            admin::LayerState::LayerUnpacking => "unpacking",
            admin::LayerState::LayerDone => "done",
            admin::LayerState::LayerPresent => "already here",
        };
        bar.set_message(word);
        let ended = |state| matches!(state, admin::LayerState::LayerDone | admin::LayerState::LayerPresent);
        if ended(state) && !ended(*last) {
            bar.abandon();
            if self.lines {
                eprintln!("{name}: {word} ({})", crate::units::Bytes(layer.bytes_total));
            }
        }
        *last = state;
    }
}

pub(super) async fn load(mut client: Client, args: LoadArgs) -> Result<ExitCode, CliError> {
    let source = |source| CliError::File { what: "find", path: args.path.clone(), source };
    let path = std::path::absolute(&args.path).map_err(source)?;
    let request = admin::LoadRequest { path: path.to_string_lossy().into_owned(), name: args.name };
    let what = CliError::refused(format!("load {}", path.display()));
    for image in client.admin.load(request).await.map_err(what)?.into_inner().images {
        let names = if image.names.is_empty() { "<none>".to_owned() } else { image.names.join(" ") };
        output::line(format!("{} {names}", image.id))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn rmi(mut client: Client, args: RmiArgs) -> Result<ExitCode, CliError> {
    for image in args.images {
        // CRI's RemoveImage says nothing about an image that was never there; an operator wants to hear of a typo.
        let spec = Some(v1::ImageSpec { image: image.clone(), ..Default::default() });
        let request = v1::ImageStatusRequest { image: spec.clone(), verbose: false };
        let what = CliError::refused(format!("look up {image}"));
        if client.images.image_status(request).await.map_err(what)?.into_inner().image.is_none() {
            return Err(CliError::NotFound { kind: "image", name: image, list: "brig images" });
        }
        let what = CliError::refused(format!("remove {image}"));
        client.images.remove_image(v1::RemoveImageRequest { image: spec }).await.map_err(what)?;
        output::line(image)?;
    }
    Ok(ExitCode::SUCCESS)
}
