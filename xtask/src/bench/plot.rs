//! Results as SVG.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::results::{Growth, OURS, Results, Row};

const FONT: &str = "sans-serif";

/// Bars: instructions that each case adds to, or takes for, one unlink on tmpfs.
pub(super) fn unlink(results: &Results) -> Result<String> {
    let rows: Vec<&Row> = results.unlink.iter().filter(|row| row.filesystem == "tmpfs").collect();
    let (mut svg, longest) = (String::new(), rows.iter().map(|row| row.whole).fold(1.0, f64::max));
    {
        let height = 60 + 28 * u32::try_from(rows.len())?;
        let area = SVGBackend::with_string(&mut svg, (900, height)).into_drawing_area();
        let failed = |error| anyhow!("draw the bars: {error:?}");
        area.fill(&WHITE).map_err(failed)?;
        let style = |size: i32| (FONT, size).into_font().color(&BLACK);
        area.draw_text(
            "Instructions of the deleting thread, one unlink on tmpfs",
            &style(18),
            (10, 10),
        )
        .map_err(failed)?;
        for (number, row) in rows.iter().enumerate() {
            let top = 45 + 28 * i32::try_from(number)?;
            let length = (400.0 * row.whole / longest) as i32;
            let colour = if row.case.starts_with(OURS) {
                RGBColor(0x1f, 0x77, 0xb4)
            } else {
                RGBColor(0x99, 0x99, 0x99)
            };
            area.draw_text(&row.case, &style(14), (10, top)).map_err(failed)?;
            area.draw(&Rectangle::new([(360, top), (360 + length, top + 18)], colour.filled()))
                .map_err(failed)?;
            area.draw_text(&format!("{:.0}", row.whole), &style(13), (370 + length, top + 1))
                .map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Lines: instructions of the program on path_unlink, against the size of each axis.
pub(super) fn growth(results: &Results) -> Result<String> {
    let mut lines: BTreeMap<(&str, &str), Vec<(f64, f64)>> = BTreeMap::new();
    for Growth { axis, case, at, path_unlink, .. } in &results.growth {
        let points = lines.entry((axis.as_str(), case.as_str())).or_default();
        points.push((*at, path_unlink.unwrap_or_default()));
    }
    let all = || lines.values().flatten();
    let (widest, highest) = (
        all().map(|point| point.0).fold(10.0, f64::max),
        all().map(|point| point.1).fold(1.0, f64::max),
    );
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (900, 480)).into_drawing_area();
        area.fill(&WHITE).map_err(|error| anyhow!("draw the lines: {error:?}"))?;
        let mut chart = ChartBuilder::on(&area)
            .caption("Instructions of the program on path_unlink", (FONT, 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d((1.0..widest * 1.1).log_scale(), 0.0..highest * 1.1)
            .map_err(|error| anyhow!("lay out the lines: {error:?}"))?;
        chart
            .configure_mesh()
            .x_desc("how many, or how deep")
            .draw()
            .map_err(|error| anyhow!("draw the axes: {error:?}"))?;
        for (number, ((axis, case), points)) in lines.iter().enumerate() {
            let colour = Palette99::pick(number).to_rgba();
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))
                .map_err(|error| anyhow!("draw a line: {error:?}"))?
                .label(format!("{axis}: {case}"))
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            // No program is that short.
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()
            .map_err(|error| anyhow!("draw the legend: {error:?}"))?;
        area.present().map_err(|error| anyhow!("finish the drawing: {error:?}"))?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::run;
    use super::*;

    #[test]
    fn both_drawings_show_what_was_measured() {
        let bars = unlink(&run(100.0)).unwrap();
        assert!(bars.starts_with("<svg") && bars.contains("guard: x") && bars.contains("nothing"));
        let lines = growth(&run(100.0)).unwrap();
        assert!(
            lines.starts_with("<svg") && lines.contains("pools: a") && lines.contains("<polyline")
        );
    }
}
