//! The text that Prometheus reads: its own format (0.0.4), or OpenMetrics 1.0. The latter states
//! the unit of a name that has one, names families without their suffix, and ends with a mark, so
//! that a text that was cut off is recognized.

use std::fmt::{self, Write as _};

use super::Distribution;

/// The format of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The format of Prometheus.
    Prometheus,
    /// OpenMetrics.
    OpenMetrics,
}

impl Format {
    /// The content type in HTTP.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The format that an `Accept` header prefers; that of Prometheus if it names neither.
    pub fn accepted(header: &str) -> Self {
        let weight_of = |wanted: &str| {
            let ranges = header.split(',').filter(|range| range.split(';').next().is_some_and(|r| r.trim() == wanted));
            ranges.map(weight).fold(0.0, f32::max)
        };
        let open_metrics = weight_of("application/openmetrics-text");
        let is_wanted = open_metrics > 0.0 && open_metrics >= weight_of("text/plain");
        if is_wanted { Self::OpenMetrics } else { Self::Prometheus }
    }
}

/// The `q` parameter of a media range.
fn weight(range: &str) -> f32 {
    let q = range.split(';').find_map(|parameter| parameter.trim().strip_prefix("q="));
    q.map_or(1.0, |q| q.trim().parse().unwrap_or(0.0))
}

/// The kind of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows; the name is given without `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Durations in seconds, in buckets.
    Histogram,
    /// Always 1, with information in the labels; the name is given without `_info`.
    Info,
}

/// The text, to which families are added.
#[derive(Debug)]
pub struct Text {
    format: Format,
    text: String,
    family: &'static str,
    kind: Kind,
}

impl Text {
    /// An empty text.
    pub fn new(format: Format) -> Self {
        Self { format, text: String::with_capacity(32 << 10), family: "", kind: Kind::Gauge }
    }

    /// Begins a family, to which the following values belong. A unit is taken from the end of the
    /// name.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> &mut Self {
        (self.family, self.kind) = (name, kind);
        let is_open = self.format == Format::OpenMetrics;
        let suffix = match kind {
            Kind::Counter if !is_open => "_total",
            Kind::Info if !is_open => "_info",
            _ => "",
        };
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Info if is_open => "info",
            Kind::Info => "gauge",
        };
        self.put(format_args!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {word}\n"));
        if let (true, Some(unit)) = (is_open, ["seconds", "bytes"].into_iter().find(|unit| ends_with(name, unit))) {
            self.put(format_args!("# UNIT {name} {unit}\n"));
        }
        self
    }

    /// Adds a number of the family, with its labels.
    pub fn value(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        self.sample(suffix, labels, None, value)
    }

    /// Adds a histogram of the family, with its labels.
    pub fn histogram(&mut self, labels: &[(&str, &str)], distribution: &Distribution) -> &mut Self {
        for (edge, count) in distribution.cumulative() {
            let edge = edge.map_or_else(|| "+Inf".to_owned(), |edge| edge.as_secs_f64().to_string());
            self.sample("_bucket", labels, Some(&edge), count as f64);
        }
        self.sample("_sum", labels, None, distribution.sum().as_secs_f64());
        self.sample("_count", labels, None, distribution.count() as f64)
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], edge: Option<&str>, value: f64) -> &mut Self {
        self.text.push_str(self.family);
        self.text.push_str(suffix);
        let mut mark = '{';
        for (name, value) in labels.iter().copied().chain(edge.map(|edge| ("le", edge))) {
            self.text.push(mark);
            self.put(format_args!("{name}=\""));
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
            mark = ',';
        }
        if mark == ',' {
            self.text.push('}');
        }
        match value == f64::INFINITY {
            true => self.text.push_str(" +Inf\n"),
            false => self.put(format_args!(" {value}\n")),
        }
        self
    }

    fn put(&mut self, text: fmt::Arguments<'_>) {
        let _ = self.text.write_fmt(text); // a String takes everything
    }
}

fn ends_with(name: &str, unit: &str) -> bool {
    name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_'))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::Histogram;

    fn text(format: Format) -> String {
        let mut text = Text::new(format);
        text.family("calls", Kind::Counter, "Calls.").value(&[("a", "1"), ("b", "x\"\\\n")], 3.0);
        text.family("size_bytes", Kind::Gauge, "Size.").value(&[], 0.5);
        text.family("build", Kind::Info, "Build.").value(&[("version", "1")], 1.0);
        let histogram = Histogram::default();
        histogram.note(Duration::from_micros(70));
        text.family("took_seconds", Kind::Histogram, "Took.").histogram(&[("m", "x")], &histogram.distribution());
        text.finish()
    }

    #[test]
    fn the_two_formats_differ_where_they_must() {
        let plain = text(Format::Prometheus);
        assert!(plain.starts_with("# HELP calls_total Calls.\n# TYPE calls_total counter\n"), "{plain}");
        assert!(plain.contains("\ncalls_total{a=\"1\",b=\"x\\\"\\\\\\n\"} 3\n"), "{plain}");
        assert!(plain.contains("# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n"), "{plain}");
        assert!(plain.contains("took_seconds_bucket{m=\"x\",le=\"0.00005\"} 0\n"), "{plain}");
        assert!(plain.contains("took_seconds_bucket{m=\"x\",le=\"0.0001\"} 1\n"), "{plain}");
        assert!(plain.ends_with("took_seconds_sum{m=\"x\"} 0.00007\ntook_seconds_count{m=\"x\"} 1\n"), "{plain}");
        assert!(!plain.contains("UNIT") && !plain.contains("EOF"), "{plain}");

        let open = text(Format::OpenMetrics);
        assert!(open.starts_with("# HELP calls Calls.\n# TYPE calls counter\ncalls_total{"), "{open}");
        assert!(open.contains("# TYPE size_bytes gauge\n# UNIT size_bytes bytes\nsize_bytes 0.5\n"), "{open}");
        assert!(open.contains("# TYPE build info\nbuild_info{version=\"1\"} 1\n"), "{open}");
        assert!(open.ends_with("\n# EOF\n"), "{open}");
    }

    #[test]
    fn the_format_is_the_one_that_the_client_prefers() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        for plain in ["", "*/*", "text/plain", "text/plain;q=0.9, application/openmetrics-text;q=0.1"] {
            assert_eq!(Format::accepted(plain), Format::Prometheus, "{plain}");
        }
        assert_eq!(Format::accepted("application/openmetrics-text; q=0, text/plain; q=0"), Format::Prometheus);
        assert_eq!(Format::accepted("application/openmetrics-text; version=1.0.0"), Format::OpenMetrics);
    }
}
