"""Secure sum: means of what workers hand in, where nobody sees a part of them (Bonawitz et al. 2017, "Practical Secure Aggregation").

Each two workers that take part share a secret: both send a public key (X25519), and from the other's and its own each knows it, and
nobody else does. Of it both draw the same random numbers (HKDF, then ChaCha20), which one adds to what it hands in, and the other
subtracts. What then travels looks like dice; in the sum over all of them the numbers cancel.

That they cancel, and that they hide anything, needs whole numbers: those from 0 to 2⁶⁴ with sums modulo 2⁶⁴, all of them equally likely.
So a worker hands in 2⁴⁸ times its number, already weighted, rounded; a sum is exact to the last bit, in whatever order and over however
many processes. It is that of float64 to within n·2⁻⁴⁹ (n workers): an absolute precision of 3.6e-15, so of numbers as small as squares of
gradients little is left. What is not below `MOST` in size is an error, since it would come back as another number.

What is hidden, from whom: a process, the server's too (the first), learns the sums, and of other processes' workers nothing more. Workers
of one process do not hide from each other, and need no masks among themselves. All follow the protocol (honest but curious), and keys are
known to be of whom they say. Who is away is known before anybody hands in; what happens when somebody is lost in the midst (shares of
secrets, in the paper) is not here: then the run ends, as it does without. Keys are from the system's generator and serve one step: no
number of a run depends on them. Through a mailbox a site can come back, and what it said stands there: so its keys are drawn from a seed
that it keeps on its machine until the run ends (`lab.processes.post.Post.private_seed`), and it has them again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lab.engine.codecs import Codec
from lab.engine.comm import Communicator, Meeting, Sizes, count
from lab.engine.fleet import Fleet
from lab.engine.stack import Block, Stack
from lab.engine.world import Contribution, Named, World
from lab.ground.errors import Diverged, LabError, RecipeError
from lab.processes.peers import ManyProcesses

BITS = 48  # after the binary point
MOST = 2.0**14  # so large may be what is handed in
LEAST = 3  # workers: of two each knows what the other has, as soon as both have the mean
KEY_BYTES = 32
KEYS = "keys"  # what is sent beside, as the ledger calls it


@dataclass
class Keys:
    """Those of one step, and how many sums they have served."""

    of: tuple[int, tuple[int, ...]] | None = None  # the step, and all workers that take part
    before: int = 0  # how many there were before in this step
    secrets: dict[int, Any] = field(default_factory=dict)  # private keys of those here,
    public: dict[int, bytes] = field(default_factory=dict)  # and public ones of all
    sums: int = 0


class SecureSum(Communicator):
    """A communicator whose means are sums that hide their parts. What is no sum over enough workers it refuses.

    Raises
    ------
    RecipeError
        where the package ``cryptography`` is not installed, and from `gather` and `collect`.
    """

    def __init__(self, fleet: Fleet, codecs: Mapping[str, Codec] | None = None, world: World | None = None):
        super().__init__(fleet, codecs, world)
        if codecs:
            raise RecipeError(
                f"privacy.secure_sum adds whole numbers, and codecs.{min(codecs)} sends others: leave one out"
            )
        if importlib.util.find_spec("cryptography") is None:
            raise RecipeError("privacy.secure_sum needs the package cryptography: pip install 'isthmus[privacy]'")
        self._keys = {True: Keys(), False: Keys()}  # of sums that are counted, and of those for looking

    @torch.no_grad()
    def mean(
        self,
        stack: Stack,
        state: str,
        *,
        minus: Stack | None = None,
        fallback: Stack | None = None,
        weights_W: Sequence[float] | None = None,
        participants: Sequence[bool] | None = None,
        codec: Codec | None = None,
        to_server: bool = False,
    ) -> Stack:
        """As `lab.engine.comm.Communicator.mean`. Each worker hands over eight bytes a number, and has sent and received keys before.

        Raises
        ------
        RecipeError
            where so few take part that one of them could tell from the mean what another has handed in.
        Diverged
            for a number that is not below `MOST` in size.
        """
        if codec is not None:
            raise RecipeError("privacy.secure_sum adds whole numbers, and this method sends others: leave it out")
        up = self.fleet.up if participants is None else participants
        there = [b.taking_part(up) for b in stack.layout.blocks]
        self._need_company(there, state)
        keys = self._agree_on_keys(there, to_server, counted=True)
        sent = Sizes()
        for block, workers in zip(stack.layout.blocks, there, strict=True):
            if workers:
                count(sent, workers, block.group, block.numel * torch.int64.itemsize)
        mean = self._summed(stack, there, keys, minus, fallback, weights_W, to_server)
        self._write("reduce" if to_server else "all_reduce", state, sent)
        if not stack.dry:
            plain = weights_W is None and participants is None and not to_server
            self._notify(lambda: Meeting(state, stack, mean if minus is None else mean + minus, plain))
        return mean

    @torch.no_grad()
    def agreed(self, stack: Stack, participants: Sequence[bool] | None = None, fallback: Stack | None = None) -> Stack:
        """As `lab.engine.comm.Communicator.agreed`; over several processes what travels for it is hidden, too."""
        there = looked_at(stack, self.fleet.up if participants is None else participants, fallback)
        keys = self._agree_on_keys(there, False, counted=False)
        return self._summed(stack, there, keys, None, fallback)

    def gather(self, stack: Stack, state: str) -> Named:
        raise RecipeError(_single(state))

    def collect(self, tensors: Named, state: str, of: Stack, level: int = 0) -> Named:
        raise RecipeError(_single(state))

    def _need_company(self, there: Sequence[Sequence[int]], state: str) -> None:
        few = min((len(workers) for workers in there if workers), default=LEAST)
        if few < LEAST and self.fleet.num_workers > 1:
            raise RecipeError(
                f"privacy.secure_sum: in step {self.t} {few} worker{'s' * (few > 1)} would hand in {state}, and who learns the mean and has "
                f"one part of it knows the other: {LEAST} or more have to take part"
            )

    # numbers

    def _summed(
        self,
        stack: Stack,
        there: Sequence[Sequence[int]],
        keys: Keys,
        minus: Stack | None,
        fallback: Stack | None,
        weights_W: Sequence[float] | None = None,
        to_server: bool = False,
    ) -> Stack:
        """The mean of each block over the workers that are ``there``."""
        agreed, partial, masks = list[Tensor | None](), list[Contribution](), self._masks(keys)
        for i, (block, copies) in enumerate(zip(stack.layout.blocks, stack.blocks, strict=True)):
            workers = there[i]
            base = None if minus is None else minus.blocks[i]
            if not workers:
                agreed.append(_known(block, copies, base, None if fallback is None else fallback.blocks[i]))
            elif stack.dry:
                agreed.append(copies[:1])
            else:
                weights = shares(weights_W, workers)
                part = self._whole(block, copies, base, weights, to_server)
                agreed.append(None)
                masks.add_(part, workers)
                partial.append(Contribution(weights, {}, part))
        away = [c for c in partial if to_server or not {*c.weights} <= {*self.fleet.mine}]
        self.world.reduce_(away, None, to_server)
        sums = iter(partial)
        here = self.world.first or not to_server
        blocks = [
            x if x is not None else _back(next(sums).partial_sum, like, here)
            for x, like in zip(agreed, stack.blocks, strict=True)
        ]
        return Stack(stack.layout, blocks)

    def _whole(
        self, block: Block, copies: Tensor, base: Tensor | None, weights: Mapping[int, float], to_server: bool
    ) -> Tensor:
        """What workers here add to the sum, int64 ``[1, P]``; ``[0, P]`` where there is none and nobody is told."""
        rows = [(row, w) for row, w in enumerate(block.holders) if w in weights]
        part = copies.new_zeros(1 if to_server else min(1, len(copies)), block.numel, dtype=torch.int64)
        for row, w in rows:
            x = copies[row].double() - (0.0 if base is None else base[0].double())
            if not bool((x.abs() < MOST).all()):
                raise Diverged(
                    f"privacy.secure_sum: worker {w} hands in a number in step {self.t} that is not below {MOST:,.0f} in size, and could not be "
                    "told from another in the sum; try a smaller learning rate (method.inner.lr)"
                )
            part[0] += (x * (weights[w] * 2.0**BITS)).round().to(torch.int64)
        return part

    # secrets

    def _agree_on_keys(self, there: Sequence[Sequence[int]], to_server: bool, counted: bool) -> Keys:
        """New keys of all that take part, at all of them: once in a step. Where nothing travels for looking, none are needed."""
        workers = tuple(sorted({w for of_block in there for w in of_block}))
        if self._keys[counted].of == (self.t, workers) or not workers or not (counted or self.world.num > 1):
            return self._keys[counted]
        mine = [w for w in workers if w in self.fleet.mine and not self.fleet.dry]
        last = self._keys[counted]
        before = last.before + 1 if last.of is not None and last.of[0] == self.t else 0
        secrets = {w: self._secret(f"{self.t} {before} {counted} {w}") for w in mine}
        keys = self._keys[counted] = Keys((self.t, workers), before, secrets)
        nothing = torch.empty(KEY_BYTES, dtype=torch.uint8, device="meta")
        own = {w: {KEYS: nothing} for w in workers}
        for w, secret in keys.secrets.items():
            own[w] = {KEYS: torch.tensor([*secret.public_key().public_bytes_raw()], dtype=torch.uint8)}
        handed = self.world.gather_to_server(own)
        known = {KEYS: torch.cat([handed[w][KEYS] for w in workers])}
        got = self.world.scatter_from_server(dict.fromkeys(workers, known))
        if counted:
            self._write_each("gather" if to_server else "all_gather", own, KEYS)
        if counted and to_server:
            self._write_each("broadcast", dict.fromkeys(workers, known), KEYS)
        for w in mine[:1]:
            parts = got[w][KEYS].split(KEY_BYTES)
            keys.public = {v: bytes(x.tolist()) for v, x in zip(workers, parts, strict=True)}
        if any(keys.public[w] != secret.public_key().public_bytes_raw() for w, secret in secrets.items()):
            raise LabError(
                f"privacy.secure_sum: this site was lost in the midst of step {self.t}, and with it, as it comes back on another machine or its "
                "cache was removed (ISTHMUS_CACHE), the keys that hide what it had said: all begin again from the last checkpoint"
            )
        return keys

    def _secret(self, purpose: str) -> Any:
        """A private key: a new one, or, where a site can come back to what it has said, the one of its seed that is for this."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        post = self.world.post if isinstance(self.world, ManyProcesses) else None
        if post is None:
            return X25519PrivateKey.generate()
        info = f"isthmus secure sum, key of {purpose}".encode()
        seed = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(post.private_seed())
        return X25519PrivateKey.from_private_bytes(seed)

    def _masks(self, keys: Keys) -> Masks:
        keys.sums += 1
        elsewhere = {w: key for w, key in keys.public.items() if w not in self.fleet.mine}
        return Masks(keys.secrets, elsewhere, f"{self.t} {keys.sums}".encode())


