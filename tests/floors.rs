//! The rules of the source tree, enforced: who may import whom, who may name the C library, where `unsafe` may stand.
//!
//! [`check`] is a function from a file's path and text to violations. One test runs it over the whole repository; the
//! others feed it text that breaks each rule, so that every rule is seen to bite.
//!
//! Names are found by reading tokens, not by asking the compiler: comments and strings are skipped, `use` groups and
//! chains of `super` are followed. Ways to hide a name from it (`#[path]`, `include!`, renaming the crate root) are
//! violations themselves.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// Each top-level module's place: its floor, and its step inside that floor. A file may name what is strictly lower,
/// and everything in its own module.
const FLOORS: &[(&str, Rank)] = &[
    ("limits", Rank(0, 0)),
    ("sys", Rank(0, 1)),
    ("assembly", Rank(1, 1)),
    ("chaos", Rank(1, 1)),
    ("error", Rank(1, 0)),
    ("frame", Rank(1, 0)),
    ("order", Rank(1, 0)),
    ("outcome", Rank(1, 0)),
    ("prints", Rank(1, 0)),
    ("spin", Rank(1, 0)),
    ("sync", Rank(1, 0)),
    ("claim", Rank(1, 1)),
    ("ring", Rank(1, 1)),
    ("slot", Rank(1, 2)),
    ("reactor", Rank(2, 0)),
    ("scheduler", Rank(3, 0)),
    ("transport", Rank(3, 0)),
    ("worker", Rank(3, 0)),
    ("nursery", Rank(3, 1)),
    ("pool", Rank(4, 0)),
    ("server", Rank(4, 1)),
    ("fuzzing", Rank(5, 0)),
    ("cli", Rank(5, 0)),
    ("main", Rank(5, 1)),
];

/// Where `unsafe` may stand; an entry that ends in a slash is a folder.
const UNSAFE_ALLOWED: &[&str] = &["src/sys/", "src/ring.rs", "src/ring/", "src/claim.rs", "src/slot.rs"];

/// The only place that names the C library, and its crates.
const C_LIBRARY_ALLOWED: &str = "src/sys/";
const C_LIBRARY: &[&str] = &["libc", "nix"];

/// The limits that the pool is measured against, and all that they may name.
const BARE: &str = "src/cli/bench/bare/";
const BARE_ALLOWED: &[&str] = &["cli", "limits", "sys"];

/// What an embedder gets as direct dependencies with `default-features = false`.
const CORE_DEPENDENCIES: &[&str] = &["libc", "memchr", "nix"];

/// Words that no text file holds. In two parts, so that this file keeps the rule too.
const BANNED_WORDS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
const BANNED_PATHS: &[&str] = &[concat!("/fa", "rm/"), concat!("/wo", "rk/"), concat!("/ro", "ot/")];
const BANNED_MACROS: &[&str] = &["dbg", "todo", "unimplemented"];

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(u8, u8);

/// `crate::Name`, a re-export of `lib.rs`: reaches everything, so only the floor of the program may use it.
const FRONT: Rank = Rank(4, u8::MAX);

fn rank(module: &str) -> Option<Rank> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

#[derive(Debug, PartialEq, Eq)]
struct Violation {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Every violation in one file. `path` is relative to the repository.
fn check(path: &str, text: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut report = |line: usize, what: String| found.push(Violation { path: path.into(), line, what });
    check_words(text, &mut report);
    if path.ends_with(".rs") {
        let tokens = tokens(text);
        check_macros(&tokens, &mut report);
        if path.starts_with("src/") {
            if !text.trim_start().starts_with("//!") {
                report(1, "does not open with a `//!` module doc".into());
            }
            check_unwraps(path, &tokens, &mut report);
            check_unsafe(path, &tokens, &mut report);
            check_c_library(path, &tokens, &mut report);
            check_floors(path, &tokens, &mut report);
        }
    }
    found.sort_by_key(|v| v.line);
    found
}

// ---- the rules ----

type Report<'a> = &'a mut dyn FnMut(usize, String);

fn check_words(text: &str, report: Report<'_>) {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    for (index, line) in text.lines().enumerate() {
        for word in BANNED_WORDS {
            for (at, _) in line.match_indices(word) {
                let before = line[..at].chars().next_back();
                let after = line[at + word.len()..].chars().next();
                if !before.is_some_and(is_word) && !after.is_some_and(is_word) {
                    report(index + 1, format!("holds the word `{word}`"));
                }
            }
        }
        for path in BANNED_PATHS {
            for (at, _) in line.match_indices(path) {
                // Part of a longer path, such as `target/x/`, is not absolute.
                let before = line[..at].chars().next_back();
                if !before.is_some_and(|c| is_word(c) || matches!(c, '.' | '-' | '}' | ')')) {
                    report(index + 1, format!("holds the absolute path `{path}`"));
                }
            }
        }
    }
}

