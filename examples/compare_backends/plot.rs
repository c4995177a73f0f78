//! The plot: rates by round, and latencies.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use plotters::coord::Shift;
use plotters::prelude::*;
use sluicegate::{Error, ErrorKind, Result};

use crate::measure::Results;
use crate::verdict::range;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const SIZE: (u32, u32) = (1100, 480);
const TITLE: (&str, i32) = ("sans-serif", 17);
const TEXT: (&str, i32) = ("sans-serif", 13);

/// The color of the `n`th store: those that everybody can tell apart come first (Okabe and Ito).
fn color(n: usize) -> RGBAColor {
    const COLORS: [(u8, u8, u8); 6] =
        [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233)];
    let (red, green, blue) = COLORS[n % COLORS.len()];
    RGBColor(red, green, blue).to_rgba()
}

/// Writes the plot to `path`.
pub(crate) fn draw(path: &Path, results: &[Results]) -> Result<()> {
    let mut svg = String::new();
    {
        let all = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        all.fill(&WHITE).map_err(failed)?;
        let (left, right) = all.split_horizontally(SIZE.0 / 2);
        rates(&left, results)?;
        latencies(&right, results)?;
        all.present().map_err(failed)?;
    }
    let unwritable = |e| Error::config("the plot cannot be written; give another file with --svg").with_source(e);
    std::fs::write(path, svg).map_err(|e| unwritable(e).with_context("file", path.display()))
}

/// Entries a second: a line a store, a point a round.
fn rates(area: &Area<'_>, results: &[Results]) -> Result<()> {
    let rounds = results.iter().map(|r| r.rounds.len()).max().unwrap_or_default();
    let rates = |r: &Results| -> Vec<f64> { r.rounds.iter().map(|round| round.rate()).collect() };
    let (_, highest) = range(&results.iter().flat_map(rates).collect::<Vec<_>>());
    let mut chart = ChartBuilder::on(area)
        .caption("Entries written a second, by round", TITLE)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(76)
        .build_cartesian_2d(0.5..rounds as f64 + 0.5, 0.0..highest.max(1.0) * 1.15)
        .map_err(failed)?;
    let mesh = &mut chart.configure_mesh();
    mesh.disable_x_mesh()
        .max_light_lines(1)
        .x_labels(rounds.min(20))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"));
    mesh.label_style(TEXT).draw().map_err(failed)?;
    for (n, r) in results.iter().enumerate() {
        let color = color(n);
        let points = rates(r).into_iter().enumerate().map(|(round, rate)| (round as f64 + 1.0, rate));
        let line = LineSeries::new(points, color.filled().stroke_width(2)).point_size(4);
        let drawn = chart.draw_series(line).map_err(failed)?.label(r.name.clone());
        drawn.legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], color.filled()));
    }
    let legend = &mut chart.configure_series_labels();
    legend.position(SeriesLabelPosition::LowerRight).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3));
    legend.label_font(TEXT).draw().map_err(failed)
}

/// A bar from the median to the 99th percentile, and a line on to the longest.
fn latencies(area: &Area<'_>, results: &[Results]) -> Result<()> {
    let milliseconds = |took: Duration| (took.as_secs_f64() * 1e3).max(1e-6);
    let names: Vec<&str> = results.first().map(Results::latencies).into_iter().flatten().map(|(what, _)| what).collect();
    let all = results.iter().flat_map(Results::latencies).flat_map(|(_, l)| [l.quantile(0.5), l.max()]).map(milliseconds);
    let (low, high) = range(&all.collect::<Vec<_>>());
    let mut chart = ChartBuilder::on(area)
        .caption("Latency in ms: p50 to p99, line to the longest", TITLE)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(76)
        .build_cartesian_2d(-0.5..names.len() as f64 - 0.5, (low.max(1e-6) / 2.0..high.max(1e-5) * 2.0).log_scale())
        .map_err(failed)?;
    let name = |x: &f64| {
        let at = (x - x.round()).abs() < 1e-6 && *x >= 0.0;
        names.get(x.round() as usize).filter(|_| at).map_or(String::new(), |name| (*name).to_owned())
    };
    let mesh = &mut chart.configure_mesh();
    mesh.disable_x_mesh().x_labels(names.len()).x_label_formatter(&name).y_label_formatter(&|y| format!("{y}"));
    mesh.label_style(TEXT).draw().map_err(failed)?;
    let width = 0.8 / results.len().max(1) as f64;
    for (n, r) in results.iter().enumerate() {
        let color = color(n);
        for (place, (_, latency)) in r.latencies().into_iter().enumerate() {
            let from = place as f64 - 0.4 + width * n as f64;
            let middle = from + width * 0.45;
            let [p50, p99, max] = [latency.quantile(0.5), latency.quantile(0.99), latency.max()].map(milliseconds);
            let bar = Rectangle::new([(from, p50), (from + width * 0.9, p99)], color.filled());
            chart.draw_series([bar]).map_err(failed)?;
            chart.draw_series([PathElement::new([(middle, p99), (middle, max)], color.stroke_width(2))]).map_err(failed)?;
        }
    }
    Ok(())
}

fn failed(e: impl Display) -> Error {
    Error::new(ErrorKind::Unexpected, format!("the plot cannot be drawn: {e}"))
}
