//! Circles of files: files of one crate that need each other, directly or through other files. To understand one of
//! them, one must read all. A circle that cannot be avoided has a line `//! Circle: WHY` in one of its files.

use std::collections::{BTreeMap, BTreeSet};

/// Files of one crate, by name, with their text.
pub type Files = BTreeMap<String, String>;

/// Circles that no file gives a reason for, the names of each sorted.
pub fn circles(files: &Files) -> Vec<Vec<String>> {
    let code: BTreeMap<&str, String> = files.iter().map(|(name, text)| (name.as_str(), without_tests(text))).collect();
    let mut defined: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (file, text) in &code {
        for name in text.lines().filter_map(definition) {
            defined.entry(name).or_default().insert(file);
        }
    }
    let needs = |file: &str, text: &str| -> BTreeSet<&str> {
        // A name that several files define says nothing.
        let one = |name: &String| defined.get(name.as_str()).filter(|them| them.len() == 1).and_then(|it| it.first());
        uses(text).iter().filter_map(one).copied().filter(|other| *other != file).collect()
    };
    let graph: BTreeMap<&str, BTreeSet<&str>> =
        code.iter().map(|(file, text)| (*file, needs(file, text.as_str()))).collect();
    let reached: BTreeMap<&str, BTreeSet<&str>> = graph.keys().map(|file| (*file, reach(&graph, file))).collect();
    let together = |a: &str| -> Vec<String> {
        let both = |b: &&&str| reached[a].contains(**b) && reached[**b].contains(a);
        graph.keys().filter(both).map(|name| (*name).to_owned()).collect()
    };
    let all: BTreeSet<Vec<String>> =
        graph.keys().map(|file| together(file)).filter(|circle| circle.len() > 1).collect();
    let has_reason = |file: &String| files[file].lines().any(|line| line.starts_with("//! Circle: "));
    all.into_iter().filter(|circle| !circle.iter().any(has_reason)).collect()
}

/// The code before the tests of a file, without comments.
pub fn without_tests(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    // Tests in the file end it; a line that only names a file of tests does not.
    let begins = |at: usize| lines[at] == "#[cfg(test)]" && lines.get(at + 1).is_some_and(|next| next.ends_with('{'));
    let end = (0..lines.len()).find(|at| begins(*at)).unwrap_or(lines.len());
    lines[..end].iter().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// What a line at the outermost level defines.
fn definition(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub")?;
    let rest = if rest.starts_with('(') { rest.split_once(')')?.1 } else { rest };
    let mut words = rest.split_whitespace().skip_while(|word| ["async", "const", "unsafe"].contains(word));
    // What is left of `const NAME` begins with its name.
    let first = words.next()?;
    let name = if ["struct", "enum", "trait", "fn", "type", "static"].contains(&first) { words.next()? } else { first };
    name.split(|char: char| !char.is_alphanumeric() && char != '_').next().filter(|name| !name.is_empty())
}

/// Names that a text takes from other files of its crate.
fn uses(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in text.match_indices(root) {
            let imports = text[..at].trim_end().ends_with("use");
            let path = &text[at..];
            let ends =
                |char: char| if imports { char == ';' } else { !char.is_alphanumeric() && char != '_' && char != ':' };
            let path = &path[..path.find(ends).unwrap_or(path.len())];
            let mut names =
                path.split(|char: char| !char.is_alphanumeric() && char != '_').filter(|name| !name.is_empty());
            if imports {
                found.extend(names.map(str::to_owned))
            } else {
                found.extend(names.next_back().map(str::to_owned))
            }
        }
    }
    found
}

fn reach<'a>(graph: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &'a str) -> BTreeSet<&'a str> {
    let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(file) = left.pop() {
        left.extend(graph[file].iter().copied().filter(|next| seen.insert(*next)));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(all: &[(&str, &str)]) -> Files {
        all.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn circles_are_found_and_may_be_explained() {
        let a = ("a.rs", "use crate::{B, other};\npub struct A;\n");
        let b = ("b.rs", "pub struct B;\nfn f() { crate::c::make() }\n");
        let c = ("c.rs", "use super::A;\npub(crate) fn make() {}\n");
        let d = ("d.rs", "use crate::A;\npub const fn d() {}\n");
        assert_eq!(circles(&files(&[a, b, c, d])), [["a.rs", "b.rs", "c.rs"]]);
        let explained = ("c.rs", "//! Circle: they are one machine.\nuse super::A;\npub(crate) fn make() {}\n");
        assert_eq!(circles(&files(&[a, b, explained, d])), Vec::<Vec<String>>::new());
        let in_a_test = ("c.rs", "pub(crate) fn make() {}\n#[cfg(test)]\nmod tests {\n    use super::A;\n}\n");
        assert_eq!(circles(&files(&[a, b, in_a_test, d])), Vec::<Vec<String>>::new());
        let in_a_comment = ("c.rs", "// See super::A.\npub(crate) fn make() {}\n");
        assert_eq!(circles(&files(&[a, b, in_a_comment, d])), Vec::<Vec<String>>::new());
    }
}
