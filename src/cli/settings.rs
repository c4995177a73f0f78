//! Settings, from a file, the environment and flags. Whatever is wrong is named with where it came from.
//!
//! The layers are put together by hand, on a flat list of dotted names: general configuration crates do not know, once values are
//! merged, which environment variable or which `--set` an unknown name came from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluicegate::decode::GatewayOptions;
use sluicegate::{Error, ErrorKind, ReaderConfig, Result, WriterConfig};

/// What all our environment variables begin with.
const PREFIX: &str = "SLUICEGATE_";

/// The environment variable that names the file.
pub(crate) const CONFIG_VARIABLE: &str = "SLUICEGATE_CONFIG";

/// The sections of the file.
const SECTIONS: [&str; 3] = ["writer", "reader", "decoder"];

/// All that can be set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// URL of the feed.
    pub(crate) feed: Option<String>,
    /// URL of the store.
    pub(crate) store: Option<String>,
    /// Name of this node.
    pub(crate) node: Option<String>,
    /// What is logged.
    pub(crate) log: Option<String>,
    /// How it is logged.
    pub(crate) log_format: Option<String>,
    /// How the writer works.
    pub(crate) writer: WriterConfig,
    /// How the reader works.
    pub(crate) reader: ReaderConfig,
    /// Which database the feed's documents are read as.
    pub(crate) decoder: DecoderSettings,
}

/// Which of the gateway's databases is decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DecoderSettings {
    /// The database's metadata id; without one the default.
    metadata_id: Option<String>,
    /// The numbers of its collections, with commas between them; without any all of them.
    collections: Option<String>,
    /// Whether metadata are never looked for in bodies.
    attributes_only: bool,
}

impl DecoderSettings {
    /// What a decoder is made of.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the setting that is wrong.
    pub(crate) fn options(&self) -> Result<GatewayOptions> {
        let number = |text: &str| {
            let text = text.trim();
            let number = match text.strip_prefix("0x") {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => text.parse(),
            };
            number.map_err(|_| Error::config(format!("collections holds `{text}`, must be numbers, such as 8,0xa")))
        };
        let collections =
            self.collections.as_deref().map(|list| list.split(',').map(number).collect::<Result<_>>()).transpose()?;
        let mut options = GatewayOptions::default();
        (options.metadata_id, options.collections) = (self.metadata_id.clone(), collections);
        options.attributes_only = self.attributes_only;
        options.validate()?;
        Ok(options)
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Default,
    File(PathBuf, String),
    Variable(String),
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(path, key) => write!(f, "file {}, key `{key}`", path.display()),
            Source::Variable(name) => write!(f, "environment variable {name}"),
            Source::Flag(flag) => f.write_str(flag),
        }
    }
}

/// Values by dotted name, each from the last layer that had it.
#[derive(Debug)]
pub(crate) struct Layers {
    defaults: BTreeMap<String, Value>,
    values: BTreeMap<String, (Value, Source)>,
}

