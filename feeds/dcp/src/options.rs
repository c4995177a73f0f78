//! What a URL says.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use sluicegate_core::registry::Location;
use sluicegate_core::{Error, Result};
use sluicegate_mcbp::client::{ConnectOptions, Login, Tls};
use sluicegate_mcbp::config::Network;
use sluicegate_mcbp::hello::Feature;
use sluicegate_mcbp::sasl::Password;
use sluicegate_mcbp::topology::NetworkChoice;

use crate::seeds::Seeds;

/// The shape of a URL, for messages.
pub(crate) const SHAPE: &str = "a DCP URL is dcp://host[:port],host2/bucket?user=…&password=…, or dcps:// for TLS";

/// The options after the question mark of a `dcp:` or `dcps:` URL. `Debug` does not show the password.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DcpOptions {
    /// The user; it may also stand before the host.
    pub user: Option<String>,
    /// The password; it may also stand before the host, after the user.
    #[serde(deserialize_with = "password")]
    pub password: Option<Password>,
    /// The environment variable that holds the password, instead of `password`.
    pub password_env: Option<String>,
    /// Whether the password may be sent as it is without TLS, where the server offers nothing better. Default false.
    pub allow_plain: bool,
    /// A file with the certificates (PEM) of the authorities to trust, instead of those built in. Only with `dcps:`.
    pub ca: Option<PathBuf>,
    /// A file with the client's certificate (PEM), instead of user and password; with `client_key`.
    pub client_cert: Option<PathBuf>,
    /// A file with the key (PEM) of the client's certificate.
    pub client_key: Option<PathBuf>,
    /// The name server that is asked for SRV records, as `address:port`, instead of the system's. They are asked for only if the URL
    /// names one host, without a port.
    #[serde(deserialize_with = "name_server")]
    pub dns: Option<SocketAddr>,
    /// The network whose addresses are used: `auto` (default), `default`, or the name of an alternate one such as `external`.
    pub network: String,
    /// `now`: deliver what there is, and end. Default: never end.
    pub until: Option<Until>,
    /// Only this scope, by name. Needs a server with collections.
    pub scope: Option<String>,
    /// Only these collections, by `scope.collection` or a number such as `0x8`, with commas between them. Needs a server with collections.
    pub collections: Option<String>,
    /// Whether the server may send what there is of one collection in the order of keys, which costs it less where the collection is a small part of the
    /// bucket. Default false: then sequences come in no order at all, more wait for one another, and a writer whose `max_pending` is lower than what comes
    /// that way calls many of them late. Only with `collections` that names one; servers from 7.0 on.
    pub out_of_order: bool,
    /// Whether every change comes that the bucket still has, not only the last of each key. Default false. Only of buckets that keep a change history
    /// (storage Magma, servers from 7.2 on).
    pub history: bool,
    /// Whether values have their extended attributes. Default true: the gateway may keep its metadata there.
    pub xattrs: bool,
    /// Whether the server may send compressed values (`on`, default), must (`force`), or must not (`off`). They are delivered uncompressed.
    pub compression: Compression,
    /// Whether an event is delivered only once it is on the disks of all nodes that have a copy, so that no failover takes it back.
    /// Default false. Not for ephemeral buckets, of which nothing would ever be delivered; refused where
    /// the server says that the bucket is one.
    pub mitigate_rollbacks: bool,
    /// How often nodes are asked how far they are on disk, with `mitigate_rollbacks`, in milliseconds. Default 100.
    pub persistence_poll_ms: u64,
    /// Bytes that the server may send ahead of the consumer, of each node. Default 20 MiB; at least 64 KiB.
    pub buffer: u32,
    /// Seconds of silence after which the server asks whether we are there; twice that and the connection counts as dead. Default 20.
    pub noop_interval: u32,
    /// Longest wait for a connection, in milliseconds. Default 7,000.
    pub connect_timeout_ms: u64,
    /// Longest wait for an answer, in milliseconds. Default 30,000.
    pub timeout_ms: u64,
    /// How often the cluster map is asked for where the server does not announce changes, in milliseconds. Default 2,500.
    pub config_poll_ms: u64,
}

/// When a feed ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Until {
    /// When what there was at its opening has been delivered.
    Now,
}

/// What is asked of the server about compressed values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Compression {
    /// To send them as they are stored.
    #[default]
    On,
    /// To send none.
    Off,
    /// To compress all.
    Force,
}

impl Default for DcpOptions {
    fn default() -> Self {
        DcpOptions {
            user: None,
            password: None,
            password_env: None,
            allow_plain: false,
            ca: None,
            client_cert: None,
            client_key: None,
            dns: None,
            network: "auto".to_owned(),
            until: None,
            scope: None,
            collections: None,
            out_of_order: false,
            history: false,
            xattrs: true,
            compression: Compression::On,
            mitigate_rollbacks: false,
            persistence_poll_ms: 100,
            buffer: 20 << 20,
            noop_interval: 20,
            connect_timeout_ms: 7_000,
            timeout_ms: 30_000,
            config_poll_ms: 2_500,
        }
    }
}

