//! What people see: sizes, times, tables, colour, progress. Nothing here decides anything.

use std::time::Duration;

use iptl_dag::Cid;

/// Shortens a CID for people: `bafyreih3…q5ta`.
pub fn short(cid: &Cid) -> String {
    let full = cid.to_string();
    if full.len() <= 16 {
        return full;
    }
    format!("{}…{}", &full[..9], &full[full.len() - 4..])
}

/// Returns a text with nothing in it that a terminal would obey but colours: much of what is shown was written by
/// programs under test and by other people's machines.
pub fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let colour = colour_at(rest);
        let taken = if colour > 0 { colour } else { c.len_utf8() };
        if colour > 0 || !c.is_control() || matches!(c, '\n' | '\t') {
            shown.push_str(&rest[..taken]);
        } else {
            shown.push(char::REPLACEMENT_CHARACTER);
        }
        rest = &rest[taken..];
    }
    shown
}

/// Returns the length of the sequence for a colour or style that a text begins with, or zero.
fn colour_at(text: &str) -> usize {
    let Some(body) = text.strip_prefix("\u{1b}[") else { return 0 };
    let numbers = body.bytes().take_while(|b| b.is_ascii_digit() || *b == b';').count();
    if body.as_bytes().get(numbers) == Some(&b'm') { text.len() - body.len() + numbers + 1 } else { 0 }
}

/// Writes a number of bytes in binary units: `2.3 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Writes a duration as people say it: `850 ms`, `4.2 s`, `2 m 14 s`, `3 h 5 m`.
pub fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    if ms < 1000 {
        format!("{ms} ms")
    } else if seconds < 60 {
        format!("{}.{} s", seconds, ms % 1000 / 100)
    } else if seconds < 3600 {
        format!("{} m {} s", seconds / 60, seconds % 60)
    } else if seconds < 86_400 {
        format!("{} h {} m", seconds / 3600, seconds % 3600 / 60)
    } else {
        format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600)
    }
}

/// Writes the time since a start as a clock: `01:02`.
pub fn clock(ms: u64) -> String {
    let seconds = ms / 1000;
    format!("{:02}:{:02}", seconds / 60, seconds % 60)
}

/// Reads a duration as people write it: `30s`, `500ms`, `10m`, `24h`, `7d`; a bare number is seconds.
pub fn parse_duration(text: &str) -> std::result::Result<Duration, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a duration; write 30s, 10m or 24h"))?;
    let seconds = match unit.trim() {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        other => return Err(format!("`{other}` is not a unit of time; use ms, s, m, h or d")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("`{text}` is out of range"))
}

/// Lays rows out in columns, two spaces between them, the first row being the heads.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|r| r.get(c)).map(|v| v.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, value) in row.iter().enumerate() {
            line.push_str(value);
            let pad = widths[c].saturating_sub(value.chars().count()) + 2;
            line.extend(std::iter::repeat_n(' ', pad));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Says how many of something: `1 lablet`, `3 lablets`.
pub fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_as_people_say_them() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(2_411_724), "2.3 MiB");
        assert_eq!(duration(850), "850 ms");
        assert_eq!(duration(134_000), "2 m 14 s");
        assert_eq!(clock(62_000), "01:02");
        assert_eq!(count(1, "lablet"), "1 lablet");
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        assert!(parse_duration("soon").is_err());
        assert!(parse_duration("3 fortnights").is_err());
    }

    #[test]
    fn a_table_aligns_its_columns() {
        let rows = vec![vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), "x".to_owned()]];
        assert_eq!(table(&rows), "a     b\nlong  x\n");
    }

    #[test]
    fn what_a_program_writes_commands_no_terminal() {
        for (written, shown) in [
            ("plain ✓\ttab\nline", "plain ✓\ttab\nline"),
            ("\u{1b}[1;31mred\u{1b}[0m", "\u{1b}[1;31mred\u{1b}[0m"),
            ("\u{1b}]0;title\u{7}", "\u{fffd}]0;title\u{fffd}"),
            ("\u{1b}[2J\u{1b}[31", "\u{fffd}[2J\u{fffd}[31"),
            ("over\rwritten\u{9b}2J", "over\u{fffd}written\u{fffd}2J"),
        ] {
            assert_eq!(harmless(written), shown);
        }
    }
}
