//! Learning curves: median and quartiles over seeds, one colour per experiment, as SVG and PNG.
//!
//! Runs belong to one experiment if they differ in nothing but the seed and the number of updates.

use crate::{Error, files, metrics, run};
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Width and height in pixels of the SVG; the PNG has twice as many.
const SIZE: (u32, u32) = (960, 600);

/// Colours that people with any colour vision can tell apart (Okabe and Ito 2008).
const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// What is drawn and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The metric; empty for the task's first score.
    pub metric: String,
    /// Points of the moving average.
    pub smooth: usize,
    /// The title; empty for none.
    pub title: String,
}

/// One run's curve.
#[derive(Clone, Debug, PartialEq)]
struct Curve {
    /// What it is, apart from its seed.
    group: String,
    name: String,
    axis: String,
    points: Vec<(f64, f64)>,
}

/// Median and quartiles of the runs of an experiment.
#[derive(Clone, Debug, PartialEq)]
struct Band {
    name: String,
    /// x, lower quartile, median, upper quartile.
    points: Vec<[f64; 4]>,
}

/// Draws the runs and writes `out` with the extensions `.svg` and `.png`. Gives the paths.
///
/// # Errors
/// If a folder is no run, has no metrics, or a file cannot be written.
pub fn plot(runs: &[PathBuf], out: &Path, options: &Options) -> Result<[PathBuf; 2], Error> {
    let curves: Result<Vec<Curve>, Error> = runs.iter().map(|r| curve(r, options)).collect();
    let curves = curves?;
    let axis = curves.first().map(|c| c.axis.clone()).unwrap_or_default();
    if let Some(other) = curves.iter().find(|c| c.axis != axis) {
        let message = format!("the runs have different scores: {axis} and {}", other.axis);
        return Err(Error::usage(message).help("choose one that all have: --metric loss"));
    }
    let svg = draw(&bands(&curves, options.smooth), &axis, options)?;
    let paths = ["svg", "png"].map(|x| PathBuf::from(format!("{}.{x}", stem(out).display())));
    files::write(&paths[0], svg.as_bytes())?;
    files::write(&paths[1], &png(&svg)?)?;
    Ok(paths)
}

/// `out` without `.svg` or `.png`.
fn stem(out: &Path) -> PathBuf {
    match out.extension() {
        Some(x) if x == "svg" || x == "png" => out.with_extension(""),
        _ => out.into(),
    }
}

fn curve(folder: &Path, options: &Options) -> Result<Curve, Error> {
    let stored = run::load(folder, &[])?;
    let lines = metrics::read(&folder.join("metrics.jsonl"))?;
    let axis = match options.metric.as_str() {
        "" => stored.recipe.task.scores()[0].to_string(),
        name => name.to_string(),
    };
    let points: Vec<(f64, f64)> = lines
        .iter()
        .map(|l| (metrics::get(l, "episodes"), metrics::get(l, &axis)))
        .filter(|(x, y)| x.is_finite() && y.is_finite())
        .collect();
    if points.is_empty() {
        let error = Error::usage(format!("`{}` has no metrics named `{axis}`", folder.display()));
        let names: Vec<&str> = lines.first().map_or(vec![], |l| l.keys().map(String::as_str).collect());
        return Err(match names.is_empty() {
            true => error.help("it has not trained long enough for a line of metrics"),
            false => error.help(format!("it has {}", names.join(", "))),
        });
    }
    let mut table = stored.recipe.table.clone();
    if let Some(schedule) = table.get_mut("run").and_then(toml::Value::as_table_mut) {
        schedule.remove("seed");
        schedule.remove("updates");
    }
    let group = format!("{}\n{table}", stored.spec.source);
    let name = format!("{} on {}", stored.spec.model.name.replace('_', " "), stored.recipe.task_name);
    Ok(Curve { group, name, axis, points })
}