fn password<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Password>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Password::new))
}

impl DcpOptions {
    fn violations(&self, is_tls: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        if !is_tls && (self.ca.is_some() || self.client_cert.is_some()) {
            wrong.push("ca, client_cert and client_key need TLS; use dcps://".to_owned());
        }
        if self.client_cert.is_some() != self.client_key.is_some() {
            wrong.push("client_cert and client_key go together".to_owned());
        }
        if self.client_cert.is_some() && (self.user.is_some() || self.password.is_some() || self.password_env.is_some()) {
            wrong.push("client_cert says who connects, so user and password must be left out".to_owned());
        }
        if self.password.is_some() && self.password_env.is_some() {
            wrong.push("password and password_env exclude each other".to_owned());
        }
        if self.scope.is_some() && self.collections.is_some() {
            wrong.push("scope and collections exclude each other".to_owned());
        }
        if self.out_of_order && self.collections.as_ref().is_none_or(|collections| collections.contains(',')) {
            wrong.push("out_of_order needs collections that names one".to_owned());
        }
        if self.out_of_order && self.mitigate_rollbacks {
            wrong.push("out_of_order and mitigate_rollbacks exclude each other".to_owned());
        }
        if self.buffer < 64 << 10 {
            wrong.push(format!("buffer is {}, must be at least {}", self.buffer, 64 << 10));
        }
        if !(1..=10_800).contains(&self.noop_interval) {
            wrong.push(format!("noop_interval is {}, must be from 1 to 10800 seconds", self.noop_interval));
        }
        let times = [
            ("connect_timeout_ms", self.connect_timeout_ms),
            ("timeout_ms", self.timeout_ms),
            ("config_poll_ms", self.config_poll_ms),
        ];
        for (name, value) in times {
            if value == 0 {
                wrong.push(format!("{name} is 0, must be at least 1"));
            }
        }
        wrong
    }

    /// How long a silent connection counts as alive.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(u64::from(self.noop_interval) * 2 + 2)
    }
}

/// A bucket, and how to reach it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) seeds: Seeds,
    pub(crate) network: NetworkChoice,
    pub(crate) connect: ConnectOptions,
    pub(crate) options: DcpOptions,
}

impl Target {
    /// What `location` names. Reads files.
    pub(crate) fn new(location: &Location, scheme: &'static str) -> Result<Target> {
        let is_tls = scheme == "dcps";
        let mut options: DcpOptions = location.options()?;
        let rest = location.rest().strip_prefix("//").ok_or_else(|| Error::config(SHAPE))?;
        let (authority, bucket) = rest.split_once('/').unwrap_or((rest, ""));
        let bucket = decoded(bucket.strip_suffix('/').unwrap_or(bucket))?;
        if bucket.is_empty() || bucket.contains('/') || bucket.len() > 100 {
            return Err(Error::config(SHAPE).with_next_step("name the bucket after the hosts"));
        }
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, secret) = login.split_once(':').map_or((login, None), |(user, secret)| (user, Some(secret)));
        if !user.is_empty() {
            options.user = Some(decoded(user)?);
        }
        if let Some(secret) = secret {
            options.password = Some(Password::new(decoded(secret)?));
        }
        let wrong = options.violations(is_tls);
        if !wrong.is_empty() {
            return Err(Error::config(format!("options of `{scheme}:`: {}", wrong.join("; "))));
        }
        if let Some(variable) = &options.password_env {
            let value = std::env::var(variable)
                .map_err(|_| Error::config(format!("the environment variable {variable}, named by password_env, is not set")))?;
            options.password = Some(Password::new(value));
        }
        let seeds = Seeds::parse(hosts, is_tls, options.dns, Duration::from_millis(options.connect_timeout_ms))?;
        let client = options.client_cert.as_deref().zip(options.client_key.as_deref());
        let tls = match is_tls {
            true => Some(tls(options.ca.as_deref(), client)?),
            false => None,
        };
        let login = match (&options.user, &options.password, client) {
            (_, _, Some(_)) => Login::Certificate,
            (Some(user), Some(password), None) => {
                Login::Password { user: user.clone(), password: password.clone(), allow_plain: options.allow_plain }
            }
            (None, None, None) => Login::Anonymous,
            _ => return Err(Error::config("user and password go together; name both, or a client certificate")),
        };
        let connect = ConnectOptions {
            agent: concat!("sluicegate-dcp/", env!("CARGO_PKG_VERSION")).to_owned(),
            bucket,
            login,
            tls,
            features: features(&options),
            connect_timeout: Duration::from_millis(options.connect_timeout_ms),
            answer_timeout: Duration::from_millis(options.timeout_ms),
        };
        let network = match options.network.as_str() {
            "auto" => NetworkChoice::Auto,
            "default" => NetworkChoice::Fixed(Network::Default),
            name => NetworkChoice::Fixed(Network::Named(name.to_owned())),
        };
        Ok(Target { seeds, network, connect, options })
    }

    /// The bucket, with what of it is delivered if that is not all.
    pub(crate) fn name(&self) -> String {
        let bucket = &self.connect.bucket;
        match self.filter() {
            Some(filter) => format!("{bucket}/{filter}"),
            None => bucket.clone(),
        }
    }

    /// Whether only a part of the bucket is delivered.
    pub(crate) fn is_partial(&self) -> bool {
        self.filter().is_some()
    }

    fn filter(&self) -> Option<&String> {
        self.options.scope.as_ref().or(self.options.collections.as_ref())
    }
}

