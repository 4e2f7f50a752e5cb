//! The comparison as a picture: SVG, readable on any background, for it brings its own.

use core::fmt::Write as _;

use super::report::{Of, Report, Spread};

impl Report {
    /// As SVG: a bar and the extremes for each way's connections and for its p99.
    pub(crate) fn drawing(&self) -> String {
        let height = 100 + 30 * self.rows.len();
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 {height}\" role=\"img\" \
             font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
             <title>Ways to accept</title>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
        );
        let write = |text: &mut String, x: f64, y: usize, line: &str| {
            let line = escaped(line);
            _ = writeln!(text, "<text x=\"{x:.1}\" y=\"{y}\">{line}</text>");
        };
        write(&mut text, 16.0, 26, &self.command);
        let panels: [(f64, &str, Of, usize); 2] = [
            (170.0, "connections a second", |round| round.rate, 0),
            (480.0, "p99, milliseconds", |round| round.p99, 2),
        ];
        for (left, title, of, digits) in panels {
            write(&mut text, left, 56, title);
            let ends = self.rows.iter().map(|row| row.spread(of).high);
            let scale = 200.0 / ends.fold(1e-9, f64::max);
            for (n, row) in self.rows.iter().enumerate() {
                let (y, Spread { low, mid, high }) = (70 + 30 * n, row.spread(of));
                let (width, from, to) = (mid * scale, left + low * scale, left + high * scale);
                _ = writeln!(
                    text,
                    "<rect x=\"{left}\" y=\"{y}\" width=\"{width:.1}\" height=\"18\" \
                     fill=\"#8ab\"/>\n<path d=\"M{from:.1} {}H{to:.1}\" stroke=\"#222\"/>",
                    y + 9
                );
                write(&mut text, to + 6.0, y + 14, &format!("{mid:.digits$}"));
            }
        }
        for (n, row) in self.rows.iter().enumerate() {
            write(&mut text, 16.0, 84 + 30 * n, row.name);
        }
        let rounds = self.rows[0].rounds.len();
        let legend = format!("bars: the median of {rounds} rounds; lines: from least to most");
        write(&mut text, 16.0, height - 12, &legend);
        text + "</svg>\n"
    }
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
}