/// Experiments in the order of their first runs; names that repeat get a number.
fn bands(curves: &[Curve], smooth: usize) -> Vec<Band> {
    let mut order: Vec<&str> = vec![];
    let mut groups: BTreeMap<&str, Vec<&Curve>> = BTreeMap::new();
    for curve in curves {
        if !groups.contains_key(curve.group.as_str()) {
            order.push(&curve.group);
        }
        groups.entry(&curve.group).or_default().push(curve);
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut all = vec![];
    for members in order.iter().filter_map(|key| groups.get(key)) {
        let count = seen.entry(members[0].name.clone()).and_modify(|n| *n += 1).or_insert(1);
        let number = if *count > 1 { format!(" ({count})") } else { String::new() };
        let seeds = match members.len() {
            1 => "1 seed".to_string(),
            n => format!("{n} seeds"),
        };
        let name = format!("{}{number}, {seeds}", members[0].name);
        all.push(Band { name, points: smoothed(&quartiles(members), smooth) });
    }
    all
}

/// Quartiles at every x that all members reach.
fn quartiles(members: &[&Curve]) -> Vec<[f64; 4]> {
    let mut columns: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for (x, y) in members.iter().flat_map(|c| &c.points) {
        columns.entry(*x as u64).or_default().push(*y);
    }
    let complete = columns.into_iter().filter(|(_, ys)| ys.len() == members.len());
    let row = |(x, mut ys): (u64, Vec<f64>)| {
        ys.sort_by(f64::total_cmp);
        [x as f64, quantile(&ys, 0.25), quantile(&ys, 0.5), quantile(&ys, 0.75)]
    };
    complete.map(row).collect()
}

/// A quantile of sorted numbers, linear between neighbours.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] * (1.0 - part) + sorted[high] * part
}

/// A moving average over the last `window` points.
fn smoothed(points: &[[f64; 4]], window: usize) -> Vec<[f64; 4]> {
    let mean = |k: usize| {
        let from = (k + 1).saturating_sub(window.max(1));
        let part = &points[from..=k];
        let of = |c: usize| part.iter().map(|p| p[c]).sum::<f64>() / part.len() as f64;
        [points[k][0], of(1), of(2), of(3)]
    };
    (0..points.len()).map(mean).collect()
}

fn draw(bands: &[Band], axis: &str, options: &Options) -> Result<String, Error> {
    register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| Error::usage("the built-in font cannot be used"))?;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        chart(&area, bands, axis, options).map_err(|e| Error::usage(format!("cannot draw: {e}")))?;
    }
    Ok(svg)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn chart(area: &Area<'_>, bands: &[Band], axis: &str, options: &Options) -> Drawn {
    area.fill(&WHITE)?;
    let title = if options.title.is_empty() { 8 } else { 52 };
    let (head, body) = area.split_vertically(title + 28 * bands.len().div_ceil(2) as i32);
    if !options.title.is_empty() {
        let style = ("sans-serif", 24).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Center));
        head.draw(&Text::new(options.title.as_str(), (SIZE.0 as i32 / 2, 30), style))?;
    }
    legend(&head, bands, title)?;
    let points = || bands.iter().flat_map(|b| &b.points);
    let right = points().map(|p| p[0]).fold(1.0, f64::max);
    let low = points().map(|p| p[1]).fold(f64::INFINITY, f64::min);
    let high = points().map(|p| p[3]).fold(f64::NEG_INFINITY, f64::max);
    let pad = ((high - low) * 0.04).max(1e-9 + high.abs() * 1e-3);
    let mut builder = ChartBuilder::on(&body);
    builder.margin(14).margin_right(34).x_label_area_size(58).y_label_area_size(78);
    let mut chart = builder.build_cartesian_2d(0.0..right, low - pad..high + pad)?;
    chart
        .configure_mesh()
        .x_desc("episodes")
        .y_desc(axis.replace('_', " "))
        .axis_desc_style(("sans-serif", 19))
        .label_style(("sans-serif", 16))
        .x_labels(7)
        .y_labels(8)
        .x_label_formatter(&|x| short_number(*x))
        .y_label_formatter(&|y| short_number(*y))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.10))
        .axis_style(BLACK.mix(0.55))
        .draw()?;
    for (k, band) in bands.iter().enumerate() {
        let colour = PALETTE[k % PALETTE.len()];
        let lower = band.points.iter().map(|p| (p[0], p[1]));
        let upper = band.points.iter().rev().map(|p| (p[0], p[3]));
        chart.draw_series([Polygon::new(lower.chain(upper).collect::<Vec<_>>(), colour.mix(0.18))])?;
        let median = band.points.iter().map(|p| (p[0], p[2]));
        let style = colour.stroke_width(2);
        chart.draw_series(LineSeries::new(median, style))?;
    }
    area.present()?;
    Ok(())
}

