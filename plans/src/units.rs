//! Quantities as people write them: `250ms`, `64MiB`, `5%`.

/// Largest duration, in milliseconds: a year.
pub(crate) const MAX_DURATION_MS: u64 = 366 * 24 * 3_600_000;

/// Largest size, in bytes: an exbibyte, well inside an `i64`.
pub(crate) const MAX_SIZE_BYTES: u64 = 1 << 60;

const DURATIONS: &[(&str, f64)] =
    &[("ms", 1.0), ("s", 1_000.0), ("m", 60_000.0), ("min", 60_000.0), ("h", 3_600_000.0), ("d", 86_400_000.0)];

/// Largest duration in microseconds: the same year.
const MAX_DURATION_US: u64 = MAX_DURATION_MS * 1_000;

const FINE_DURATIONS: &[(&str, f64)] =
    &[("us", 1.0), ("µs", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 60e6), ("min", 60e6), ("h", 3_600e6)];

const RATES: &[(&str, f64)] = &[("bit/s", 1.0), ("kbit/s", 1e3), ("Mbit/s", 1e6), ("Gbit/s", 1e9)];

/// Largest rate that is read, in bits per second; what a link can have is less.
const MAX_RATE_BPS: u64 = 1 << 53;

const SIZES: &[(&str, f64)] = &[
    ("B", 1.0),
    ("kB", 1e3),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
];

/// Units in which metrics are recorded and thresholds are written. The lab does not convert between them.
pub(crate) const METRIC_UNITS: &[&str] = &[
    "ns", "us", "ms", "s", "min", "h", "B", "kB", "KiB", "MB", "MiB", "GB", "GiB", "B/s", "kB/s", "KiB/s", "MB/s",
    "MiB/s", "GB/s", "GiB/s", "bit/s", "kbit/s", "Mbit/s", "Gbit/s", "1/s", "%", "ppm",
];

/// Why a quantity could not be read: a sentence for a label, and what to write.
#[derive(Debug, PartialEq)]
pub(crate) struct UnitError {
    pub(crate) what: String,
    pub(crate) help: String,
}

/// Reads a duration: `250ms`, `1.5s`, `2m`, `1h`. Returns milliseconds.
pub(crate) fn duration_ms(text: &str) -> Result<u64, UnitError> {
    scaled(text, DURATIONS, MAX_DURATION_MS, "write a duration as `250ms`, `5s`, `2m` or `1h`")
}

/// Reads a duration as fine as links have it: `50ms`, `0.2ms`, `50us`. Returns microseconds.
pub(crate) fn duration_us(text: &str) -> Result<u64, UnitError> {
    scaled(text, FINE_DURATIONS, MAX_DURATION_US, "write a duration as `50ms`, `0.2ms`, `50us` or `1.5s`")
}

/// Reads a rate: `10Mbit/s`. Returns bits per second.
pub(crate) fn rate_bps(text: &str) -> Result<u64, UnitError> {
    scaled(text, RATES, MAX_RATE_BPS, "write a rate as `384kbit/s`, `10Mbit/s` or `1Gbit/s`")
}

/// Reads a size: `512B`, `64KiB`, `1MiB`. Returns bytes.
pub(crate) fn size_bytes(text: &str) -> Result<u64, UnitError> {
    scaled(text, SIZES, MAX_SIZE_BYTES, "write a size as `512B`, `64KiB`, `1MiB` or `1GiB`")
}

/// Reads a share: `0.5%`. Returns parts per million.
pub(crate) fn share_ppm(text: &str) -> Result<u32, UnitError> {
    let ppm = scaled(text, &[("%", 10_000.0)], 1_000_000, "write a share as `5%` or `0.1%`, from `0%` to `100%`")?;
    Ok(u32::try_from(ppm).unwrap_or(1_000_000))
}

/// Reads a measured quantity: a number with a unit of [`METRIC_UNITS`] or none.
pub(crate) fn quantity(text: &str) -> Result<(f64, String), UnitError> {
    let help = "write a number with the unit that the metric is recorded in, such as `50ms` or `12.5MB/s`";
    let (number, unit) = split(text, help)?;
    if unit.is_empty() || METRIC_UNITS.contains(&unit) {
        return Ok((number, unit.to_owned()));
    }
    Err(UnitError {
        what: format!("{} is not a unit", crate::diagnostic::quote(unit)),
        help: match crate::diagnostic::suggest(unit, METRIC_UNITS.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => help.to_owned(),
        },
    })
}

