"""Archives that are hostile or damaged: one line, nothing outside the folder, bounded time, memory and disk."""

import gzip
import io
import os
import random
import struct
import tarfile
import tracemalloc
import zipfile

import pytest

from decar.errors import CorpusError
from decar.unpack import BOUNDS, Bounds, DamagedError, unpack
from tests.faults.test_disk import no_room


def zipped(path, *members):
    """A zip of pairs of name (or ZipInfo) and content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def tarred(path, *members):
    """A tar, compressed by its name, of pairs of name (or TarInfo) and content."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def linked(name):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def there(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


MAKERS = [("a.zip", zipped), ("a.tar.gz", tarred), ("a.tar", tarred)]


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_plain_files_and_folders_are_written(name, make, tmp_path):
    """Two dots inside a name lead nowhere; what is there of the same name is replaced."""
    members = {"wav/a..b.wav": b"1", "wav/..c": b"2", "./d...wav": b"3", "wav/deep/e": b"", "wav/é ü.wav": b"4"}
    folder = tmp_path / "out"
    (folder / "wav").mkdir(parents=True)
    (folder / "wav" / "a..b.wav").write_bytes(b"half")
    unpack(make(tmp_path / name, *members.items()), folder, BOUNDS)
    assert there(folder) == {key.removeprefix("./"): value for key, value in members.items()}
    umask = os.umask(0)
    os.umask(umask)
    assert (folder / "wav" / "a..b.wav").stat().st_mode & 0o7777 == 0o666 & ~umask


@pytest.mark.parametrize(("name", "make"), MAKERS)
@pytest.mark.parametrize(
    "member",
    ["../evil", "wav/../../evil", "/tmp/evil", "wav\\..\\..\\evil", "..\\evil", "C:\\evil", "C:evil", "\\\\host\\evil"],
)
def test_names_that_lead_out_are_refused(name, make, member, tmp_path):
    archive = make(tmp_path / name, ("good", b"1"), (member, b"2"))
    with pytest.raises(CorpusError, match=rf"{name}: refused, its member .*evil' leads out of the folder") as caught:
        unpack(archive, tmp_path / "deep" / "out", BOUNDS)
    assert not isinstance(caught.value, DamagedError)
    assert there(tmp_path) == {name: archive.read_bytes(), "deep/out/good": b"1"}


@pytest.mark.parametrize(
    ("name", "make", "member"),
    [
        ("a.zip", zipped, linked("evil")),
        *(
            ("a.tar.gz", tarred, special("evil", kind, target))
            for kind, target in (
                (tarfile.SYMTYPE, "/etc"), (tarfile.SYMTYPE, "good"), (tarfile.LNKTYPE, "good"), (tarfile.FIFOTYPE, ""),
                (tarfile.CHRTYPE, ""), (tarfile.BLKTYPE, ""),
            )
        ),
    ],
)  # fmt: skip
def test_links_and_devices_are_refused(name, make, member, tmp_path):
    archive = make(tmp_path / name, ("good", b"1"), (member, b""), ("evil/x", b"2"))
    with pytest.raises(CorpusError, match="its member 'evil' is neither a file nor a folder; if you trust it, unpack"):
        unpack(archive, tmp_path / "out", BOUNDS)
    assert there(tmp_path / "out") == {"good": b"1"}


def test_control_characters_in_a_name_are_escaped(tmp_path):
    archive = tarred(tmp_path / "a.tar", ("../\x1b[2Jevil\n", b""))
    with pytest.raises(CorpusError, match=r"member '../\\x1b\[2Jevil\\n'"):
        unpack(archive, tmp_path / "out", BOUNDS)


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_bombs_end_early(name, make, tmp_path):
    """30 MB of zeros in 30 kB; stated sizes are not needed to notice."""
    folder, zeros = tmp_path / "out", bytes(30_000_000)
    archive = make(tmp_path / name, *((f"{i}.wav", zeros[:5_000_000]) for i in range(6)))
    bounds = Bounds(size=7_000_000) if name.endswith(".tar") else BOUNDS
    tracemalloc.start()
    with pytest.raises(
        CorpusError, match=r"refused, it unpacks to more than [\d,]+ bytes, and has [\d,]+; if you trust"
    ):
        unpack(archive, folder, bounds)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    limit = bounds.limit(archive)
    assert sum(map(len, there(folder).values())) <= limit < 8_000_000
    assert peak < 8_000_000
    with pytest.raises(CorpusError, match="has more than 5 members"):
        unpack(archive, tmp_path / "few", Bounds(members=5, ratio=10**6))
    assert len(there(tmp_path / "few")) == 5
    unpack(archive, tmp_path / "all", Bounds(members=6, ratio=10**6))
    assert sum(map(len, there(tmp_path / "all").values())) == len(zeros)


