//! Variations of a run that must not change an answer.

use std::fmt;

/// A way to run a scenario. All must give the same answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variation {
    /// Each event is a batch of its own, and a reader follows during the whole run.
    Plain,
    /// The events between two questions are one batch.
    Batches,
    /// Small blocks, and earlier rows found by pointers.
    Small,
    /// A new writer takes over before every event.
    Restarts,
    /// A writer follows a feed, with its own timer.
    Feed,
    /// The reader's tails have two rows.
    Tails,
    /// A reader is opened for each question.
    Lazy,
    /// `Small` and `Restarts`.
    SmallRestarts,
    /// `Small`, `Feed` and `Tails`.
    SmallFeed,
}

impl Variation {
    /// All of them.
    pub const ALL: [Variation; 9] = [
        Variation::Plain,
        Variation::Batches,
        Variation::Small,
        Variation::Restarts,
        Variation::Feed,
        Variation::Tails,
        Variation::Lazy,
        Variation::SmallRestarts,
        Variation::SmallFeed,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Variation::Plain => "plain",
            Variation::Batches => "batches",
            Variation::Small => "small",
            Variation::Restarts => "restarts",
            Variation::Feed => "feed",
            Variation::Tails => "tails",
            Variation::Lazy => "lazy",
            Variation::SmallRestarts => "small-restarts",
            Variation::SmallFeed => "small-feed",
        }
    }

    /// The variation called `name`.
    pub fn named(name: &str) -> Option<Variation> {
        Variation::ALL.into_iter().find(|variation| variation.name() == name)
    }

    /// Its parts. A file that leaves out one of them leaves it out, too.
    pub fn parts(self) -> &'static [Variation] {
        match self {
            Variation::Plain => &[Variation::Plain],
            Variation::Batches => &[Variation::Batches],
            Variation::Small => &[Variation::Small],
            Variation::Restarts => &[Variation::Restarts],
            Variation::Feed => &[Variation::Feed],
            Variation::Tails => &[Variation::Tails],
            Variation::Lazy => &[Variation::Lazy],
            Variation::SmallRestarts => &[Variation::SmallRestarts, Variation::Small, Variation::Restarts],
            Variation::SmallFeed => &[Variation::SmallFeed, Variation::Small, Variation::Feed, Variation::Tails],
        }
    }

    pub(super) fn has(self, part: Variation) -> bool {
        self.parts().contains(&part)
    }
}

impl fmt::Display for Variation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
