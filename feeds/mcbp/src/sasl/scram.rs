//! SCRAM: both sides prove that they know the password, and neither says it (protocol, section 2.2; RFC 5802, RFC 7677).
//!
//! Nonces come from the caller, who needs randomness for them; they must be printable ASCII without commas.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::digest::{Digest, KeyInit};
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq as _;

use super::{Mechanism, Password};
use crate::body::Secret;
use crate::error::{Error, ErrorKind, Result};

/// The most iterations a server may ask for; each costs time.
pub const MAX_ITERATIONS: u32 = 1_000_000;

/// No channel binding, as the first message says it and as the last one repeats it.
const HEADER: &str = "n,,";
const HEADER_BASE64: &str = "biws";

/// A client that has sent its first message.
pub struct Client {
    hash: Hash,
    password: Password,
    nonce: String,
    first_bare: String,
}

/// A client that has sent its proof, and waits for the server's.
pub struct ClientFinal {
    server_signature: Vec<u8>,
}

/// What a client's first message says, read by a server.
#[derive(Clone, Debug)]
pub struct ClientFirst {
    hash: Hash,
    user: String,
    nonce: String,
    bare: String,
}

/// What a server keeps of a password, for one mechanism.
#[derive(Clone)]
pub struct Credentials {
    hash: Hash,
    salt: Vec<u8>,
    iterations: u32,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

/// A server that has sent its challenge.
pub struct Server {
    credentials: Credentials,
    nonce: String,
    /// What both have said so far, without the client's last message.
    said: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

impl Client {
    /// Begins: the client's first message. `user` and `password` may hold any characters that the profile for them allows.
    ///
    /// # Errors
    /// `Invalid` if the mechanism is not SCRAM, the nonce has other characters than it may, or name or password are not allowed.
    pub fn start(mechanism: Mechanism, user: &str, password: Password, nonce: &str) -> Result<(Client, Secret)> {
        let hash = Hash::of(mechanism)?;
        check_nonce(nonce)?;
        let user = prepare(user)?.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={user},r={nonce}");
        let first = format!("{HEADER}{first_bare}");
        Ok((Client { hash, password, nonce: nonce.to_owned(), first_bare }, Secret(first.into())))
    }

    /// Answers the server's challenge: the client's last message.
    ///
    /// # Errors
    /// `Malformed` if it is no challenge; `Authentication` if its nonce does not begin with ours, or it asks for too many iterations.
    pub fn answer(self, challenge: &[u8]) -> Result<(ClientFinal, Secret)> {
        let challenge = text(challenge)?;
        let [nonce, salt, iterations] = attributes(challenge, ["r=", "s=", "i="])?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(refused("the server's nonce does not go on from ours"));
        }
        let salt = decode(salt)?;
        let iterations = iterations.parse().ok().filter(|n| (1..=MAX_ITERATIONS).contains(n));
        let iterations = iterations.ok_or_else(|| refused("the server asks for no iterations, or for over 1000000"))?;
        let salted = self.hash.salt(&prepare(self.password.reveal())?, &salt, iterations);
        let last = format!("c={HEADER_BASE64},r={nonce}");
        let said = format!("{},{challenge},{last}", self.first_bare);
        let client_key = self.hash.mac(&salted, b"Client Key");
        let signature = self.hash.mac(&self.hash.digest(&client_key), said.as_bytes());
        let proof = BASE64.encode(xor(&client_key, &signature));
        let server_signature = self.hash.mac(&self.hash.mac(&salted, b"Server Key"), said.as_bytes());
        Ok((ClientFinal { server_signature }, Secret(format!("{last},p={proof}").into())))
    }
}

impl ClientFinal {
    /// Checks the server's last message: that it knows the password too.
    ///
    /// # Errors
    /// `Malformed` if it is no such message, `Authentication` if it says that we failed, or proves nothing.
    pub fn verify(self, last: &[u8]) -> Result<()> {
        let last = text(last)?;
        if last.starts_with("e=") {
            return Err(refused("the server has refused the user name or password"));
        }
        let [signature] = attributes(last, ["v="])?;
        if bool::from(decode(signature)?.ct_eq(&self.server_signature)) {
            return Ok(());
        }
        Err(refused("the server does not know the password; it may not be the one it should be"))
    }
}

impl ClientFirst {
    /// Reads a client's first message.
    ///
    /// # Errors
    /// `Malformed` if it is none; `Unsupported` if it asks for channel binding or speaks for another user.
    pub fn parse(mechanism: Mechanism, first: &[u8]) -> Result<ClientFirst> {
        let hash = Hash::of(mechanism)?;
        let first = text(first)?;
        let Some(bare) = first.strip_prefix(HEADER) else {
            let message = "channel binding, and speaking for another user, are not supported";
            return Err(Error::new(ErrorKind::Unsupported, message));
        };
        let [user, nonce] = attributes(bare, ["n=", "r="])?;
        check_nonce(nonce).map_err(|_| malformed())?;
        // Escapes are undone in this order, so that an escaped `=` cannot begin another escape.
        if user.replace("=3D", "").replace("=2C", "").contains('=') {
            return Err(malformed());
        }
        let user = user.replace("=2C", ",").replace("=3D", "=");
        Ok(ClientFirst { hash, user, nonce: nonce.to_owned(), bare: bare.to_owned() })
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The challenge for a user with these credentials.
    ///
    /// # Errors
    /// `Invalid` if the nonce has other characters than it may, or the credentials are for another mechanism.
    pub fn challenge(self, credentials: Credentials, nonce: &str) -> Result<(Server, Secret)> {
        check_nonce(nonce)?;
        if credentials.hash != self.hash {
            return Err(Error::invalid("the credentials are for another mechanism"));
        }
        let nonce = format!("{}{nonce}", self.nonce);
        let challenge = format!("r={nonce},s={},i={}", BASE64.encode(&credentials.salt), credentials.iterations);
        let said = format!("{},{challenge}", self.bare);
        Ok((Server { credentials, nonce, said }, Secret(challenge.into())))
    }
}

impl Credentials {
    /// What a server keeps of a password. The salt should be random and of one user only.
    ///
    /// # Errors
    /// `Invalid` if the mechanism is not SCRAM, the password is not allowed, or the iterations are 0 or over [`MAX_ITERATIONS`].
    pub fn new(mechanism: Mechanism, password: &Password, salt: &[u8], iterations: u32) -> Result<Self> {
        let hash = Hash::of(mechanism)?;
        if !(1..=MAX_ITERATIONS).contains(&iterations) {
            return Err(Error::invalid("the iterations are 0 or over 1000000"));
        }
        let salted = hash.salt(&prepare(password.reveal())?, salt, iterations);
        let stored_key = hash.digest(&hash.mac(&salted, b"Client Key"));
        let server_key = hash.mac(&salted, b"Server Key");
        Ok(Credentials { hash, salt: salt.to_vec(), iterations, stored_key, server_key })
    }
}

impl Server {
    /// Checks the client's last message; the server's last message, to be sent with the status that all is well.
    ///
    /// # Errors
    /// `Malformed` if it is no such message, `Authentication` if it proves nothing.
    pub fn finish(self, last: &[u8]) -> Result<Secret> {
        let Credentials { hash, stored_key, server_key, .. } = self.credentials;
        let last = text(last)?;
        let (unproved, proof) = last.rsplit_once(",p=").ok_or_else(malformed)?;
        let [binding, nonce] = attributes(unproved, ["c=", "r="])?;
        let said = format!("{},{unproved}", self.said);
        let signature = hash.mac(&stored_key, said.as_bytes());
        let proof = decode(proof)?;
        let is_known = proof.len() == signature.len()
            && bool::from(hash.digest(&xor(&proof, &signature)).ct_eq(&stored_key))
            && binding == HEADER_BASE64
            && nonce == self.nonce;
        if !is_known {
            return Err(refused("the user name or password is wrong"));
        }
        Ok(Secret(format!("v={}", BASE64.encode(hash.mac(&server_key, said.as_bytes()))).into()))
    }
}

impl Hash {
    fn of(mechanism: Mechanism) -> Result<Hash> {
        match mechanism {
            Mechanism::ScramSha1 => Ok(Hash::Sha1),
            Mechanism::ScramSha256 => Ok(Hash::Sha256),
            Mechanism::ScramSha512 => Ok(Hash::Sha512),
            Mechanism::Plain => Err(Error::invalid("PLAIN is no challenge and response")),
        }
    }

    fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha1 => Sha1::digest(bytes).to_vec(),
            Hash::Sha256 => Sha256::digest(bytes).to_vec(),
            Hash::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }

    fn mac(self, key: &[u8], bytes: &[u8]) -> Vec<u8> {
        fn mac<M: Mac + KeyInit>(key: &[u8], bytes: &[u8]) -> Vec<u8> {
            <M as Mac>::new_from_slice(key)
                .expect("a key of any length will do")
                .chain_update(bytes)
                .finalize()
                .into_bytes()
                .to_vec()
        }
        match self {
            Hash::Sha1 => mac::<Hmac<Sha1>>(key, bytes),
            Hash::Sha256 => mac::<Hmac<Sha256>>(key, bytes),
            Hash::Sha512 => mac::<Hmac<Sha512>>(key, bytes),
        }
    }

    fn salt(self, password: &str, salt: &[u8], iterations: u32) -> Vec<u8> {
        let password = password.as_bytes();
        match self {
            Hash::Sha1 => pbkdf2::pbkdf2_hmac_array::<Sha1, 20>(password, salt, iterations).to_vec(),
            Hash::Sha256 => pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password, salt, iterations).to_vec(),
            Hash::Sha512 => pbkdf2::pbkdf2_hmac_array::<Sha512, 64>(password, salt, iterations).to_vec(),
        }
    }
}

macro_rules! hidden {
    ($($name:ident)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(***)"))
            }
        }
    )*};
}
hidden!(Client ClientFinal Credentials Server);

/// The values of the attributes that `message` begins with; what follows them are extensions.
fn attributes<'a, const N: usize>(message: &'a str, names: [&str; N]) -> Result<[&'a str; N]> {
    let mut parts = message.split(',');
    let mut values = [""; N];
    for (name, value) in names.into_iter().zip(&mut values) {
        *value = parts.next().and_then(|part| part.strip_prefix(name)).ok_or_else(malformed)?;
    }
    Ok(values)
}

fn prepare(text: &str) -> Result<String> {
    let prepared =
        stringprep::saslprep(text).map_err(|_| Error::invalid("a user name or password has characters that it cannot"))?;
    Ok(prepared.into_owned())
}

fn check_nonce(nonce: &str) -> Result<()> {
    match !nonce.is_empty() && nonce.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',') {
        true => Ok(()),
        false => Err(Error::invalid("a nonce is printable ASCII without commas")),
    }
}

fn text(message: &[u8]) -> Result<&str> {
    std::str::from_utf8(message).map_err(|_| malformed())
}

fn decode(base64: &str) -> Result<Vec<u8>> {
    BASE64.decode(base64).map_err(|_| malformed())
}

fn xor(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(a, b)| a ^ b).collect()
}

fn malformed() -> Error {
    Error::malformed("a message of the authentication is not laid out as SCRAM asks for")
}

fn refused(message: &'static str) -> Error {
    Error::new(ErrorKind::Authentication, message)
}
