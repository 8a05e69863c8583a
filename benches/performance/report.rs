//! The figures while they come: as a table, and as JSON in a file.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::compare::{Comparison, Figures, Spread};

/// What a row compares, and what it should be.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// The other side.
    pub(crate) against: &'static str,
    /// As in the table of targets.
    pub(crate) target: &'static str,
    /// Things to plot by.
    pub(crate) facts: Value,
}

impl Row {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), against: "floor", target: "", facts: json!({}) }
    }

    pub(crate) fn against(self, against: &'static str) -> Self {
        Self { against, ..self }
    }

    pub(crate) fn target(self, target: &'static str) -> Self {
        Self { target, ..self }
    }

    pub(crate) fn facts(self, facts: Value) -> Self {
        Self { facts, ..self }
    }
}

/// What became of a row.
#[derive(Debug)]
pub(crate) enum Outcome {
    Compared(Comparison),
    /// Single figures: a name, a number, a unit.
    Told(Vec<(String, f64, &'static str)>),
    LeftOut(String),
    Failed(String),
}

/// All rows so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Value>,
    pub(crate) failures: usize,
    headed: bool,
    file: PathBuf,
    about: Value,
}

impl Report {
    /// One that is written to a file, with a word about the whole.
    pub(crate) fn new(file: &Path, about: Value) -> Self {
        Self { file: file.to_owned(), about, ..Self::default() }
    }

    /// Prints a row and keeps it.
    pub(crate) fn add(&mut self, row: &Row, outcome: &Outcome) {
        if !std::mem::replace(&mut self.headed, true) {
            println!(
                "{:<46} {:>19} {:>18} {:>15} {:>5}  {:<23} {:<23} target",
                "", "floor -> ours /s", "ratio (min-max)", "CPU us a call", "ratio", "p50/p99/p99.9 us: floor", "ours"
            );
        }
        let name = &row.name;
        match outcome {
            Outcome::Compared(compared) => {
                println!("{name:<46} {} {}", line(compared), row.target);
                if compared.doubtful {
                    println!("{:<46} FAILED: not what it says: {}", "", compared.note);
                    self.failures += 1;
                } else if !compared.note.is_empty() {
                    println!("{:<46} {}", "", compared.note);
                }
            }
            Outcome::Told(figures) => {
                let told = figures
                    .iter()
                    .map(|(what, number, unit)| format!("{what} {} {unit}", short(*number)).trim_end().to_owned());
                let target = if row.target.is_empty() { "" } else { "; target: " };
                println!("{name:<46} {}{target}{}", told.collect::<Vec<_>>().join(", "), row.target);
            }
            Outcome::LeftOut(why) => println!("{name:<46} left out: {why}"),
            Outcome::Failed(why) => {
                println!("{name:<46} FAILED: {why}");
                self.failures += 1;
            }
        }
        let mut kept = json!({ "name": row.name, "against": row.against, "target": row.target, "facts": row.facts });
        match outcome {
            Outcome::Compared(compared) => kept["compared"] = to_json(compared),
            Outcome::Told(figures) => {
                let figures = figures.iter();
                kept["told"] = figures.map(|(what, number, unit)| json!([what, number, unit])).collect();
            }
            Outcome::LeftOut(why) => kept["left_out"] = json!(why),
            Outcome::Failed(why) => kept["failed"] = json!(why),
        }
        self.rows.push(kept);
        // After each row, as there may be no end.
        if let Err(error) = self.write() {
            println!("{error}");
            self.failures += 1;
        }
    }

    /// Whether a row was told.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.rows.iter().any(|row| row["name"] == name)
    }

    fn write(&self) -> Result<(), String> {
        let all = json!({ "about": self.about, "rows": self.rows });
        let written = || {
            if let Some(folder) = self.file.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(&self.file, format!("{all:#}\n"))
        };
        written().map_err(|e| format!("{}: {e}", self.file.display()))
    }
}

fn line(compared: &Comparison) -> String {
    let median = |side, figure: fn(&Figures) -> f64| compared.side(side, figure).median;
    let rate: fn(&Figures) -> f64 = |figures| figures.per_second;
    let cpu: fn(&Figures) -> f64 = |figures| figures.cpu_micros;
    let latencies = |side| {
        let all: [fn(&Figures) -> f64; 3] = [|f| f.p50_micros, |f| f.p99_micros, |f| f.p999_micros];
        all.map(|figure| short(median(side, figure))).join("/")
    };
    let Spread { median: ratio, min, max } = compared.ratio(rate);
    format!(
        "{:>19} {:>18} {:>15} {:>5.2}  {:<23} {:<23}",
        format!("{} -> {}", short(median(0, rate)), short(median(1, rate))),
        format!("{ratio:.2} ({min:.2}-{max:.2})"),
        format!("{} -> {}", short(median(0, cpu)), short(median(1, cpu))),
        compared.ratio(cpu).median,
        latencies(0),
        latencies(1),
    )
}

/// Three digits that count.
fn short(number: f64) -> String {
    match number.abs() {
        n if n >= 1e6 => format!("{:.2}M", number / 1e6),
        n if n >= 1e4 => format!("{:.1}k", number / 1e3),
        n if n >= 100.0 => format!("{number:.0}"),
        n if n >= 10.0 => format!("{number:.1}"),
        0.0 => "0".to_owned(),
        _ => format!("{number:.2}"),
    }
}

fn to_json(compared: &Comparison) -> Value {
    let spread = |Spread { median, min, max }| json!({ "median": median, "min": min, "max": max });
    type Figure = fn(&Figures) -> f64;
    let figures: [(&str, Figure); 5] = [
        ("per_second", |figures| figures.per_second),
        ("cpu_micros", |figures| figures.cpu_micros),
        ("p50_micros", |figures| figures.p50_micros),
        ("p99_micros", |figures| figures.p99_micros),
        ("p999_micros", |figures| figures.p999_micros),
    ];
    let mut json = json!({
        "in_flight": compared.plan.in_flight,
        "offered_per_second": compared.offered_per_second,
        "rounds": compared.rounds.len(),
        "note": compared.note,
        "doubtful": compared.doubtful,
    });
    for (name, figure) in figures {
        json["floor"][name] = spread(compared.side(0, figure));
        json["ours"][name] = spread(compared.side(1, figure));
        json["ratio"][name] = spread(compared.ratio(figure));
    }
    json
}
