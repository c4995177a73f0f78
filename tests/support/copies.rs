//! A recording many times over: documents, users and channels of other names, and sequences that go on where those of the copy before end.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::Value;
use sluicegate::core::decode::attributes;
use sluicegate::core::feed::{Datatype, MutationKind};
use sluicegate::{Channel, Decoded, GatewayDecoder, Mutation, MutationDecoder as _};
use sluicegate_testkit::Model;

use super::recorded::{Set, load};

/// Around a sequence, and where the copy's name goes: characters that no recording has.
const NUMBER: char = '\u{e000}';
const NAME: char = '\u{e001}';

/// What a mutation is written from.
#[derive(Debug)]
struct Template {
    recorded: Mutation,
    key: Vec<Piece>,
    value: Vec<Attribute>,
    body: Vec<Piece>,
}

#[derive(Debug)]
struct Attribute {
    name: Vec<u8>,
    content: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    Sequence(u64),
    Name,
}

/// Copies of one recording. What is not about sequences (counters, leases, stored revisions) is left out.
///
/// A server that is read slowly leaves out all but the last write of a key, and then a number is lost that only an earlier one names. So that none is
/// lost, users, roles and documents with such numbers are left out, and their numbers are given back as unused.
#[derive(Debug)]
pub(crate) struct Copies {
    templates: Vec<Template>,
    channels: Vec<String>,
    /// How many documents a copy has.
    pub(crate) documents: usize,
    /// By how much the sequences of a copy are above those of the one before.
    pub(crate) step: u64,
}

impl Copies {
    pub(crate) fn of(set: &Set) -> Copies {
        let (recording, _) = load(set);
        let mut mutations: Vec<Mutation> = recording.mutations;
        mutations.sort_by_key(|mutation| mutation.cas);
        let mut copies = Copies { templates: Vec::new(), channels: Vec::new(), documents: 0, step: 0 };
        // Each key's numbers, and whether the last write names them all.
        let mut named: BTreeMap<Bytes, (BTreeSet<u64>, bool)> = BTreeMap::new();
        for mutation in &mutations {
            let (all, is_whole) = named.entry(mutation.key.clone()).or_default();
            let numbers = numbers(mutation);
            *is_whole = all.is_subset(&numbers);
            all.extend(numbers);
        }
        let (mut keys, mut unused) = (BTreeSet::new(), BTreeSet::new());
        for mut mutation in mutations {
            let key = String::from_utf8(mutation.key.to_vec()).unwrap();
            let (numbers, is_whole) = &named[&mutation.key];
            if !is_whole {
                (mutation.value, mutation.kind, mutation.datatype) = (Bytes::new(), MutationKind::Mutation, Datatype::default());
                for number in numbers.iter().filter(|number| unused.insert(**number)) {
                    copies.add(mutation.clone(), &format!("_sync:unusedSeq:{}", marked_number(number)));
                }
                continue;
            }
            let marked = if let Some(numbers) = key.strip_prefix("_sync:unusedSeqs:") {
                let (first, last) = numbers.split_once(':').unwrap();
                format!("_sync:unusedSeqs:{}:{}", marked_number(first), marked_number(last))
            } else if let Some(number) = key.strip_prefix("_sync:unusedSeq:") {
                format!("_sync:unusedSeq:{}", marked_number(number))
            } else if let Some(name) = key.strip_prefix("_sync:user:") {
                format!("_sync:user:{NAME}{name}")
            } else if let Some(name) = key.strip_prefix("_sync:role:") {
                format!("_sync:role:{NAME}{name}")
            } else if key.starts_with("_sync:") {
                continue;
            } else {
                keys.insert(key.clone());
                format!("{NAME}{key}")
            };
            copies.add(mutation, &marked);
        }
        copies.documents = keys.len();
        let pieces = copies.templates.iter().flat_map(|template| {
            let attributes = template.value.iter().flat_map(|attribute| &attribute.content);
            attributes.chain(&template.key).chain(&template.body)
        });
        copies.step = pieces.map(|piece| if let Piece::Sequence(n) = piece { *n } else { 0 }).max().unwrap();
        copies.channels.sort_unstable();
        copies.channels.dedup();
        copies
    }

    fn add(&mut self, recorded: Mutation, key: &str) {
        let has_attributes = recorded.datatype.0 & Datatype::XATTR != 0;
        let mut value = Vec::new();
        for pair in has_attributes.then(|| attributes::iter(&recorded.value).unwrap()).into_iter().flatten() {
            let (name, content) = pair.unwrap();
            let content = if name == b"_sync" { self.metadata(content) } else { vec![Piece::Bytes(content.to_vec())] };
            value.push(Attribute { name: name.to_vec(), content });
        }
        let body = if has_attributes { attributes::body(&recorded.value).unwrap() } else { &recorded.value };
        let body = match serde_json::from_slice::<Value>(body) {
            Ok(mut principal) if key.starts_with("_sync:") && principal["sequence"].is_u64() => {
                mark_number(&mut principal["sequence"]);
                pieces(&principal.to_string())
            }
            _ => vec![Piece::Bytes(body.to_vec())],
        };
        self.templates.push(Template { key: pieces(key), value, body, recorded });
    }

