//! Authentication: mechanisms, PLAIN and SCRAM, without I/O and without randomness (protocol, section 2.2).

pub mod scram;

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use crate::body::Secret;
use crate::error::{Error, ErrorKind, Result};

bodies! {
    /// One step of authentication, of a client.
    Exchange {
        key {
            /// The mechanism.
            mechanism: Bytes
        }
        value {
            /// What the mechanism says.
            data: Secret
        }
    }
}

/// How to authenticate, the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Mechanism {
    /// Name and password as they are.
    Plain,
    /// Challenge and response with SHA-1.
    ScramSha1,
    /// Challenge and response with SHA-256.
    ScramSha256,
    /// Challenge and response with SHA-512.
    ScramSha512,
}

/// A password. `Debug` prints `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Mechanism {
    /// All of them, the strongest first.
    pub const ALL: [Mechanism; 4] = [Mechanism::ScramSha512, Mechanism::ScramSha256, Mechanism::ScramSha1, Mechanism::Plain];

    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha1 => "SCRAM-SHA1",
            Mechanism::ScramSha256 => "SCRAM-SHA256",
            Mechanism::ScramSha512 => "SCRAM-SHA512",
        }
    }

    /// The mechanism to use of those `offered`, separated by spaces.
    ///
    /// Over TLS it is PLAIN, which works for users of any kind. In clear text it is the strongest challenge, and PLAIN only if
    /// `allow_plain` says so and nothing else is offered.
    ///
    /// # Errors
    /// `Authentication` if none is acceptable.
    pub fn choose(offered: &str, is_tls: bool, allow_plain: bool) -> Result<Mechanism> {
        let is_offered = |mechanism: &Mechanism| offered.split_ascii_whitespace().any(|name| name == mechanism.name());
        if is_tls && is_offered(&Mechanism::Plain) {
            return Ok(Mechanism::Plain);
        }
        let acceptable = Mechanism::ALL.into_iter().filter(|mechanism| allow_plain || *mechanism != Mechanism::Plain);
        acceptable.into_iter().find(is_offered).ok_or_else(|| {
            let message = "no mechanism of authentication is acceptable; use TLS, or allow PLAIN where nobody listens";
            Error::new(ErrorKind::Authentication, message)
        })
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mechanism {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Mechanism::ALL.into_iter().find(|mechanism| mechanism.name() == name);
        known.ok_or_else(|| Error::new(ErrorKind::Unsupported, "the mechanism of authentication is unknown"))
    }
}

impl Password {
    /// A password.
    pub fn new(password: impl Into<String>) -> Self {
        Password(password.into())
    }

    fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What a client says with PLAIN.
///
/// # Errors
/// `Invalid` if the name or the password holds a zero character.
pub fn plain(user: &str, password: &Password) -> Result<Secret> {
    if user.contains('\0') || password.reveal().contains('\0') {
        return Err(Error::invalid("a user name or password cannot hold a zero character"));
    }
    Ok(Secret(format!("\0{user}\0{}", password.reveal()).into()))
}

/// The name and the password that a client has said with PLAIN.
///
/// # Errors
/// `Malformed` if it is not that.
pub fn read_plain(data: &Secret) -> Result<(String, Password)> {
    let text = std::str::from_utf8(&data.0).ok();
    let parts = text.and_then(|text| text.split_once('\0')?.1.split_once('\0'));
    match parts {
        Some((user, password)) if !password.contains('\0') => Ok((user.to_owned(), Password::new(password))),
        _ => Err(Error::malformed("PLAIN is a zero, a name, a zero and a password")),
    }
}
