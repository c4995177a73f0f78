//! How long it takes to decode one mutation.

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use sluicegate_core::decode::{Decoded, GatewayDecoder, MutationDecoder, attributes};
use sluicegate_core::feed::{Datatype, Mutation};

fn main() {
    divan::main();
}

/// A document in `channels` channels, with its metadata in an attribute.
fn with_attribute(channels: usize) -> Mutation {
    let names: Vec<String> = (0..channels).map(|n| format!("\"test-{n}\"")).collect();
    let map: Vec<String> = names.iter().map(|n| format!("{n}:null")).collect();
    let stays: Vec<String> = names.iter().map(|n| format!("{{\"name\":{n},\"start\":123456}}")).collect();
    let metadata = format!(
        "{{\"rev\":\"1-abc\",\"sequence\":123456,\"recent_sequences\":[123456],\"channels\":{{{}}},\"cas\":\"0xec1b45a3113aea18\",\
         \"value_crc32c\":\"\",\"channel_set\":[{}],\"channel_set_history\":null,\"time_saved\":\"2026-11-22T01:34:08.88863498Z\",\
         \"history\":{{\"revs\":[\"1-abc\"],\"parents\":[-1],\"channelsMap\":{{\"0\":[{}]}}}}}}",
        map.join(","),
        stays.join(","),
        names.join(",")
    );
    let value = attributes::encode([("_sync", metadata)], br#"{"some":"body"}"#).expect("short");
    let mut mutation = Mutation::new("key-1234-123456", value);
    (mutation.cas, mutation.datatype) = (0x18ea_3a11_a345_1bec, Datatype(Datatype::JSON | Datatype::XATTR));
    mutation
}

/// A document with its metadata after `size` bytes of body.
fn inline(size: usize) -> Mutation {
    let item = r#"{"id":12345,"name":"some \"quoted\" name","price":12.5,"tags":["a","b",null,true],"text":"lorem ipsum dolor sit amet, consectetur"}"#;
    let items = vec![item; size / item.len()].join(",");
    let metadata = r#"{"rev":"1-abc","sequence":123456,"recent_sequences":[123456],"channels":{"test-0":null},"cas":"","value_crc32c":"",
        "channel_set":[{"name":"test-0","start":123456}],"channel_set_history":null,"time_saved":"2026-11-22T01:34:08.88863498Z"}"#;
    Mutation::new("key-1234-123456", format!("{{\"items\":[{items}],\"_sync\":{metadata}}}"))
}

fn run(bencher: Bencher<'_, '_>, mutation: &Mutation) {
    let decoder = GatewayDecoder::default();
    assert!(matches!(decoder.decode(mutation), Decoded::Document(_)));
    bencher
        .counter(BytesCount::new(mutation.value.len()))
        .counter(ItemsCount::new(1usize))
        .bench(|| drop(black_box(decoder.decode(black_box(mutation)))));
}

#[divan::bench(args = [1, 4], sample_size = 200, sample_count = 1000)]
fn attribute(bencher: Bencher<'_, '_>, channels: usize) {
    run(bencher, &with_attribute(channels));
}

#[divan::bench(args = [1_000, 100_000], sample_size = 10, sample_count = 1000)]
fn body(bencher: Bencher<'_, '_>, size: usize) {
    run(bencher, &inline(size));
}

/// Several threads that share a decoder and its channels.
#[divan::bench(args = [1, 4], threads = [1, 2], sample_size = 200, sample_count = 1000)]
fn shared(bencher: Bencher<'_, '_>, channels: usize) {
    run(bencher, &with_attribute(channels));
}