class Masks:
    """The random numbers that each two workers of different processes share, for one sum.

    Parameters
    ----------
    secrets, public
        private keys of workers here, and public ones of those elsewhere.
    purpose
        what the numbers are for: never twice the same for two keys.
    """

    def __init__(self, secrets: Mapping[int, Any], public: Mapping[int, bytes], purpose: bytes):
        self.streams = {
            (i, j): _stream(mine, theirs, purpose) for i, mine in secrets.items() for j, theirs in public.items()
        }

    def add_(self, part: Tensor, workers: Sequence[int]) -> None:
        """To what workers here add to a sum over these, int64 ``[1, P]``: as much as others subtract. Both sides ask in one order."""
        for (i, j), stream in self.streams.items():
            if i in workers and j in workers:
                drawn = bytearray(stream.update(bytes(8 * part.shape[1])))
                mask = torch.frombuffer(drawn, dtype=torch.int64).to(part.device)
                part[0] += mask if i < j else -mask


def _stream(mine: Any, theirs: bytes, purpose: bytes) -> Any:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    shared = mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"isthmus secure sum " + purpose).derive(shared)
    return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()


def _known(block: Block, copies: Tensor, base: Tensor | None, fallback: Tensor | None) -> Tensor:
    """The agreed value of a block that nobody hands in: no difference, what is known, or what is here."""
    if base is not None:
        return torch.zeros_like(base)
    if fallback is not None:
        return fallback
    return copies[:1] if len(copies) else copies.new_zeros(1, block.numel)


