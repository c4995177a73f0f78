//! Authentication of a connection (protocol, section 2.2).

use bytes::Bytes;
use sluicegate_mcbp::sasl::scram::{ClientFirst, Server};
use sluicegate_mcbp::sasl::{Exchange, Mechanism, read_plain};
use sluicegate_mcbp::{ErrorKind, Opcode, Parts, Reply, Secret, Status};

use crate::state::State;

#[derive(Debug, Default)]
pub(super) enum Auth {
    #[default]
    None,
    Challenged(Mechanism, Server),
    Done,
    /// By a certificate: no other way is open then.
    Certified,
}

/// The mechanisms offered, separated by spaces.
pub(super) fn mechanisms(state: &State) -> String {
    let names: Vec<&str> = state.config.mechanisms.iter().map(|mechanism| mechanism.name()).collect();
    names.join(" ")
}

impl Auth {
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Auth::Done | Auth::Certified)
    }

    pub(super) fn begin(&mut self, exchange: &Exchange, state: &mut State) -> (Status, Reply) {
        if matches!(self, Auth::Certified) {
            return refused(Opcode::SaslAuth, Status::NotSupported);
        }
        *self = Auth::None;
        let mechanism = std::str::from_utf8(&exchange.mechanism).ok().and_then(|name| name.parse::<Mechanism>().ok());
        let Some(mechanism) = mechanism.filter(|mechanism| state.config.mechanisms.contains(mechanism)) else {
            return refused(Opcode::SaslAuth, Status::InvalidArguments);
        };
        if mechanism == Mechanism::Plain {
            let Ok((user, password)) = read_plain(&exchange.data) else {
                return refused(Opcode::SaslAuth, Status::InvalidArguments);
            };
            if user != state.config.user || password != state.config.password {
                return refused(Opcode::SaslAuth, Status::AuthError);
            }
            *self = Auth::Done;
            return super::done(Opcode::SaslAuth);
        }
        match challenge(mechanism, &exchange.data, state) {
            Ok((server, challenge)) => {
                *self = Auth::Challenged(mechanism, server);
                (Status::AuthContinue, said(Opcode::SaslAuth, challenge))
            }
            Err(status) => refused(Opcode::SaslAuth, status),
        }
    }

    pub(super) fn go_on(&mut self, exchange: &Exchange) -> (Status, Reply) {
        if matches!(self, Auth::Certified) {
            return refused(Opcode::SaslStep, Status::NotSupported);
        }
        match std::mem::take(self) {
            Auth::Challenged(mechanism, server) if exchange.mechanism == mechanism.name().as_bytes() => {
                match server.finish(&exchange.data.0) {
                    Ok(signature) => {
                        *self = Auth::Done;
                        (Status::Success, said(Opcode::SaslStep, signature))
                    }
                    Err(error) => refused(Opcode::SaslStep, status(error.kind())),
                }
            }
            _ => refused(Opcode::SaslStep, Status::InvalidArguments),
        }
    }
}

fn challenge(mechanism: Mechanism, first: &Secret, state: &mut State) -> Result<(Server, Secret), Status> {
    let first = ClientFirst::parse(mechanism, &first.0).map_err(|error| status(error.kind()))?;
    if first.user() != state.config.user {
        return Err(Status::AuthError);
    }
    let credentials = state.credentials(mechanism).ok_or(Status::AuthError)?;
    let nonce = format!("{:016x}", state.bucket.identity().number());
    first.challenge(credentials, &nonce).map_err(|error| status(error.kind()))
}

fn status(kind: ErrorKind) -> Status {
    if kind == ErrorKind::Malformed { Status::InvalidArguments } else { Status::AuthError }
}

fn said(opcode: Opcode, secret: Secret) -> Reply {
    Reply::Plain(Parts::from_value(opcode, secret.0))
}

fn refused(opcode: Opcode, status: Status) -> (Status, Reply) {
    (status, Reply::Failed(Parts::from_value(opcode, Bytes::new())))
}
