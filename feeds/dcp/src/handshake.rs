//! From a session to a connection that streams: OPEN, and the options of the connection (protocol, sections 3.1 to 3.3).

use bytes::Bytes;
use sluicegate_mcbp::client::{ClientError, ClientResult, Fault, Link, Session};
use sluicegate_mcbp::config::Address;
use sluicegate_mcbp::dcp::{Control, Open, OpenFlags};
use sluicegate_mcbp::hello::Feature;
use sluicegate_mcbp::{Command, Request, Status};

use crate::options::{Compression, Target};

/// An option of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wish {
    name: &'static str,
    value: String,
    /// Without it the connection is of no use.
    is_required: bool,
}

/// What of the wishes to send, by what the node can do.
fn wishes(target: &Target, has_snappy: bool, has_collections: bool) -> Vec<Wish> {
    let options = &target.options;
    let wish = |name, value: &str, is_required| Wish { name, value: value.to_owned(), is_required };
    let mut wishes = vec![
        wish("enable_noop", "true", true),
        wish("set_noop_interval", &options.noop_interval.to_string(), true),
        wish("connection_buffer_size", &options.buffer.to_string(), true),
        wish("set_priority", "high", false),
        wish("supports_cursor_dropping", "true", false),
        wish("enable_expiry_opcode", "true", false),
        wish("send_stream_end_on_client_close_stream", "true", false),
    ];
    if has_collections {
        // It tells up to where deletions may be gone (section 4.2).
        wishes.push(wish("max_marker_version", "2.2", false));
    }
    if options.out_of_order {
        // The mode in which the last seqno is told (section 4.13); a server that does not know it, or decides otherwise, sends in order.
        wishes.push(wish("enable_out_of_order_snapshots", "true_with_seqno_advanced", false));
    }
    if options.history {
        wishes.push(wish("change_streams", "true", true));
    }
    match options.compression {
        Compression::Force => wishes.push(wish("force_value_compression", "true", true)),
        Compression::On if !has_snappy => wishes.push(wish("enable_value_compression", "true", false)),
        _ => {}
    }
    wishes
}

/// Flags of OPEN to try one after another: servers refuse those they do not know.
fn flags(target: &Target, granted_xattrs: bool) -> Vec<OpenFlags> {
    let base = if target.options.xattrs && granted_xattrs {
        OpenFlags::PRODUCER | OpenFlags::INCLUDE_XATTRS
    } else {
        OpenFlags::PRODUCER
    };
    let mut flags = vec![base | OpenFlags::INCLUDE_DELETE_TIMES, base];
    if base != OpenFlags::PRODUCER {
        flags.push(OpenFlags::PRODUCER);
    }
    flags
}

/// Connects to a node, and makes the connection one that streams. `name` tells the connection from others on that node, and ends an
/// older one of the same name.
///
/// # Errors
/// As [`Session::open`]; `Refused` where the node does not do what is required, saying what.
pub(crate) async fn open(address: &Address, target: &Target, name: &str) -> ClientResult<Link> {
    let mut session = Session::open(address, &target.connect).await?;
    let has = |session: &Session, feature| session.granted().contains(feature);
    let (has_xattrs, has_snappy) = (has(&session, Feature::Xattr), has(&session, Feature::Snappy));
    make_producer(&mut session, flags(target, has_xattrs), name).await.map_err(|error| error.at(address))?;
    let wishes = wishes(target, has_snappy, has(&session, Feature::Collections));
    let request = |wish: &Wish| {
        let name = Bytes::from_static(wish.name.as_bytes());
        Request::new(Command::DcpControl(Control { name, value: wish.value.clone().into() }))
    };
    let answers = session.ask_all(wishes.iter().map(request).collect()).await?;
    for (wish, answer) in wishes.iter().zip(&answers) {
        if answer.status == Status::Success {
            continue;
        }
        if wish.is_required {
            return Err(
                ClientError::refused(&format!("the option {}={} of the connection", wish.name, wish.value), answer).at(address)
            );
        }
        tracing::debug!(node = %address, option = wish.name, status = ?answer.status, "the node does not have an option; going on without it");
    }
    Ok(session.split())
}

async fn make_producer(session: &mut Session, flags: Vec<OpenFlags>, name: &str) -> ClientResult<()> {
    let mut refusal = None;
    for flags in flags {
        let open = Open { reserved: 0, flags, name: Bytes::copy_from_slice(name.as_bytes()), value: Bytes::new() };
        let answer = session.ask(Request::new(Command::DcpOpen(open))).await?;
        match answer.status {
            Status::Success => return Ok(()),
            Status::InvalidArguments => refusal = Some(ClientError::refused("the opening of DCP", &answer)),
            Status::AccessDenied => {
                let message = "the user may not follow the changes of the bucket; give it the role Data DCP Reader";
                return Err(ClientError::new(Fault::AccessDenied, message));
            }
            _ => return Err(ClientError::refused("the opening of DCP", &answer)),
        }
    }
    Err(refusal.unwrap_or_else(|| ClientError::new(Fault::Protocol, "no way to open DCP")))
}
