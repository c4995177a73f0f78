//! `sluicegate backends`: what is compiled in.

use clap::Args;
use serde::Serialize;
use sluicegate::WriterConfig;
use sluicegate::block::{Adaptive, ByteArray, Log, TwoBit};

use super::output::{Outcome, Table, json, text};
use super::{Exit, Format};

/// Lists the stores, feeds and block codecs that are compiled in.
#[derive(Debug, Args)]
pub(crate) struct BackendsArgs {
    /// How the list is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Backends {
    version: &'static str,
    stores: Vec<Backend>,
    feeds: Vec<Backend>,
    codecs: Vec<Backend>,
    /// What a new cache gets unless told otherwise.
    default_codec: String,
}

#[derive(Debug, Serialize)]
struct Backend {
    name: &'static str,
    about: &'static str,
}

pub(crate) fn run(args: BackendsArgs) -> Outcome<Exit> {
    let registry = sluicegate::registry()?;
    let backends = Backends {
        version: env!("CARGO_PKG_VERSION"),
        stores: registry.stores().map(|s| Backend { name: s.scheme, about: s.about }).collect(),
        feeds: registry.feeds().map(|f| Backend { name: f.scheme, about: f.about }).collect(),
        codecs: vec![
            Backend { name: Adaptive::NAME, about: "a short list while few, a bitmap when that is smaller" },
            Backend { name: ByteArray::NAME, about: "a byte a sequence" },
            Backend { name: Log::NAME, about: "as adaptive; on stores that support it, changes are appended" },
            Backend { name: TwoBit::NAME, about: "two bits a sequence" },
        ],
        default_codec: WriterConfig::default().codec,
    };
    match args.format {
        Format::Json => json(&backends)?,
        Format::Table => text(&table(&backends))?,
    }
    Ok(Exit::Done)
}

fn table(backends: &Backends) -> String {
    let mut table = Table::new(["", "name", "about"]);
    let kinds = [("store", ":", &backends.stores), ("feed", ":", &backends.feeds), ("codec", "", &backends.codecs)];
    for (kind, colon, list) in kinds {
        for backend in list {
            let is_default = kind == "codec" && backend.name == backends.default_codec;
            let about = format!("{}{}", backend.about, if is_default { "; the default" } else { "" });
            table.row([kind.to_owned(), format!("{}{colon}", backend.name), about]);
        }
    }
    table.render(0)
}
