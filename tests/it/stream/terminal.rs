//! `crictl` and `brig` in a real terminal: tmux is the terminal, and what a person would see is what is asserted.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Ship, with_handlers};
use crate::cli::brig_on;
use crate::fixture::node::eventually;

/// A program on the PATH, or a printed reason to skip.
fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// A terminal of 100 columns and 30 rows with a shell in it.
struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    fn open(ship: &Ship) -> Option<Self> {
        installed("tmux")?;
        let terminal = Self { socket: ship.node.dir.path().join("tmux.sock") };
        terminal.tmux(&["new-session", "-d", "-x", "100", "-y", "30", "env PS1='outer> ' sh"]);
        terminal.sees("outer> ");
        Some(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .arg("-S")
            .arg(&self.socket)
            .args(["-f", "/dev/null"])
            .args(arguments)
            .env_remove("TMUX")
            .env("TERM", "xterm")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .output()
            .expect("tmux starts");
        assert!(output.status.success(), "tmux {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Types a line.
    fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.tmux(&["send-keys", "Enter"]);
    }

    /// Types a line at the prompt of busybox's shell in a container.
    ///
    /// At every prompt the shell asks the terminal where the cursor is, and keys that come in one read with the answer are
    /// thrown away with it (libbb/read_key.c, unknown sequences). So blanks go first, until one of them is seen.
    fn shell(&self, text: &str) {
        let column = || self.tmux(&["display-message", "-p", "#{cursor_x}"]).trim().parse::<u32>().ok();
        eventually(|| self.screen().trim_end().ends_with("/ #").then_some(()));
        eventually(|| {
            self.key("Space");
            column().filter(|column| *column > "/ # ".len() as u32)
        });
        self.line(text);
    }

    /// Presses a key, by tmux's name for it.
    fn key(&self, name: &str) {
        self.tmux(&["send-keys", name]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-J"])
    }

    fn sees(&self, text: &str) {
        let end = std::time::Instant::now() + *crate::fixture::node::PATIENCE;
        eventually(|| {
            let screen = self.screen();
            assert!(screen.contains(text) || std::time::Instant::now() < end, "no {text:?} on\n{screen}");
            screen.contains(text).then_some(())
        });
    }

    fn clear(&self) {
        self.line("clear");
        eventually(|| (!self.screen().contains("clear")).then_some(()));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        Command::new("tmux").arg("-S").arg(&self.socket).arg("kill-server").output().ok();
    }
}

/// What a person does in a shell in a container, by whatever client `command` is; it ends with exit code 7.
fn a_session(terminal: &Terminal, command: &str) {
    terminal.line(&format!("{command}; echo ended=$?"));
    terminal.sees("/ # ");
    terminal.shell("stty size");
    terminal.sees("30 100");
    terminal.tmux(&["resize-window", "-x", "90", "-y", "25"]);
    terminal.shell("until stty size | grep '25 90'; do :; done");
    terminal.sees("25 90");
    // The command itself says that it is in the foreground, so the key is for it.
    terminal.shell("sh -c 'echo be\"\"gin; exec sleep 1000'");
    terminal.sees("begin");
    terminal.key("C-c");
    terminal.shell("echo inter''rupted=$?");
    terminal.sees("interrupted=130");
    terminal.shell("sh -c 'echo ag\"\"ain; exec sleep 1000'");
    terminal.sees("again");
    terminal.key("C-z");
    terminal.sees("Stopped");
    // A shell with stopped jobs does not exit at the first try.
    terminal
        .shell("kill -9 %1; while jobs > /tmp/jobs; grep -q Stop /tmp/jobs; do :; done; echo sus''pended");
    terminal.sees("suspended");
    terminal.shell("exit 7");
    terminal.sees("ended=");
    terminal.tmux(&["resize-window", "-x", "100", "-y", "30"]);
}

/// The outer shell's terminal is as it was: line by line, with an echo.
fn is_itself_again(terminal: &Terminal) {
    terminal.clear();
    terminal
        .line("stty -a | tr ' ;' '\\n\\n' | grep -x -e icanon -e echo -e isig -e opost | sort | tr '\\n' ,");
    terminal.sees("echo,icanon,isig,opost,");
}

#[test]
fn privileged_crictl_exec_and_attach_in_a_terminal() {
    with_handlers(|handler| {
        let (Some(crictl), Some(_)) = (installed("crictl"), installed("tmux")) else { return };
        let ship = Ship::pod(handler, "crictl").attachable("exec sh", true, false);
        ship.start();
        let Some(terminal) = Terminal::open(&ship) else { return };
        let socket = ship.node.run_dir().join("brig.sock");
        let crictl = format!("{} --runtime-endpoint unix://{}", crictl.display(), socket.display());
        for transport in ["spdy", "websocket"] {
            terminal.clear();
            a_session(&terminal, &format!("{crictl} exec -it --transport {transport} {} sh", ship.container));
            terminal.sees("exit code 7");
            is_itself_again(&terminal);
        }
        terminal.clear();
        terminal.line(&format!("{crictl} attach -it {}; echo ended=$?", ship.container));
        terminal.key("Enter");
        terminal.sees("/ # ");
        terminal.line("echo shell=$$");
        terminal.sees("shell=1");
        terminal.line("exit 8");
        terminal.sees("ended=0");
        assert_eq!(ship.node.wait_exited(&ship.container).exit_code, 8);
        is_itself_again(&terminal);
    });
}

#[test]
fn privileged_crictl_forwards_a_port_over_both_transports() {
    with_handlers(|handler| {
        let (Some(crictl), Some(_)) = (installed("crictl"), installed("tmux")) else { return };
        let ship = Ship::pod(handler, "crictl-port").running("exec nc -ll -p 7 -e sh -c 'echo from-the-pod'");
        let Some(terminal) = Terminal::open(&ship) else { return };
        let socket = ship.node.run_dir().join("brig.sock");
        for (transport, port) in [("spdy", 18_007), ("websocket", 18_008)] {
            terminal.clear();
            terminal.line(&format!(
                "{} --runtime-endpoint unix://{} port-forward --transport {transport} {} {port}:7",
                crictl.display(),
                socket.display(),
                ship.pod
            ));
            terminal.sees("Forwarding from 127.0.0.1");
            let answer = eventually(|| {
                use std::io::Read;
                let mut answer = String::new();
                let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
                stream.read_to_string(&mut answer).ok()?;
                (!answer.is_empty()).then_some(answer)
            });
            assert_eq!(answer, "from-the-pod\n", "{transport}");
            terminal.key("C-c");
            terminal.line("echo back''again");
            terminal.sees("backagain");
        }
    });
}

#[test]
fn privileged_brig_exec_attach_and_run_in_a_terminal() {
    with_handlers(|handler| {
        if installed("tmux").is_none() {
            return;
        }
        let ship = Ship::pod(handler, "brig").attachable("exec sh", true, false);
        ship.start();
        let Some(terminal) = Terminal::open(&ship) else { return };
        let brig = brig_on(&ship.node);
        for (name, value) in brig.get_envs() {
            if let Some(value) = value {
                terminal.line(&format!("export {}={}", name.to_string_lossy(), value.to_string_lossy()));
            }
        }
        let brig = brig.get_program().to_string_lossy().into_owned();
        terminal.clear();
        a_session(&terminal, &format!("{brig} exec -it {} sh", ship.container));
        terminal.sees("ended=7");
        is_itself_again(&terminal);

        // Killed politely, it puts the terminal back first.
        terminal.clear();
        terminal.line(&format!("{brig} exec -it {} sh; echo ended=$?", ship.container));
        terminal.sees("/ # ");
        let pid = eventually(|| {
            std::fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| {
                let line = std::fs::read(entry.path().join("cmdline")).ok()?;
                let words: Vec<_> = line.split(|byte| *byte == 0).collect();
                let ours = words.first() == Some(&brig.as_bytes())
                    && words.get(3) == Some(&ship.container.as_bytes());
                ours.then(|| entry.file_name().to_string_lossy().into_owned())
            })
        });
        Command::new("kill").arg(&pid).status().expect("kill(1) runs");
        terminal.sees("ended=143");
        is_itself_again(&terminal);

        terminal.clear();
        terminal.line(&format!("{brig} attach -i {}; echo ended=$?", ship.container));
        terminal.sees("try pressing enter");
        terminal.key("Enter");
        terminal.sees("/ # ");
        terminal.shell("exit 9");
        terminal.sees("ended=0");
        assert_eq!(ship.node.wait_exited(&ship.container).exit_code, 9);

        terminal.clear();
        let handler = if handler.is_empty() { String::new() } else { format!("--handler {handler}") };
        a_session(&terminal, &format!("{brig} run --rm -it {handler} {} sh", ship.node.image));
        terminal.sees("ended=7");
        is_itself_again(&terminal);
    });
}
