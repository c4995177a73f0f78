//! The server's explanation of status codes (protocol, section 2.7).

use std::collections::HashMap;

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};

/// The longest JSON that is read, in bytes; servers send some 30 KB.
pub const MAX_ERROR_MAP_LEN: usize = 1 << 20;

/// What a server says about its status codes. Keep the one with the highest revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorMap {
    /// Version of the layout.
    pub version: u32,
    /// Revision of the content.
    pub revision: u32,
    /// By status code.
    pub errors: HashMap<u16, Explanation>,
}

/// What a server says about one status code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// Its name.
    pub name: String,
    /// What it means.
    #[serde(rename = "desc")]
    pub description: String,
    /// What follows from it.
    #[serde(rename = "attrs")]
    pub attributes: Vec<Attribute>,
}

/// What follows from a status code, as far as a client of DCP is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Attribute {
    /// Try again at once.
    RetryNow,
    /// Try again later.
    RetryLater,
    /// It will pass.
    Temp,
    /// Connect again.
    ConnStateInvalidated,
    /// Fetch the cluster map.
    FetchConfig,
    /// It is about authentication.
    Auth,
    /// It means something else for each opcode.
    SpecialHandling,
    /// It is about DCP.
    Dcp,
    /// Too much was asked.
    RateLimit,
    /// Any other.
    #[serde(untagged)]
    Other(String),
}

impl ErrorMap {
    /// Reads an error map. Codes that are not hexadecimal are left out.
    ///
    /// # Errors
    /// `TooLarge` over [`MAX_ERROR_MAP_LEN`]; `Malformed` if it is not such JSON.
    pub fn parse(json: &[u8]) -> Result<ErrorMap> {
        #[derive(Deserialize)]
        struct Text {
            #[serde(default)]
            version: u32,
            #[serde(default)]
            revision: u32,
            errors: HashMap<String, Explanation>,
        }
        if json.len() > MAX_ERROR_MAP_LEN {
            let message = format!("an error map of {} bytes is over the limit of {MAX_ERROR_MAP_LEN}", json.len());
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        let text: Text = serde_json::from_slice(json)
            .map_err(|error| Error::malformed("the error map is not the JSON it should be").with_source(error))?;
        let code = |text: &str| u16::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok();
        let errors = text.errors.into_iter().filter_map(|(key, explanation)| Some((code(&key)?, explanation))).collect();
        Ok(ErrorMap { version: text.version, revision: text.revision, errors })
    }

    /// Whether a status has an attribute.
    pub fn has(&self, status: u16, attribute: &Attribute) -> bool {
        self.errors.get(&status).is_some_and(|explanation| explanation.attributes.contains(attribute))
    }
}
