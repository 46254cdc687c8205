#!/usr/bin/env python3
"""Restores a disk from a Windlass repository directory. Written from FORMAT.md alone, as its proof.

restore.py REPOSITORY POINT DISK OUTPUT    POINT: digits of an id, or a machine's name for its newest
Of the rules of replay it knows those that decide which points there are; ids prove whatever it reads.
"""
import re
import sys
from pathlib import Path
try:
    import zstandard
    from blake3 import blake3
except ImportError as error:
    sys.exit(f"error: {error}. Install it: python3 -m venv venv && venv/bin/pip install blake3 zstandard")

DATA, PAGE, MANIFEST, KINDS = 0, 1, 2, ("data", "page", "manifest", "attachment")
BLOCK, ENTRIES, PACK_HEADER, RECORD_HEADER, BLOB_HEADER = 65536, 1024, 116, 56, 28

class Damaged(Exception):
    """Bytes are not what FORMAT.md says."""
def need(right, what):
    if not right:
        raise Damaged(what)
def warn(what):
    print(f"warning: {what}", file=sys.stderr)

class Fields:
    """Takes fields off the front of some bytes."""
    def __init__(self, data, magic=b"", *versions):
        self.data, self.at = data, 0
        need(self.take(len(magic)) == magic, f"the magic {magic} is missing")
        for width, known in versions:
            need(self.number(width) == known, f"{magic}: newer than this script")
    def take(self, length):
        self.at += length
        need(self.at <= len(self.data), "cut short")
        return self.data[self.at - length:self.at]
    def number(self, width=8, signed=False):
        return int.from_bytes(self.take(width), "little", signed=signed)
    def text(self):
        return self.take(self.number(2)).decode()
    def option(self, width):
        return self.take(width) if self.number(1) else None
    def list(self, read):
        return [read() for _ in range(self.number(4))]
    def extensions(self):
        inside, found = Fields(self.take(self.number(4))), {}
        while inside.at < len(inside.data):
            tag, critical, found[tag] = inside.number(2), inside.number(2) & 1, inside.take(inside.number(4))
            need(not critical, f"the extension {tag} is newer than this script")
        return found
    def end(self):
        need(self.at == len(self.data), "bytes are left over")

def hashed(data, *layout):
    need(blake3(data[:-32]).digest() == data[-32:], f"{layout[0]}: the hash does not match")
    return Fields(data[:-32], *layout)

def opened(f):
    """What events and digests say of a session: itself, and whether it writes."""
    return (f.take(16), f.number(1), f.take(32), f.list(lambda: f.take(16)), f.extensions())[:2]
def committed(f):
    """What events and digests say of a point: its session, itself, the rest."""
    session, point, manifest, _, name, _ = *map(f.take, (16, 16, 32, 32)), f.text(), f.option(16)
    it, _, _, _ = {"manifest": manifest, "name": name, "there": True}, f.take(8), f.option(24), f.take(24)
    it["number"] = int.from_bytes(f.extensions().get(4, b""), "little")
    return session, point, it
def decoded(data):
    """Kind, plain bytes and length of the blob at the beginning of `data`; whether they are right their id tells."""
    f = Fields(data)
    version, kind, codec, reserved, length = f.number(1), f.number(1), f.number(1), f.take(13), f.number(4)
    need((version, reserved) == (1, bytes(13)) and kind < len(KINDS), "a blob newer than this script, or none")
    plain = f.take((f.number(4), f.take(4))[0])
    if codec == 1:
        need(zstandard.frame_content_size(plain) in (-1, length) and length <= 1 << 24, "too long")
        plain = zstandard.ZstdDecompressor().decompress(plain, max_output_size=length)
    return kind, plain, f.at