    /// A document's metadata: what the decoder reads of it, and the windows of channels beside.
    fn metadata(&mut self, content: &[u8]) -> Vec<Piece> {
        let mut metadata: Value = serde_json::from_slice(content).unwrap();
        metadata.get_mut("sequence").into_iter().for_each(mark_number);
        for name in ["recent_sequences", "unused_sequences"] {
            metadata.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().for_each(mark_number);
        }
        for name in ["channel_set", "channel_set_history"] {
            for window in metadata.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten() {
                ["start", "end"].iter().filter_map(|end| window.get_mut(end).map(mark_number)).for_each(drop);
                window["name"] = format!("{NAME}{}", window["name"].as_str().unwrap()).into();
            }
        }
        if let Some(Value::Object(channels)) = metadata.get_mut("channels") {
            for (name, mut removal) in std::mem::take(channels) {
                removal.get_mut("seq").into_iter().for_each(mark_number);
                channels.insert(format!("{NAME}{name}"), removal);
                self.channels.push(name);
            }
        }
        pieces(&metadata.to_string())
    }

    /// The mutations of one copy, in the order in which a gateway wrote those of the recording.
    pub(crate) fn copy(&self, number: u64) -> Vec<Mutation> {
        let written = |pieces: &[Piece]| {
            let mut out = Vec::new();
            for piece in pieces {
                match piece {
                    Piece::Bytes(bytes) => out.extend_from_slice(bytes),
                    Piece::Sequence(n) => out.extend_from_slice((n + number * self.step).to_string().as_bytes()),
                    Piece::Name => out.extend_from_slice(name(number).as_bytes()),
                }
            }
            out
        };
        let mutation = |template: &Template| {
            let mut mutation = template.recorded.clone();
            mutation.key = written(&template.key).into();
            let body = written(&template.body);
            let has_attributes = mutation.datatype.0 & Datatype::XATTR != 0;
            let attributes = template.value.iter().map(|attribute| (&attribute.name, written(&attribute.content)));
            mutation.value = if has_attributes { attributes::encode(attributes, &body).unwrap() } else { body }.into();
            mutation
        };
        self.templates.iter().map(mutation).collect()
    }

    /// The channels of one copy.
    pub(crate) fn channels(&self, number: u64) -> Vec<Channel> {
        self.channels.iter().map(|channel| Channel::new(&format!("{}{channel}", name(number))).unwrap()).collect()
    }

    /// What a cache of one copy must answer: its documents and channels are in no other.
    pub(crate) fn model(&self, number: u64) -> Model {
        let (mut model, decoder) = (Model::new(), GatewayDecoder::default());
        self.copy(number).iter().for_each(|mutation| model.apply(&decoder.decode(mutation)));
        model
    }
}

fn name(number: u64) -> String {
    format!("copy{number}-")
}

fn marked_number(number: impl std::fmt::Display) -> String {
    format!("{NUMBER}{number}{NUMBER}")
}

fn mark_number(number: &mut Value) {
    *number = marked_number(number.as_u64().unwrap()).into();
}

/// The numbers that a write accounts for.
fn numbers(mutation: &Mutation) -> BTreeSet<u64> {
    match GatewayDecoder::default().decode(mutation) {
        Decoded::Principal(principal) => [principal.sequence.0].into(),
        Decoded::Document(document) | Decoded::Foreign(document) => {
            let numbers = document.unused.iter().copied().chain(document.earlier());
            numbers.chain([document.entry.sequence()]).map(|sequence| sequence.0).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// What a marked text is put together from. In JSON a number is marked as a string.
fn pieces(marked: &str) -> Vec<Piece> {
    let marked = marked.replace(&format!("\"{NUMBER}"), &NUMBER.to_string()).replace(&format!("{NUMBER}\""), &NUMBER.to_string());
    let mut out = Vec::new();
    for (turn, part) in marked.split(NUMBER).enumerate() {
        if turn % 2 == 1 {
            out.push(Piece::Sequence(part.parse().unwrap()));
            continue;
        }
        for (turn, text) in part.split(NAME).enumerate() {
            if turn > 0 {
                out.push(Piece::Name);
            }
            out.push(Piece::Bytes(text.as_bytes().to_vec()));
        }
    }
    out
}
