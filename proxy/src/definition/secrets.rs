//! Passwords and keys do not go into a point: who may restore a machine need not know them.

use super::options::{Argument, read, write};

/// The command line without them, and what was left out.
pub fn remove(mut words: Vec<String>) -> (Vec<String>, Vec<String>) {
    if words.is_empty() {
        return (words, Vec::new());
    }
    let mut arguments = read(&words.split_off(1));
    let mut left_out = Vec::new();
    for argument in &mut arguments {
        remove_from(argument, &mut left_out);
    }
    words.extend(write(&arguments));
    (words, left_out)
}

fn remove_from(argument: &mut Argument, left_out: &mut Vec<String>) {
    let name = argument.name.clone().unwrap_or_default();
    let is_secret = name == "object" && {
        let kind = argument.get("qom-type").map(str::to_owned).or_else(|| first_word(argument));
        kind.is_some_and(|kind| kind.starts_with("secret"))
    };
    argument.change(&mut |key, value| {
        let whole = match key {
            "data" => is_secret,
            "password" | "passwd" | "proxy-password" => {
                !matches!(value, "on" | "off" | "yes" | "no" | "true" | "false")
            }
            _ => false,
        };
        let cut = if whole { Some(String::new()) } else { without_login(value) };
        if cut.is_some() {
            left_out.push(format!("a password or key of -{name}"));
        }
        cut
    });
}

fn first_word(argument: &Argument) -> Option<String> {
    match argument.value.as_ref()? {
        super::options::Setting::List(pairs) => {
            pairs.first().filter(|(key, _)| key.is_none()).map(|(_, word)| word.clone())
        }
        super::options::Setting::Json(_) => None,
    }
}

/// An address without the password in it: `https://user:password@host/`.
fn without_login(value: &str) -> Option<String> {
    let (scheme, rest) = value.split_once("://")?;
    let host_ends = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let at = rest[..host_ends].rfind('@')?;
    let (user, _) = rest[..at].split_once([':', '%'])?;
    Some(format!("{scheme}://{user}{}", &rest[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(words: &[&str]) -> (Vec<String>, usize) {
        let (words, left_out) = remove(words.iter().map(|it| (*it).to_owned()).collect());
        (words, left_out.len())
    }

    #[test]
    fn passwords_and_keys_go() {
        for (with, without) in [
            ("-object secret,id=a,data=abc", "-object secret,id=a,data="),
            (
                r#"-object {"data":"abc","id":"a","qom-type":"secret"}"#,
                r#"-object {"data":"","id":"a","qom-type":"secret"}"#,
            ),
            ("-spice port=1,password=abc", "-spice port=1,password="),
            ("-drive file=https://me:abc@host/x,if=none", "-drive file=https://me@host/x,if=none"),
            ("-iscsi user=me,password=abc", "-iscsi user=me,password="),
        ] {
            let words: Vec<_> = ["qemu"].into_iter().chain(with.split(' ')).collect();
            let expected: Vec<_> = ["qemu"].into_iter().chain(without.split(' ')).collect();
            let (words, left_out) = removed(&words);
            assert_eq!((words, left_out), (expected.iter().map(|it| (*it).to_owned()).collect(), 1));
        }
    }

    #[test]
    fn what_is_none_stays() {
        let words = [
            "qemu",
            "-vnc",
            ":1,password=on",
            "-object",
            "rng-random,id=a,filename=/dev/urandom",
            "-object",
            "secret,id=s,file=/k",
            "-device",
            "x,data=1",
            "-drive",
            "file=nbd://host:10809/x",
        ];
        assert_eq!(removed(&words), (words.iter().map(|it| (*it).to_owned()).collect(), 0));
        assert_eq!(removed(&[]), (Vec::new(), 0));
    }
}