fn check_macros(tokens: &[Token], report: Report<'_>) {
    for (i, token) in tokens.iter().enumerate() {
        if let Some(name) = BANNED_MACROS.iter().find(|m| token.is(m))
            && tokens.get(i + 1).is_some_and(|t| t.is("!"))
            && !tokens.get(i + 2).is_some_and(|t| t.is("="))
        {
            report(token.line, format!("`{name}!`"));
        }
    }
}

fn check_unwraps(path: &str, tokens: &[Token], report: Report<'_>) {
    let test_only = test_only(tokens);
    let is_at = |i: usize, what: &[&str]| {
        what.iter().enumerate().all(|(offset, text)| tokens.get(i + offset).is_some_and(|t| t.is(text)))
    };
    for i in (0..tokens.len()).filter(|i| !test_only[*i]) {
        if is_at(i, &[".", "unwrap", "(", ")"]) && !path.ends_with("/tests.rs") {
            report(tokens[i + 1].line, "`.unwrap()` outside test code; `expect` states the invariant".into());
        }
        // What lets a file called tests.rs unwrap.
        if is_at(i, &["mod", "tests"]) {
            report(tokens[i].line, "a module `tests` without `#[cfg(test)]`".into());
        }
    }
}

fn check_unsafe(path: &str, tokens: &[Token], report: Report<'_>) {
    let denies =
        |tokens: &[Token]| tokens.windows(3).any(|w| w[0].is("deny") && w[1].is("(") && w[2].is("unsafe_code"));
    if path == "src/lib.rs" && !denies(tokens) {
        report(1, "does not hold `#![deny(unsafe_code)]`".into());
    }
    if UNSAFE_ALLOWED.iter().any(|a| path == *a || (a.ends_with('/') && path.starts_with(a))) {
        return;
    }
    for (i, token) in tokens.iter().enumerate() {
        if token.is("unsafe") {
            report(token.line, "`unsafe` outside the files that may hold it".into());
        }
        if token.is("unsafe_code") && i >= 2 && !tokens[i - 2].is("deny") && !tokens[i - 2].is("forbid") {
            report(token.line, "relaxes `unsafe_code` outside the files that may hold it".into());
        }
    }
}

fn check_c_library(path: &str, tokens: &[Token], report: Report<'_>) {
    if path.starts_with(C_LIBRARY_ALLOWED) {
        return;
    }
    for token in tokens {
        if let Some(name) = C_LIBRARY.iter().find(|name| token.is(name)) {
            report(token.line, format!("names `{name}`, which only {C_LIBRARY_ALLOWED} may"));
        }
    }
}