def test_a_header_of_a_gigabyte_is_not_read_to_memory(tmp_path):
    """A long name is read whole by tarfile, whatever its size; so is a table of pax."""
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        info = special("x", kind)
        info.size = 10**9
        archive = tmp_path / "a.tar.gz"
        with gzip.open(archive, "wb", 1) as file:
            file.write(info.tobuf() + bytes(40_000_000))
        tracemalloc.start()
        with pytest.raises(DamagedError, match="a header of 1,000,000,"):
            unpack(archive, tmp_path / "out", BOUNDS)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()


def test_a_header_that_leads_back_does_not_run_for_ever(tmp_path):
    info = tarfile.TarInfo("x")
    header = bytearray(info.tobuf())
    header[124:136] = b"\xff" * 8 + struct.pack(">i", -1024)  # the size, base 256
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    archive = tmp_path / "a.tar"
    archive.write_bytes(
        bytes(512) and tarred(tmp_path / "good.tar", ("a", b"1")).read_bytes()[:1024] + header + bytes(1024)
    )
    with pytest.raises(DamagedError, match="damaged"):
        unpack(archive, tmp_path / "out", BOUNDS)


def test_an_encrypted_zip_needs_its_password(tmp_path):
    archive = zipped(tmp_path / "a.zip", ("a.wav", b"1234"))
    data = bytearray(archive.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(CorpusError, match=r"member 'a\.wav' is encrypted; unpack it by hand with the password"):
        unpack(archive, tmp_path / "out", BOUNDS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.zip", b"<html>503</html>"), ("a.tar.gz", b'{"error": "quota"}'), ("a.zip", b""), ("a.tar.gz", b"\x1f\x8b"),
        ("a.zip", b"PK\5\6" + bytes(18)), ("a.tar", bytes(10_240)), ("a.zip", b"PK\3\4 and so on"),
    ],
)  # fmt: skip
def test_what_is_no_archive_or_empty(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedError, match=rf"{name}: (damaged or not an archive \(|the archive is empty)") as caught:
        unpack(tmp_path / name, tmp_path / "out", BOUNDS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_damage_is_noticed_and_raises_nothing_else(name, make, tmp_path):
    """Bytes set, blocks zeroed, tails cut: all files are as they were, or a line says that the archive is damaged.

    A plain tar has no checksum of contents; no corpus comes as one.
    """
    rng = random.Random(0)
    members = {f"wav/{i}.wav": rng.randbytes(rng.randrange(1, 3000)) for i in range(12)}
    good = make(tmp_path / name, *members.items()).read_bytes()
    noticed, folder = 0, tmp_path / "out"
    for _ in range(150):
        data = bytearray(good)
        start = rng.randrange(len(data))
        kind = rng.choice(("set", "zero", "cut"))
        if kind == "set":
            data[start] ^= rng.randrange(1, 256)
        elif kind == "zero":
            data[start : start + 700] = bytes(len(data[start : start + 700]))
        else:
            del data[start:]
        (tmp_path / name).write_bytes(data)
        try:
            unpack(tmp_path / name, folder, BOUNDS)
        except CorpusError:
            noticed += 1
        else:
            if name != "a.tar":  # which has no checksum of what its members hold
                assert there(folder) == members, (kind, start)
        for file in folder.rglob("*.wav"):
            file.unlink()
    assert noticed > (50 if name == "a.tar" else 100)


def test_a_damaged_header_does_not_end_a_tar_early(tmp_path):
    archive = tarred(tmp_path / "a.tar", *((f"{i}.wav", b"1" * 600) for i in range(5)))
    data = bytearray(archive.read_bytes())
    data[2 * 1536 + 10] ^= 1  # a name: the checksum of the third header is wrong
    archive.write_bytes(data)
    with pytest.raises(DamagedError, match=r"no member begins at byte 3,072"):
        unpack(archive, tmp_path / "out", BOUNDS)


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_a_full_disk_or_a_kill_leaves_no_half_file(name, make, tmp_path, monkeypatch):
    noise = random.Random(1).randbytes(300_000)
    archive = make(tmp_path / name, ("a.wav", noise[:1000]), ("b.wav", noise))
    folder = tmp_path / "out"
    with no_room(100_000), pytest.raises(CorpusError, match=r"cannot be written \(File too large\)") as caught:
        unpack(archive, folder, BOUNDS)
    assert not isinstance(caught.value, DamagedError)
    assert there(folder) == {"a.wav": noise[:1000]}
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: os._exit(9))  # a kill after the last byte
        child = os.fork()
        if not child:
            unpack(archive, folder, BOUNDS)
        assert os.waitpid(child, 0)[1] >> 8 == 9
    assert [file.name for file in folder.rglob("*.wav")] == ["a.wav"]
    unpack(archive, folder, BOUNDS)
    assert there(folder) == {"a.wav": noise[:1000], "b.wav": noise}
