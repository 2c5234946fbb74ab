// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rows that the lab has measured in guests, and gives in a file: one a line, its members between tabs.

use anyhow::{Context, Result, bail};

use crate::table::{self, Line};

/// Reads the file's lines:
///
/// * `ready`, name, value, ratio, of, goal, `true` or `false` or nothing, note;
/// * `missing`, name, why.
///
/// # Errors
/// A line that is none of these.
pub fn lines(text: &str) -> Result<Vec<Line>> {
    text.lines().map(line).collect()
}

fn line(text: &str) -> Result<Line> {
    let words: Vec<&str> = text.split('\t').collect();
    Ok(match words[..] {
        ["ready", name, value, ratio, of, goal, met, note] => Line {
            ratio: Some([ratio.parse().with_context(|| format!("a ratio: {text}"))?; 3]),
            of: of.to_owned(),
            note: note.to_owned(),
            ..table::figure(name, value.to_owned(), goal, met.parse().ok())
        },
        ["missing", name, why] => Line::missing(name, why),
        _ => bail!("not a row: {text}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_guests_come_with_their_goals_or_a_reason() {
        let text = "missing\tQEMU\tnot asked for\nready\tUML\t5 us\t1.1\tx native\t<= 1.2\ttrue\t\n\
                    ready\tx\t1\t1\t\t\t\tnote";
        let lines = lines(text).unwrap();
        let met: Vec<_> = lines.iter().map(|line| line.met).collect();
        assert_eq!(met, [None, Some(true), None]);
        assert_eq!(lines[1].ratio, Some([1.1; 3]));
        assert_eq!((lines[0].note.as_str(), lines[2].note.as_str()), ("not asked for", "note"));
        assert!(super::lines("what").is_err());
    }
}
