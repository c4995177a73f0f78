//! Settings, from a file, the environment and flags. Whatever is wrong is named with where it came from.
//!
//! The layers are put together by hand, on a flat list of dotted names: general configuration crates do not know, once values are
//! merged, which environment variable or which `--set` an unknown name came from.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluicegate::databases::{self, DatabaseConfig};
use sluicegate::decode::GatewayOptions;
use sluicegate::decode::databases::DEFAULT_ID;
use sluicegate::registry::Location;
use sluicegate::source::DatabaseIdentity;
use sluicegate::{Error, ErrorKind, ReaderConfig, Result, WriterConfig};

/// What all our environment variables begin with.
const PREFIX: &str = "SLUICEGATE_";

/// The environment variable that names the file.
pub(crate) const CONFIG_VARIABLE: &str = "SLUICEGATE_CONFIG";

/// The section of the file with a section for each database, and the fields of these.
const DATABASES: &str = "databases";
const DATABASE_FIELDS: [&str; 3] = ["metadata_id", "collections", "namespace"];

/// The sections of the file.
const SECTIONS: [&str; 3] = ["writer", "reader", "decoder"];

/// All that can be set.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The database that the documents of the feed are read as.
    pub(crate) decoder: DecoderSettings,
    /// The databases that are served, if there are several.
    pub(crate) databases: Option<DatabasesSetting>,
}

/// The databases that are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum DatabasesSetting {
    /// `auto`: those that the bucket's own documents name.
    Word(String),
    /// These.
    Named(BTreeMap<String, DatabaseConfig>),
}

/// The database that is decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DecoderSettings {
    /// The database's metadata id; `None` for the default one.
    metadata_id: Option<String>,
    /// Its collections, separated by commas, each as `scope.collection` or as a number; `None` for
    /// all.
    collections: Option<String>,
    /// Whether metadata are never read from bodies.
    attributes_only: bool,
}

impl DecoderSettings {
    /// The options of the decoder.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the setting that is wrong.
    pub(crate) fn options(&self) -> Result<GatewayOptions> {
        let mut options = GatewayOptions::default();
        options.metadata_id = self.metadata_id.clone();
        options.attributes_only = self.attributes_only;
        options.validate()?;
        if self.collections()?.is_some_and(|collections| collections.is_empty()) {
            return Err(Error::config("collections names none, must name at least one"));
        }
        Ok(options)
    }

    /// The database's collections, if they are named.
    ///
    /// # Errors
    /// `ConfigInvalid` for an entry that cannot be a collection.
    pub(crate) fn collections(&self) -> Result<Option<BTreeSet<String>>> {
        let Some(list) = &self.collections else { return Ok(None) };
        let one = |text: &str| -> Result<String> {
            let text = text.trim();
            let number = match text.strip_prefix("0x") {
                Some(digits) => u32::from_str_radix(digits, 16).ok(),
                None => text.parse().ok(),
            };
            match number {
                Some(number) => Ok(format!("0x{number:x}")),
                None if text.split('.').count() == 2 && text.split('.').all(|part| !part.is_empty()) => Ok(text.to_owned()),
                None => Err(Error::config(format!(
                    "collections holds `{text}`, must be names and numbers, such as scope.collection,8,0xa"
                ))),
            }
        };
        list.split(',').map(one).collect::<Result<_>>().map(Some)
    }

    /// The identity of the database in a cache's source.
    ///
    /// # Errors
    /// As [`collections`](Self::collections).
    pub(crate) fn identity(&self) -> Result<DatabaseIdentity> {
        let metadata_id = self.metadata_id.clone().filter(|id| id != DEFAULT_ID);
        Ok(DatabaseIdentity { name: None, metadata_id, collections: self.collections()? })
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { feed, store, node, log, log_format, writer, reader, decoder, databases } = self;
        f.debug_struct("Settings")
            .field("feed", &feed.as_deref().map(Redacted))
            .field("store", &store.as_deref().map(Redacted))
            .field("node", node)
            .field("log", log)
            .field("log_format", log_format)
            .field("writer", writer)
            .field("reader", reader)
            .field("decoder", decoder)
            .field("databases", databases)
            .finish()
    }
}

