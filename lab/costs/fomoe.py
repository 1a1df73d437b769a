"""What FoMoE sends, holds and computes, and how long that takes: the paper's cost model (arXiv 2606.19025, eqs. 1–12, 19–22).

The symbols are the paper's. M sites (workers); O_e of them hold an expert; a layer has N_e experts, N_le of them at one
site; K local steps make a round; every T rounds experts are placed anew at random, γ = 1/T (fixed placement: γ = 0);
B are bytes on the wire of rings, per site and round. Counts and bytes are exact (`int`, `fractions.Fraction`).

Closed forms are means over random placements; `Costs.round_bytes` is the exact account of one round from its tables.

Dense parameters include the norms, as the paper lists them. Leaving them out changes payload ratios of its shapes by less
than 0.1 %: 1.4207 → 1.4209 for 1.8B, M = 4, O_e = 2, random; 2.2447 → 2.2451 for 13B, M = 8, O_e = 2, fixed.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from pydantic import Field

from lab.ground.config import Count, Period, Positive, config
from lab.ground.config import Fraction as Share
from lab.ground.errors import RecipeError
from lab.models.moe import MoE
from lab.recipes.placement import Placement, Table

TRAINING_BYTES = 18  # per parameter, mixed-precision AdamW: weights 2, master copy 4, both moments 8, gradients 4


def rho_ring(n: int) -> Fraction:
    """ρ_ring(n) = 2(n−1)/n: what each of n peers sends to average a tensor in a ring, in copies of that tensor."""
    return Fraction(2 * (n - 1), n)


@config
class Site:
    """What one site computes and sends with."""

    flops_per_second: Positive  # Φ_peak
    mfu: Positive  # part of Φ_peak that training reaches
    bits_per_second: Positive  # B_eff, of its link to the other sites
    compression: Share = 1.0  # ρ_c, bytes that travel for one byte of tensors
    overlap: Share = 0.0  # α, part of communication that hides behind computation


@config
class Costs:
    """FoMoE with one model on M sites. O_e = M are full replicas: DiLoCo or FedAvg, and DDP with K = 1.

    T
        rounds between two random placements; None: a fixed one.
    sync_every
        local steps between two averages, by state. ``params`` sets K. With ``exp_avg`` and ``exp_avg_sq`` on the same
        period this is Local AdamW (the paper's ×3), on periods of their own DES-LOC. Moved experts take no states along.
    vocab_size
        for a model that leaves it to the corpus.
    """

    model: MoE
    M: Count
    O_e: Count
    T: Period | None = None
    sync_every: dict[str, Period] = Field(default_factory=lambda: {"params": 32})
    vocab_size: Count | None = None
    element_bytes: Count = 4

    def __post_init__(self) -> None:
        Placement(overlap=self.O_e).check_table(self.model.num_experts, self.M)
        if "params" not in self.sync_every:
            raise RecipeError("sync_every has no 'params': its period is the length of a round")
        if self.V == 0:
            raise RecipeError("vocab_size is missing: this model takes it from the corpus, so it has to be given here")

    @property
    def V(self) -> int:
        """Vocabulary."""
        return self.model.vocab_size or self.vocab_size or 0

    @property
    def d_exp(self) -> int:
        """Width of an expert."""
        return self.model.width

    @property
    def expert_params(self) -> int:
        """Of one expert: up, down and its column of the router, unless skip-token wants whole routers everywhere."""
        return self.model.dim * (2 * self.d_exp + (0 if self.model.skip_token else 1))

    @property
    def sparse_params(self) -> int:
        """Of θ_sparse: all experts of all layers."""
        return self.model.num_layers * self.model.num_experts * self.expert_params

    @property
    def dense_params(self) -> int:
        """Of θ_dense: tied embedding, attention, norms, shared experts and, with skip-token, routers."""
        m, D = self.model, self.model.dim
        # In rows of width D: qkv and out, norms before and after both branches, shared up and down, router.
        layer = 4 * D + 4 + 2 * m.num_shared_experts * self.d_exp + (m.num_experts if m.skip_token else 0)
        return D * (self.V + 2 + m.num_layers * layer)

    @property
    def s(self) -> Fraction:
        """Sparse share of the parameters. At d_exp = 4d/N_e it nears 8d²/(8d² + 4d²) = 2/3 as the embedding fades."""
        return Fraction(self.sparse_params, self.sparse_params + self.dense_params)

    @property
    def K(self) -> int:
        """Local steps per round."""
        return self.sync_every["params"]

    @property
    def N_le(self) -> int:
        """Experts of a layer at one site: (O_e/M)·N_e."""
        return self.O_e * self.model.num_experts // self.M

    @property
    def copies(self) -> Fraction:
        """Averages of a tensor per round, over its states: 1 DiLoCo, 3 Local AdamW, 1.5 DES-LOC's default."""
        return sum((Fraction(self.K, period) for period in self.sync_every.values()), Fraction(0))

    @property
    def R(self) -> Fraction:
        """R(O_e) = 2(O_e−1)/O_e: sent to average one resident expert among its holders, in copies of it."""
        return rho_ring(self.O_e)

    @property
    def P(self) -> Fraction:
        """P(O_e, M, γ) = γ(1 − O_e/M): received because a new placement asks for what is not here, per resident expert."""
        return Fraction(0) if self.T is None else Fraction(self.M - self.O_e, self.M * self.T)

    @property
    def B_dense(self) -> Fraction:
        """ρ_ring(M)·S_dense for each average of a round."""
        return self.copies * rho_ring(self.M) * self.dense_params * self.element_bytes

    @property
    def B_sparse(self) -> Fraction:
        """(R + P)·Σ_ℓ N_le·s_exp; R counts for each average of a round, P once."""
        resident = self.model.num_layers * self.N_le * self.expert_params * self.element_bytes
        return (self.copies * self.R + self.P) * resident

    @property
    def bytes_per_step(self) -> Fraction:
        """(B_dense + B_sparse)/K: per site, a round's bytes spread over its steps."""
        return (self.B_dense + self.B_sparse) / self.K

    def bytes_per_token(self, B_g: int) -> Fraction:
        """BPT = M·(B_dense + B_sparse)/(K·B_g): of all sites together, with a global batch of B_g tokens."""
        return self.M * self.bytes_per_step / B_g

    @property
    def payload_ratio(self) -> Fraction:
        """Bytes of full replicas ÷ these. For parameters alone 1/(1 − s(1−f)), f = (R+P)(O_e/M)/ρ_ring(M)."""
        return replace(self, O_e=self.M, T=None).bytes_per_step / self.bytes_per_step

    @property
    def ddp_ratio(self) -> Fraction:
        """Bytes of DDP ÷ these: K·payload_ratio for parameters alone. The paper's 45.44 is 32 · 1.42."""
        return replace(self, O_e=self.M, T=None, sync_every={"params": 1}).bytes_per_step / self.bytes_per_step

    def round_bytes(self, before: Table, after: Table | None = None, states: int | None = None) -> list[Fraction]:
        """Bytes on the wire of one round, exact, by worker.

        Each worker receives the experts that it has in ``after`` but not in ``before`` (counted where they arrive, as in P);
        then each tensor is averaged among its holders in ``after``, which is ``before`` if nothing moved. ``states`` says
        how many states the round averages: all that `sync_every` names, if not given.
        """
        states = len(self.sync_every) if states is None else states
        s_exp = self.expert_params * self.element_bytes
        bytes_W = [states * rho_ring(self.M) * self.dense_params * self.element_bytes] * self.M
        for old_E, new_E in zip(before, before if after is None else after, strict=True):
            for old, new in zip(old_E, new_E, strict=True):
                for w in new:
                    bytes_W[w] += (states * rho_ring(len(new)) + (w not in old)) * s_exp
        return bytes_W

    @property
    def site_params(self) -> Fraction:
        """Parameters at one site: all dense ones and O_e/M of the sparse ones."""
        return self.dense_params + Fraction(self.O_e, self.M) * self.sparse_params

    @property
    def memory_bytes(self) -> Fraction:
        """Of one site in mixed-precision training with AdamW, without activations: 18 bytes per parameter."""
        return TRAINING_BYTES * self.site_params

    def flops(self, context: int, resident: float | None = None) -> dict[str, float]:
        """F_token by part: operations per token at one site, forward and backward; norms and activations left out.

        A weight that a token meets costs 6: multiply and add, once forward, twice backward. Attention scores cost 12 per
        layer, position and unit of width: the full square, of which a causal kernel computes half.

        ``resident`` is σ_st, with skip-token the share of chosen experts that live here (1 − ghost fraction, as measured);
        if not given, N_le/N_e, a balanced router's. The source has three readings. Eq. 3 multiplies it by min(k, N_le)/k;
        but k choices among all N_e meet k·N_le/N_e residents in the mean however few live here, so here it stands alone
        (the same where N_le ≥ k). Eq. 3 shrinks the gate by N_le/N_e; here only a partitioned router shrinks. Eq. 20's
        σ_st = min(1, N_le/k) where N_le < k is not used.
        """
        m, D, L = self.model, self.model.dim, self.model.num_layers
        here = self.N_le / m.num_experts
        chosen = (here if resident is None else resident) if m.skip_token else min(m.top_k, self.N_le) / m.top_k
        return {
            "attention": 6.0 * L * 4 * D * D,
            "scores": 12.0 * L * D * context,
            "unembedding": 6.0 * D * self.V,
            "shared": 6.0 * L * m.num_shared_experts * 2 * D * self.d_exp,
            "experts": 6.0 * L * m.top_k * 2 * D * self.d_exp * chosen,
            "router": 6.0 * L * D * m.num_experts * (1.0 if m.skip_token else here),
        }

    def t_comp(self, site: Site, B_l: int, context: int, resident: float | None = None) -> float:
        """F_token·B_l/(MFU·Φ_peak): seconds of one local step on B_l tokens."""
        return sum(self.flops(context, resident).values()) * B_l / (site.mfu * site.flops_per_second)

    def t_comm(self, site: Site) -> float:
        """ρ_c·(B_dense + B_sparse)/B_eff: seconds of one round's traffic, without latency."""
        return site.compression * 8 * float(self.B_dense + self.B_sparse) / site.bits_per_second

    def T_tot(self, site: Site, N_tok: int, B_l: int, context: int, resident: float | None = None) -> float:
        """N_tok/(M·B_l·K)·[K·t_comp + (1−α)·t_comm]: seconds to train on N_tok tokens."""
        a_round = self.K * self.t_comp(site, B_l, context, resident) + (1 - site.overlap) * self.t_comm(site)
        return N_tok / (self.M * B_l * self.K) * a_round
