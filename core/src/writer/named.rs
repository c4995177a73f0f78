//! Finds the document whose entry names a position as superseded.

use std::borrow::Cow;
use std::sync::Arc;

use backon::Retryable as _;

use super::conflict::Conflicts;
use super::items::Item;
use super::{Writer, backoff, log_retry, notices};
use crate::block::BlockState;
use crate::decode::{Decoded, DecodedDocument};
use crate::engine::departure_entry;
use crate::entry::{ChangeEntry, EntryFlags, Membership};
use crate::error::{Error, Result};
use crate::scan;
use crate::sequence::{Sequence, SequenceRange};
use crate::withdraw;

/// The document whose entry names a position as superseded.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Named {
    Nobody,
    /// A later revision of the same document.
    Own(Arc<ChangeEntry>),
    Another,
}

/// The entries that may name a position.
#[derive(Clone, Copy, Debug)]
enum Among {
    /// All that are stored.
    Stored,
    /// All but those that a killed writer stored and that are expected again.
    Published,
}

impl Named {
    /// The result for one stored entry, `other`, if `entry` could take `position`.
    fn by(other: &Arc<ChangeEntry>, entry: &ChangeEntry, position: Sequence) -> Named {
        match other.supersedes().contains(&position) {
            false => Named::Nobody,
            true if other.document() == entry.document() && (other.is_newer_than(entry) || !entry.in_star()) => {
                Named::Own(other.clone())
            }
            true => Named::Another,
        }
    }

    /// The result for both. Of two later revisions, the latest.
    fn or(self, other: Named) -> Named {
        match (&self, &other) {
            (Named::Another, _) | (_, Named::Nobody) => self,
            (Named::Own(mine), Named::Own(others)) if mine.is_newer_than(others) => self,
            _ => other,
        }
    }
}

/// This many sequences are searched first for the entry that names another.
const SEARCHED_FIRST: u64 = 1_000;

impl Writer {
    /// The document whose later revision supersedes, or will supersede, a position that `entry`
    /// could take.
    pub(super) async fn named(&mut self, entry: &ChangeEntry, position: Sequence) -> Result<Named> {
        // Marks that are being written are neither in the blocks nor waiting.
        self.settle_all().await?;
        match self.named_by(entry, position, Among::Stored).await? {
            // A purged document may have been there. Its next revision has then left marks in that
            // revision's channels, but none in the star channel.
            Named::Nobody if self.is_marked(entry, position).await? => Ok(Named::Another),
            named => Ok(named),
        }
    }

    /// Whether another document supersedes a position that `entry` could take.
    pub(super) async fn is_named_by_another(&mut self, entry: &ChangeEntry, position: Sequence) -> Result<bool> {
        Ok(matches!(self.named(entry, position).await?, Named::Another))
    }

    /// Whether a position is marked as superseded in one of the channels of `entry`.
    async fn is_marked(&mut self, entry: &ChangeEntry, position: Sequence) -> Result<bool> {
        let (store, codec) = (self.store.as_ref(), self.codec.as_ref());
        let attempt = || scan::states(store, codec, entry.channels().iter().map(|change| &change.channel), position);
        let states = attempt.retry(backoff(&self.config)).when(Error::is_retryable).notify(log_retry).await?;
        Ok(states.contains(&BlockState::Superseded))
    }

    /// Whether a killed writer may have left states at a position whose entry is not stored: the
    /// position was in a commit that was cut off, or nothing accounts for it and it is near a
    /// shared sequence.
    #[inline]
    pub(super) fn may_have_states(&self, position: Sequence) -> bool {
        let sequencer = self.assembler.sequencer();
        let is_near = || self.after_kill && !self.has_committed_all && self.shared.are_near(position.number());
        sequencer.is_readmitted(position) || is_near() && !sequencer.is_accounted(position)
    }

    /// For each entry, whether states that are not its own are stored at its position.
    pub(super) async fn have_other_states(&mut self, entries: &[&ChangeEntry]) -> Result<Vec<bool>> {
        let (store, codec) = (self.store.as_ref(), self.codec.as_ref());
        let attempt = || scan::have_other_states(store, codec, entries);
        attempt.retry(backoff(&self.config)).when(Error::is_retryable).notify(log_retry).await
    }

    /// Reads the states at the positions of documents, and of departures, where a killed writer may
    /// have left some: at one time for all of the batch.
    pub(super) async fn look_for_states(&mut self, conflicts: &mut Conflicts, items: &[Item]) -> Result<()> {
        let mut entries = Vec::new();
        for item in items {
            let Item::Decoded(_, _, decoded) = item else { continue };
            if let Decoded::Document(document) = decoded
                && self.may_have_states(document.entry.position())
            {
                entries.push(Cow::Borrowed(&document.entry));
            }
            if let Decoded::Document(document) | Decoded::Foreign(document) = decoded {
                let of = |sequence| departure_entry(&document.entry, sequence, &document.departures, true);
                entries.extend(self.departed_among_states(document).filter_map(of).map(Cow::Owned));
            }
        }
        if entries.is_empty() {
            return Ok(());
        }
        let entries: Vec<&ChangeEntry> = entries.iter().map(Cow::as_ref).collect();
        for (entry, has_others) in entries.iter().zip(self.have_other_states(&entries).await?) {
            if !has_others {
                conflicts.insert_alone(entry);
            }
        }
        Ok(())
    }