/// A URL whose password does not show. One that cannot be taken apart is not shown at all.
pub(crate) struct Redacted<'a>(pub(crate) &'a str);

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Location::parse(self.0) {
            Ok(location) => write!(f, "{location:?}"),
            Err(_) => f.write_str("***"),
        }
    }
}

impl Settings {
    fn check_databases(&self) -> Result<()> {
        match &self.databases {
            None => return Ok(()),
            Some(DatabasesSetting::Word(word)) if word == "auto" => {}
            Some(DatabasesSetting::Word(word)) => {
                return Err(Error::config(format!(
                    "databases is `{word}`, must be `auto`, or sections: [databases.NAME] with {}",
                    DATABASE_FIELDS.join(", ")
                )));
            }
            Some(DatabasesSetting::Named(named)) => databases::validate(named)?,
        }
        if self.decoder.metadata_id.is_some() || self.decoder.collections.is_some() {
            return Err(Error::config(
                "decoder.metadata_id and decoder.collections are for one database; give them under databases",
            ));
        }
        Ok(())
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
pub(crate) struct Layers {
    /// A value of each setting, which tells its type; none for a text without a default.
    defaults: BTreeMap<String, Value>,
    values: BTreeMap<String, (Value, Source)>,
}

impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may hold secrets.
        f.debug_map().entries(self.values.iter().map(|(key, (_, source))| (key, source))).finish()
    }
}

