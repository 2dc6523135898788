//! The command line of `brigd`: flags that override the configuration file, and nothing else.
//!
//! Whatever can be set here can be set in the file; the flags exist so that several instances can run side by side
//! and so that a service manager need not edit files.

use std::path::PathBuf;

use clap::Parser;

use super::config::LogLevel;

/// The Kubernetes container runtime: serves the CRI on a unix socket.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "brigd", version)]
pub(crate) struct Args {
    /// Read this file instead of /etc/brig/config.toml, and the drop-ins in `config.d` beside it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Keep images and layers here instead of `server.root`.
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Keep sockets and the state of running pods here instead of `server.run`.
    #[arg(long, value_name = "DIR")]
    pub(crate) run: Option<PathBuf>,
    /// Serve the CRI here instead of `server.listen`, as unix:///path/to/socket.
    #[arg(long, value_name = "unix://PATH")]
    pub(crate) listen: Option<String>,
    /// Log this and what is graver, instead of `server.log_level`.
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub(crate) log_level: Option<LogLevel>,
    /// Check every image and layer in the data directory, print what is wrong, and exit. Like
    /// every start it takes back what an interrupted pull left; it mends nothing else.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print the configuration that would be used, with a comment for every key, and exit.
    #[arg(long)]
    pub(crate) print_config: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_fixed_flags_parse() {
        Args::command().debug_assert();
        let args = Args::parse_from([
            "brigd",
            "--config",
            "/c.toml",
            "--root",
            "/r",
            "--run",
            "/s",
            "--listen",
            "unix:///s/brig.sock",
            "--log-level",
            "debug",
        ]);
        assert_eq!(args.config, Some("/c.toml".into()));
        assert_eq!(args.root, Some("/r".into()));
        assert_eq!(args.run, Some("/s".into()));
        assert_eq!(args.listen.as_deref(), Some("unix:///s/brig.sock"));
        assert_eq!(args.log_level, Some(LogLevel::Debug));
    }
}