fn scaled(text: &str, units: &[(&str, f64)], max: u64, help: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text, help)?;
    let fail = |what: String| UnitError { what, help: help.to_owned() };
    let Some((_, scale)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(fail(match unit {
            "" => "there is no unit".to_owned(),
            unit => format!("{} is not a unit here", crate::diagnostic::quote(unit)),
        }));
    };
    let value = number * scale;
    if value < 0.0 {
        return Err(fail("it is less than zero".to_owned()));
    }
    if value > max as f64 {
        return Err(fail("it is too large".to_owned()));
    }
    if (value - value.round()).abs() > 1e-6 {
        return Err(fail(format!(
            "it is not a whole number of {}",
            if scale_is_share(units) { "ppm" } else { units[0].0 }
        )));
    }
    Ok(value.round() as u64)
}

fn scale_is_share(units: &[(&str, f64)]) -> bool {
    units[0].0 == "%"
}

/// Splits a quantity into its number and its unit.
fn split<'a>(text: &'a str, help: &str) -> Result<(f64, &'a str), UnitError> {
    let text = text.trim();
    let at = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '-' | '+' | '_')).unwrap_or(text.len());
    let number = text[..at].replace('_', "");
    let fail = || UnitError {
        what: match text {
            "" => "there is no number".to_owned(),
            _ => format!("{} is not a number with a unit", crate::diagnostic::quote(text)),
        },
        help: help.to_owned(),
    };
    match number.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok((value + 0.0, text[at..].trim())),
        _ => Err(fail()),
    }
}

/// Writes milliseconds as a duration.
pub(crate) fn show_ms(ms: u64) -> String {
    match ms {
        0 => "0ms".to_owned(),
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

/// Writes bytes as a size.
pub(crate) fn show_bytes(bytes: u64) -> String {
    match bytes {
        0 => "0B".to_owned(),
        b if b % (1 << 30) == 0 => format!("{}GiB", b >> 30),
        b if b % (1 << 20) == 0 => format!("{}MiB", b >> 20),
        b if b % (1 << 10) == 0 => format!("{}KiB", b >> 10),
        b => format!("{b}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_in_their_units() {
        assert_eq!(duration_ms("250ms"), Ok(250));
        assert_eq!(duration_ms("1.5 s"), Ok(1_500));
        assert_eq!(duration_ms("2m"), Ok(120_000));
        assert_eq!(size_bytes("64KiB"), Ok(65_536));
        assert_eq!(size_bytes("1_000 kB"), Ok(1_000_000));
        assert_eq!(share_ppm("0.5%"), Ok(5_000));
        assert_eq!(quantity("12.5MB/s"), Ok((12.5, "MB/s".to_owned())));
        assert_eq!(quantity("-3"), Ok((-3.0, String::new())));
    }

    #[test]
    fn quantities_that_mean_nothing_are_refused() {
        for text in ["", "5", "s", "5 parsecs", "-1s", "1e9s", "0.5ms", "9999999h", "٣s", "--1s", "1.2.3s"] {
            assert!(duration_ms(text).is_err(), "{text}");
        }
        for text in ["", "5", "1.5B", "5M", "99999999TiB"] {
            assert!(size_bytes(text).is_err(), "{text}");
        }
        assert!(share_ppm("101%").is_err());
        assert!(quantity("5 parsecs").is_err());
        assert!(quantity("NaN").is_err());
    }

    #[test]
    fn shown_quantities_read_back() {
        for ms in [0, 1, 1_000, 90_000, 60_000, 3_600_000] {
            assert_eq!(duration_ms(&show_ms(ms)), Ok(ms));
        }
        for bytes in [0, 1, 1 << 10, 1 << 20, 3 << 30, 1_000_000] {
            assert_eq!(size_bytes(&show_bytes(bytes)), Ok(bytes));
        }
    }
}
