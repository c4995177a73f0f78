//! The words of a line: numbers, lists, names with braces, `key=value`.

use sluicegate_core::SequenceRange;
use sluicegate_core::changes::SequenceId;
use sluicegate_core::sequence::RangeSet;

/// A value, or a message.
pub(super) type Parsed<T> = std::result::Result<T, String>;

/// The limit for the elements of a range of names or numbers.
const MAX_EXPANDED: u64 = 1_000_000;

/// A decimal number of digits only.
pub(super) fn number(text: &str) -> Parsed<u64> {
    let digits = Some(text).filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| format!("`{text}` is not a number"))
}

pub(super) fn size(text: &str) -> Parsed<usize> {
    usize::try_from(number(text)?).map_err(|_| format!("`{text}` is too large"))
}

/// `4` or `4-9`.
pub(super) fn range(text: &str) -> Parsed<SequenceRange> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    SequenceRange::new(first, last).filter(|_| first > 0).ok_or_else(|| format!("`{text}` is not a range of sequences"))
}

/// `1,3-5`, in the order written; none if it is `-`.
pub(super) fn numbers(text: &str) -> Parsed<Vec<u64>> {
    let mut all = Vec::new();
    for part in text.split(',').filter(|_| text != "-") {
        let range = range(part)?;
        if range.count() > MAX_EXPANDED {
            return Err(format!("`{part}` stands for more than {MAX_EXPANDED} numbers"));
        }
        all.extend(range.first().0..=range.last().0);
    }
    Ok(all)
}

/// `1-3,5`, or `-` for nothing.
pub(super) fn ranges(text: &str) -> Parsed<RangeSet> {
    let mut set = RangeSet::new();
    for part in text.split(',').filter(|_| text != "-") {
        let range = range(part)?;
        set.insert(range.first().0, range.last().0);
    }
    Ok(set)
}

/// `a`, or `b{1-3}` for `b1`, `b2` and `b3`.
pub(super) fn expanded(text: &str) -> Parsed<Vec<String>> {
    let Some((before, rest)) = text.split_once('{') else { return Ok(vec![text.to_owned()]) };
    let bad = || format!("`{text}`: expected a name, or one with a range such as `a{{1-3}}`");
    let (inner, after) = rest.split_once('}').ok_or_else(bad)?;
    let (first, last) = inner.split_once('-').ok_or_else(bad)?;
    let (first, last) = (number(first)?, number(last)?);
    if last < first || last - first >= MAX_EXPANDED || after.contains(['{', '}']) {
        return Err(bad());
    }
    Ok((first..=last).map(|n| format!("{before}{n}{after}")).collect())
}

/// `A,B{1-3}`, or `-` for none.
pub(super) fn names(text: &str) -> Parsed<Vec<String>> {
    let mut all = Vec::new();
    for part in text.split(',').filter(|_| text != "-") {
        if part.is_empty() {
            return Err(format!("`{text}` has an empty name"));
        }
        all.extend(expanded(part)?);
    }
    Ok(all)
}

/// A sequence id as clients send it.
pub(super) fn id(text: &str) -> Parsed<SequenceId> {
    text.parse().map_err(|e: sluicegate_core::Error| e.to_string())
}

/// The words of a line, taken one by one.
#[derive(Clone, Debug)]
pub(super) struct Words<'a> {
    words: std::vec::IntoIter<&'a str>,
}

impl<'a> Words<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Words { words: text.split_whitespace().collect::<Vec<_>>().into_iter() }
    }

    /// The next word, which must be there.
    pub(super) fn need(&mut self, what: &str) -> Parsed<&'a str> {
        self.words.next().ok_or_else(|| format!("{what} is missing"))
    }

    pub(super) fn peek(&self) -> Option<&'a str> {
        self.words.as_slice().first().copied()
    }

    /// The end of the line, where nothing more may come.
    pub(super) fn end(&mut self) -> Parsed<()> {
        self.words.next().map_or(Ok(()), |word| Err(format!("`{word}` is not expected here")))
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.words.next()
    }
}

/// `$name` of a client or feed.
pub(super) fn client(word: &str) -> Parsed<String> {
    match word.strip_prefix('$') {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(format!("`{word}`: expected a name such as `$c`")),
    }
}

/// The message for an unknown key.
pub(super) fn unknown(word: &str, known: &str) -> String {
    format!("unknown `{word}`; known here: {known}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_names_and_ranges_are_read() {
        assert_eq!(numbers("3,1,4-6").unwrap(), [3, 1, 4, 5, 6]);
        assert_eq!(numbers("-").unwrap(), [0u64; 0]);
        assert_eq!(names("a,b{9-11}x").unwrap(), ["a", "b9x", "b10x", "b11x"]);
        assert_eq!(ranges("1-3,4,9").unwrap().iter().collect::<Vec<_>>(), [(1, 4), (9, 9)]);
        for bad in ["", "x", "3-1", "0", "1,", "+1", "1-2-3"] {
            assert!(numbers(bad).is_err(), "{bad}");
        }
        for bad in ["a,,b", "a{1}", "a{2-1}", "a{1-2", "a{1-2}{1-2}"] {
            assert!(names(bad).is_err(), "{bad}");
        }
    }
}
