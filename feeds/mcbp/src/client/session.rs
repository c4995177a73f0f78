//! One connection on which questions are asked.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::error::{ClientError, ClientResult, Fault};
use super::options::{ConnectOptions, Login};
use super::socket::{self, FrameReader, FrameWriter};
use crate::config::{Address, ClusterMap, MAX_CONFIG_LEN};
use crate::errormap::ErrorMap;
use crate::hello::{Feature, Features, GetClusterConfig, GetErrorMap, Hello, agent_key};
use crate::sasl::{self, Mechanism, Password};
use crate::value::{Datatype, decompress};
use crate::{Command, Empty, Message, Reply, Request, Response, Secret, ServerRequest, Status, kv};

/// Notices kept for the caller; older ones go, since each says more than the last.
const MAX_NOTICES: usize = 16;

/// A connection that has been through all that comes before work: features, authentication, the bucket (protocol, section 2).
#[derive(Debug)]
pub struct Session {
    address: Address,
    reader: FrameReader,
    writer: FrameWriter,
    granted: Features,
    error_map: ErrorMap,
    is_config_only: bool,
    answer_timeout: Duration,
    opaque: u32,
    notices: VecDeque<ServerRequest>,
}

/// A session taken apart, for a connection whose other side speaks without being asked.
#[derive(Debug)]
pub struct Link {
    /// The node.
    pub address: Address,
    /// Reads what it says.
    pub reader: FrameReader,
    /// Writes what is said to it.
    pub writer: FrameWriter,
    /// What both sides can do.
    pub granted: Features,
    /// What the node says about status codes; empty if it says nothing.
    pub error_map: ErrorMap,
    /// An opaque above those that were used.
    pub next_opaque: u32,
    /// What the node has said meanwhile without being asked.
    pub notices: VecDeque<ServerRequest>,
}

impl Session {
    /// Connects to a node, agrees on features, authenticates, and selects the bucket.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// What [`Fault`] says; the message names what to do about it.
    pub async fn open(address: &Address, options: &ConnectOptions) -> ClientResult<Session> {
        let open = async {
            let (reader, writer) = socket::connect(address, options.tls.as_ref(), options.connect_timeout).await?;
            let mut session = Session {
                address: address.clone(),
                reader,
                writer,
                granted: Features::default(),
                error_map: ErrorMap::default(),
                is_config_only: false,
                answer_timeout: options.answer_timeout,
                opaque: 0,
                notices: VecDeque::new(),
            };
            session.agree(options).await?;
            session.authenticate(options).await?;
            session.select(options).await?;
            Ok(session)
        };
        open.await.map_err(|error: ClientError| match (error.fault(), &options.login) {
            (Fault::Closed, Login::Certificate) => {
                let message = "the node has closed the connection; with client certificates that may be because the certificate names no user of the cluster (option client_cert)";
                ClientError::new(Fault::Closed, message).at(address).with_source(error)
            }
            _ => error.at(address),
        })
    }

    /// The node.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What both sides can do.
    pub fn granted(&self) -> &Features {
        &self.granted
    }

    /// Whether the node knows the bucket, and has no data of it.
    pub fn is_config_only(&self) -> bool {
        self.is_config_only
    }

    /// Asks, and waits for the answer, whatever it is.
    ///
    /// Not cancel safe: a session whose question was dropped is of no further use.
    ///
    /// # Errors
    /// `Timeout`, `Closed` or `Protocol`; the session is of no further use then.
    pub async fn ask(&mut self, request: Request) -> ClientResult<Response> {
        let answers = self.ask_all(vec![request]).await?;
        answers.into_iter().next().ok_or_else(|| ClientError::new(Fault::Protocol, "a question without an answer"))
    }

