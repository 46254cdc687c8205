//! The words of QEMU's command line, as far as they must be understood to change them: `-NAME VALUE`, where the value is
//! often a list such as `file=/a,if=virtio` (QEMU, `qemu-options`), or JSON.

use serde_json::{Map, Value};

/// One option of a command line.
#[derive(Debug, Clone, PartialEq)]
pub struct Argument {
    /// Its name without dashes; none for an image that stands alone.
    pub name: Option<String>,
    /// What follows it; none for an option that takes nothing.
    pub value: Option<Setting>,
}

/// The value of an option.
#[derive(Debug, Clone, PartialEq)]
pub enum Setting {
    /// Keys and values, in order; a word without `=` has no key.
    List(Vec<(Option<String>, String)>),
    /// The same as JSON.
    Json(Map<String, Value>),
}

/// Cuts the words that follow the program's name.
pub fn read(words: &[String]) -> Vec<Argument> {
    let mut made = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix('-').map(|it| it.strip_prefix('-').unwrap_or(it)) else {
            made.push(Argument { name: None, value: Some(Setting::plain(word)) });
            continue;
        };
        let value = if TAKE_NOTHING.contains(&name) { None } else { words.next() };
        let value = value.map(|it| if IS_ONE_WORD.contains(&name) { Setting::plain(it) } else { Setting::read(it) });
        made.push(Argument { name: Some(name.to_owned()), value });
    }
    made
}

/// The words again.
pub fn write(arguments: &[Argument]) -> Vec<String> {
    let words = arguments.iter().flat_map(|it| {
        let one_word = it.name.as_deref().is_none_or(|name| IS_ONE_WORD.contains(&name));
        let value = it.value.as_ref().map(|value| value.text(one_word));
        [it.name.as_ref().map(|name| format!("-{name}")), value]
    });
    words.flatten().collect()
}

impl Argument {
    /// An option with keys and values.
    pub fn of(name: &str, pairs: &[(&str, &str)]) -> Self {
        let pairs = pairs.iter().map(|(key, value)| (Some((*key).to_owned()), (*value).to_owned()));
        Self { name: Some(name.to_owned()), value: Some(Setting::List(pairs.collect())) }
    }

    /// Whether this is the option of that name.
    pub fn is(&self, name: &str) -> bool {
        self.name.as_deref() == Some(name)
    }

    /// The value of a key, where it is text.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.value.as_ref()?.get(key)
    }

    /// The whole value, when it is one word.
    pub fn word(&self) -> Option<&str> {
        match self.value.as_ref()? {
            Setting::List(pairs) => match pairs.as_slice() {
                [(None, word)] => Some(word),
                _ => None,
            },
            Setting::Json(_) => None,
        }
    }

    /// Calls `change` for each key that has text, however deep it lies; what `change` gives takes its place. The key is
    /// empty for a word without one.
    pub fn change(&mut self, change: &mut dyn FnMut(&str, &str) -> Option<String>) {
        match &mut self.value {
            Some(Setting::List(pairs)) => {
                for (key, value) in pairs {
                    let key = key.as_deref().unwrap_or_default();
                    if let Some(new) = change(key.rsplit('.').next().unwrap_or(key), value) {
                        *value = new;
                    }
                }
            }
            Some(Setting::Json(map)) => change_map(map, change),
            None => (),
        }
    }
}

impl Setting {
    /// A value that is one word, with its commas.
    pub fn plain(word: &str) -> Self {
        Self::List(vec![(None, word.to_owned())])
    }