fn check_floors(path: &str, tokens: &[Token], report: Report<'_>) {
    let Some(module) = module_of(path) else {
        return report(1, "is not a module file of this crate".into());
    };
    for (i, token) in tokens.iter().enumerate() {
        let next_is = |offset: usize, what: &str| tokens.get(i + offset).is_some_and(|t| t.is(what));
        if token.is("path") && i >= 2 && tokens[i - 1].is("[") && next_is(1, "=") {
            report(token.line, "`#[path]` hides which file a module is".into());
        }
        if token.is("include") && next_is(1, "!") {
            report(token.line, "`include!` hides what it imports".into());
        }
        if (token.is("crate") && (next_is(1, "as") || next_is(1, "self"))) || (token.is("super") && next_is(1, "as")) {
            report(token.line, format!("`{}` renamed: it cannot be followed", token.text));
        }
    }
    let Some(own) = module.first() else {
        return; // lib.rs, the front, may name everything.
    };
    let Some(own_rank) = rank(own) else {
        return report(1, format!("module `{own}` is on no floor: assign it in tests/floors.rs"));
    };
    for (line, target) in paths_through_root(&module, tokens) {
        if path.starts_with(BARE) && !BARE_ALLOWED.contains(&target.as_str()) {
            report(line, format!("a limit names `crate::{target}`: limits share no code with the pool"));
        }
        if &target == own {
            continue;
        }
        let (target_rank, kind) = match rank(&target) {
            Some(rank) => (rank, format!("floor {}", rank.0)),
            None => (FRONT, "the front: name its module instead".to_string()),
        };
        if target_rank >= own_rank {
            report(line, format!("`{own}` (floor {}) names `crate::{target}` ({kind})", own_rank.0));
        }
    }
}

/// The module path of a file: `src/a/b.rs` is `[a, b]`, `src/a/mod.rs` is `[a]`, `src/lib.rs` is `[]`.
fn module_of(path: &str) -> Option<Vec<String>> {
    let mut module: Vec<String> =
        path.strip_prefix("src/")?.strip_suffix(".rs")?.split('/').map(str::to_string).collect();
    match module.last().map(String::as_str) {
        Some("mod") if module.len() > 1 => {
            module.pop();
        }
        Some("lib") if module.len() == 1 => module.clear(),
        _ => {}
    }
    Some(module)
}

/// Every path that goes through the crate's root, as (line, the name that follows the root; `*` for a glob).
fn paths_through_root(module: &[String], tokens: &[Token]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut here = module.to_vec();
    // Brace depths at which the inline modules on `here` end.
    let mut inline = Vec::new();
    let mut depth = 0;
    for i in 0..tokens.len() {
        let token = &tokens[i];
        match token.text.as_str() {
            "{" => {
                if i >= 2 && tokens[i - 2].is("mod") && tokens[i - 1].kind == Kind::Ident {
                    here.push(tokens[i - 1].text.clone());
                    inline.push(depth);
                }
                depth += 1;
            }
            "}" => {
                depth -= 1;
                if inline.last() == Some(&depth) {
                    inline.pop();
                    here.pop();
                }
            }
            "crate" | "super" | "self" | "seqpool" if token.kind == Kind::Ident && starts_path(tokens, i) => {
                let mut base = here.clone();
                match token.text.as_str() {
                    "super" => drop(base.pop()),
                    "self" => {}
                    _ => base.clear(),
                }
                follow(tokens, i + 3, base, &mut found);
            }
            _ => {}
        }
    }
    found
}

/// Whether the name at `i` is a path's first segment. Inside a `use` group, `super` and `self` are followed from the
/// group's head.
fn starts_path(tokens: &[Token], i: usize) -> bool {
    let after_colons = i >= 2 && tokens[i - 1].is(":") && tokens[i - 2].is(":");
    colons_at(tokens, i + 1) && (!after_colons || tokens[i].is("seqpool"))
}

fn colons_at(tokens: &[Token], i: usize) -> bool {
    [i, i + 1].iter().all(|i| tokens.get(*i).is_some_and(|t| t.is(":")))
}

/// Follows a path, or an element of a `use` group, from the segment at `i`; the segments before it lead to `base`.
/// Returns the token after it.
fn follow(tokens: &[Token], mut i: usize, mut base: Vec<String>, found: &mut Vec<(usize, String)>) -> usize {
    while let Some(token) = tokens.get(i) {
        if token.is("{") {
            i += 1;
            while tokens.get(i).is_some_and(|t| !t.is("}")) {
                i = follow(tokens, i, base.clone(), found);
                // Over `as name`, and the comma.
                while tokens.get(i).is_some_and(|t| !t.is("}") && !t.is(",")) {
                    i += 1;
                }
                i += usize::from(tokens.get(i).is_some_and(|t| t.is(",")));
            }
            return i + 1;
        }
        if token.is("super") {
            base.pop();
        } else {
            if base.is_empty() {
                found.push((token.line, token.text.clone()));
            }
            if !token.is("self") {
                base.push(token.text.clone());
            }
        }
        i += 1;
        if !colons_at(tokens, i) {
            break;
        }
        i += 2;
    }
    i
}