    /// Asks several questions at once; the answers come in the order of the questions.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn ask_all(&mut self, requests: Vec<Request>) -> ClientResult<Vec<Response>> {
        let first = self.opaque + 1;
        for request in requests {
            self.opaque += 1;
            self.writer.push(&request.with_opaque(self.opaque))?;
        }
        let deadline = Instant::now() + self.answer_timeout;
        let mut answers = Vec::new();
        for opaque in first..=self.opaque {
            let answer = async {
                self.writer.flush().await?;
                Self::answer_to(&mut self.reader, &mut self.notices, opaque).await
            };
            let answer = tokio::time::timeout_at(deadline, answer).await.map_err(|_| {
                ClientError::new(Fault::Timeout, format!("no answer within {:?}", self.answer_timeout)).at(&self.address)
            })?;
            answers.push(answer.map_err(|error| error.at(&self.address))?);
        }
        Ok(answers)
    }

    async fn answer_to(reader: &mut FrameReader, notices: &mut VecDeque<ServerRequest>, opaque: u32) -> ClientResult<Response> {
        loop {
            let mut frames = reader.read().await?;
            while let Some(frame) = frames.next() {
                match Message::decode(frame?)? {
                    Message::Response(response) if response.opaque == opaque => {
                        reader.put_back(frames);
                        return Ok(response);
                    }
                    Message::ServerRequest(notice) => {
                        if notices.len() == MAX_NOTICES {
                            notices.pop_front();
                        }
                        notices.push_back(notice);
                    }
                    _ => {}
                }
            }
        }
    }

    /// The cluster map that the node has now; none if it has none yet.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), and `Refused`; `Unsupported` for a bucket without vbuckets.
    pub async fn cluster_map(&mut self) -> ClientResult<Option<ClusterMap>> {
        let response = self.ask(Request::new(Command::GetClusterConfig(GetClusterConfig::default()))).await?;
        match &response.reply {
            Reply::Plain(parts) => read_cluster_map(parts.value(), response.datatype, &self.address.host),
            _ => Err(ClientError::refused("the question for the cluster map", &response)),
        }
        .map_err(|error| error.at(&self.address))
    }

    /// Takes the session apart.
    pub fn split(self) -> Link {
        Link {
            address: self.address,
            reader: self.reader,
            writer: self.writer,
            granted: self.granted,
            error_map: self.error_map,
            next_opaque: self.opaque + 1,
            notices: self.notices,
        }
    }

    async fn agree(&mut self, options: &ConnectOptions) -> ClientResult<()> {
        let hello = Hello {
            agent: agent_key(&options.agent, rand::random(), rand::random()),
            features: Features(options.features.clone()),
        };
        let response = self.ask(Request::new(Command::Hello(hello))).await?;
        if let Reply::Hello(granted) = response.reply {
            self.granted = granted.features;
        } else if response.status != Status::UnknownCommand {
            return Err(ClientError::refused("the agreement on features", &response));
        }
        if self.granted.contains(Feature::Xerror) {
            let response = self.ask(Request::new(Command::GetErrorMap(GetErrorMap { max_version: 2 }))).await?;
            if let Reply::Plain(parts) = &response.reply {
                self.error_map = ErrorMap::parse(&parts.value()).unwrap_or_default();
            }
        }
        Ok(())
    }

    async fn authenticate(&mut self, options: &ConnectOptions) -> ClientResult<()> {
        let Login::Password { user, password, allow_plain } = &options.login else { return Ok(()) };
        let response = self.ask(Request::new(Command::SaslListMechs(Empty {}))).await?;
        let Reply::Plain(parts) = &response.reply else {
            return Err(ClientError::refused("the question for ways to authenticate", &response));
        };
        let offered = String::from_utf8_lossy(&parts.value()).into_owned();
        let mechanism = Mechanism::choose(&offered, options.tls.is_some(), *allow_plain).map_err(|error| {
            let message = "the server offers no acceptable way to authenticate; use TLS (dcps:), or set allow_plain=true where nobody can listen";
            ClientError::new(Fault::Authentication, message).with_source(error)
        })?;
        let response = match mechanism {
            Mechanism::Plain => self.ask(step(Command::SaslAuth, mechanism, sasl::plain(user, password)?)).await?,
            _ => self.prove(mechanism, user, password).await?,
        };
        match response.status {
            Status::Success => Ok(()),
            Status::AuthError | Status::KeyNotFound => {
                let message =
                    format!("the server refuses the user name or the password of `{user}`; check the options user and password");
                Err(ClientError::new(Fault::Authentication, message))
            }
            _ => Err(ClientError::refused("authentication", &response)),
        }
    }

    /// SCRAM: both prove that they know the password.
    async fn prove(&mut self, mechanism: Mechanism, user: &str, password: &Password) -> ClientResult<Response> {
        let nonce = format!("{:032x}", rand::random::<u128>());
        let (client, first) = sasl::scram::Client::start(mechanism, user, password.clone(), &nonce)?;
        let response = self.ask(step(Command::SaslAuth, mechanism, first)).await?;
        let challenge = match (&response.status, &response.reply) {
            (Status::AuthContinue, Reply::Plain(parts)) => parts.value(),
            (Status::Success, _) => {
                return Err(ClientError::new(
                    Fault::Authentication,
                    "the server lets anyone in without proof; it may not be the one it should be",
                ));
            }
            _ => return Ok(response),
        };
        // Derived on the blocking pool: a server may ask for a second's work.
        let answered = tokio::task::spawn_blocking(move || client.answer(&challenge)).await;
        let (client, last) =
            answered.map_err(|error| ClientError::new(Fault::Closed, "the program is stopping").with_source(error))??;
        let response = self.ask(step(Command::SaslStep, mechanism, last)).await?;
        if let (Status::Success, Reply::Plain(parts)) = (&response.status, &response.reply) {
            client.verify(&parts.value())?;
        }
        Ok(response)
    }

    /// On servers before 5.0 a connection uses the bucket with the name of the user, or `default`.
    /// Checks the bucket's name in the cluster map.
    async fn expect_bucket(&mut self, bucket: &str) -> ClientResult<()> {
        let found = match self.cluster_map().await {
            Ok(Some(map)) if !map.name.is_empty() && map.name != bucket => map.name,
            // There is no map yet, or the node has none. A caller that needs the map asks for it
            // again.
            Ok(_) => return Ok(()),
            Err(error) if matches!(error.fault(), Fault::Refused(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let message = format!(
            "the connection is in bucket `{found}`, not in `{bucket}`: this server cannot select a bucket; it uses the one with the name of the user; set the option user to `{bucket}` with that bucket's password, or name bucket `{found}` in the URL"
        );
        Err(ClientError::new(Fault::Invalid, message))
    }

    async fn select(&mut self, options: &ConnectOptions) -> ClientResult<()> {
        let bucket = &options.bucket;
        if !self.granted.contains(Feature::SelectBucket) {
            return self.expect_bucket(bucket).await;
        }
        let key = kv::Key { key: Bytes::copy_from_slice(bucket.as_bytes()) };
        let response = self.ask(Request::new(Command::SelectBucket(key))).await?;
        match response.status {
            Status::Success => Ok(()),
            Status::ConfigOnly => {
                self.is_config_only = true;
                Ok(())
            }
            Status::AccessDenied if options.login == Login::Certificate => {
                let message = format!(
                    "there is no bucket `{bucket}`, or the client's certificate names no user who may read it; check the bucket's name, and whose certificate it is (option client_cert)"
                );
                Err(ClientError::new(Fault::AccessDenied, message))
            }
            Status::AccessDenied => {
                let message = format!(
                    "there is no bucket `{bucket}`, or the user may not read it; check the bucket's name, and the user's roles (Data DCP Reader)"
                );
                Err(ClientError::new(Fault::AccessDenied, message))
            }
            Status::NoBucket => {
                let message = format!("there is no bucket `{bucket}` on this node; check the bucket's name");
                Err(ClientError::new(Fault::NoBucket, message))
            }
            _ => Err(ClientError::refused(&format!("the selection of bucket `{bucket}`"), &response)),
        }
    }
}

fn step(command: fn(sasl::Exchange) -> Command, mechanism: Mechanism, data: Secret) -> Request {
    Request::new(command(sasl::Exchange { mechanism: Bytes::from_static(mechanism.name().as_bytes()), data }))
}

/// Reads a cluster map as an answer, a notice or a refusal has it, received from `host`. None if the value is empty.
///
/// # Errors
/// `Protocol` if it is none, `Unsupported` for a bucket without vbuckets.
pub fn read_cluster_map(value: Bytes, datatype: Datatype, host: &str) -> ClientResult<Option<ClusterMap>> {
    if value.is_empty() {
        return Ok(None);
    }
    let (json, _) = decompress(value, datatype, MAX_CONFIG_LEN)?;
    Ok(Some(ClusterMap::parse(&json, host)?))
}