class Repository:
    def __init__(self, path):
        self.path, self.config = path, (path / "config").read_bytes()
        f = hashed(self.config, b"WINDLASS", (2, 1), (2, 0))
        self.id, _, domain = f.take(16), f.take(8), f.take(32)
        self.keys = [blake3(domain, derive_key_context=f"windlass 2026-11 chunk id {kind}").digest() for kind in KINDS]
        self.end, self.packs, self.places = (0, blake3(self.config).digest()), [], {}
        self.terms, self.sessions, self.points = {}, {}, {}
        for newest in sorted((path / "state").iterdir())[-1:]:
            self.digest(hashed(newest.read_bytes(), b"WLDIGEST", (2, 1), (2, 0)))
        while (log := path / f"log/{(number := self.end[0] + 1) // 10000:020}/{number:020}").exists():
            self.record(log.read_bytes())
        for name in self.packs:
            self.index(path / f"packs/{name.hex()[:2]}/{name.hex()}")
    def digest(self, f):
        need(f.take(f.number(4)) == self.config and f.take(16) == self.id, "it is of another repository")
        self.end, self.terms = (f.number(), f.take(32)), dict(f.list(lambda: (f.take(16), f.number(), f.take(40))[:2]))
        sessions, _ = f.list(lambda: (*opened(f), f.take(16), f.number(), f.take(16))), f.take(4)
        self.sessions = {key: (writer, term, writes) for key, writes, writer, term, _ in sessions}
        self.packs, _ = f.list(lambda: (f.take(4), f.take(32), f.take(21), f.option(8))[1]), f.list(lambda: f.take(32))
        for _ in range(f.number(4)):
            (_, point, it), number, _, forgotten = committed(f), f.number(), f.take(17), f.option(8)
            self.points[point] = it | {"number": it["number"] or number}
            self.points[point]["there"], _ = not forgotten, f.list(lambda: (f.text(), f.text()))
    def record(self, data):
        f = hashed(data, b"WLLOGREC", (2, 1), (2, 0))
        chained = f.number(), f.take(32), f.take(16)
        need(chained == (self.end[0] + 1, self.end[1], self.id), f"record {chained[0]} does not follow")
        self.end, author, _ = (chained[0], data[-32:]), (f.take(16), f.number()), f.take(24)
        for _ in range(f.number(4)):
            self.event(f.number(2), (f.take(2), Fields(f.take(f.number(4))))[1], *author)
        f.end()
    def event(self, code, f, writer, term):
        """Applies one event, unless it is void."""
        known = self.terms.get(writer, 0)
        if code == 1 and term == known + 1:
            self.terms[writer] = term
            self.sessions = {key: it for key, it in self.sessions.items() if it[0] != writer}
        elif code == 1 or term != known or (term == 0 and code not in (2, 3, 12)):
            warn(f"record {self.end[0]}: event {code} is void")
        elif code == 2:
            self.sessions = {(it := opened(f))[0]: (writer, term, it[1])} | self.sessions
        elif code in (3, 4):
            session = f.take(16)
            if code == 4 or self.sessions.get(session, ())[:2] == (writer, term):
                self.sessions.pop(session, None)
        elif code == 5:
            self.packs += f.list(lambda: (f.take(32), f.take(13))[0])
        elif code == 6:
            session, point, it = committed(f)
            if self.sessions.get(session) == (writer, term, 1):
                self.points.setdefault(point, it | {"number": it["number"] or self.end[0]})
        elif code in (7, 8):
            for point in f.list(lambda: f.take(16)):
                self.points.get(point, {})["there"] = code == 8
    def index(self, path):
        """Notes the places of a pack's chunks: from its footer, or where that is damaged from its records."""
        pack, found, at = path.read_bytes() if path.exists() else b"", [], PACK_HEADER
        start = len(pack) - 16 - int.from_bytes(pack[-16:-12], "little")
        if pack[-8:] == b"WLPACKED" and pack[start:start + 8] == b"WLFOOTER":
            f = Fields(pack[start:-16], b"WLFOOTER")
            found = f.list(lambda: (f.take(32), f.number(4), f.take(28)))
        nonces = b"|".join(map(re.escape, (pack[88:104], pack[at + 8:at + 24])))
        while not found and at >= 0 and at < len(pack):
            try:
                kind, plain, length = decoded(pack[at + RECORD_HEADER:])
                self.places.setdefault(blake3(plain, key=self.keys[kind]).digest(), []).append((path, at))
                at += RECORD_HEADER + length
            except (Damaged, zstandard.ZstdError):
                behind = re.compile(b"WLRC.{4}(?:" + nonces + b")", re.S).search(pack, at + 1)
                at = behind.start() if behind else -1
        for chunk, at, _ in found:
            self.places.setdefault(chunk, []).append((path, at))
    def chunk(self, chunk, kind):
        """The plain bytes of a chunk, proven by its id, from the first place where they are sound."""
        for path, at in self.places.get(chunk, ()):
            try:
                with path.open("rb") as file:
                    file.seek(at + RECORD_HEADER)
                    head = file.read(BLOB_HEADER)
                    code, plain, _ = decoded(head + file.read(int.from_bytes(head[20:24], "little")))
                need(code == kind and blake3(plain, key=self.keys[kind]).digest() == chunk, "the id does not match")
                return plain
            except (OSError, Damaged, zstandard.ZstdError) as error:
                warn(f"chunk {chunk.hex()} in {path}: {error}")
        raise Damaged(f"chunk {chunk.hex()} is nowhere sound")
    def disks(self, point):
        """Size and map of each disk, by name."""
        f = Fields(self.chunk(self.points[point]["manifest"], MANIFEST), b"WLMF", (2, 1), (2, 0))
        need(f.take(16) == point, "the manifest is of another point")
        f.take(16), f.text(), f.option(16), f.option(16), f.take(24), f.option(8), f.take(1)
        f.list(f.text), f.list(lambda: (f.text(), f.text())), f.text(), f.take(8)
        def disk():
            name, size, level, root = (f.take(16), f.text())[1], f.number(), (f.take(4), f.number(1))[1], f.option(32)
            f.take(16), f.text(), f.text(), f.text(), f.text(), f.list(lambda: (f.text(), f.take(40)))
            f.take(1), f.text(), f.option(16), f.take(28)
            return name, (size, level, root)
        disks = dict(f.list(disk))
        f.list(lambda: (f.text(), f.text(), f.take(9), f.option(32))), f.extensions(), f.end()
        return disks
    def write(self, output, size, page, level, place=0):
        """Writes what is below a page, which is at `place` among those of its level."""
        f = Fields(self.chunk(page, PAGE), b"WLPG", (1, 1), (1, 0), (1, level), (1, 0))
        count, _ = f.number(2), f.extensions()
        for at, state in enumerate(f.take(count), place * ENTRIES):
            need(state < 2, f"offset {at * BLOCK} could not be read when it was backed up")
            if state and level:
                self.write(output, size, f.take(32), level - 1, at)
            elif state:
                plain = self.chunk(f.take(32), DATA)
                need(len(plain) == min(BLOCK, size - at * BLOCK), "a chunk has not the length of its block")
                output.seek(at * BLOCK), output.write(plain)
        f.end()

def main(path, wanted, disk, target):
    repository = Repository(Path(path))
    there = sorted((it["number"], point) for point, it in repository.points.items() if it["there"])
    fits = [key for _, key in there if repository.points[key]["name"] == wanted][-1:]
    fits = fits or [key for _, key in there if key.hex().startswith(wanted)]
    need(len(fits) == 1, f"{wanted} is none or several of the points {[key.hex() for _, key in there]}")
    disks = repository.disks(fits[0])
    need(disk in disks, f"there is no disk {disk}; there are {list(disks)}")
    size, level, root = disks[disk]
    with open(target, "xb") as output:
        output.truncate(size)
        if root:
            repository.write(output, size, root, level)

if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (Damaged, OSError) as problem:
        sys.exit(f"error: {problem}")
