//! Blocks against a plain map, and the codecs against blocks and one another.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

fn state(bits: u8) -> BlockState {
    BlockState::from_bits(bits)
}

fn codecs(capacity: u32) -> Vec<Arc<dyn BlockCodec>> {
    ["bytes", "two-bit", "adaptive", "log"].iter().map(|name| codec_named(name, capacity).unwrap()).collect()
}

/// A capacity, and raises within it: few or many, near one another or far apart.
fn raises() -> impl Strategy<Value = (u32, Vec<(u32, u8)>)> {
    let capacity = prop_oneof![Just(64u32), 65u32..100, Just(1000), Just(10_000), Just(40_000)];
    (capacity, prop_oneof![Just(20usize), Just(300), Just(1200)]).prop_flat_map(|(capacity, most)| {
        let offset = prop_oneof![0..capacity, 0..capacity.min(400), capacity - 33..capacity];
        (Just(capacity), prop::collection::vec((offset, 0u8..4), 0..most))
    })
}

fn block(capacity: u32, raises: &[(u32, u8)]) -> Block {
    let mut block = Block::new(capacity);
    for (offset, bits) in raises {
        block.raise(*offset, state(*bits));
    }
    block
}

fn merged(a: &Block, b: &Block) -> Block {
    let mut merged = a.clone();
    merged.merge(b);
    merged
}