    /// Looks for states of others at the position of an entry that is not published. Removes them
    /// if no published entry names the position: they are of an entry that a killed writer did not
    /// publish, or of an earlier revision that such an entry marks. The feed may have left out that
    /// revision since. If the sequence was allocated again, the states would hide `entry`: states
    /// are raised, so that a row of another kind counts as superseded.
    ///
    /// Returns whether a published entry of another document names the position. The checkpoint may
    /// not account for it.
    pub(super) async fn remove_unpublished_states(&mut self, entry: &ChangeEntry, conflicts: &Conflicts) -> Result<bool> {
        let position = entry.position();
        if !self.may_have_states(position)
            || conflicts.is_alone(entry)
            || !self.have_other_states(&[entry]).await?.contains(&true)
        {
            return Ok(false);
        }
        self.settle_all().await?;
        match self.named_by(entry, position, Among::Published).await? {
            Named::Own(_) => return Ok(false),
            Named::Another => return Ok(true),
            Named::Nobody => notices::tell_other_states(entry),
        }
        let (fenced, codec) = (self.fenced(), self.codec.as_ref());
        let attempt = || async { withdraw::clear(fenced, codec, entry).await };
        attempt.retry(backoff(&self.config)).when(Error::is_retryable).notify(log_retry).await?;
        Ok(false)
    }

    /// Clears the states at the sequence of an earlier revision that a killed writer may have
    /// stored without its entry: in the star channel, the channels of the document's current
    /// revision, and those that it left after the sequence. In other channels states may stay.
    /// Readers leave the sequence out, because its note stays.
    pub(super) async fn clear_row(&mut self, document: &DecodedDocument, sequence: Sequence) -> Result<()> {
        let entry = &document.entry;
        tracing::debug!(%sequence, document = %entry.document(), "the rows of a killed writer at this sequence are cleared");
        let mut row = ChangeEntry::new(sequence, entry.key(), entry.revision(), EntryFlags::default())?;
        row = row.with_collection(entry.collection());
        let left = document.departures.iter().filter(|departure| departure.sequence > sequence);
        for channel in entry.channels().iter().map(|change| &change.channel).chain(left.map(|departure| &departure.channel)) {
            row = row.with_channel(channel.clone(), Membership::Present);
        }
        let (fenced, codec) = (self.fenced(), self.codec.as_ref());
        let attempt = || async { withdraw::clear(fenced, codec, &row).await };
        attempt.retry(backoff(&self.config)).when(Error::is_retryable).notify(log_retry).await
    }

    /// The document whose entries name a position as their own, and so have a mark there, or will
    /// have one.
    async fn named_by(&mut self, entry: &ChangeEntry, position: Sequence, among: Among) -> Result<Named> {
        let (number, sequencer) = (entry.sequence(), self.assembler.sequencer());
        let add = |known: Named, other: &Arc<ChangeEntry>| match among {
            Among::Published if sequencer.is_readmitted(other.position()) => known,
            _ => known.or(Named::by(other, entry, position)),
        };
        let by_unmarked = self.assembler.unmarked().fold(Named::Nobody, add);
        if by_unmarked != Named::Nobody {
            return Ok(by_unmarked);
        }
        // While a cache is built, entries above high may be marked, too.
        let last = if sequencer.holds() { Sequence::MAX_NUMBER } else { sequencer.high() };
        let (store, codec) = (self.store.as_ref(), self.codec.as_ref());
        let attempt = || async {
            for star in scan::stars(store).await? {
                if scan::star_state(store, codec, star.collection(), position).await? != BlockState::Superseded {
                    continue;
                }
                let (star, add) = (&star, &add);
                let named_in = |range| async move {
                    let mut named = Named::Nobody;
                    let take = |other| {
                        named = add(std::mem::replace(&mut named, Named::Nobody), &other);
                        Ok(())
                    };
                    scan::for_each(store, codec, star, range, take).await.map(|()| named)
                };
                // The position is marked. The entry that names it is mostly near, and mostly above
                // it.
                let (mut first, mut count) = (number, SEARCHED_FIRST);
                while let Some(range) = SequenceRange::new(first, Sequence(first.0.saturating_add(count)).min(last)) {
                    let named = named_in(range).await?;
                    if named != Named::Nobody {
                        return Ok(named);
                    }
                    (first, count) = (range.last().next(), count.saturating_mul(2));
                }
                let below = SequenceRange::new(Sequence::ZERO, number.previous());
                let named = if let Some(below) = below { named_in(below).await? } else { Named::Nobody };
                if named != Named::Nobody {
                    return Ok(named);
                }
            }
            Ok(Named::Nobody)
        };
        attempt.retry(backoff(&self.config)).when(Error::is_retryable).notify(log_retry).await
    }
}
