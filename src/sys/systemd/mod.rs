//! systemd's manager, asked to make cgroups: transient scopes for containers, slices for pods.
//!
//! Under the systemd cgroup driver systemd owns the tree. It would take a cgroup that it does not know for left-overs of its
//! own, and put limits back that it was not told of at the next `daemon-reload`. So units are made by it and told the
//! limits (`properties.rs`); what lies inside a delegated scope, and files that it has no property for, are written directly
//! (`sys/cgroup`). The protocol is in `dbus.rs`.
//!
//! Blocking; a connection is made for one unit and given up afterwards.

mod dbus;
mod properties;

use std::io;
use std::path::Path;
use std::time::Duration;

pub(crate) use self::dbus::Value;
use self::dbus::{Body, CallError, Connection, Method};
pub(crate) use self::properties::of_resources;

/// A unit's property and its value.
pub(crate) type Property = (&'static str, Value);

/// systemd on a loaded machine needs seconds for a job. Under the 100 s that a runtime gets for `create`.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where a bus for the whole system listens (D-Bus specification, "Well-known Message Bus Instances").
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// systemd's own socket: the same protocol without a bus between, for root alone. systemctl uses it.
const PRIVATE: &str = "/run/systemd/private";

/// What went wrong with a unit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SystemdError {
    #[error("reach systemd by {SYSTEM_BUS} or {PRIVATE}; is it running?")]
    Connect(#[source] io::Error),
    #[error("{verb} the systemd unit {unit}")]
    Call {
        verb: &'static str,
        unit: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{verb} the systemd unit {unit}: its job ended as {result:?}; see `systemctl status {unit}`")]
    Job { verb: &'static str, unit: String, result: String },
}

/// Whether systemd is this machine's first process (sd_booted(3)).
pub(crate) fn is_running() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// A connection to the manager.
#[derive(Debug)]
pub(crate) struct Systemd {
    connection: Connection,
}

const fn manager(member: &str) -> Method<'_> {
    Method {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member,
    }
}

const fn bus(member: &str) -> Method<'_> {
    Method {
        destination: "org.freedesktop.DBus",
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        member,
    }
}

impl Systemd {
    /// By the system's bus, or directly where there is none.
    pub(crate) fn connect() -> Result<Self, SystemdError> {
        let by_bus = Connection::open(Path::new(SYSTEM_BUS), PATIENCE).and_then(|connection| {
            let mut this = Self { connection };
            this.join_bus().map_err(|error| match error {
                CallError::Io(error) => error,
                refused => io::Error::other(refused),
            })?;
            Ok(this)
        });
        match by_bus {
            Ok(this) => Ok(this),
            Err(no_bus) => match Connection::open(Path::new(PRIVATE), PATIENCE) {
                // There everybody hears of every job, and nobody has to say hello.
                Ok(connection) => Ok(Self { connection }),
                Err(_) => Err(SystemdError::Connect(no_bus)),
            },
        }
    }

    fn join_bus(&mut self) -> Result<(), CallError> {
        const MATCH: &str = "type='signal',sender='org.freedesktop.systemd1',\
             interface='org.freedesktop.systemd1.Manager',member='JobRemoved',path='/org/freedesktop/systemd1'";
        self.connection.call(bus("Hello"), &Body::default())?;
        self.connection.send(bus("AddMatch"), &Body::default().text(MATCH))?;
        // systemd sends signals to the bus only while somebody there has asked for them.
        self.connection.call(manager("Subscribe"), &Body::default())?;
        Ok(())
    }

    /// Makes a scope or a slice and waits until it is there, its processes in it. One that exists already is
    /// [`Started::Already`].
    pub(crate) fn start_transient(
        &mut self,
        unit: &str,
        properties: &[Property],
    ) -> Result<Started, SystemdError> {
        const VERB: &str = "start";
        let body = Body::default().text(unit).text("replace").properties(properties).no_units();
        match self.connection.call(manager("StartTransientUnit"), &body) {
            Ok(reply) => self.wait_job(VERB, unit, &reply).map(|()| Started::Now),
            Err(CallError::Refused { name, .. }) if name == "org.freedesktop.systemd1.UnitExists" => {
                Ok(Started::Already)
            }
            Err(error) => Err(failed(VERB, unit)(error)),
        }
    }

    /// Tells systemd new values until the next boot, and waits until it has written them.
    pub(crate) fn set_properties(&mut self, unit: &str, properties: &[Property]) -> Result<(), SystemdError> {
        let failed = failed("change", unit);
        if properties.is_empty() {
            return Ok(());
        }
        let body = Body::default().text(unit).bool(true).properties(properties);
        self.connection.call(manager("SetUnitProperties"), &body).map_err(&failed)?;
        // systemd answers before it writes: the cgroup is queued, and the queue is worked off before the next message.
        let ping = Method { interface: "org.freedesktop.DBus.Peer", ..manager("Ping") };
        self.connection.call(ping, &Body::default()).map_err(&failed)?;
        Ok(())
    }

    /// Stops a unit, waits for its end, and has its failure forgotten. An unknown one is fine.
    pub(crate) fn stop(&mut self, unit: &str) -> Result<(), SystemdError> {
        const VERB: &str = "stop";
        match self.connection.call(manager("StopUnit"), &Body::default().text(unit).text("replace")) {
            Ok(reply) => self.wait_job(VERB, unit, &reply)?,
            Err(CallError::Refused { name, .. }) if name == "org.freedesktop.systemd1.NoSuchUnit" => {
                return Ok(());
            }
            Err(error) => return Err(failed(VERB, unit)(error)),
        }
        // A unit that did not fail is refused or not known any more, and both is what is wanted.
        match self.connection.call(manager("ResetFailedUnit"), &Body::default().text(unit)) {
            Ok(_) | Err(CallError::Refused { .. }) => Ok(()),
            Err(error) => Err(failed(VERB, unit)(error)),
        }
    }

    /// Waits for the end of the job whose path is the one word of `reply`.
    fn wait_job(
        &mut self,
        verb: &'static str,
        unit: &str,
        reply: &dbus::Message,
    ) -> Result<(), SystemdError> {
        let failed = failed(verb, unit);
        let job = reply.words().map_err(|error| failed(error.into()))?;
        // JobRemoved: number, path, unit, result.
        let result = self.connection.wait_signal(|signal| {
            let words = signal.words().ok().filter(|_| signal.member.as_deref() == Some("JobRemoved"))?;
            (words.get(1) == job.first()).then(|| words.get(3).cloned()).flatten()
        });
        match result.map_err(|error| failed(error.into()))? {
            result if result == "done" => Ok(()),
            result => Err(SystemdError::Job { verb, unit: unit.to_owned(), result }),
        }
    }
}

/// What became of a unit that was to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Started {
    Now,
    Already,
}

fn failed(verb: &'static str, unit: &str) -> impl Fn(CallError) -> SystemdError {
    move |source| SystemdError::Call { verb, unit: unit.to_owned(), source: Box::new(source) }
}