def looked_at(stack: Stack, up: Sequence[bool], fallback: Stack | None) -> list[tuple[int, ...]]:
    """Whose copies of each block say what is agreed: those who are up; where nobody is, and nothing else is known of it, all holders."""
    there = [tuple(w for w in b.everywhere if up[w]) for b in stack.layout.blocks]
    if fallback is not None:
        return there
    return [workers or b.everywhere for workers, b in zip(there, stack.layout.blocks, strict=True)]


def shares(weights_W: Sequence[float] | None, workers: Sequence[int]) -> dict[int, float]:
    """What each of these counts in a mean; the sum is 1."""
    weights = torch.tensor(
        [1.0 if weights_W is None else weights_W[w] for w in workers], dtype=torch.float64, device="cpu"
    )
    return dict(zip(workers, (weights / weights.sum()).tolist(), strict=True))


def _back(total: Tensor, like: Tensor, known: bool) -> Tensor:
    """A sum of whole numbers as the number that it stands for; zeros where the sum is not known."""
    return ((total if known else torch.zeros_like(total)).double() * 2.0**-BITS).to(like.dtype)


def _single(state: str) -> str:
    return (
        f"privacy.secure_sum: this method needs {state} of each worker by itself, and only a sum is known: use a method that takes means, "
        "such as fedprox, scaffold or photon"
    )
