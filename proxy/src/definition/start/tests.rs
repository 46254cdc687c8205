use super::*;

fn disk(name: &str, device: &str, node: &str, drive: &str, file: &str) -> DefinedDisk {
    DefinedDisk {
        name: name.parse().unwrap(),
        device: device.into(),
        node: node.into(),
        drive: drive.into(),
        file: file.into(),
        bus: "scsi".into(),
    }
}

/// The options of the script of a machine, one line each, and its notes.
fn script(words: &[&str], disks: Vec<DefinedDisk>, nvram: bool, identity: Identity) -> (Vec<String>, Vec<String>) {
    let words = ["/usr/bin/qemu-system-x86_64"].iter().chain(words).map(|it| (*it).to_owned()).collect();
    let mut definition = Definition::new("10.0".into(), "/srv/me".into(), words, disks);
    let mut files = RestoredFiles::default();
    for disk in &definition.disks {
        files.disks.insert(disk.name.clone(), format!("{}.raw", disk.name));
    }
    if nvram {
        definition.nvram = Some("/vars.fd".into());
        files.nvram = Some("nvram.fd".into());
    }
    let made = start_script(&definition, "web at noon", &files, identity, &World::system()).unwrap();
    let (head, options) = made.split_once("exec \"${QEMU:-qemu-system-x86_64}\" \\\n").unwrap();
    let options = options.strip_suffix("  \"$@\"\n").unwrap();
    let notes = head.lines().filter_map(|it| it.strip_prefix("# Note: ")).map(str::to_owned).collect();
    (options.lines().map(|it| it.trim().trim_end_matches(" \\").to_owned()).collect(), notes)
}

#[test]
fn a_graph_of_nodes_becomes_one() {
    let words = [
        "-blockdev",
        "driver=file,filename=/a.qcow2,node-name=file0",
        "-blockdev",
        r#"{"driver":"qcow2","file":"file0","node-name":"fmt0","backing":"base"}"#,
        "-blockdev",
        "driver=raw,node-name=base,file.driver=file,file.filename=/base",
        "-device",
        "virtio-blk-pci,id=vda,drive=fmt0",
    ];
    // The node of the device is another since a snapshot was taken while it ran.
    let disks = vec![disk("vda", "/machine/peripheral/vda/virtio-backend", "#block999", "", "/overlay.qcow2")];
    let (options, notes) = script(&words, disks, false, Identity::New);
    let expected = [
        "-blockdev driver=raw,node-name=fmt0,discard=unmap,file.driver=file,file.filename=vda.raw",
        "-device virtio-blk-pci,id=vda,drive=fmt0",
    ];
    assert_eq!((options, notes.len()), (expected.map(str::to_owned).to_vec(), 0));
}

#[test]
fn a_base_that_others_use_stays() {
    let words = [
        "-blockdev",
        "driver=file,filename=/base,node-name=base",
        "-blockdev",
        "driver=qcow2,node-name=a,file.driver=file,file.filename=/a,backing=base",
        "-blockdev",
        "driver=qcow2,node-name=b,file.driver=file,file.filename=/b,backing=base",
        "-device",
        "virtio-blk-pci,id=x,drive=a",
    ];
    let (options, _) = script(&words, vec![disk("x", "/machine/peripheral/x", "a", "", "/a")], false, Identity::New);
    assert_eq!(options[0], "-blockdev driver=file,filename=/base,node-name=base");
    assert!(options[1].contains("node-name=a") && options[1].contains("file.filename=x.raw"), "{options:?}");
    assert!(options[2].contains("backing=base"), "{options:?}");
}

#[test]
fn drives_by_id_by_file_and_by_letter() {
    let words = [
        "-drive",
        "file=/a.qcow2,if=none,id=d0,format=qcow2,cache=none",
        "-device",
        "scsi-hd,drive=d0",
        "-drive",
        "file=b.raw,if=virtio,format=raw,snapshot=on",
        "-hdb",
        "/c.raw",
        "plain image.raw",
    ];
    let disks = vec![
        disk("a", "/machine/peripheral-anon/device[0]", "#block1", "d0", "/a.qcow2"),
        disk("b", "/machine/peripheral-anon/device[1]/virtio-backend", "#block2", "virtio0", "/srv/me/b.raw"),
        disk("c", "/machine/unattached/device[1]", "#block3", "ide0-hd1", "/c.raw"),
        disk("d", "/machine/unattached/device[2]", "#block4", "ide0-hd0", "plain image.raw"),
    ];
    let (options, notes) = script(&words, disks, false, Identity::New);
    let expected = [
        "-drive file=a.raw,format=raw,if=none,id=d0,cache=none",
        "-device scsi-hd,drive=d0",
        "-drive file=b.raw,format=raw,if=virtio",
        "-drive file=c.raw,format=raw,index=1,media=disk",
        "-drive file=d.raw,format=raw,index=0,media=disk",
    ];
    assert_eq!((options, notes.len()), (expected.map(str::to_owned).to_vec(), 0));
}