/// Names and colours in two columns, above the curves, so that they never cover one.
fn legend(area: &Area<'_>, bands: &[Band], top: i32) -> Drawn {
    let style = ("sans-serif", 16).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
    for (k, band) in bands.iter().enumerate() {
        let (x, y) = (92 + 420 * (k as i32 % 2), top + 14 + 28 * (k as i32 / 2));
        let line = PALETTE[k % PALETTE.len()].stroke_width(3);
        area.draw(&PathElement::new(vec![(x, y), (x + 28, y)], line))?;
        area.draw(&Text::new(band.name.as_str(), (x + 38, y), style.clone()))?;
    }
    Ok(())
}

/// `1.5 M`, `20 k`, `0.25`.
fn short_number(x: f64) -> String {
    let trim = |x: f64| {
        let text = format!("{x:.3}");
        text.trim_end_matches('0').trim_end_matches('.').replace('-', "\u{2212}")
    };
    match x.abs() {
        a if a >= 1e6 => format!("{} M", trim(x / 1e6)),
        a if a >= 1e4 => format!("{} k", trim(x / 1e3)),
        a if a < 5e-4 => "0".into(),
        _ => trim(x),
    }
}

/// The picture as PNG, with two pixels per point.
fn png(svg: &str) -> Result<Vec<u8>, Error> {
    use resvg::{tiny_skia, usvg};
    let fail = |what: String| Error::usage(format!("cannot draw the PNG: {what}"));
    let mut options = usvg::Options::default();
    options.fontdb_mut().load_font_data(dejavu::sans::regular().to_vec());
    options.fontdb_mut().set_sans_serif_family("DejaVu Sans");
    let tree = usvg::Tree::from_str(svg, &options).map_err(|e| fail(e.to_string()))?;
    let mut pixels =
        tiny_skia::Pixmap::new(2 * SIZE.0, 2 * SIZE.1).ok_or_else(|| fail("no memory".into()))?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(2.0, 2.0), &mut pixels.as_mut());
    pixels.encode_png().map_err(|e| fail(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(group: &str, ys: &[f64]) -> Curve {
        let points = ys.iter().enumerate().map(|(k, y)| (100.0 * (k + 1) as f64, *y)).collect();
        Curve { group: group.into(), name: "simple on maze".into(), axis: "return".into(), points }
    }

    #[test]
    fn medians_and_quartiles() {
        let curves: Vec<Curve> = [0.0, 1.0, 2.0, 3.0, 40.0].iter().map(|y| curve("a", &[*y, 1.0])).collect();
        let bands = bands(&curves, 1);
        assert_eq!(bands[0].points, [[100.0, 1.0, 2.0, 3.0], [200.0, 1.0, 1.0, 1.0]]);
        assert_eq!(bands[0].name, "simple on maze, 5 seeds");
    }

    #[test]
    fn only_common_points_count_and_groups_are_kept_apart() {
        let found = bands(&[curve("a", &[1.0, 2.0]), curve("b", &[5.0]), curve("a", &[3.0])], 1);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].points, [[100.0, 1.5, 2.0, 2.5]]);
        assert_eq!(found[1].name, "simple on maze (2), 1 seed");
    }

    #[test]
    fn smoothing_looks_back() {
        let points: Vec<[f64; 4]> = (0..4).map(|k| [f64::from(k), 0.0, f64::from(k), 0.0]).collect();
        let found: Vec<f64> = smoothed(&points, 2).iter().map(|p| p[2]).collect();
        assert_eq!(found, [0.0, 0.5, 1.5, 2.5]);
    }

    #[test]
    fn numbers_are_short() {
        let found = [0.0, 0.25, -3.0, 2000.0, 20_000.0, 1.5e6].map(short_number);
        assert_eq!(found, ["0", "0.25", "−3", "2000", "20 k", "1.5 M"]);
    }

    #[test]
    fn a_picture_has_its_words() {
        let options = Options { metric: String::new(), smooth: 1, title: "Maze".into() };
        let svg = draw(&bands(&[curve("a", &[1.0, 2.0])], 1), "return", &options).expect("svg");
        for word in ["Maze", "episodes", "return", "simple on maze, 1 seed"] {
            assert!(svg.contains(word), "{word}");
        }
        assert!(png(&svg).expect("png").starts_with(b"\x89PNG"));
    }
}
