//! The comparison as a picture: SVG that needs nothing else, light or dark as its reader has it.

use core::fmt::Write as _;

use super::report::{Of, Report, Spread};
use crate::output::{count, ratio};

const WIDTH: f64 = 860.0;
/// Where the bars begin, and how long they may be.
const LEFT: f64 = 190.0;
const LENGTH: f64 = 520.0;
/// From one row to the next.
const PITCH: f64 = 28.0;

const STYLE: &str = "\
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 17px; font-weight: 600 }
.small, .tick { font-size: 12px; fill: #59636e }
.tick { text-anchor: middle }
.name { text-anchor: end }
.page { fill: #ffffff }
.bar { fill: #54aeff }
.spread { stroke: #1f2328; stroke-width: 1.5; fill: none }
.grid { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .small, .tick { fill: #9198a1 }
  .page { fill: #0d1117 }
  .bar { fill: #1f6feb }
  .spread { stroke: #f0f6fc }
  .grid { stroke: #3d444d }
}";

impl Report {
    /// Returns the picture: for each way a bar of the median and a line from the least to the most
    /// of the rounds, of the connections a second and of the p99.
    pub(crate) fn drawing(&self) -> String {
        let rows = ratio(self.rows.len(), 1);
        let panel = rows * PITCH + 78.0;
        let height = 96.0 + 2.0 * panel;
        let title = escaped(&self.title);
        let command = escaped(&self.command);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n<title>{title}</title>\n\
             <style>\n{STYLE}\n</style>\n\
             <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
             <text class=\"title\" x=\"20\" y=\"32\">{title}</text>\n\
             <text class=\"small\" x=\"20\" y=\"54\">{command}</text>\n"
        );
        let panels: [(&str, Of, usize); 2] = [
            ("per second (more is better)", |round| round.rate, 0),
            ("p99, milliseconds (less is better)", |round| round.p99, 2),
        ];
        let mut top = 76.0;
        for (unit, of, digits) in panels {
            let unit = match digits {
                0 => format!("{} {unit}", self.what),
                _ => unit.to_owned(),
            };
            self.draw_panel(&mut text, top, &unit, of, digits);
            top += panel;
        }
        let rounds = count(self.rows[0].rounds.len(), "round");
        _ = writeln!(
            text,
            "<text class=\"small\" x=\"20\" y=\"{}\">Bars and numbers: the median of {rounds}. \
             Lines: from the least to the most.</text>\n</svg>",
            height - 14.0
        );
        text
    }

    /// Draws the rows below each other, with an axis below them.
    fn draw_panel(&self, text: &mut String, top: f64, unit: &str, of: Of, digits: usize) {
        let most = self.rows.iter().map(|row| row.spread(of).high);
        let step = step(most.clone().fold(0.0, f64::max));
        let steps = (most.fold(0.0, f64::max) / step).ceil().max(1.0);
        let scale = LENGTH / (steps * step);
        let bottom = top + ratio(self.rows.len(), 1) * PITCH + 6.0;
        let (mut n, tick_digits) = (0.0, if step < 1.0 { 2 } else { 0 });
        while n <= steps {
            let x = LEFT + n * step * scale;
            _ = writeln!(
                text,
                "<path class=\"grid\" d=\"M{x:.1} {top}V{bottom}\"/>\n\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{}\">{:.tick_digits$}</text>",
                bottom + 16.0,
                n * step
            );
            n += 1.0;
        }
        let (middle, below) = (LEFT + LENGTH / 2.0, bottom + 36.0);
        _ = writeln!(
            text,
            "<text class=\"tick\" x=\"{middle}\" y=\"{below}\">{unit}</text>"
        );
        let mut y = top + 4.0;
        for row in &self.rows {
            let Spread { low, mid, high } = row.spread(of);
            let (width, from, to) = (mid * scale, LEFT + low * scale, LEFT + high * scale);
            let name = escaped(row.name);
            let (line, text_at) = (y + 10.0, y + 15.0);
            _ = writeln!(
                text,
                "<text class=\"name\" x=\"{}\" y=\"{text_at}\">{name}</text>\n\
                 <rect class=\"bar\" x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"20\"/>\n\
                 <path class=\"spread\" d=\"M{from:.1} {line}H{to:.1}M{from:.1} {a}V{b}M{to:.1} \
                 {a}V{b}\"/>\n\
                 <text x=\"{:.1}\" y=\"{text_at}\">{mid:.digits$}</text>",
                LEFT - 10.0,
                to + 8.0,
                a = line - 4.0,
                b = line + 4.0
            );
            y += PITCH;
        }
    }
}

/// The distance of the axis's marks: 2, 4 or 10 times a power of ten, for three to five of them.
fn step(most: f64) -> f64 {
    let rough = most.max(1e-6) / 10.0;
    let power = 10_f64.powf(rough.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0].into_iter();
    let found = times.map(|n| n * power).find(|step| *step >= rough);
    2.0 * found.unwrap_or(10.0 * power)
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_escaped() {
        assert_eq!(escaped("a<b> & c"), "a&lt;b&gt; &amp; c");
    }

    #[test]
    fn axis_has_a_few_round_marks() {
        for (most, distance) in [
            (100_000.0, 20_000.0),
            (72_000.0, 20_000.0),
            (0.9, 0.2),
            (30.0, 10.0),
        ] {
            let found = step(most);
            assert!((found / distance - 1.0).abs() < 1e-9, "{most}: {found}");
        }
        assert!(step(0.0) > 0.0);
    }
}
