//! A pseudo-terminal of a given devpts instance.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fstatfs};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// `DEVPTS_SUPER_MAGIC`, statfs(2).
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Pty {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
}

/// Opens a terminal by the `ptmx` of a devpts mount that is given by its root.
///
/// Errors if `devpts` is another filesystem: a container could offer a look-alike. The slave is had from the master
/// by `TIOCGPTPEER` (Linux 4.13), so no name in the container's /dev/pts is trusted.
pub(crate) fn open(devpts: impl AsFd) -> io::Result<Pty> {
    if fstatfs(&devpts)?.f_type as i64 != DEVPTS_SUPER_MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a devpts filesystem"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = super::path::open_on_same_mount(&devpts, std::path::Path::new("ptmx"), flags)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok(Pty { master, slave })
}

/// Sets the size of a terminal in characters.
pub(crate) fn set_size(terminal: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    Ok(tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}
