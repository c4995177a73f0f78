//! Couchbase's own client in Go.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;

/// Its two programs, built.
pub(crate) struct Rival {
    directory: PathBuf,
}

/// Builds them.
pub(crate) fn build() -> Outcome<Rival> {
    // The `go` of the path, or where its own installer puts it.
    let there = |go: &&str| Command::new(go).arg("version").output().is_ok();
    let go = ["go", "/usr/local/go/bin/go"].into_iter().find(there);
    let go = go.ok_or("the comparison needs Go 1.24 or later; install it, or say --alone")?;
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("firehose");
    std::fs::create_dir_all(&directory)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../simulator/tests/go");
    let mut build = Command::new(go);
    build.args(["build", "-mod=readonly", "-o"]).arg(&directory).args([".", "./decode"]).current_dir(source);
    match build.status()?.success() {
        true => Ok(Rival { directory }),
        false => Err("the Go programs do not build; what is wrong with them is above".into()),
    }
}

impl Rival {
    fn command(&self, program: &str, cores: Option<usize>) -> Command {
        let mut command = Command::new(self.directory.join(program));
        command.env("PASSWORD", "password");
        if let Some(cores) = cores {
            command.env("GOMAXPROCS", cores.to_string());
        }
        command
    }

    /// Streams everything once.
    pub(crate) fn follow(&self, address: &str, cores: Option<usize>) -> Command {
        let mut command = self.command("go", cores);
        command.args([address, "default", "Administrator"]);
        command
    }

    /// Decodes the frames of a file for so many seconds: only the packets, or as far as the observer of a stream.
    pub(crate) fn decode(&self, file: &str, seconds: &str, extent: &str, cores: Option<usize>) -> Command {
        let mut command = self.command("decode", cores);
        command.args([file, seconds, extent]);
        command
    }
}
