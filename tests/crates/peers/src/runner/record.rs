//! The tables, the record and its picture. All figures are ratios of two servers in one round.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use crate::servers::Work;
use crate::stats::Spread;

/// One server against ours.
pub(crate) struct Row {
    pub(crate) name: String,
    /// Our rate by its rate. `None`: skipped.
    pub(crate) faster: Option<Spread>,
    /// Its CPU time for each served by ours.
    pub(crate) cheaper: Option<Spread>,
    pub(crate) errors: BTreeMap<String, u64>,
}

/// All that did one kind of work; the first row is ours.
pub(crate) struct Table {
    pub(crate) work: Work,
    pub(crate) rows: Vec<Row>,
}

/// Where and how it was measured.
pub(crate) struct Conditions {
    pub(crate) date: String,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) acceptors: usize,
    pub(crate) clients: usize,
    pub(crate) network: &'static str,
    /// How many others wanted a core when it began.
    pub(crate) load: String,
    pub(crate) versions: Vec<String>,
}

impl Table {
    /// How many rows have errors.
    pub(crate) fn errors(&self) -> usize {
        self.rows
            .iter()
            .filter(|row| !row.errors.is_empty())
            .count()
    }

    pub(crate) fn markdown(&self) -> String {
        let ours = &self.rows[0].name;
        let title = match self.work {
            Work::Close => "Accept and close",
            Work::OneRequest => "HTTP, a connection for each request",
            Work::KeepAlive => "HTTP, connections kept alive",
            Work::Echo => "Datagrams sent back, eight at a time",
        };
        let mut text = format!(
            "\n## {title}\n\n\
             | against | {ours} is so many times as fast | lowest and highest | | \
             its CPU time by ours | errors |\n|---|---:|---:|---|---:|---:|\n"
        );
        for row in &self.rows[1..] {
            let (Some(faster), Some(cheaper)) = (row.faster, row.cheaper) else {
                _ = writeln!(text, "| {} | skipped: not installed | | | | |", row.name);
                continue;
            };
            let errors: u64 = row.errors.values().sum();
            _ = writeln!(
                text,
                "| {} | **{:.2}** | {:.2} to {:.2} | {} | {:.2} | {errors} |",
                row.name,
                faster.median,
                faster.low,
                faster.high,
                faster.verdict(),
                cheaper.median,
            );
        }
        for row in &self.rows {
            for (what, times) in &row.errors {
                _ = writeln!(text, "\n{}: {times} errors: {what}", row.name);
            }
        }
        text
    }
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    // The first three numbers; the rest is the name of a build.
    let kernel = kernel.trim().split('-').next().unwrap_or_default();
    format!("Linux {kernel}, {cores} cores")
}

pub(crate) fn markdown(conditions: &Conditions, tables: &[Table]) -> String {
    let Conditions {
        date,
        rounds,
        seconds,
        acceptors,
        clients,
        network,
        load,
        versions,
    } = conditions;
    let mut text = format!(
        "# Record of {date}\n\n\
         {}; {}.\n\n\
         {rounds} rounds of {seconds} s for each server, {acceptors} acceptors, {clients} clients, \
         all on this machine, {network}; its load average was {load} before. \
         Each figure is the median of ratios within a round. \
         *Ahead* and *behind* stand where the rounds agree: of servers that are alike, a sign test \
         says so of one in twenty.\n\n![The same as a picture](record.svg)\n",
        machine(),
        versions.join(", "),
    );
    for table in tables {
        text += &table.markdown();
    }
    text
}

/// Bars of each server's rate by ours, with a line from the lowest to the highest.
pub(crate) fn chart(conditions: &Conditions, tables: &[Table]) -> String {
    const ROW: usize = 22;
    const LEFT: u16 = 190;
    const ONE: f64 = 230.0; // the length of 1.0
    const LONGEST: f64 = 440.0; // a round that went wrong need not be drawn to its end
    let mut y = 44;
    let mut bars = String::new();
    for table in tables {
        let title = table.work.name();
        _ = writeln!(
            bars,
            "<text x=\"8\" y=\"{y}\" class=\"title\">{title}</text>"
        );
        y += 8;
        let top = y;
        for row in &table.rows {
            let Some(faster) = row.faster else { continue };
            let [bar, low, high] =
                [faster.median, faster.high, faster.low].map(|ratio| (ONE / ratio).min(LONGEST));
            let (left, text, middle) = (f64::from(LEFT), y + 15, y + ROW / 2);
            _ = writeln!(
                bars,
                "<text x=\"{}\" y=\"{text}\" class=\"name\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{}\" width=\"{bar:.1}\" height=\"{}\"/>\
                 <path d=\"M{:.1} {middle}H{:.1}\"/>\
                 <text x=\"668\" y=\"{text}\" class=\"name\">{:.2}</text>",
                LEFT - 8,
                row.name,
                y + 3,
                ROW - 6,
                left + low,
                left + high,
                1.0 / faster.median,
            );
            y += ROW;
        }
        let one = f64::from(LEFT) + ONE;
        _ = writeln!(bars, "<path class=\"one\" d=\"M{one} {top}V{y}\"/>");
        y += 36;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 680 {y}\" font-size=\"12\" \
         font-family=\"sans-serif\">\n<style>rect {{ fill: #7aa6c2 }} path {{ stroke: #234 }} \
         .name {{ text-anchor: end }} .title {{ font-weight: bold }} \
         .one {{ stroke-dasharray: 3 }}</style>\n\
         <rect width=\"680\" height=\"{y}\" style=\"fill: white\"/>\n\
         <text x=\"8\" y=\"18\">Rate by that of the first row, median of {} rounds; {}, {}</text>\n\
         {bars}</svg>\n",
        conditions.rounds,
        machine(),
        conditions.date,
    )
}