/// Equal in every way there is to look at them.
fn check(block: &Block, model: &BTreeMap<u32, u8>, from: u32, to: u32) -> Result<(), TestCaseError> {
    let all: Vec<(u32, BlockState)> = model.iter().map(|(o, s)| (*o, state(*s))).collect();
    prop_assert_eq!(block.iter().collect::<Vec<_>>(), all.clone());
    prop_assert_eq!(block.set_count() as usize, all.len());
    let live: Vec<(u32, BlockState)> = all.into_iter().filter(|(_, s)| s.is_live()).collect();
    prop_assert_eq!(block.live_count() as usize, live.len());
    prop_assert_eq!(block.live(0, u32::MAX).collect::<Vec<_>>(), live.clone());
    let between: Vec<(u32, BlockState)> = live.into_iter().filter(|(o, _)| (from..to).contains(o)).collect();
    prop_assert_eq!(block.live(from, to).collect::<Vec<_>>(), between);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_block_whose_bits_were_set_in_place_decodes((capacity, raises) in raises()) {
        for codec in codecs(capacity) {
            let Some(layout) = codec.in_place() else { continue };
            let mut bytes = vec![0u8; layout.length(capacity) as usize];
            for (offset, bits) in &raises {
                for (at, bit) in [(layout.bit(*offset), bits >> 1), (layout.bit(*offset) + 1, bits & 1)] {
                    bytes[(at / 8) as usize] |= bit << (7 - at % 8);
                }
            }
            prop_assert_eq!(codec.decode(&bytes).unwrap(), block(capacity, &raises), "{}", codec.name());
        }
    }

    #[test]
    fn what_is_appended_to_a_block_is_raised_in_it(
        (capacity, raises) in raises(),
        parts in 1usize..40,
        is_new in any::<bool>(),
        zeros in 0usize..10,
    ) {
        for codec in codecs(capacity) {
            prop_assert_eq!(codec.encode_append(&[]).is_some(), codec.name() == Log::NAME, "{}", codec.name());
            let (whole, appended) = raises.split_at(if is_new { 0 } else { raises.len() / 2 });
            let mut bytes = if is_new { Vec::new() } else { codec.encode(&block(capacity, whole)).to_vec() };
            for part in appended.chunks(parts) {
                let changes: Vec<_> = part.iter().map(|(offset, bits)| (*offset, state(*bits))).collect();
                if let Some(append) = codec.encode_append(&changes) {
                    bytes.resize(bytes.len() + zeros, 0);
                    bytes.extend(append);
                }
            }
            if codec.encode_append(&[]).is_some() && !bytes.is_empty() {
                prop_assert_eq!(codec.decode(&bytes).unwrap(), block(capacity, &raises), "{}", codec.name());
            }
        }
    }

    #[test]
    fn a_block_holds_what_a_plain_map_would((capacity, raises) in raises(), from in 0u32..41_000, to in 0u32..41_000) {
        let mut block = Block::new(capacity);
        let mut model: BTreeMap<u32, u8> = BTreeMap::new();
        for (offset, bits) in &raises {
            let before = model.get(offset).copied().unwrap_or(0);
            prop_assert_eq!(block.get(*offset), state(before));
            prop_assert_eq!(block.raise(*offset, state(*bits)), state(before));
            if before | bits != 0 {
                model.insert(*offset, before | bits);
            }
            prop_assert_eq!(block.get(*offset), state(before | bits));
        }
        check(&block, &model, from, to)?;
        prop_assert_eq!(block.raise(capacity, BlockState::Present), BlockState::Absent);
        prop_assert_eq!(block.get(capacity), BlockState::Absent);
        check(&block, &model, from, to)?;
    }

    #[test]
    fn merging_is_the_or_of_two_maps((capacity, a) in raises(), b in prop::collection::vec((0u32..41_000, 0u8..4), 0..600)) {
        let b: Vec<(u32, u8)> = b.into_iter().filter(|(offset, _)| *offset < capacity).collect();
        let mut model: BTreeMap<u32, u8> = BTreeMap::new();
        for (offset, bits) in a.iter().chain(&b).filter(|(_, bits)| *bits > 0) {
            *model.entry(*offset).or_default() |= bits;
        }
        let (one, other) = (block(capacity, &a), block(capacity, &b));
        let both = merged(&one, &other);
        check(&both, &model, 0, capacity)?;
        prop_assert_eq!(&both, &merged(&other, &one), "commutative");
        prop_assert_eq!(&both, &merged(&both, &one), "idempotent");
        for (offset, before) in one.iter() {
            prop_assert_eq!(before as u8 & both.get(offset) as u8, before as u8, "monotone");
        }
    }

    #[test]
    fn merging_is_associative((capacity, all) in raises()) {
        let [a, b, c] = [0, 1, 2].map(|n| {
            let part: Vec<(u32, u8)> = all.iter().enumerate().filter(|(i, _)| i * 7 % 3 == n).map(|(_, r)| *r).collect();
            block(capacity, &part)
        });
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&merged(&a, &b), &c), block(capacity, &all));
    }

    #[test]
    fn every_codec_reads_what_it_wrote((capacity, raises) in raises()) {
        let block = block(capacity, &raises);
        for codec in codecs(capacity) {
            let bytes = codec.encode(&block);
            let read = codec.decode(&bytes).unwrap();
            prop_assert_eq!(&read, &block, "{:?}", codec);
            prop_assert_eq!(read.iter().collect::<Vec<_>>(), block.iter().collect::<Vec<_>>());
            prop_assert_eq!(&codec.encode(&read), &bytes, "{:?}", codec);
            let longest = if codec.name() == "bytes" { capacity as usize } else { capacity as usize / 4 + 5 };
            prop_assert!(bytes.len() <= longest);
        }
    }

    #[test]
    fn a_list_and_words_with_the_same_states_are_written_alike((capacity, raises) in raises()) {
        let list = block(capacity, &raises);
        let mut words = list.clone();
        words.make_dense();
        prop_assert_eq!(&list, &words);
        for codec in codecs(capacity) {
            prop_assert_eq!(codec.encode(&list), codec.encode(&words), "{:?}", codec);
        }
    }

    #[test]
    fn any_bytes_are_corrupt_or_a_block(
        (capacity, raises) in raises(),
        garbage in prop::collection::vec(any::<u8>(), 0..80),
        kind in 0u8..4,
        cut in any::<prop::sample::Index>(),
        flip in any::<prop::sample::Index>(),
        bits in 1u8..=255,
    ) {
        let block = block(capacity, &raises);
        for codec in codecs(capacity) {
            let bytes = codec.encode(&block).to_vec();
            let mut inputs = vec![garbage.clone(), [&[kind], garbage.as_slice()].concat(), [bytes.as_slice(), &garbage].concat()];
            if !bytes.is_empty() {
                inputs.push(bytes[..cut.index(bytes.len())].to_vec());
                let mut flipped = bytes.clone();
                flipped[flip.index(bytes.len())] ^= bits;
                inputs.push(flipped);
            }
            for input in inputs {
                match codec.decode(&input) {
                    Ok(read) => {
                        prop_assert_eq!(read.capacity(), capacity);
                        prop_assert!(read.iter().all(|(offset, _)| offset < capacity));
                        prop_assert_eq!(codec.decode(&codec.encode(&read)).unwrap(), read);
                    }
                    Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Corrupt),
                }
            }
        }
    }
}

