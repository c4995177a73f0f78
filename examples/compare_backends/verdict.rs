//! What may be concluded, and when nothing may. Numbers in, words out: so that it can be tested without measuring anything.

use std::fmt;

/// Fewer rounds do not show how much they differ.
const MIN_ROUNDS: usize = 3;
/// The rates of one store's rounds may differ by this factor.
const MAX_SPREAD: f64 = 1.5;

/// What is known of one store.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) name: String,
    /// Entries a second, by round.
    pub(crate) rates: Vec<f64>,
    /// For how long it was written to, in all rounds together.
    pub(crate) seconds: f64,
    /// Median latencies in seconds, by what they are of; the same for all stores.
    pub(crate) medians: Vec<(&'static str, f64)>,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// What follows.
    Concludes(String),
    /// Why nothing follows, and what to pass.
    Refuses(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Verdict::Concludes(text) | Verdict::Refuses(text)) = self;
        f.write_str(text)
    }
}

/// What follows from rounds of `entries` each, if each store was written to for `minimum` seconds. `is_all` if the feed has no more.
pub(crate) fn verdict(stores: &[Store], minimum: f64, entries: u64, is_all: bool) -> Verdict {
    let mut reasons = Vec::new();
    // How many times as much would do, with some to spare.
    let mut times = 1.0f64;
    let mut is_uneven = false;
    let rounds = stores.iter().map(|store| store.rates.len()).min().unwrap_or_default();
    if rounds < MIN_ROUNDS {
        reasons.push(format!("rounds: {rounds}, and with fewer than {MIN_ROUNDS} nobody can tell noise from a difference"));
    }
    for Store { name, rates, seconds, .. } in stores {
        if *seconds < minimum {
            reasons.push(format!("{name} was written to for {seconds:.2} s, which is less than {minimum} s"));
            times = times.max(1.5 * minimum / seconds.max(1e-3));
        }
        let (low, high) = range(rates);
        if rates.len() >= MIN_ROUNDS && high > MAX_SPREAD * low {
            let spread = high / low;
            reasons
                .push(format!("the fastest round of {name} is {spread:.2} times as fast as its slowest, more than {MAX_SPREAD}"));
            times = times.max(2.0);
            is_uneven = true;
        }
    }
    if reasons.is_empty() {
        return Verdict::Concludes(conclusion(stores));
    }
    let mut advice = Vec::new();
    let wanted_rounds = rounds.max(MIN_ROUNDS);
    // More rounds are more, too.
    let left = times * rounds.max(1) as f64 / wanted_rounds as f64;
    if is_uneven && is_all {
        advice.push("a longer --feed, as this one has no more entries".to_owned());
    } else if left > 1.0 && is_all {
        let rounds = (wanted_rounds as f64 * left).ceil();
        advice.push(format!("--rounds {rounds} or a longer --feed, as this one has no more entries"));
    } else {
        if left > 1.0 {
            advice.push(format!("--entries {}", rounded_up(entries as f64 * left)));
        }
        if rounds < MIN_ROUNDS {
            advice.push(format!("--rounds {MIN_ROUNDS}"));
        }
    }
    let quiet = "and let nothing else run on this machine.";
    Verdict::Refuses(format!("No conclusion: {}.\nPass {}, {quiet}", reasons.join("; "), advice.join(" ")))
}

/// In relation to the first, and to nothing else.
fn conclusion(stores: &[Store]) -> String {
    let Some((first, others)) = stores.split_first() else { return String::new() };
    if others.is_empty() {
        let (low, high) = range(&first.rates);
        let rate = median(first.rates.iter().copied());
        return format!(
            "{} wrote {rate:.0} entries a second at the median, from {low:.0} to {high:.0} by round. Give more stores with --store to compare.",
            first.name
        );
    }
    let rate = |other: &Store| {
        let ratios: Vec<f64> = other.rates.iter().zip(&first.rates).map(|(rate, of_first)| rate / of_first).collect();
        let (low, high) = range(&ratios);
        let unclear = if low <= 1.0 && high >= 1.0 { ", so no difference is shown" } else { "" };
        format!("{} writes {:.2} times as fast ({low:.2} to {high:.2} by round{unclear})", other.name, median(ratios))
    };
    let latency = |other: &Store| {
        let ratio =
            |((what, took), (_, of_first)): (&(&str, f64), &(&str, f64))| format!("{what} {:.2}", took / of_first.max(1e-9));
        let ratios: Vec<String> = other.medians.iter().zip(&first.medians).map(ratio).collect();
        format!("{} takes times as long: {}", other.name, ratios.join(", "))
    };
    let all = |part: &dyn Fn(&Store) -> String| others.iter().map(part).collect::<Vec<_>>().join("; ");
    format!("Against {}, {}. At the median, {}.", first.name, all(&rate), all(&latency))
}

