//! The picture of `bench --svg`: speed against operations a byte, under the device's own roof.

use std::path::Path;

use plotters::prelude::*;

use crate::error::{Error, Result};
use crate::kernels::measure::DevicePeaks;
use crate::model::save::write_text;

/// A kernel in the picture.
pub struct RooflinePoint {
    /// Its family.
    pub kernel: String,
    /// Operations a byte that must move.
    pub intensity: f64,
    /// GFLOP/s.
    pub gflop_s: f64,
}

const SIZE: (u32, u32) = (960, 600);
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(23, 190, 207),
];

/// Writes the picture.
///
/// # Errors
/// [`Error::File`].
pub fn write(path: &Path, title: &str, ceilings: &DevicePeaks, points: &[RooflinePoint]) -> Result<()> {
    let mut svg = String::new();
    draw(&mut svg, title, ceilings, points).map_err(|e| Error::file(path, e))?;
    write_text(path, &svg)
}

fn draw(
    svg: &mut String,
    title: &str,
    c: &DevicePeaks,
    points: &[RooflinePoint],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let roof = |x: f64| (x * c.copy_gb_s).min(c.fma_gflop_s);
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::MAX, f64::MIN), |(least, most), v| (least.min(v), most.max(v)))
    };
    let ridge = c.fma_gflop_s / c.copy_gb_s;
    let (x0, x1) = bounds(&mut points.iter().map(|p| p.intensity).chain([0.1, 4.0 * ridge]));
    let (y0, _) = bounds(&mut points.iter().map(|p| p.gflop_s).chain([roof(x0)]));
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d((x0 / 1.5..x1 * 1.5).log_scale(), (y0 / 2.0..c.fma_gflop_s * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("operations a byte")
        .y_desc("GFLOP/s")
        .light_line_style(RGBColor(240, 240, 240))
        .draw()?;
    chart.draw_series(LineSeries::new([x0 / 1.5, ridge, x1 * 1.5].map(|x| (x, roof(x))), BLACK.stroke_width(2)))?;
    let mut kernels: Vec<&str> = points.iter().map(|p| p.kernel.as_str()).collect();
    kernels.dedup();
    for (i, kernel) in kernels.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let own = points.iter().filter(|p| p.kernel == *kernel);
        // Families that share a colour differ in whether their marks are filled.
        let style = if (i / COLOURS.len()).is_multiple_of(2) { colour.filled() } else { colour.stroke_width(2) };
        chart
            .draw_series(own.map(|p| Circle::new((p.intensity, p.gflop_s), 4, style)))?
            .label(*kernel)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    root.present()?;
    Ok(())
}
