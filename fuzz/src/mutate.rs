//! Damage to inputs, from a seed: for runs without feedback from coverage.

use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// The longest input made.
const LONGEST: usize = 16 << 10;

/// Bytes that mean something in one format or another.
const TELLING: &[u8] = b"\"\\{}[],:0-9aeEu+. \0\x01\x7f\x80\xff";

/// Makes inputs out of inputs.
#[derive(Debug)]
pub struct Mutator {
    random: ChaCha8Rng,
}

impl Mutator {
    /// One that always makes the same, for one `seed`.
    pub fn new(seed: u64) -> Self {
        Mutator { random: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// One of `inputs`, damaged in one to four places.
    pub fn damaged(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = inputs.choose(&mut self.random).cloned().unwrap_or_default();
        for _ in 0..self.random.random_range(1..=4) {
            self.damage(&mut bytes, inputs);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    /// A place in `bytes`, their end included.
    fn place(&mut self, bytes: &[u8]) -> usize {
        self.random.random_range(0..=bytes.len())
    }

    /// A short part of `bytes`.
    fn part(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.place(bytes);
        let longest = (bytes.len() - start).min(if self.random.random_bool(0.9) { 24 } else { usize::MAX });
        start..start + self.random.random_range(0..=longest)
    }

    fn damage(&mut self, bytes: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        let at = self.place(bytes);
        match self.random.random_range(0..9) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(self.part(bytes))),
            2 => bytes.insert(at, self.random.random()),
            3 => bytes.insert(at, *TELLING.choose(&mut self.random).expect("some")),
            4 => {
                let part = self.part(bytes);
                bytes.splice(at..at, bytes[part].to_vec());
            }
            5 => {
                let other = inputs.choose(&mut self.random).map_or(&[][..], Vec::as_slice);
                let part = self.part(other);
                let gone = at..at + part.len().min(bytes.len() - at);
                bytes.splice(gone, other[part].iter().copied());
            }
            6 => self.number(bytes, at),
            _ if at == bytes.len() => {}
            7 => bytes[at] ^= 1 << self.random.random_range(0..8),
            _ => bytes[at] = *TELLING.choose(&mut self.random).expect("some"),
        }
    }

    /// Writes over a big-endian number: with one near a limit, or near the length of the input.
    fn number(&mut self, bytes: &mut [u8], at: usize) {
        let width = [1, 2, 4, 8][self.random.random_range(0..4)];
        let Some(field) = bytes.len().checked_sub(at).filter(|rest| *rest >= width).map(|_| at..at + width) else { return };
        let near = [0, 1 << 7, 1 << 15, 1 << 31, u64::MAX, bytes.len() as u64, (bytes.len() - at) as u64];
        let number = near.choose(&mut self.random).expect("some").wrapping_add(self.random.random_range(0..4)).wrapping_sub(2);
        bytes[field].copy_from_slice(&number.to_be_bytes()[8 - width..]);
    }
}
