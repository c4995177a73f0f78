//! What is printed.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

use crate::load::Load;
use crate::measure::Results;
use crate::verdict::{self, Store, Verdict, median};

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The round just done.
pub(crate) fn last_round(results: &Results) -> String {
    let rate = results.rounds.last().map_or(0.0, |round| round.rate());
    format!("{} wrote {rate:.0} entries a second", results.name)
}

/// Rates and costs; then latencies.
pub(crate) fn tables(results: &[Results]) -> String {
    let mut costs = table(&[
        "store",
        ">entries/s",
        ">slowest round",
        ">fastest round",
        ">s writing",
        ">calls an entry",
        ">bytes an entry",
        ">failed calls",
    ]);
    let mut unknown = false;
    for r in results {
        let rates = rates(r);
        let (low, high) = verdict::range(&rates);
        let calls = median(r.rounds.iter().map(|round| round.calls as f64 / round.entries as f64));
        // Of the rounds in which it grew; a store that others use may have shrunk.
        let bytes: Vec<f64> = r.rounds.iter().filter_map(|round| Some(round.bytes? as f64 / round.entries as f64)).collect();
        unknown |= bytes.is_empty();
        costs.add_row([
            r.name.clone(),
            format!("{:.0}", median(rates)),
            format!("{low:.0}"),
            format!("{high:.0}"),
            format!("{:.2}", r.rounds.iter().map(|round| round.seconds).sum::<f64>()),
            format!("{calls:.4}"),
            if bytes.is_empty() { "-".to_owned() } else { format!("{:.0}", median(bytes)) },
            r.calls.failed().to_string(),
        ]);
    }
    let mut latencies = table(&["latency", "store", ">p50", ">p99", ">max", ">times"]);
    let what = results.first().map(Results::latencies).into_iter().flatten().map(|(what, _)| what);
    for (n, what) in what.enumerate() {
        for r in results {
            let (_, latency) = r.latencies()[n];
            let quantiles = [latency.quantile(0.5), latency.quantile(0.99), latency.max()].map(duration);
            let [p50, p99, max] = quantiles;
            latencies.add_row([what.to_owned(), r.name.clone(), p50, p99, max, latency.count().to_string()]);
        }
    }
    let unknown = if unknown { "\n-: the store does not say, or does not grow with what is written.\n" } else { "" };
    format!(
        "{}\n{unknown}\n{}\n\n\
         Entries a second, calls and bytes an entry: the median round. Calls: the writer's; a publication is one, and a commit that is the store's own.\n\
         Reads: the latest 100 rows of a channel, by a reader that knows nothing (cold) and from its tail (hot), which no store is asked for.\n\
         Wake: from the beginning of a publication until a waiting reader has been told.\n",
        costs.trim_fmt(),
        latencies.trim_fmt()
    )
}

/// What follows from it.
pub(crate) fn verdict(results: &[Results], minimum: f64, load: &Load) -> Verdict {
    let stores: Vec<Store> = results
        .iter()
        .map(|r| Store {
            name: r.name.clone(),
            rates: rates(r),
            seconds: r.rounds.iter().map(|round| round.seconds).sum(),
            medians: r.latencies().map(|(what, latency)| (what, latency.quantile(0.5).as_secs_f64())).to_vec(),
        })
        .collect();
    verdict::verdict(&stores, minimum, load.entries, load.is_all)
}

fn rates(results: &Results) -> Vec<f64> {
    results.rounds.iter().map(|round| round.rate()).collect()
}

/// A heading that begins with `>` has its column set flush right.
fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
    for (n, heading) in headings.iter().enumerate() {
        if let (true, Some(column)) = (heading.starts_with('>'), table.column_mut(n)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn duration(took: Duration) -> String {
    match took.as_secs_f64() {
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}