impl Layers {
    /// Only defaults.
    pub(crate) fn new() -> Self {
        let mut settings = Settings::default();
        // Its default is none, which would stand for a text.
        settings.writer.partial_feed = Some(false);
        let mut defaults = BTreeMap::new();
        if let Ok(Value::Object(all)) = serde_json::to_value(settings) {
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
                toml::Value::Table(databases) if name == DATABASES => {
                    if databases.is_empty() {
                        let source = Source::File(path.to_owned(), name);
                        return Err(Error::config(format!("{source}: it names no database; write [databases.NAME] for each")));
                    }
                    for (database, value) in databases {
                        let key = format!("{name}.{database}");
                        let source = Source::File(path.to_owned(), key.clone());
                        let toml::Value::Table(fields) = value else {
                            return Err(Error::config(format!("{source}: expected a section, not {}", value.type_str())));
                        };
                        if database.contains('.') {
                            return Err(dotted(&source, &database));
                        }
                        // One without settings is a database, too.
                        self.values.insert(key, (Value::Object(serde_json::Map::new()), source));
                        for (field, value) in fields {
                            self.toml(format!("{name}.{database}.{field}"), value, path)?;
                        }
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
            (Value::Null, toml::Value::Array(list)) if key.ends_with(".collections") => {
                let texts = list.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
                let texts = texts.ok_or_else(|| Error::config(format!("{source}: expected a list of strings")))?;
                Value::from(texts.join(","))
            }
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
        let key = pair.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
        let Some((key, value)) = key.filter(|(key, _)| *key == name_of(key)) else {
            let name = name_of(pair.trim());
            return Err(Error::config(format!("--set {name}…: expected KEY=VALUE, such as writer.max_batch=100")));
        };
        self.text(key.to_owned(), value.to_owned(), Source::Flag(format!("--set {key}")))
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

    /// A value of a setting, which tells its type.
    fn default_of(&self, key: &str, source: &Source) -> Result<&Value> {
        if let Some((name, field)) = key.strip_prefix("databases.").and_then(|rest| rest.split_once('.')) {
            if !name.is_empty() && DATABASE_FIELDS.contains(&field) {
                return Ok(&Value::Null);
            }
            if let Some((more, _)) = field.rsplit_once('.').filter(|(_, last)| DATABASE_FIELDS.contains(last)) {
                return Err(dotted(source, &format!("{name}.{more}")));
            }
            let fields = DATABASE_FIELDS.join(", ");
            return Err(Error::config(format!("{source}: there is no such setting of a database; there are: {fields}")));
        }
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
        self.check("databases", settings.check_databases())?;
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
    let section = |tree: &mut serde_json::Map<String, Value>, name: &str| {
        tree.entry(name).or_insert_with(|| Value::Object(serde_json::Map::new()));
    };
    for (key, (value, _)) in values {
        let mut value = value.clone();
        let mut path: Vec<&str> = key.splitn(3, '.').collect();
        if let ([DATABASES, _, "collections"], Value::String(text)) = (&path[..], &value) {
            value = text.split(',').map(|name| Value::from(name.trim())).collect();
        }
        let Some(last) = path.pop() else { continue };
        let mut at = &mut tree;
        for name in path {
            section(at, name);
            match at.get_mut(name) {
                Some(Value::Object(inner)) => at = inner,
                _ => return Err(serde::de::Error::custom(format!("`{name}` is a word in one place and a section in another"))),
            }
        }
        at.insert(last.to_owned(), value);
    }
    serde_json::from_value(Value::Object(tree))
}

/// What of a text can be the name of a setting. The rest may be a URL with a password, and is not
/// printed.
fn name_of(text: &str) -> &str {
    text.split([':', '/', '=', ' ']).next().unwrap_or_default()
}

/// The error of a database's name that has a dot: where it is written, and in keyspaces, dots
/// separate.
fn dotted(source: &Source, name: &str) -> Error {
    Error::config(format!("{source}: `{name}` cannot be the name of a database, which has no dot"))
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
            layers.settings().map(|settings| settings.decoder)
        };
        assert_eq!(with(&[]).unwrap().options().unwrap(), GatewayOptions::default());
        let one = with(&["decoder.metadata_id=db1", "decoder.collections=8, 0xa,s.c", "decoder.attributes_only=true"]).unwrap();
        let options = one.options().unwrap();
        assert_eq!((options.metadata_id.as_deref(), options.attributes_only), (Some("db1"), true));
        assert_eq!(one.collections().unwrap(), Some(["0x8", "0xa", "s.c"].map(str::to_owned).into()));
        for (pair, word) in [
            ("decoder.metadata_id=a:b", "`a:b`"),
            ("decoder.metadata_id=", "metadata_id"),
            ("decoder.collections=8,c", "`c`"),
            ("decoder.collections=", "collections"),
            ("decoder.collections=4294967296", "4294967296"),
        ] {
            let error = with(&[pair]).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("[decoder]") && error.contains("--set decoder."), "{error}");
        }
    }

    #[test]
    fn databases_have_sections_of_their_own_or_are_found() {
        let (_folder, path) =
            file("[databases.a]\nmetadata_id = 'x'\ncollections = ['s.c', 's.d']\n[databases.b]\nnamespace = 'n'\n");
        let mut layers = Layers::new();
        layers.file(&path).unwrap();
        layers.pair("databases.b.collections=t.c, t.d").unwrap();
        let Some(DatabasesSetting::Named(named)) = layers.settings().unwrap().databases else { panic!() };
        assert_eq!(named["a"].metadata_id("a").as_deref(), Some("x"));
        assert_eq!(named["b"].metadata_id("b").as_deref(), Some("b"));
        assert_eq!(named["b"].collections(), ["t.c", "t.d"].map(str::to_owned).into());

        layers.pair("databases.b.metadata_id=x").unwrap();
        assert!(layers.settings().unwrap_err().to_string().contains("one metadata id"));
        let mut layers = Layers::new();
        layers.environment(variables(&[("SLUICEGATE_DATABASES", "auto")])).unwrap();
        assert_eq!(layers.settings().unwrap().databases, Some(DatabasesSetting::Word("auto".to_owned())));
        layers.pair("decoder.metadata_id=x").unwrap();
        assert!(layers.settings().unwrap_err().to_string().contains("decoder.metadata_id"));
        for (pair, word) in [("databases=all", "`all`"), ("databases.a.colections=s.c", "metadata_id, collections")] {
            let mut layers = Layers::new();
            let error = layers.pair(pair).and_then(|()| layers.settings().map(drop)).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_section_without_settings_is_a_database_and_names_have_no_dot() {
        let of = |text: &str| {
            let (_folder, path) = file(text);
            let mut layers = Layers::new();
            layers.file(&path).and_then(|()| layers.settings()).map(|settings| settings.databases)
        };
        let named = |text: &str| match of(text).unwrap() {
            Some(DatabasesSetting::Named(named)) => named.into_iter().collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let empty = || ("a".to_owned(), DatabaseConfig::default());
        assert_eq!(named("[databases.a]\n"), [empty()]);
        let collections = "[databases.b]\ncollections = ['s.c']\n";
        assert_eq!(named(&format!("[databases.a]\n{collections}")).first(), Some(&empty()));
        for (text, word) in [
            ("[databases]\n", "it names no database"),
            ("[databases.\"a.b\"]\n", "`a.b` cannot be the name of a database, which has no dot"),
            ("[databases.\"a.b\"]\nnamespace = 'n'\n", "`a.b` cannot be the name of a database, which has no dot"),
        ] {
            let error = of(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let error = Layers::new().pair("databases.a.b.namespace=n").unwrap_err().to_string();
        assert!(error.contains("`a.b` cannot be the name of a database"), "{error}");
        // It adds to what a file says.
        let (_folder, path) = file("[databases.a]\n");
        let mut layers = Layers::new();
        layers.pair("databases.a.namespace=n").unwrap();
        layers.file(&path).unwrap();
        let Some(DatabasesSetting::Named(named)) = layers.settings().unwrap().databases else { panic!() };
        assert_eq!(named["a"].namespace.as_deref(), Some("n"));
        layers.pair("databases=auto").unwrap();
        assert!(layers.settings().is_err(), "a word in one place, and a section in another");
    }

    #[test]
    fn a_password_shows_neither_in_a_wrong_setting_nor_in_debug() {
        for pair in [
            "store redis://u:hunter2@h",
            "store: redis://u:hunter2@h",
            "redis://u:hunter2@h",
            "redis://u:hunter2@h?pool=3",
            "store redis://u:hunter2@h?pool=3",
            " store/hunter2 = x",
        ] {
            let error = Layers::new().pair(pair).unwrap_err();
            let text = format!("{error:?}");
            assert!(!text.contains("hunter2") && text.contains("--set") && text.contains("KEY=VALUE"), "{text}");
        }
        let mut layers = Layers::new();
        layers.pair("store=redis://u:hunter2@h?password=hunter2").unwrap();
        layers.pair("feed=hunter2").unwrap();
        let text = format!("{layers:?} {:?}", layers.settings().unwrap());
        assert!(!text.contains("hunter2") && text.contains("redis://u:***@h?password=***"), "{text}");
    }

    /// Those without a default, too, whatever their type.
    #[test]
    fn each_setting_can_be_given_as_text() {
        for (key, value) in &Layers::new().defaults {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Null => "text".to_owned(),
                value => value.to_string(),
            };
            let mut layers = Layers::new();
            layers.pair(&format!("{key}={text}")).unwrap();
            let error = layers.settings().err().map(|e| e.to_string()).unwrap_or_default();
            assert!(!error.contains("invalid type"), "{error}");
        }
    }

    #[test]
    fn whether_the_feed_is_partial_can_be_said_in_each_layer() {
        assert_eq!(Layers::new().settings().unwrap().writer.partial_feed, None);
        let (_folder, path) = file("[writer]\npartial_feed = true\n");
        let mut layers = Layers::new();
        layers.file(&path).unwrap();
        assert_eq!(layers.settings().unwrap().writer.partial_feed, Some(true));
        layers.environment(variables(&[("SLUICEGATE_WRITER_PARTIAL_FEED", "false")])).unwrap();
        assert_eq!(layers.settings().unwrap().writer.partial_feed, Some(false));
        layers.pair("writer.partial_feed=true").unwrap();
        assert_eq!(layers.settings().unwrap().writer.partial_feed, Some(true));
        let error = layers.pair("writer.partial_feed=perhaps").unwrap_err().to_string();
        assert!(error.contains("--set writer.partial_feed: expected true or false"), "{error}");
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