#[test]
fn every_block_of_the_least_capacity_round_trips_at_its_edges() {
    for capacity in 64..=130 {
        for codec in codecs(capacity) {
            for offset in [0, 1, 3, 4, 31, 32, 63, capacity - 1] {
                for bits in 1..4 {
                    let block = block(capacity, &[(offset, bits)]);
                    assert_eq!(codec.decode(&codec.encode(&block)).unwrap(), block);
                }
            }
            let full = block(capacity, &(0..capacity).map(|o| (o, (o % 3) as u8 + 1)).collect::<Vec<_>>());
            assert_eq!(codec.decode(&codec.encode(&full)).unwrap(), full);
        }
    }
}

#[test]
fn the_byte_array_is_the_seed_format() {
    let codec = ByteArray::default();
    let bytes = codec.encode(&block(10_000, &[(0, 1), (1, 2), (9_999, 3)]));
    assert_eq!(bytes.len(), 10_000);
    assert_eq!((bytes[0], bytes[1], bytes[2], bytes[9_999]), (1, 2, 0, 3));
    for bit in 2..8 {
        let mut foreign = bytes.to_vec();
        foreign[5_000] = 1 << bit;
        assert_eq!(codec.decode(&foreign).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    assert!(codec.decode(&bytes[1..]).is_err());
    assert!(codec.decode(&[bytes.as_ref(), &[0]].concat()).is_err());
}

/// What `SETBIT` does in Redis.
fn set_bit(value: &mut Vec<u8>, bit: usize) {
    if value.len() <= bit / 8 {
        value.resize(bit / 8 + 1, 0);
    }
    value[bit / 8] |= 0x80 >> (bit % 8);
}

#[test]
fn two_bits_can_be_set_one_by_one_on_a_server() {
    let codec = TwoBit::default();
    let raises = [(0, 1), (1, 2), (2, 3), (3, 1), (4, 2), (777, 3), (12_345, 1), (39_998, 1)];
    let mut value = Vec::new();
    let mut written = Block::new(40_000);
    assert!(codec.encode(&written).is_empty());
    for (offset, bits) in raises {
        written.raise(offset, state(bits));
        if bits & 2 != 0 {
            set_bit(&mut value, 2 * offset as usize);
        }
        if bits & 1 != 0 {
            set_bit(&mut value, 2 * offset as usize + 1);
        }
        assert_eq!(codec.encode(&written), value);
        assert_eq!(codec.decode(&value).unwrap(), written);
    }
    assert_eq!(value[..2], [0b01_10_11_01, 0b10_00_00_00]);
    value.resize(10_000, 0);
    assert_eq!(codec.decode(&value).unwrap(), written);
    value.push(0);
    assert!(codec.decode(&value).is_err());
    assert!(TwoBit::with_capacity(65).unwrap().decode(&[[0; 16].as_slice(), &[0b0001_0000]].concat()).is_err());
}

#[test]
fn the_adaptive_form_is_short_for_few_and_no_longer_than_a_bitmap_for_many() {
    let codec = Adaptive::default();
    let few = block(40_000, &[(39_999, 1)]);
    assert_eq!(codec.encode(&few).len(), 1 + 3);
    assert_eq!(codec.encode(&Block::new(40_000)).as_ref(), [1]);
    assert_eq!(codec.encode(&block(40_000, &[(3, 2), (4, 1)])).as_ref(), [1, 3 << 2 | 2, 1]);
    assert_eq!(codec.encode(&block(40_000, &[(0, 1), (1, 1), (3, 2)])).as_ref(), [2, 0b0101_0010]);
    let many = block(40_000, &(0..40_000).step_by(2).map(|o| (o, 1)).collect::<Vec<_>>());
    assert_eq!(codec.encode(&many).len(), 1 + 10_000);
    assert_eq!(codec.encode(&many)[0], 2);
}

#[test]
fn a_list_that_cannot_have_been_written_is_corrupt() {
    let codec = Adaptive::with_capacity(64).unwrap();
    let corrupt: [&[u8]; 9] = [
        &[],
        &[0],
        &[3, 1],
        &[1, 0],
        &[1, 0x80],
        &[1, 0x81, 0x00],
        &[1, 0x81, 0x02],
        &[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[1, 0xfd, 0x01, 0x01],
    ];
    for bytes in corrupt {
        assert_eq!(codec.decode(bytes).map(|_| ()).unwrap_err().kind(), ErrorKind::Corrupt, "{bytes:?}");
    }
    assert_eq!(codec.decode(&[1, 0xfd, 0x01]).unwrap().get(63), BlockState::Present);
}

#[test]
fn a_log_is_short_and_one_that_cannot_have_been_written_is_corrupt() {
    let codec = Log::with_capacity(64).unwrap();
    assert_eq!(codec.encode(&Block::new(64)).as_ref(), [0]);
    assert_eq!(codec.encode(&block(64, &[(3, 2), (4, 1)])).as_ref(), [0, 3 << 2 | 2, 1]);
    let all: Vec<(u32, u8)> = (0..64).map(|o| (o, 1)).collect();
    assert_eq!(codec.encode(&block(64, &all)).as_ref(), [&[2, 16][..], &[0b0101_0101; 16]].concat());
    let changes = [(9, BlockState::Removal), (3, BlockState::Absent), (8, BlockState::Present), (9, BlockState::Present)];
    assert_eq!(codec.encode_append(&changes).unwrap().as_ref(), [0, 8 << 2 | 1, 3]);
    let appended = codec.decode(&[2, 1, 0b0100_0000, 0, 8 << 2 | 1, 3, 0, 2]).unwrap();
    assert_eq!(appended, block(64, &[(0, 3), (8, 1), (9, 3)]));
    let corrupt: [&[u8]; 12] = [
        &[],
        &[1, 1],
        &[3],
        &[0, 0x80],
        &[0, 0x81, 0x00],
        &[0, 0x81, 0x02],
        &[0, 4],
        &[2],
        &[2, 2, 1],
        &[2, 0x81, 0x00, 1],
        &[2, 1, 0b0100_0000, 1],
        &[2, 0x80, 0x80, 0x80, 0x01],
    ];
    for bytes in corrupt {
        assert_eq!(codec.decode(bytes).map(|_| ()).unwrap_err().kind(), ErrorKind::Corrupt, "{bytes:?}");
    }
}

#[test]
fn blocks_of_other_capacities_merge_within_their_own() {
    let all: Vec<(u32, u8)> = (0..96).map(|o| (o, 1)).collect();
    let mut small = block(65, &all);
    small.merge(&block(96, &all));
    assert_eq!((small.set_count(), small.iter().count()), (65, 65));
}

#[test]
fn an_unknown_codec_lists_what_there_is() {
    let error = codec_named("roaring", 10_000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert_eq!(error.to_string(), "block codec `roaring` is not known; use one of: adaptive, bytes, log, two-bit");
    for (capacity, good) in [(0, false), (63, false), (64, true), (1 << 22, true), ((1 << 22) + 1, false), (u32::MAX, false)] {
        for name in ["adaptive", "bytes", "log", "two-bit"] {
            assert_eq!(codec_named(name, capacity).is_ok(), good, "{name} {capacity}");
        }
    }
    assert!(codec_named("bytes", 1).unwrap_err().to_string().contains("64 to 4194304"));
    let known: [(Arc<dyn BlockCodec>, u32); 4] = [
        (Arc::new(Log::default()), 40_000),
        (Arc::new(ByteArray::default()), 10_000),
        (Arc::new(TwoBit::default()), 40_000),
        (Arc::new(Adaptive::default()), 40_000),
    ];
    for (codec, capacity) in known {
        assert_eq!(codec.capacity(), capacity);
        assert_eq!(codec_named(codec.name(), capacity).unwrap().name(), codec.name());
    }
}