impl Layers {
    /// Only defaults.
    pub(crate) fn new() -> Self {
        let mut defaults = BTreeMap::new();
        if let Ok(Value::Object(all)) = serde_json::to_value(Settings::default()) {
            for (name, value) in all {
                match value {
                    Value::Object(section) => {
                        defaults.extend(section.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
                    }
                    value => {
                        defaults.insert(name, value);
                    }
                }
            }
        }
        Layers { defaults, values: BTreeMap::new() }
    }

    /// Adds what a TOML file says.
    pub(crate) fn file(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            let kind = if e.kind() == std::io::ErrorKind::NotFound { ErrorKind::ConfigInvalid } else { ErrorKind::Unavailable };
            Error::new(kind, format!("the settings file {} cannot be read", path.display())).with_source(e)
        })?;
        let table: toml::Table = toml::from_str(&text).map_err(|e| {
            // The whole error quotes the line, in which there may be a password.
            let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Error::config(format!("file {}, line {line}: {}", path.display(), e.message()))
        })?;
        for (name, value) in table {
            match value {
                toml::Value::Table(section) if SECTIONS.contains(&name.as_str()) => {
                    for (key, value) in section {
                        self.toml(format!("{name}.{key}"), value, path)?;
                    }
                }
                value => self.toml(name, value, path)?,
            }
        }
        Ok(())
    }

    fn toml(&mut self, key: String, value: toml::Value, path: &Path) -> Result<()> {
        let source = Source::File(path.to_owned(), key.clone());
        let default = self.default_of(&key, &source)?;
        let value = match (default, value) {
            (Value::Number(_), toml::Value::Integer(n)) if n >= 0 => Value::from(n),
            (Value::Bool(_), toml::Value::Boolean(b)) => Value::from(b),
            (Value::String(_) | Value::Null, toml::Value::String(text)) => Value::from(text),
            (default, value) => {
                return Err(Error::config(format!("{source}: expected {}, not {}", kind(default), value.type_str())));
            }
        };
        self.values.insert(key, (value, source));
        Ok(())
    }

    /// Adds what the environment says. Variables that an orchestrator makes for a service of our name are none of ours.
    pub(crate) fn environment(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<()> {
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX) && *name != CONFIG_VARIABLE) else { continue };
            let rest = name[PREFIX.len()..].to_ascii_lowercase();
            if rest == "port" || rest.starts_with("port_") || rest.starts_with("service_") {
                continue;
            }
            let in_section = SECTIONS.iter().find_map(|section| {
                let key = rest.strip_prefix(section)?.strip_prefix('_')?;
                Some(format!("{section}.{key}"))
            });
            let key = in_section.unwrap_or(rest);
            let source = Source::Variable(name.to_owned());
            let value = value.into_string().map_err(|_| Error::config(format!("{source}: not valid Unicode")))?;
            self.text(key, value, source)?;
        }
        Ok(())
    }

    /// Adds a `--set KEY=VALUE`.
    pub(crate) fn pair(&mut self, pair: &str) -> Result<()> {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(Error::config(format!("--set {pair}: expected KEY=VALUE, such as writer.max_batch=100")));
        };
        self.text(key.trim().to_owned(), value.trim().to_owned(), Source::Flag(format!("--set {}", key.trim())))
    }

    /// Adds what a flag of its own says.
    pub(crate) fn flag(&mut self, key: &str, value: String) -> Result<()> {
        self.text(key.to_owned(), value, Source::Flag(format!("--{}", key.replace('_', "-"))))
    }

    fn text(&mut self, key: String, text: String, source: Source) -> Result<()> {
        let default = self.default_of(&key, &source)?;
        let wrong = || Error::config(format!("{source}: expected {}, not {text:?}", kind(default)));
        let value = match default {
            Value::Number(_) => Value::from(text.parse::<u64>().map_err(|_| wrong())?),
            Value::Bool(_) => Value::from(text.parse::<bool>().map_err(|_| wrong())?),
            _ => Value::from(text),
        };
        self.values.insert(key, (value, source));
        Ok(())
    }

    /// The default of a setting, which tells its type.
    fn default_of(&self, key: &str, source: &Source) -> Result<&Value> {
        self.defaults.get(key).ok_or_else(|| {
            let section = key.split_once('.').map_or("", |(section, _)| section);
            let name = |key: &str| key.rsplit_once('.').map_or(key, |(_, name)| name).to_owned();
            let rivals = self.defaults.keys().filter(|known| known.split_once('.').map_or("", |(section, _)| section) == section);
            let similar = |known: &String| (strsim::jaro_winkler(&name(known), &name(key)) * 1000.0) as u64;
            let nearest = rivals.map(|known| (similar(known), known)).max().filter(|(similar, _)| *similar >= 850);
            let spelled = |key: &str| match source {
                Source::Variable(_) => format!("{PREFIX}{}", key.replace('.', "_").to_ascii_uppercase()),
                _ => format!("`{key}`"),
            };
            let hint = match (nearest, key.split_once('.')) {
                (Some((_, nearest)), _) => format!("did you mean {}?", spelled(nearest)),
                (None, Some((section, _))) if SECTIONS.contains(&section) => self.known(&format!("{section}.")),
                _ => format!("{}, and [{}]", self.known(""), SECTIONS.join("], [")),
            };
            let name = match source {
                Source::Variable(_) => String::new(),
                _ => format!(" `{key}`"),
            };
            Error::config(format!("{source}: there is no such setting{name}; {hint}"))
        })
    }

    fn known(&self, prefix: &str) -> String {
        let names = self.defaults.keys().filter_map(|key| key.strip_prefix(prefix)).filter(|name| !name.contains('.'));
        format!("there are: {}", names.collect::<Vec<_>>().join(", "))
    }

    /// Where the value of a setting came from.
    pub(crate) fn source_of(&self, key: &str) -> Source {
        self.values.get(key).map_or(Source::Default, |(_, source)| source.clone())
    }

    /// All layers together.
    pub(crate) fn settings(&self) -> Result<Settings> {
        let settings = match settings_with(self.values.iter()) {
            Ok(settings) => settings,
            Err(e) => {
                // Which one it is shows when each is tried alone.
                let wrong = self.values.iter().find_map(|one| settings_with([one]).err().map(|e| (&one.1.1, e)));
                return Err(match wrong {
                    Some((source, e)) => Error::config(source.to_string()).with_source(e),
                    None => Error::config("the settings do not fit together").with_source(e),
                });
            }
        };
        self.check("writer", settings.writer.validate())?;
        self.check("reader", settings.reader.validate())?;
        self.check("decoder", settings.decoder.options().map(drop))?;
        Ok(settings)
    }

    /// Adds to the complaints about a section where the values came from that they name.
    fn check(&self, section: &str, checked: Result<()>) -> Result<()> {
        let Err(error) = checked else { return Ok(()) };
        let message = error.to_string();
        let named = self.values.iter().filter_map(|(key, (_, source))| {
            let name = key.strip_prefix(section)?.strip_prefix('.')?;
            let mut words = message.split(|c: char| !c.is_alphanumeric() && c != '_');
            words.any(|word| word == name).then(|| format!("{name}: {source}"))
        });
        let named: Vec<String> = named.collect();
        let sources = if named.is_empty() { String::new() } else { format!(" ({})", named.join("; ")) };
        Err(Error::config(format!("[{section}] {message}{sources}")))
    }
}