// ---- reading Rust ----

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ident,
    /// A string, character or number; its text is dropped.
    Literal,
    /// A lifetime or one character of punctuation.
    Other,
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    text: String,
    line: usize,
}

impl Token {
    fn is(&self, text: &str) -> bool {
        self.kind != Kind::Literal && self.text == text
    }
}

/// The tokens of a Rust file, without comments.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_ident = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < chars.len() {
        let start = i;
        let mut token = |kind, text: String| tokens.push(Token { kind, text, line });
        match at(i) {
            c if c.is_whitespace() => i += 1,
            '/' if at(i + 1) == '/' => i += chars[i..].iter().take_while(|c| **c != '\n').count(),
            '/' if at(i + 1) == '*' => i = end_of_block_comment(&chars, i),
            '"' => {
                i = end_of_string(&chars, i);
                token(Kind::Literal, String::new());
            }
            '\'' if at(i + 1) == '\\' || at(i + 2) == '\'' => {
                i = end_of_char(&chars, i);
                token(Kind::Literal, String::new());
            }
            '\'' => {
                i += 1 + chars[i + 1..].iter().take_while(|c| is_ident(**c)).count();
                token(Kind::Other, chars[start..i].iter().collect());
            }
            c if c.is_ascii_digit() => {
                i += chars[i..].iter().take_while(|c| is_ident(**c)).count();
                token(Kind::Literal, String::new());
            }
            c if is_ident(c) => {
                i += chars[i..].iter().take_while(|c| is_ident(**c)).count();
                let name: String = chars[start..i].iter().collect();
                let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
                match name.as_str() {
                    "r" | "br" | "cr" if at(i + hashes) == '"' => {
                        i = end_of_raw_string(&chars, i, hashes);
                        token(Kind::Literal, String::new());
                    }
                    "b" | "c" if at(i) == '"' => {
                        i = end_of_string(&chars, i);
                        token(Kind::Literal, String::new());
                    }
                    "b" if at(i) == '\'' => {
                        i = end_of_char(&chars, i);
                        token(Kind::Literal, String::new());
                    }
                    "r" if at(i) == '#' && is_ident(at(i + 1)) => i += 1, // `r#name`: the name comes next.
                    _ => token(Kind::Ident, name),
                }
            }
            c => {
                i += 1;
                token(Kind::Other, c.to_string());
            }
        }
        line += chars[start..i.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

fn end_of_block_comment(chars: &[char], mut i: usize) -> usize {
    let mut depth = 0;
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

/// `i` is at the opening quote.
fn end_of_string(chars: &[char], i: usize) -> usize {
    end_of_quoted(chars, i, '"')
}

fn end_of_char(chars: &[char], i: usize) -> usize {
    end_of_quoted(chars, i, '\'')
}

fn end_of_quoted(chars: &[char], mut i: usize, quote: char) -> usize {
    i += 1;
    while i < chars.len() && chars[i] != quote {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

/// `i` is at the first hash or the opening quote.
fn end_of_raw_string(chars: &[char], i: usize, hashes: usize) -> usize {
    let mut i = i + hashes + 1;
    while i < chars.len() {
        if chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return i + 1 + hashes;
        }
        i += 1;
    }
    i
}

/// For each token, whether it is compiled for tests only: under `#[test]` or `#[cfg(test)]` (`all(test, …)` too).
fn test_only(tokens: &[Token]) -> Vec<bool> {
    let mut marks = vec![false; tokens.len()];
    let mut i = 0;
    while i + 2 < tokens.len() {
        let inner = tokens[i + 1].is("!");
        let open = if inner { i + 2 } else { i + 1 };
        if !tokens[i].is("#") || !tokens.get(open).is_some_and(|t| t.is("[")) {
            i += 1;
            continue;
        }
        let close = closing(tokens, open);
        let attribute = &tokens[open + 1..close.min(tokens.len())];
        let is_test = match attribute {
            [only] => only.is("test"),
            [cfg, _, predicate @ .., _] if cfg.is("cfg") => implies_test(predicate),
            _ => false,
        };
        if is_test && inner {
            marks.fill(true);
            return marks;
        }
        if is_test {
            let end = end_of_item(tokens, close + 1);
            marks[i..end].fill(true);
            i = end;
        } else {
            i = close + 1;
        }
    }
    marks
}

/// Whether a `cfg` predicate holds in test builds only.
fn implies_test(predicate: &[Token]) -> bool {
    let members = |tokens: &[Token]| -> Vec<bool> {
        let mut depth = 0;
        let parts = tokens.split(|t| {
            depth += i32::from(t.is("(")) - i32::from(t.is(")"));
            depth == 0 && t.is(",")
        });
        parts.filter(|part| !part.is_empty()).map(implies_test).collect()
    };
    match predicate {
        [only] => only.is("test"),
        [all, _, rest @ .., _] if all.is("all") => members(rest).contains(&true),
        [any, _, rest @ .., _] if any.is("any") => !members(rest).contains(&false),
        _ => false,
    }
}

/// The index of the bracket that closes the one at `open`.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        depth += i32::from(["(", "[", "{"].iter().any(|b| token.is(b)));
        depth -= i32::from([")", "]", "}"].iter().any(|b| token.is(b)));
        if depth == 0 {
            return i;
        }
    }
    tokens.len()
}

/// One past the item that begins at `start`: its `;`, or the brace that closes its body.
fn end_of_item(tokens: &[Token], start: usize) -> usize {
    let mut i = start;
    while i < tokens.len() {
        if tokens[i].is(";") {
            return i + 1;
        }
        if tokens[i].is("{") {
            return (closing(tokens, i) + 1).min(tokens.len());
        }
        i = if tokens[i].is("(") || tokens[i].is("[") { closing(tokens, i) + 1 } else { i + 1 };
    }
    tokens.len()
}

// ---- the repository ----

/// Every text file of the repository as (path, text), without what Git and Cargo keep.
fn repository() -> Vec<(String, String)> {
    fn walk(root: &Path, folder: &Path, files: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                if name != ".git" && !name.starts_with("target") {
                    walk(root, &path, files);
                }
            } else if kind.is_file()
                && let Ok(text) = String::from_utf8(std::fs::read(&path).unwrap())
            {
                files.push((path.strip_prefix(root).unwrap().to_str().unwrap().to_string(), text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    walk(root, root, &mut files);
    files.sort();
    files
}

#[test]
fn the_repository_keeps_the_rules() {
    let files = repository();
    for expected in ["Cargo.toml", "src/lib.rs", "src/sys/mod.rs", "tests/floors.rs"] {
        assert!(files.iter().any(|(path, _)| path == expected), "{expected} was not read");
    }
    let violations: Vec<String> =
        files.iter().flat_map(|(path, text)| check(path, text)).map(|v| v.to_string()).collect();
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
}

/// The names of the direct dependencies in the output of `cargo tree --depth 1 --prefix none`.
fn direct_dependencies(tree: &str) -> BTreeSet<&str> {
    tree.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect()
}

fn cargo_tree(features: &[&str]) -> String {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--edges", "normal,build", "--depth", "1", "--prefix", "none"])
        .args(features)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_embedder_gets_the_core_dependencies_only() {
    let tree = cargo_tree(&["--no-default-features"]);
    assert_eq!(direct_dependencies(&tree), CORE_DEPENDENCIES.iter().copied().collect(), "{tree}");
    // Seen to bite: the command line's own dependencies are found the same way. (Without the feature they may not have
    // been downloaded.)
    if cfg!(feature = "cli") {
        let tree = cargo_tree(&[]);
        assert!(direct_dependencies(&tree).contains("clap"), "{tree}");
    }
}

// ---- seen to bite ----

/// What `check` says of a file with a module doc on line 1 and `body` from line 2 on.
fn found(path: &str, body: &str) -> Vec<String> {
    check(path, &format!("//! Doc.\n{body}")).iter().map(|v| v.to_string()).collect()
}

#[track_caller]
fn bites(path: &str, body: &str, expected: &[&str]) {
    let found = found(path, body);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(&format!("{path}:{expected}")), "`{found}` is not `{path}:{expected}…`");
    }
}

#[track_caller]
fn passes(path: &str, body: &str) {
    assert_eq!(found(path, body), Vec::<String>::new());
}

#[test]
fn bites_on_imports_from_above() {
    bites(
        "src/scheduler.rs",
        "use crate::limits::X;\nuse crate::pool::Pool;\n",
        &["3: `scheduler` (floor 3) names `crate::pool` (floor 4)"],
    );
    bites(
        "src/frame.rs",
        "fn f() -> crate::reactor::Token { todo() }",
        &["2: `frame` (floor 1) names `crate::reactor`"],
    );
    bites(
        "src/sys/epoll.rs",
        "use {\n std::fmt,\n crate::frame::Frame};",
        &["4: `sys` (floor 0) names `crate::frame` (floor 1)"],
    );
    bites("src/limits.rs", "use crate::sys::Pid;", &["2: `limits` (floor 0) names `crate::sys`"]);
    bites("src/pool/mod.rs", "use crate::cli::Args;", &["2: `pool` (floor 4) names `crate::cli` (floor 5)"]);
    bites("src/pool/mod.rs", "use seqpool::cli::Args;", &["2: `pool`"]);
    bites("src/pool/mod.rs", "use ::seqpool::cli::Args;", &["2: `pool`"]);
}

#[test]
fn bites_on_imports_from_the_same_floor() {
    bites("src/scheduler.rs", "use crate::nursery::Nursery;", &["2: `scheduler` (floor 3) names `crate::nursery`"]);
    bites("src/transport/seqpacket.rs", "use crate::worker::Loop;", &["2: `transport`"]);
    // Steps inside floor 1: a slot is made of rings and a claim word, never the other way round.
    // Inside floor 3, the nursery forks what runs the worker.
    passes("src/slot.rs", "use crate::{claim::Claim, ring::Ring};");
    passes("src/nursery.rs", "use crate::worker;");
    bites("src/worker/mod.rs", "use crate::nursery;", &["2: `worker` (floor 3) names `crate::nursery` (floor 3)"]);
    bites("src/ring.rs", "use crate::slot::Slot;", &["2: `ring` (floor 1) names `crate::slot` (floor 1)"]);
}

#[test]
fn bites_inside_groups() {
    bites(
        "src/reactor/timer.rs",
        "use crate::{\n    limits::{A, B},\n    pool::{self, Pool},\n    sys,\n    worker,\n};",
        &["4: `reactor` (floor 2) names `crate::pool`", "6: `reactor` (floor 2) names `crate::worker`"],
    );
    bites("src/reactor/timer.rs", "use super::{entry, super::{frame::A, pool}};", &["2: `reactor`"]);
}

#[test]
fn bites_on_climbing_out_with_super() {
    bites("src/frame.rs", "use super::pool::Pool;", &["2: `frame` (floor 1) names `crate::pool`"]);
    bites("src/transport/mod.rs", "use super::pool::Pool;", &["2: `transport`"]);
    bites("src/transport/seqpacket.rs", "use super::super::pool::Pool;", &["2: `transport`"]);
    bites("src/transport/seqpacket.rs", "use self::super::super::pool::Pool;", &["2: `transport`"]);
    bites(
        "src/frame.rs",
        "mod inner {\n    use super::super::pool::Pool;\n}\nuse super::ring::A;",
        &["3: `frame`", "5: `frame` (floor 1) names `crate::ring` (floor 1)"],
    );
    // The same words that stay inside the module.
    passes("src/transport/seqpacket.rs", "use super::pool::Pool;");
    passes("src/frame.rs", "mod inner {\n    use super::*;\n    use super::pool;\n}");
    passes("src/pool/submit.rs", "mod a { mod b { use super::super::super::x; } }");
}

#[test]
fn bites_on_the_front_and_on_disguises() {
    bites("src/worker/mod.rs", "use crate::Outcome;", &["2: `worker` (floor 3) names `crate::Outcome` (the front"]);
    bites("src/worker/mod.rs", "use crate::*;", &["2: `worker` (floor 3) names `crate::*` (the front"]);
    bites("src/frame.rs", "use super::*;", &["2: `frame` (floor 1) names `crate::*` (the front"]);
    bites("src/worker/mod.rs", "use crate::{self as root};", &["2: `worker` (floor 3) names `crate::self`"]);
    bites("src/worker/mod.rs", "use crate as root;", &["2: `crate` renamed"]);
    bites("src/worker/mod.rs", "extern crate self as root;", &["2: `crate` renamed"]);
    bites("src/worker/mod.rs", "use super as root;", &["2: `super` renamed"]);
    bites("src/worker/mod.rs", "macro_rules! m { () => { $crate::pool::f() } }", &["2: `worker`"]);
    bites("src/worker/mod.rs", "#[path = \"../pool/mod.rs\"]\nmod p;", &["2: `#[path]`"]);
    bites("src/worker/mod.rs", "include!(\"x.rs\");", &["2: `include!`"]);
    passes("src/cli/mod.rs", "use crate::{Outcome, Pool};\nuse crate::server::X;");
    passes("src/main.rs", "use seqpool::{Pool, cli};");
}

#[test]
fn lets_files_name_what_is_below() {
    passes("src/lib.rs", "#![deny(unsafe_code)]\npub mod pool;\npub use crate::pool::Pool;\npub use pool::*;");
    passes("src/pool/mod.rs", "use crate::{frame, limits, nursery, reactor, scheduler, slot, sys, transport, worker};");
    passes("src/pool/submit.rs", "use crate::pool::Pool;\npub(crate) fn f() {}\npub(in crate::pool) fn g() {}");
    passes("src/worker/mod.rs", "/// See [`crate::pool`].\n// use crate::pool;\nconst A: &str = \"crate::pool\";");
}

#[test]
fn bites_on_a_file_without_a_floor() {
    bites("src/helpers.rs", "", &["1: module `helpers` is on no floor: assign it"]);
    bites("src/util/mod.rs", "", &["1: module `util` is on no floor"]);
    bites("src/bin/other.rs", "", &["1: module `bin` is on no floor"]);
}

#[test]
fn bites_on_the_c_library_outside_sys() {
    bites("src/frame.rs", "fn f(a: libc::c_int) {}", &["2: names `libc`"]);
    bites("src/pool/mod.rs", "use std::fmt;\nuse nix::unistd;", &["3: names `nix`"]);
    passes("src/sys/fork.rs", "use nix::unistd;\nfn f(a: libc::c_int) {}");
    passes(
        "src/frame.rs",
        "// nix, libc\n/* nix /* libc */ nix */ const A: &str = \"nix\"; const B: &str = r#\"\"nix\"\"#;",
    );
    passes(
        "src/frame.rs",
        "const A: &[u8] = b\"nix\"; const Q: char = '\"'; const R: char = '\\''; struct L<'nix>(&'nix ());",
    );
}

#[test]
fn bites_on_pool_code_in_a_limit() {
    for line in ["use crate::frame::Frame;", "use crate::Pool;", "use super::super::super::super::ring::Ring;"] {
        bites("src/cli/bench/bare/packed.rs", line, &["2: a limit names `crate::"]);
        passes("src/cli/bench/measures.rs", &line.replace("super::super::super::super", "crate"));
    }
    passes("src/cli/bench/bare/packed.rs", "use crate::{cli::handlers::upper, limits, sys};");
}

#[test]
fn bites_on_unsafe_where_it_may_not_stand() {
    bites("src/pool/mod.rs", "fn f() {\n    unsafe { g() }\n}", &["3: `unsafe` outside"]);
    bites("src/pool/mod.rs", "#![allow(unsafe_code)]", &["2: relaxes `unsafe_code`"]);
    bites("src/ringer.rs", "unsafe fn f() {}", &["1: module `ringer`", "2: `unsafe` outside"]);
    bites("src/lib.rs", "pub mod pool;", &["1: does not hold `#![deny(unsafe_code)]`"]);
    for path in ["src/sys/fork.rs", "src/ring.rs", "src/ring/mirror.rs", "src/claim.rs", "src/slot.rs"] {
        passes(path, "#![allow(unsafe_code)]\nfn f() { unsafe { g() } }");
    }
    passes("src/pool/mod.rs", "//! unsafe\nconst A: &str = \"unsafe\";");
}

#[test]
fn bites_on_unwrap_outside_tests() {
    bites("src/pool/mod.rs", "fn f() {\n    a\n        .unwrap();\n}", &["4: `.unwrap()` outside test code"]);
    bites(
        "src/pool/mod.rs",
        "#[cfg(test)]\nmod tests { fn f() { a.unwrap() } }\nfn f() { a.unwrap() }",
        &["4: `.unwrap()`"],
    );
    bites("src/pool/mod.rs", "#[cfg(test)]\nuse a::B;\nfn f() { a.unwrap() }", &["4: `.unwrap()`"]);
    bites("src/pool/mod.rs", "#[cfg(not(test))]\nfn f() { a.unwrap() }", &["3: `.unwrap()`"]);
    bites("src/pool/mod.rs", "#[cfg(any(test, unix))]\nfn f() { a.unwrap() }", &["3: `.unwrap()`"]);
    passes("src/pool/mod.rs", "#[cfg(all(test, not(seqpool_loom)))]\nmod tests { fn f() { a.unwrap() } }");
    passes("src/pool/mod.rs", "#[test]\n#[ignore]\nfn f() -> [u8; 4] { a.unwrap() }");
    passes("src/pool/a.rs", "#![cfg(test)]\nfn f() { a.unwrap() }");
    passes("src/pool/tests.rs", "fn f() { a.unwrap() }");
    passes("src/pool/mod.rs", "#[cfg(test)]\nmod tests;");
    bites("src/pool/mod.rs", "mod tests;", &["2: a module `tests` without `#[cfg(test)]`"]);
    passes("src/pool/mod.rs", "/// `.unwrap()`\nfn f() { a.unwrap_or(0) }");
    passes("tests/pool.rs", "fn f() { a.unwrap() }");
}

#[test]
fn bites_on_what_is_unfinished() {
    for name in BANNED_MACROS {
        for path in ["src/pool/mod.rs", "tests/pool.rs", "benches/pool.rs", "examples/pool.rs"] {
            bites(path, &format!("fn f() {{\n    {name}!()\n}}"), &[&format!("3: `{name}!`")]);
        }
    }
    passes("src/pool/mod.rs", "fn f(todo: bool) -> bool { todo != true }");
    for word in BANNED_WORDS {
        bites("src/pool/mod.rs", &format!("// {word}: more"), &["2: holds the word"]);
        bites("docs/protocol.md", &format!("\n({word})"), &["3: holds the word"]);
        passes("docs/protocol.md", &format!("{word}S"));
    }
}

#[test]
fn bites_on_paths_of_one_machine() {
    for path in BANNED_PATHS {
        bites("docs/protocol.md", &format!("see {path}x"), &["2: holds the absolute path"]);
        bites(".ci/run", &format!("cd \"{path}x\""), &["2: holds the absolute path"]);
        passes("docs/protocol.md", &format!("see target{path}x"));
    }
}

#[test]
fn bites_on_a_missing_module_doc() {
    let found: Vec<String> =
        check("src/frame.rs", "/// Not a module doc.\nstruct A;").iter().map(|v| v.to_string()).collect();
    assert_eq!(found, ["src/frame.rs:1: does not open with a `//!` module doc"]);
}