fn tls(ca: Option<&Path>, client: Option<(&Path, &Path)>) -> Result<Tls> {
    Tls::new(ca, client).map_err(|e| Error::config(e.to_string()).with_source(e))
}

/// What to ask servers of any age for (protocol, section 2.1). Never answers out of order: DCP refuses that.
fn features(options: &DcpOptions) -> Vec<Feature> {
    let mut features = vec![
        Feature::Datatype,
        Feature::TcpNoDelay,
        Feature::Xattr,
        Feature::Xerror,
        Feature::SelectBucket,
        Feature::Json,
        Feature::Duplex,
        Feature::ClusterMapNotification,
        Feature::AltRequest,
        Feature::Collections,
    ];
    if options.compression != Compression::Off {
        features.push(Feature::Snappy);
    }
    features
}

/// Text in which special characters are percent-encoded.
fn decoded(text: &str) -> Result<String> {
    let wrong = || Error::config("a user, password or bucket in a URL is not percent-encoded as it should be");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16)).ok_or_else(wrong);
        bytes.push(if byte == b'%' { (digit()? * 16 + digit()?) as u8 } else { byte });
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// An address, or an error that names the option.
fn name_server<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let address =
        text.parse().map_err(|_| serde::de::Error::custom(format!("dns is `{text}`; give address:port of a name server")));
    address.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Target> {
        let location = Location::parse(url).unwrap();
        Target::new(&location, if location.scheme() == "dcps" { "dcps" } else { "dcp" })
    }

    fn wrong(url: &str) -> String {
        target(url).unwrap_err().to_string()
    }

    async fn seeds(target: &Target) -> Vec<String> {
        target.seeds.find().await.addresses.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_url_names_nodes_a_bucket_and_options() {
        let target = target("dcp://a,[::1]:9000/b%20c?user=u&password=p%26q&buffer=100000&until=now&network=external").unwrap();
        assert_eq!(seeds(&target).await, ["a:11210", "[::1]:9000"]);
        assert_eq!((target.name().as_str(), target.options.buffer), ("b c", 100_000));
        assert_eq!(target.options.until, Some(Until::Now));
        assert_eq!(target.network, NetworkChoice::Fixed(Network::Named("external".to_owned())));
        let Login::Password { user, password, allow_plain: false } = target.connect.login else { panic!() };
        assert_eq!((user.as_str(), password), ("u", Password::new("p&q")));
    }

    #[tokio::test]
    async fn a_user_before_the_host_is_one_too_and_a_filter_is_part_of_the_name() {
        let target = target("dcps://u%40x:p%3Aw@[::1]/b?scope=inventory").unwrap();
        let Login::Password { user, password, .. } = &target.connect.login else { panic!() };
        assert_eq!((user.as_str(), password), ("u@x", &Password::new("p:w")));
        assert_eq!((seeds(&target).await, target.name().as_str()), (vec!["[::1]:11207".to_owned()], "b/inventory"));
        assert!(target.is_partial() && !super::tests::target("dcp://a/b").unwrap().is_partial());
    }

    #[test]
    fn a_password_is_never_shown() {
        let target = target("dcp://a/b?user=u&password=hunter2").unwrap();
        assert!(!format!("{target:?}").contains("hunter2"));
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let message = wrong("dcp://a/b?ca=x&scope=s&collections=s.c&buffer=7&timeout_ms=0");
        for part in ["dcps://", "scope and collections", "buffer is 7", "timeout_ms is 0"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(wrong("dcp://a/b?out_of_order=true&collections=s.c,s.d").contains("collections that names one"));
        assert!(wrong("dcp://a/b?out_of_order=true&collections=s.c&mitigate_rollbacks=true").contains("exclude each other"));
        assert!(wrong("dcps://a/b?user=u&client_cert=c&client_key=k").contains("user and password must be left out"));
        assert!(wrong("dcps://a/b?client_cert=c").contains("client_cert and client_key go together"));
        assert!(wrong("dcp://a/b?usr=x").contains("`usr`"));
        assert!(wrong("dcp://a").contains("name the bucket"));
        assert!(wrong("dcp:a/b").contains("dcp://host"));
        assert!(wrong("dcp://a:8091/b").contains("management"));
        assert!(wrong("dcp://a/b?user=x").contains("go together"));
        assert!(wrong("dcp://a/b?dns=nonsense").contains("dns"));
        assert!(wrong("dcp://a/b?user=x&password_env=NO_SUCH_VARIABLE_9").contains("NO_SUCH_VARIABLE_9"));
        assert!(wrong("dcps://a/b?ca=/nowhere/ca.pem").contains("/nowhere/ca.pem"));
        assert!(wrong("dcp://a/b%2").contains("percent"));
    }
}
