"""What may lie in a mailbox beside the message that is waited for: each is refused by name and counted, or harmless."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch

from lab.ground.errors import RecipeError
from lab.processes.invitation import Invitation, secret
from lab.processes.mailbox import Mailbox, check_finite, pieces
from lab.processes.messages import Refused, Seal
from lab.processes.places import Folder, Place, place
from lab.processes.post import Post, SiteRefused, clear
from tests.support.posts import RUN, SUM, by, posts, together

SECRET = b"a secret of sixteen letters"
DATA = bytes(range(100))


def message(
    run: str = RUN, sender: int = 1, name: str = "1to0.0", data: bytes = DATA, secret: bytes | None = None
) -> bytes:
    return Seal(run, secret).close(sender, name, data)


def flipped(file: bytes, at: int) -> bytes:
    return file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :]


BAD: dict[str, tuple[bytes, str]] = {
    "torn": (message()[:-40], "its content does not match its hash"),
    "torn within its head": (message()[:30], "it is no message"),
    "empty": (b"", "it is no message"),
    "altered": (flipped(message(), -1), "its content does not match its hash"),
    "of an earlier run": (message(run="f" * 16), "it is of another run"),
    "of another site": (message(sender=2), "it is another message"),
    "another one of the same site": (message(name="1to0.1"), "it is another message"),
    "too long": (message(data=bytes(101)), "it has 101 bytes and 100 were expected"),
    "too long beside what it says": (message() + bytes(10_000), "its content does not match its hash"),
    "too short": (message(data=b""), "it has 0 bytes and 100 were expected"),
    "a picture": (b"\x89PNG\r\n" + bytes(200), "it is no message"),
    "a pickle": (b"\x80\x04\x95K\n.", "it is no message"),
    "deep": (b"[" * 4000 + b"\n", "it is no message"),
    "signed": (message(secret=SECRET), "it is signed, and this site was given no secret"),
}


def received(sites: list[Post], then: Callable[[], object]) -> bytes | None:
    """What site 0 has of what site 1 sends it, where that happens while it waits."""
    got: list[bytes] = []
    waiting = threading.Thread(target=lambda: got.extend(sites[0].take("1to0.0", {1: len(DATA)}).values()))
    waiting.start()
    time.sleep(0.02)
    then()
    waiting.join()
    return got[0] if got else None


def at(folder: Path, name: str = "1to0.0") -> Path:
    path = folder / RUN / "from-1" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_the_message_is_refused_and_the_message_is_waited_for(kind: str, tmp_path: Path) -> None:
    sites, (file, why) = posts(tmp_path, 3), BAD[kind]
    at(tmp_path).write_bytes(file)
    assert received(sites, lambda: sites[1].put("1to0.0", DATA)) == DATA
    assert sites[0].refused[f"{RUN}/from-1/1to0.0"][0] == why
    assert sites[0].refused[f"{RUN}/from-1/1to0.0"][1] > 0


def test_who_is_missing_is_said_with_what_was_refused_instead(tmp_path: Path) -> None:
    sites = posts(tmp_path, 3, seconds=0.1)
    at(tmp_path).write_bytes(message(run="f" * 16))
    with pytest.raises(RuntimeError, match=r"no 1to0.0 from site 1 of 3; refused \d+ times: it is of another run"):
        sites[0].take("1to0.0", {1: 100})
    with pytest.raises(RuntimeError, match=r"no all\.0 from sites 1, 2 of 3$"):
        sites[0].take("all.0", {1: 100, 2: 100})


@pytest.mark.parametrize("theirs", [None, b"another secret of some letters"])
def test_what_is_not_signed_with_the_secret_is_refused(theirs: bytes | None, tmp_path: Path) -> None:
    mine, stranger = posts(tmp_path, 2, SECRET, 0.1)[0], posts(tmp_path, 2, theirs)[1]
    stranger.put("1to0.0", DATA)
    why = "it is not signed" + " with the secret of this run" * (theirs is not None)
    with pytest.raises(RuntimeError, match=f"refused .* times: {why}$"):
        mine.take("1to0.0", {1: 100})
    friend = posts(tmp_path, 2, SECRET)[1]
    friend.note = lambda line: None
    friend.put("1to0.0", DATA)  # its own place of what the stranger has left
    assert mine.take("1to0.0", {1: 100}) == {1: DATA}


def test_a_signature_is_of_all_that_is_said() -> None:
    seal = Seal(RUN, SECRET)
    file = seal.close(1, "all.3", DATA)
    assert seal.open(file, 1, "all.3", 100) == DATA
    head = file.index(b"\n")
    for position in (*range(2, head, 7), head + 1):
        with pytest.raises(Refused):
            seal.open(flipped(file, position), 1, "all.3", 100)
    for sender, name in ((2, "all.3"), (1, "all.4")):
        with pytest.raises(Refused, match="it is another message"):
            seal.open(file, sender, name, 100)


def test_messages_may_come_twice_late_and_in_any_order(tmp_path: Path) -> None:
    sites = posts(tmp_path, 2)
    later, first = bytes(100), DATA
    sites[1].put("1to0.1", later)
    sites[1].put("1to0.0", first)
    sites[1].put("1to0.0", first)
    assert [sites[0].take(name, {1: 100})[1] for name in ("1to0.0", "1to0.1")] == [first, later]
    assert not sites[0].refused


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    sites = posts(tmp_path, 2, seconds=0.1)
    at(tmp_path).mkdir()
    with pytest.raises(RuntimeError, match="is not a plain file"):
        sites[0].take("1to0.0", {1: 100})
    (tmp_path / "elsewhere").write_bytes(b"something else of this user")
    at(tmp_path, "1to0.1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match="it is no message"):
        sites[0].take("1to0.1", {1: 100})
    posts(tmp_path, 2)[1].put("1to0.1", DATA)
    assert (tmp_path / "elsewhere").read_bytes() == b"something else of this user"


def test_of_a_file_without_end_only_as_much_is_read_as_a_message_may_have(tmp_path: Path) -> None:
    path = at(tmp_path)
    with path.open("wb") as f:
        f.truncate(1 << 40)  # a hole
    with pytest.raises(RuntimeError, match="it is no message"):
        posts(tmp_path, 2, seconds=0.05)[0].take("1to0.0", {1: 100})


# --- what a site itself says amiss ---------------------------------------------------------------------------------------


def summed(group: Mailbox, x: torch.Tensor) -> str:
    """What is said of a sum of which this is the own part; nothing where it was made."""
    try:
        group.allreduce([x], SUM).wait()
    except SiteRefused as why:
        return str(why)
    return ""


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (torch.tensor([1.0, torch.nan]), "it has numbers that are not finite"),
        (torch.tensor([torch.inf, 1.0]), "it has numbers that are not finite"),
        (torch.tensor([1.0], dtype=torch.float64), r"it has float64\[1\] and float32\[2\] was expected"),
        (torch.tensor([[1.0, 2.0]]), r"it has float32\[1, 2\] and float32\[2\] was expected"),
        (torch.tensor([1.0, 2.0, 3.0]), r"it has float32\[3\] and float32\[2\] was expected"),
    ],
)
def test_a_site_that_sends_what_cannot_be_used_is_named_and_counted(
    wrong: torch.Tensor, why: str, tmp_path: Path
) -> None:
    sites = posts(tmp_path, 3)
    one, other, _ = together(sites, lambda group, p: summed(group, wrong.clone() if p == 2 else torch.ones(2)))
    assert re.search(rf"site 2 of 3 has sent what cannot be used \(all\.0: {why}\): look at that site", one)
    assert one == other
    assert sites[0].refused[f"{RUN}/from-2/all.0"][1] == 1


def test_numbers_in_bytes_are_looked_at_as_well(tmp_path: Path) -> None:
    """What several tensors are packed into has no dtype: they are checked when they are unpacked."""
    post = posts(tmp_path, 2)[0]
    with pytest.raises(SiteRefused, match="site 1 of 2 has sent what cannot be used"):
        check_finite(post, "1to0.3", 1, torch.tensor([0.0, -torch.inf]))
    check_finite(post, "1to0.3", 1, torch.tensor([0, 1]))


# --- an invitation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"[]",
        b"{}",
        b'{"run":"../../../etc/x","processes":2,"recipe":{},"begins":null,"ended":false}',
        b'{"run":"0123456789abcdef","processes":true,"recipe":{},"begins":null,"ended":false}',
        b'{"run":"0123456789abcdef","processes":2,"recipe":"des_loc","begins":null,"ended":false}',
    ],
)
def test_an_invitation_that_is_none_is_refused(said: bytes, tmp_path: Path) -> None:
    Folder(tmp_path).put("run", Seal(None).close(0, "run", said))
    with pytest.raises(RecipeError, match="does not say which run is there"):
        Invitation.found(Folder(tmp_path), None)


def test_an_invitation_is_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Invitation.new(2, {}).put(Folder(tmp_path), None)
    with pytest.raises(RecipeError, match=r"\(it is not signed\): give the secret of that run \(ISTHMUS_SECRET\)"):
        Invitation.found(Folder(tmp_path), SECRET)
    monkeypatch.setenv("ISTHMUS_SECRET", "short")
    with pytest.raises(RecipeError, match="must have 16 characters or more"):
        secret()


# --- what stays ----------------------------------------------------------------------------------------------------------


def in_it(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("keeps", [True, False])
def test_a_thousand_rounds_take_no_more_room_than_a_few(keeps: bool, tmp_path: Path) -> None:
    sites = posts(tmp_path, 3)
    groups = [Mailbox(site.index, range(3), site) for site in sites]
    for site in sites:
        site.keeps = keeps
        site.begun()
    most = {100: 0, 1000: 0}
    for t in range(1000):
        xs = [torch.full((250,), float(p)) for p in range(3)]
        for work in [group.allreduce([x], SUM) for group, x in zip(groups, xs, strict=True)]:
            work.wait()
        assert all(float(x[0]) == 3.0 for x in xs)
        for site in sites if keeps and t % 10 == 9 else ():
            site.keep(t, bytes(1000))
            site.kept_for_good(t)
        for until in most:
            most[until] = max(most[until], in_it(tmp_path)) if t < until else most[until]
    assert most[1000] < 1.05 * most[100]
    assert most[1000] < 3 * 40 * 2000


def test_what_is_still_to_be_read_stays_whatever_is_read_meanwhile(tmp_path: Path) -> None:
    """A sum that was begun and is not needed yet, while so much else is said that sites tell each other how far they are."""
    sites = posts(tmp_path, 2)
    groups = [Mailbox(site.index, range(2), site) for site in sites]
    xs = [torch.tensor([float(p)]) for p in (1, 2)]
    begun = [group.allreduce([x], SUM) for group, x in zip(groups, xs, strict=True)]
    for _ in range(50):
        for work in [group.allreduce([torch.zeros(1)], SUM) for group in groups]:
            work.wait()
    for work in begun:
        work.wait()
    assert [float(x) for x in xs] == [3.0, 3.0]


def test_a_site_that_kept_itself_goes_on_where_it_was_and_one_that_did_not_is_told_so(tmp_path: Path) -> None:
    def said(group: Mailbox, p: int) -> float:
        x = torch.tensor([float(p + group.post.counts.get("all", 0))])
        group.allreduce([x], SUM).wait()
        return float(x)

    sites = posts(tmp_path, 2)
    for site in sites:
        site.keeps = True
        site.begun()
    for t in range(4):
        together(sites, said)
        if t == 1:
            for site in sites:
                site.keep(2, b"of site %d" % site.index)
            for site in (*sites, *sites):  # when both have said so, what was said before goes
                site.kept_for_good(2)
    back = posts(tmp_path, 2)[1]
    back.keeps = True
    assert next(back.kept()) == (2, b"of site 1")
    back.back_to(2)
    group = Mailbox(1, range(2), back)
    assert [said(group, 1) for _ in range(2)] == [2.0 * t + 1 for t in (2, 3)], "what it missed is still there"
    assert back.moved_bytes[0] == 0, "what it said before is not sent again"
    lost = Mailbox(1, range(2), posts(tmp_path, 2)[1])
    with pytest.raises(
        RuntimeError, match=r"site 0 has removed all\.0, which all others have read: site 1 has lost what it kept"
    ):
        lost.allgather([[torch.empty(1), torch.empty(1)]], [torch.zeros(1)])


def test_who_would_begin_otherwise_than_before_is_refused(tmp_path: Path) -> None:
    posts(tmp_path, 2)[0].put("all.0", b"one text")
    again = posts(tmp_path, 2)[0]
    again.keeps = True
    with pytest.raises(RecipeError, match="would not begin as it did before it was lost"):
        again.put("all.0", b"two text")
    again.begun()
    assert again.put("all.0", b"two text") == b"one text", "later, what the others have read counts"


def test_a_seed_is_of_one_site_and_there_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    one, other = posts(tmp_path / "box", 2)
    seed = one.private_seed()
    assert len({seed, other.private_seed()}) == 2
    assert posts(tmp_path / "box", 2)[0].private_seed() == seed, "it is back"
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "cache/keys").iterdir()} == {0o600}
    for path in (tmp_path / "box").rglob("*"):
        assert path.is_dir() or seed not in path.read_bytes()
    other.end()
    one.end()
    assert not [*(tmp_path / "cache/keys").iterdir()]
    monkeypatch.setenv("ISTHMUS_CACHE", "/proc/nothing")
    assert len(one.private_seed()) == 32, "where nothing can be kept"


def test_who_waits_in_a_run_that_has_begun_anew_is_told_so(tmp_path: Path) -> None:
    site = posts(tmp_path, 2)[0]
    Invitation.new(2, {}).put(Folder(tmp_path), None)
    with pytest.raises(RuntimeError, match="has begun anew: join it again"):
        site.take("all.0", {1: 10})


# --- places --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "memory", "file"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return place(
        {"folder": str(tmp_path), "memory": f"memory://{tmp_path.name}/box", "file": f"file://{tmp_path}"}[
            request.param
        ]
    )


def test_every_place_keeps_files_whole(anywhere: Place) -> None:
    assert anywhere.get("a/b", 10) is None
    assert anywhere.names("a") == []
    anywhere.put("a/b", DATA)
    anywhere.put("a/b", b"another")
    anywhere.put("a/c/d", DATA, lasting=True)
    assert anywhere.get("a/b", 10) == b"another"
    assert anywhere.get("a/c/d", 10) == DATA[:11]
    assert anywhere.get("a/c/d") == DATA
    assert anywhere.names("a") == ["a/b", "a/c/d"]
    anywhere.remove(["a/b", "a/none"])
    assert anywhere.get("a/b") is None
    clear(anywhere, "a")
    assert anywhere.names("a") == []


def test_sites_talk_through_every_place(anywhere: Place) -> None:
    def summed(group: Mailbox, p: int) -> float:
        x = torch.tensor([p + 1.0])
        group.allreduce([x], SUM).wait()
        return float(x)

    assert together(posts(anywhere, 3, SECRET), summed) == [6.0] * 3


def test_a_place_that_fails_now_and_then_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place(f"memory://{tmp_path.name}/box")
    real, tries = type(fsspec.filesystem("memory")).pipe_file, [0]

    def shaky(self: object, *args: object, **options: object) -> None:
        tries[0] += 1
        if tries[0] % 2:
            raise ConnectionResetError("by peer")
        real(self, *args, **options)

    site = posts(store, 2)[0]
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", shaky)
    site.put("all.0", DATA)
    monkeypatch.undo()
    assert posts(store, 2)[1].take("all.0", {0: 100}) == {0: DATA}


def test_a_password_in_a_url_is_not_shown() -> None:
    with pytest.raises(RecipeError) as error:
        place("nowhere://user:password@host/box")
    assert "password" not in str(error.value)


# --- in pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bytes", [0, 1, 7, 8, 9, 15, 16, 17, 100, 127, 128, 129, 1000])
def test_pieces_are_all_of_a_tensor_and_neither_many_nor_small(num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.processes.mailbox.PIECE_BYTES", 8)
    data = bytes(k % 251 for k in range(num_bytes))
    cut = [data[piece] for piece in pieces(num_bytes)]
    assert b"".join(cut) == data
    assert 1 <= len(cut) <= 8
    assert all(len(piece) >= 8 for piece in cut[:-1])
    assert len({len(piece) for piece in cut[:-1]}) <= 1


def test_all_calls_are_the_same_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums, gathers, broadcasts and what one sends to another, with sums begun together; each piece is a message, and all of them go."""
    generator = torch.Generator().manual_seed(5)
    given = torch.rand(3, 2, 3, 7, generator=generator, dtype=torch.float64)

    def do(group: Mailbox, p: int) -> list[torch.Tensor]:
        a, b, c, d = (
            given[p, 0].clone(),
            given[p, 1].clone(),
            given[p, 0].clone(),
            torch.zeros(3, 7, dtype=torch.float64),
        )
        works = [group.allreduce([a], SUM), group.allreduce([b], SUM)]
        for work in reversed(works):
            work.wait()
        out = [torch.zeros(3, 7, dtype=torch.float64) for _ in range(3)]
        group.allgather([out], [given[p, 1].clone()])
        group.broadcast([c], by(1))
        if p == 0:
            group.send([given[0, 1].clone()], 2)
        if p == 2:
            group.recv([d], 0)
        return [a, b, c, d, *out]

    whole = together(posts(tmp_path / "whole", 3), do)
    monkeypatch.setattr("lab.processes.mailbox.PIECE_BYTES", 24)
    sites = posts(tmp_path / "pieces", 3)
    for one, other in zip(whole, together(sites, do), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    assert torch.equal(whole[1][0], given[:, 0].sum(0))
    assert sites[1].counts == {"all": 4 * 7}, "168 bytes go in seven messages"
    assert not sites[0].unread


def test_a_piece_can_be_read_while_the_next_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place whose second put waits until the first was read: with one message after the other it would wait for ever."""
    monkeypatch.setattr("lab.processes.mailbox.PIECE_BYTES", 8)
    was_read = threading.Event()

    class Slow(Folder):
        def put(self, name: str, data: bytes, lasting: bool = False) -> None:
            if name.endswith("/all.1"):
                assert was_read.wait(5)
            super().put(name, data, lasting)

        def get(self, name: str, most_bytes: int | None = None) -> bytes | None:
            found = super().get(name, most_bytes)
            if found is not None and name.endswith("/all.0"):
                was_read.set()
            return found

    def summed(group: Mailbox, p: int) -> float:
        x = torch.full((2,), p + 1.0, dtype=torch.float64)
        group.allreduce([x], SUM).wait()
        return float(x[1])

    assert together(posts(Slow(tmp_path), 2), summed) == [3.0, 3.0]


def test_who_is_lost_between_two_pieces_says_the_first_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.processes.mailbox.PIECE_BYTES", 8)
    before = posts(tmp_path, 2)[1]
    before.put("all.0", torch.tensor([5.0], dtype=torch.float64).numpy().tobytes(), "float64[2]")
    sites = posts(tmp_path, 2)

    def summed(group: Mailbox, p: int) -> list[float]:
        x = torch.tensor([1.0, 2.0], dtype=torch.float64) * (p + 1)
        group.allreduce([x], SUM).wait()
        return x.tolist()

    assert together(sites, summed) == [[6.0, 6.0]] * 2, "what others may have read counts"
    assert sites[1].moved_bytes[0] == 8


def test_what_is_amiss_in_a_piece_is_refused_by_the_name_of_its_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another length whose first piece is as long, and a number in the last piece that is none."""
    monkeypatch.setattr("lab.processes.mailbox.PIECE_BYTES", 8)
    longer = [torch.ones(3, dtype=torch.float64), torch.ones(4, dtype=torch.float64)]
    (one, _) = together(posts(tmp_path / "a", 2), lambda group, p: summed(group, longer[p].clone()))
    assert r"all.0: it has float64[4] and float64[3] was expected" in one
    bad = [torch.ones(3).double(), torch.tensor([1.0, 2.0, torch.nan]).double()]
    one, other = together(posts(tmp_path / "b", 2), lambda group, p: summed(group, bad[p].clone()))
    assert "site 1 of 2 has sent what cannot be used" in one
    assert one == other


def test_a_thread_that_puts_says_what_went_wrong(tmp_path: Path) -> None:
    class Full(Folder):
        def put(self, name: str, data: bytes, lasting: bool = False) -> None:
            raise OSError("no room")

    site = posts(Full(tmp_path), 2)[0]
    site.begin_to_put("all.0", DATA)
    with pytest.raises(RuntimeError, match="fails: OSError: no room"):
        site.put_all()