    fn read(text: &str) -> Self {
        if text.starts_with('{')
            && let Ok(map) = serde_json::from_str(text)
        {
            return Self::Json(map);
        }
        // A comma in a value is written twice.
        let parts = text.replace(",,", "\0");
        let pairs = parts.split(',').map(|part| {
            let text = |it: &str| it.replace('\0', ",");
            match part.split_once('=') {
                Some((key, value)) => (Some(text(key)), text(value)),
                None => (None, text(part)),
            }
        });
        Self::List(pairs.collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        match self {
            Self::List(pairs) => {
                pairs.iter().rev().find(|(it, _)| it.as_deref() == Some(key)).map(|(_, value)| value.as_str())
            }
            Self::Json(map) => {
                let mut steps = key.split('.');
                let first = map.get(steps.next()?)?;
                steps.try_fold(first, |value, step| value.get(step))?.as_str()
            }
        }
    }

    fn text(&self, one_word: bool) -> String {
        match self {
            Self::List(pairs) => {
                let escaped = |it: &str| if one_word { it.to_owned() } else { it.replace(',', ",,") };
                let words = pairs.iter().map(|(key, value)| match key {
                    Some(key) => format!("{key}={}", escaped(value)),
                    None => escaped(value),
                });
                words.collect::<Vec<_>>().join(",")
            }
            Self::Json(map) => Value::Object(map.clone()).to_string(),
        }
    }
}

fn change_map(map: &mut Map<String, Value>, change: &mut dyn FnMut(&str, &str) -> Option<String>) {
    for (key, value) in map {
        change_value(key, value, change);
    }
}

fn change_value(key: &str, value: &mut Value, change: &mut dyn FnMut(&str, &str) -> Option<String>) {
    match value {
        Value::Object(map) => change_map(map, change),
        Value::Array(all) => all.iter_mut().for_each(|it| change_value(key, it, change)),
        Value::String(text) => {
            if let Some(new) = change(key, text) {
                *text = new;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => (),
    }
}

/// Options of QEMU that take no value.
const TAKE_NOTHING: [&str; 37] = [
    "S",
    "alt-grab",
    "ctrl-grab",
    "daemonize",
    "enable-fips",
    "enable-kvm",
    "full-screen",
    "g3",
    "h",
    "help",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-hpet",
    "no-kvm",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "old-param",
    "only-migratable",
    "portrait",
    "preconfig",
    "rtc-td-hack",
    "s",
    "semihosting",
    "singlestep",
    "snapshot",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "curses",
    "sdl-quit",
];
/// Options whose value is one word, in which a comma is a comma.
const IS_ONE_WORD: [&str; 19] = [
    "append", "bios", "cdrom", "D", "dtb", "fda", "fdb", "hda", "hdb", "hdc", "hdd", "initrd", "kernel", "L", "loadvm",
    "mtdblock", "pflash", "pidfile", "sd",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|it| (*it).to_owned()).collect()
    }

    #[test]
    fn a_command_line_and_back() {
        let line = words(&[
            "-S",
            "-name",
            "guest=a,,b,process=x",
            "-drive",
            "file=/a,,b.raw,if=virtio",
            "-append",
            "console=ttyS0,115200 x",
            "-blockdev",
            r#"{"driver":"raw","file":{"driver":"file","filename":"/d,e"},"node-name":"n"}"#,
            "-nographic",
            "/image,with.raw",
            "-kernel",
            "/boot/a,b",
        ]);
        let read = read(&line);
        assert_eq!(write(&read), line);
        assert_eq!(read[1].get("guest"), Some("a,b"));
        assert_eq!(read[2].get("file"), Some("/a,b.raw"));
        assert_eq!((read[4].get("file.filename"), read[4].get("node-name")), (Some("/d,e"), Some("n")));
        assert_eq!((&read[6].name, read[6].word()), (&None, Some("/image,with.raw")));
        assert_eq!(read[7].word(), Some("/boot/a,b"));
    }

    #[test]
    fn two_dashes_and_an_option_that_misses_its_value() {
        assert_eq!(write(&read(&words(&["--device", "e1000"]))), ["-device", "e1000"]);
        assert_eq!(write(&read(&words(&["-device"]))), ["-device"]);
    }

    #[test]
    fn values_change_however_deep_they_lie() {
        let mut all = read(&words(&[
            "-drive",
            "file.filename=/a,if=none",
            "-blockdev",
            r#"{"file":{"filename":"/a"},"x":["/a"]}"#,
            "-cdrom",
            "/a",
        ]));
        for argument in &mut all {
            argument.change(&mut |key, value| (key != "x" && value == "/a").then(|| "/b".to_owned()));
        }
        assert_eq!(write(&all)[1], "file.filename=/b,if=none");
        assert_eq!(write(&all)[3], r#"{"file":{"filename":"/b"},"x":["/a"]}"#);
        assert_eq!(write(&all)[5], "/b");
    }
}
