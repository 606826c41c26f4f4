//! What became of all pairs, as one table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::kind::Kind;

/// A pair that has tried, by kinds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Of who dialled through the relay.
    pub dialer: Kind,
    /// Of who was dialled.
    pub listener: Kind,
    /// Whether the connection through the relay stood in time.
    pub relayed: bool,
    /// Whether a direct one did.
    pub direct: bool,
}

/// Writes pairs so that [`read`] understands them.
pub fn write(pairs: &[Pair]) -> String {
    let line = |pair: &Pair| format!("{} {} {} {}\n", pair.dialer, pair.listener, pair.relayed, pair.direct);
    pairs.iter().map(line).collect()
}

/// Reads pairs; none where a line is no pair.
pub fn read(lines: &str) -> Option<Vec<Pair>> {
    let pair = |line: &str| {
        let mut words = line.split(' ');
        Some(Pair {
            dialer: Kind::named(words.next()?)?,
            listener: Kind::named(words.next()?)?,
            relayed: words.next()?.parse().ok()?,
            direct: words.next()?.parse().ok()?,
        })
    };
    lines.lines().map(pair).collect()
}

/// What became of pairs of the same two kinds.
#[derive(Clone, Copy, Default)]
struct Cell {
    direct: u32,
    relayed: u32,
    tried: u32,
}

/// Says it in Markdown that can be read as it is: a row for the kind of who dials, a column for the kind of who is dialled.
pub fn markdown(pairs: &[Pair]) -> String {
    let mut cells: BTreeMap<(Kind, Kind), Cell> = BTreeMap::new();
    let mut kinds: Vec<Kind> = pairs.iter().flat_map(|pair| [pair.dialer, pair.listener]).collect();
    kinds.sort();
    kinds.dedup();
    for pair in pairs {
        let cell = cells.entry((pair.dialer, pair.listener)).or_default();
        cell.tried += 1;
        cell.relayed += u32::from(pair.relayed);
        cell.direct += u32::from(pair.direct);
    }
    let mut text = String::from(
        "Pairs that got a direct connection, of those that tried: rows dial, columns are dialled, by mapping-filtering.\n\n",
    );
    let row = |first: &str, cells: &mut dyn Iterator<Item = String>| {
        let cells: String = cells.map(|cell| format!(" {cell:>7} |")).collect();
        format!("| {first:<7} |{cells}\n")
    };
    text += &row("", &mut kinds.iter().map(Kind::to_string));
    text += &row("---", &mut kinds.iter().map(|_| "---".to_owned()));
    for dialer in &kinds {
        text += &row(
            &dialer.to_string(),
            &mut kinds.iter().map(|listener| match cells.get(&(*dialer, *listener)) {
                Some(cell) => format!("{}/{}", cell.direct, cell.tried),
                None => String::new(),
            }),
        );
    }
    let sum = |of: fn(&Cell) -> u32| cells.values().map(of).sum::<u32>();
    let (tried, relayed, direct) = (sum(|cell| cell.tried), sum(|cell| cell.relayed), sum(|cell| cell.direct));
    let _infallible =
        writeln!(text, "\n{tried} pairs: {relayed} connected through a relay, {direct} of them directly then.");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(dialer: &str, listener: &str, direct: bool) -> Pair {
        let (dialer, listener) = (Kind::named(dialer).unwrap(), Kind::named(listener).unwrap());
        Pair { dialer, listener, relayed: true, direct }
    }

    #[test]
    fn pairs_are_read_as_they_were_written() {
        let pairs = [pair("ei-ei", "apd-ad", true), pair("ad-apd", "ei-apd", false)];
        assert_eq!(read(&write(&pairs)), Some(pairs.to_vec()));
        assert_eq!(read("ei-ei relay true true\n"), None);
    }

    #[test]
    fn a_table_has_a_row_for_who_dials_and_a_column_for_who_is_dialled() {
        let pairs = [pair("ei-apd", "ei-apd", true), pair("ei-apd", "apd-apd", false), pair("ei-apd", "apd-apd", true)];
        assert_eq!(
            markdown(&pairs).lines().skip(2).collect::<Vec<_>>(),
            [
                "|         |  ei-apd | apd-apd |",
                "| ---     |     --- |     --- |",
                "| ei-apd  |     1/1 |     1/2 |",
                "| apd-apd |         |         |",
                "",
                "3 pairs: 3 connected through a relay, 2 of them directly then.",
            ]
        );
    }
}