/// The median; of an even number the mean of the middle two.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let (lower, upper) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
    sorted.get(lower).zip(sorted.get(upper)).map_or(0.0, |(a, b)| (a + b) / 2.0)
}

/// The least and the greatest.
pub(crate) fn range(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().min_by(f64::total_cmp);
    let high = values.iter().copied().max_by(f64::total_cmp);
    (low.unwrap_or_default(), high.unwrap_or_default())
}

/// With two digits that matter.
fn rounded_up(n: f64) -> u64 {
    let unit = 10f64.powf((n.max(10.0).log10()).floor() - 1.0);
    ((n / unit).ceil() * unit).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(name: &str, rates: &[f64], seconds: f64) -> Store {
        Store { name: name.to_owned(), rates: rates.to_vec(), seconds, medians: vec![("commit", 0.001 * seconds)] }
    }

    fn refused(stores: &[Store], is_all: bool, parts: &[&str]) {
        match verdict(stores, 2.0, 1_000, is_all) {
            Verdict::Refuses(text) => parts.iter().for_each(|part| assert!(text.contains(part), "no {part:?} in {text}")),
            concludes => panic!("{concludes:?}"),
        }
    }

    #[test]
    fn a_short_run_is_not_concluded_from() {
        let stores = [store("a", &[10.0, 11.0, 12.0], 3.0), store("b", &[30.0, 31.0, 32.0], 1.0)];
        refused(&stores, false, &["No conclusion: b was written to for 1.00 s, which is less than 2 s", "Pass --entries 3000,"]);
        refused(&stores, true, &["Pass --rounds 9 or a longer --feed, as"]);
    }

    #[test]
    fn few_rounds_are_not_concluded_from() {
        refused(&[store("a", &[10.0, 11.0], 3.0)], false, &["rounds: 2", "Pass --rounds 3,"]);
        refused(&[store("a", &[10.0], 0.5)], false, &["rounds: 1", "Pass --entries 2000 --rounds 3,"]);
        refused(&[], false, &["rounds: 0"]);
    }

    #[test]
    fn uneven_rounds_are_not_concluded_from() {
        let stores = [store("a", &[10.0, 15.0, 16.0], 3.0)];
        refused(&stores, false, &["the fastest round of a is 1.60 times as fast as its slowest", "Pass --entries 2000,"]);
        refused(&stores, true, &["Pass a longer --feed, as"]);
        refused(&[store("a", &[0.0, 15.0, 16.0], 3.0)], false, &["the fastest round of a"]);
    }

    #[test]
    fn a_conclusion_has_ratios_to_the_first() {
        let first = store("a", &[10.0, 10.0, 10.0], 2.0);
        let concluded =
            |others: &[Store]| verdict(&[std::slice::from_ref(&first), others].concat(), 2.0, 1_000, false).to_string();
        assert_eq!(
            concluded(&[store("b", &[4.0, 5.0, 6.0], 4.0)]),
            "Against a, b writes 0.50 times as fast (0.40 to 0.60 by round). At the median, b takes times as long: commit 2.00."
        );
        let unclear = concluded(&[store("b", &[9.0, 11.0, 12.0], 4.0), store("c", &[20.0, 20.0, 20.0], 4.0)]);
        assert!(
            unclear.contains("b writes 1.10 times as fast (0.90 to 1.20 by round, so no difference is shown); c writes 2.00")
        );
        assert!(concluded(&[]).starts_with("a wrote 10 entries a second at the median, from 10 to 10 by round."));
    }
}