#[test]
fn a_disk_that_was_plugged_in_later() {
    let (options, notes) =
        script(&["-S"], vec![disk("x", "/machine/peripheral/x", "n", "", "/x")], false, Identity::New);
    let expected = ["-drive file=x.raw,format=raw,if=none,id=restored-x", "-device virtio-blk-pci,drive=restored-x"];
    assert_eq!(options, expected);
    assert!(notes[0].contains("plugged in after the start (scsi)"), "{notes:?}");
}

#[test]
fn sockets_and_logs_come_along_and_the_start_does_not() {
    let words = [
        "-qmp",
        "unix:/run/web.qmp,server=on,wait=off",
        "-chardev",
        "socket,path=/run/ga,server=on,id=ga",
        "-pidfile",
        "/run/web.pid",
        "-D",
        "/log/a,b",
        "-incoming",
        "defer",
        "-S",
        "-chardev",
        "serial,id=s,path=/dev/ttyS0",
        "-kernel",
        "vmlinuz",
        "-add-fd",
        "fd=3,set=1",
        "-netdev",
        "tap,id=n,fd=4",
    ];
    let (options, notes) = script(&words, Vec::new(), false, Identity::Same);
    let expected = [
        "-qmp unix:run/web.qmp,server=on,wait=off",
        "-chardev socket,path=run/ga,server=on,id=ga",
        "-pidfile run/web.pid",
        "-D run/a,b",
        "-chardev serial,id=s,path=/dev/ttyS0",
        "-kernel /srv/me/vmlinuz",
        "-netdev tap,id=n,fd=4",
    ];
    assert_eq!(options, expected);
    assert!(notes[0].contains("handed open files"), "{notes:?}");
}

#[test]
fn firmware_keeps_its_variables() {
    for (given, made) in [
        ("if=pflash,unit=1,format=raw,file=/vars.fd", "-drive if=pflash,unit=1,format=raw,file=nvram.fd"),
        ("if=pflash,file=/code.fd,readonly=on", "-drive if=pflash,file=/code.fd,readonly=on"),
    ] {
        assert_eq!(script(&["-drive", given], Vec::new(), true, Identity::Same).0, [made]);
    }
    assert_eq!(script(&["-pflash", "/vars.fd"], Vec::new(), true, Identity::Same).0, ["-pflash nvram.fd"]);
}

#[test]
fn another_machine_has_another_identity() {
    let words = [
        "-uuid",
        "11111111-1111-1111-1111-111111111111",
        "-device",
        "e1000,mac=52:54:00:00:00:01,netdev=n",
        "-nic",
        "user,macaddr=52:54:00:00:00:02",
        "-device",
        "vmgenid,guid=22222222-2222-2222-2222-222222222222",
        "-smbios",
        "type=1,uuid=11111111-1111-1111-1111-111111111111",
    ];
    let (same, _) = script(&words, Vec::new(), false, Identity::Same);
    assert_eq!(same.join(" "), words.join(" "));
    let (new, _) = script(&words, Vec::new(), false, Identity::New);
    let text = new.join("\n");
    assert!(!text.contains("1111") && !text.contains("2222") && text.contains("guid=auto"), "{text}");
    assert!(new[1].starts_with("-device e1000,mac=52:54:00:") && !text.contains(":00:00:01"), "{text}");
    assert_eq!(new[0].strip_prefix("-uuid "), new[4].split_once("uuid=").map(|it| it.1));
}

#[test]
fn words_of_a_point_do_nothing_in_a_shell() {
    assert_eq!(quoted("a'$(b)"), r"'a'\''$(b)'");
    assert_eq!((quoted(""), quoted("a=b,c")), ("''".to_owned(), "a=b,c".to_owned()));
    let hostile = ["-name", "x\n$(reboot)", "-object", "secret,id=a\nb,data=1"];
    let words = ["qemu-kvm"].iter().chain(&hostile).map(|it| (*it).to_owned()).collect();
    let definition = Definition::new("10\nreboot".into(), "/".into(), words, Vec::new());
    let made =
        start_script(&definition, "web\nreboot", &RestoredFiles::default(), Identity::Same, &World::system()).unwrap();
    assert!(made.contains("'x\n$(reboot)'") && made.lines().all(|line| line != "reboot"), "{made}");
    for program in ["/bin/sh", "qemu-system-$(x)", ""] {
        let definition = Definition::new("10".into(), "/".into(), vec![program.to_owned()], Vec::new());
        let made = start_script(&definition, "", &RestoredFiles::default(), Identity::Same, &World::system());
        assert!(made.is_err(), "{program}");
    }
    let none = Definition::new("10".into(), "/".into(), Vec::new(), Vec::new());
    assert!(start_script(&none, "", &RestoredFiles::default(), Identity::Same, &World::system()).is_err());
}