fn settings_with<'a>(
    values: impl IntoIterator<Item = (&'a String, &'a (Value, Source))>,
) -> std::result::Result<Settings, serde_json::Error> {
    let mut tree = serde_json::Map::new();
    for (key, (value, _)) in values {
        match key.split_once('.') {
            Some((section, key)) => {
                let section = tree.entry(section).or_insert_with(|| Value::Object(serde_json::Map::new()));
                if let Value::Object(section) = section {
                    section.insert(key.to_owned(), value.clone());
                }
            }
            None => {
                tree.insert(key.clone(), value.clone());
            }
        }
    }
    serde_json::from_value(Value::Object(tree))
}

fn kind(default: &Value) -> &'static str {
    match default {
        Value::Number(_) => "a whole number",
        Value::Bool(_) => "true or false",
        _ => "text",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn a_flag_comes_before_the_environment_and_that_before_the_file() {
        let (_folder, path) = file("feed = 'a'\nstore = 'a'\nnode = 'a'\n[writer]\nmax_batch = 1\nring = 99\nmax_pending = 7\n");
        let mut layers = Layers::new();
        layers.file(&path).unwrap();
        layers
            .environment(variables(&[
                ("SLUICEGATE_STORE", "b"),
                ("SLUICEGATE_NODE", "7"),
                ("SLUICEGATE_WRITER_MAX_BATCH", "2"),
                ("SLUICEGATE_WRITER_RING", "98"),
                ("SLUICEGATE_PORT_80_TCP", "tcp://10.0.0.1:80"),
                ("OTHER", "x"),
            ]))
            .unwrap();
        layers.pair("writer.max_batch=3").unwrap();
        layers.flag("node", "c".into()).unwrap();
        let settings = layers.settings().unwrap();
        let text = |t: &Option<String>| t.clone().unwrap();
        assert_eq!([text(&settings.feed), text(&settings.store), text(&settings.node)], ["a", "b", "c"]);
        assert_eq!((settings.writer.max_batch, settings.writer.ring, settings.writer.max_pending), (3, 98, 7));
        assert_eq!(settings.writer.max_wait_ms, WriterConfig::default().max_wait_ms);
    }

    #[test]
    fn the_database_is_chosen_by_its_metadata_id_and_collections() {
        let with = |pairs: &[&str]| {
            let mut layers = Layers::new();
            pairs.iter().for_each(|pair| layers.pair(pair).unwrap());
            layers.settings().map(|settings| settings.decoder.options().unwrap())
        };
        assert_eq!(with(&[]).unwrap(), GatewayOptions::default());
        let options = with(&["decoder.metadata_id=db1", "decoder.collections=8, 0xa", "decoder.attributes_only=true"]).unwrap();
        assert_eq!((options.metadata_id.as_deref(), options.attributes_only), (Some("db1"), true));
        assert_eq!(options.collections, Some([8, 10].into()));
        for (pair, word) in [
            ("decoder.metadata_id=a:b", "`a:b`"),
            ("decoder.metadata_id=", "metadata_id"),
            ("decoder.collections=8,s.c", "`s.c`"),
            ("decoder.collections=", "collections"),
            ("decoder.collections=4294967296", "4294967296"),
        ] {
            let error = with(&[pair]).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("[decoder]") && error.contains("--set decoder."), "{error}");
        }
    }

    #[test]
    fn what_is_unknown_is_named_with_its_source() {
        let (_folder, path) = file("[writer]\nmax_bach = 1\n");
        let error = Layers::new().file(&path).unwrap_err().to_string();
        assert!(error.contains("s.toml, key `writer.max_bach`") && error.contains("did you mean `writer.max_batch`"), "{error}");
        let error = Layers::new().environment(variables(&[("SLUICEGATE_READER_X", "1")])).unwrap_err().to_string();
        assert!(error.contains("SLUICEGATE_READER_X") && error.contains("tail_max"), "{error}");
        let error = Layers::new().pair("nothing=1").unwrap_err().to_string();
        assert!(error.contains("--set nothing") && error.contains("[writer]"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_source() {
        let (_folder, path) = file("[writer]\nmax_batch = 'many'\n");
        let error = Layers::new().file(&path).unwrap_err().to_string();
        assert!(error.contains("s.toml, key `writer.max_batch`: expected a whole number, not string"), "{error}");
        let error = Layers::new().environment(variables(&[("SLUICEGATE_WRITER_RING", "-1")])).unwrap_err().to_string();
        assert!(error.contains("SLUICEGATE_WRITER_RING: expected a whole number"), "{error}");

        let mut layers = Layers::new();
        layers.environment(variables(&[("SLUICEGATE_WRITER_BLOCK_CAPACITY", "5000000000")])).unwrap();
        let error = layers.settings().unwrap_err().to_string();
        assert!(error.contains("SLUICEGATE_WRITER_BLOCK_CAPACITY"), "{error}");

        let mut layers = Layers::new();
        layers.pair("writer.max_batch=0").unwrap();
        let error = layers.settings().unwrap_err().to_string();
        assert!(error.contains("[writer] max_batch is 0") && error.contains("(max_batch: --set writer.max_batch)"), "{error}");
    }

    #[test]
    fn a_broken_line_is_told_by_number_and_not_quoted() {
        let (_folder, path) = file("node = 'a'\nstore = 'redis://u:hunter2@h\n");
        let error = Layers::new().file(&path).unwrap_err();
        let shown = format!("{error:?}");
        assert!(shown.contains("line 2") && !shown.contains("hunter2"), "{shown}");
    }
}
