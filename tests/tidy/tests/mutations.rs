//! The bugs of `cargo xtask mutate` fit the source: one that does not is found by nobody.

use iptl_tidy::root;

/// Returns what a patch expects: for each hunk, the file and the lines that must stand in it together.
fn expected(patch: &str) -> Vec<(String, Vec<String>)> {
    let mut hunks: Vec<(String, Vec<String>)> = Vec::new();
    let (mut file, mut open) = (String::new(), 0);
    for line in patch.lines() {
        if open > 0 {
            let Some((_, lines)) = hunks.last_mut() else { continue };
            let old = match line.split_at_checked(1) {
                Some((" " | "-", rest)) => rest,
                Some(("+", _)) => continue,
                // An empty line of the context, from which somebody has taken the blank.
                Some(_) | None => "",
            };
            lines.push(old.to_owned());
            open -= 1;
        } else if let Some(path) = line.strip_prefix("+++ b/") {
            path.clone_into(&mut file);
        } else if let Some(range) = line.strip_prefix("@@ -") {
            // `line,count`, without a count where it is one.
            let range = range.split(' ').next().unwrap_or_default();
            open = range.split_once(',').map_or(1, |(_, count)| count.parse().expect("a count of lines"));
            hunks.push((file.clone(), Vec::new()));
        }
    }
    hunks
}

#[test]
fn every_mutation_fits_the_source() {
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("tests/sim/mutations")).expect("there are mutations") {
        let path = entry.expect("it can be listed").path();
        let patch = std::fs::read_to_string(&path).expect("a patch is text");
        let hunks = expected(&patch);
        assert!(!hunks.is_empty(), "{}: no hunk", path.display());
        for (file, lines) in hunks {
            let source = std::fs::read_to_string(root().join(&file));
            let source = source.unwrap_or_else(|error| panic!("{}: {file}: {error}", path.display()));
            let source: Vec<&str> = source.lines().collect();
            let fits = source.windows(lines.len()).any(|window| window == lines);
            assert!(fits, "{} does not fit {file} any more:\n{}", path.display(), lines.join("\n"));
        }
        count += 1;
    }
    assert!(count >= 20, "{count} mutations");
}
