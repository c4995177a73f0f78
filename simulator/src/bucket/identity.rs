//! Identities and times, the same for the same seed.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Seconds since 1970 at which the cluster's clock stands when it starts.
pub const EPOCH: u64 = 1_750_000_000;

/// Gives out identities of histories and buckets, compare-and-swap values, and the time. Nothing of it depends on the world outside.
#[derive(Clone, Debug)]
pub struct Identity {
    random: ChaCha8Rng,
    now: u64,
    last_cas: u64,
}

impl Identity {
    /// A source whose values follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Identity { random: ChaCha8Rng::seed_from_u64(seed), now: EPOCH, last_cas: 0 }
    }

    /// A new identity of a history: 48 bits, never 0.
    pub fn vbucket_uuid(&mut self) -> u64 {
        self.random.random_range(1..1 << 48)
    }

    /// A new identity of a bucket or node: 32 hexadecimal digits.
    pub fn uuid(&mut self) -> String {
        format!("{:032x}", self.random.random::<u128>())
    }

    /// A new compare-and-swap value: nanoseconds since 1970, the low 16 bits logical, larger than all before (protocol, section 8).
    pub fn cas(&mut self) -> u64 {
        let physical = (self.now * 1_000_000_000) & !0xffff;
        self.last_cas = physical.max(self.last_cas + 1);
        self.last_cas
    }

    /// Random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        self.random.random()
    }

    /// A random number.
    pub fn number(&mut self) -> u64 {
        self.random.random()
    }

    /// The time in seconds since 1970. It stands still unless it is advanced.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Advances the time.
    pub fn advance(&mut self, seconds: u64) {
        self.now += seconds;
    }
}
