"""The paper's equations as docs/paper.md reads them: float64 NumPy, one user at a time, loops instead of masks.

Written from the paper, to check the model against; weights come from a model's state dict, in float64.
Letters: n events of one history (no pads), L slots, D width, H heads, K candidates, T tasks, B samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
from torch import nn

from feature_store.matrices import UserInputs
from feature_store.schema import MISSING
from feature_store.view import ModelView, Part, ViewField
from model.config import ModelConfig

Weights = Mapping[str, np.ndarray]


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


def under(weights: Weights, prefix: str) -> dict[str, np.ndarray]:
    """The weights of one submodule, by their names in it."""
    return {name.removeprefix(prefix + "."): w for name, w in weights.items() if name.startswith(prefix + ".")}


# Frequencies (Eq. 1-5, 9, 10)


def dft(n: int) -> np.ndarray:
    """The unitary DFT matrix (Eq. 1, 2): one factor 1/sqrt(N), and 1/N in the exponent."""
    return np.array([[np.exp(-2j * np.pi * j * t / n) for t in range(n)] for j in range(n)]) / np.sqrt(n)


def kept_rows(n: int, c: int) -> list[int]:
    """Rows of the DFT of the c lowest frequencies: 0, then +-1, +-2, ..."""
    pairs = (min(c, n if n % 2 else n - 1) - 1) // 2
    return [m % n for m in range(-pairs, pairs + 1)]


def passed(x: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """What the frequencies `rows` contribute to the signal x [n, D]: F^-1 over those rows of F x, which is real."""
    f = dft(len(x))
    part = f.conj().T[:, rows] @ (f @ x)[rows]  # F^-1 = F^H, F being unitary (Eq. 3)
    assert np.abs(part.imag).max(initial=0) < 1e-12 * (1 + np.abs(x).max(initial=0))
    return part.real


def low(x: np.ndarray, c: int) -> np.ndarray:
    """Low[x] (Eq. 4)."""
    return passed(x, kept_rows(len(x), c))


def high(x: np.ndarray, c: int) -> np.ndarray:
    """High[x] (Eq. 5): all other frequencies."""
    kept = set(kept_rows(len(x), c))
    return passed(x, [row for row in range(len(x)) if row not in kept])


def cutoff_of(n: int, slots: int, c: int) -> int:
    """The odd number nearest to c n / L, at least 1; the greater of two."""
    odd = range(1, c + 2, 2)
    return min(odd, key=lambda number: (abs(number - Fraction(c * n, slots)), -number))


def frequency(w: Weights, x: np.ndarray, slots: int, c: int, spectrum: str) -> np.ndarray:
    """Eq. 9 of one history x [n, D]."""
    if len(x) == 0:
        return x
    low_gate, high_gate = gate(under(w, "low_gate"), x), gate(under(w, "high_gate"), x)
    if spectrum == "padded":
        padded = np.zeros((slots, x.shape[1]))
        padded[: len(x)] = x
        return (low_gate * low(padded, c) + high_gate * high(padded, c))[: len(x)]
    c = cutoff_of(len(x), slots, c) if spectrum == "proportional" else c
    return low_gate * low(x, c) + high_gate * high(x, c)


def gate(w: Weights, x: np.ndarray) -> float:
    """Eq. 10: one number."""
    return float(sigmoid(mlp(under(w, "mlp"), mean(x)))[0])


# Small parts


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def linear(w: Weights, x: np.ndarray) -> np.ndarray:
    return x @ w["weight"].T + w.get("bias", 0.0)


def mlp(w: Weights, x: np.ndarray) -> np.ndarray:
    """Linear layers with ReLU between them; what stands between (ReLU, Dropout) has no weights."""
    layers = sorted({int(name.split(".")[0]) for name in w})
    for layer in layers[:-1]:
        x = np.maximum(linear(under(w, str(layer)), x), 0)
    return linear(under(w, str(layers[-1])), x)


def mean(x: np.ndarray) -> np.ndarray:
    """Mean of Eq. 13 over events [n, D]; 0 without any."""
    return x.mean(0) if len(x) else np.zeros(x.shape[1])


# Attention (Eq. 11, 12, 16, 17)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """Scaled dot products, head by head.  q [Q, H d], k and v [n, H d] -> [Q, H d]; 0 without events."""
    if len(k) == 0:
        return np.zeros((len(q), v.shape[1]))
    d = q.shape[1] // heads
    cuts = [slice(h * d, (h + 1) * d) for h in range(heads)]
    return np.concatenate([softmax(q[:, s] @ k[:, s].T / np.sqrt(d)) @ v[:, s] for s in cuts], axis=1)


def keys_values(w: Weights, events: np.ndarray, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """[n, D] -> [n, H d] each; with a sink one more event, of value 0, whose key, unscaled, is a weight."""
    k, v = (linear(under(w, name), events) for name in ("key", "value"))
    if "sink_key" not in w:
        return k, v
    d = k.shape[1] // heads
    return np.vstack([k, w["sink_key"].reshape(1, -1) * np.sqrt(d)]), np.vstack([v, np.zeros((1, v.shape[1]))])


def sequence_attention(w: Weights, queries: np.ndarray, events: np.ndarray, heads: int) -> np.ndarray:
    """MH-Self-Att, MH-Cross-Att.  queries [nq, Dq], events [n, D] -> [nq, Dq]"""
    k, v = keys_values(under(w, "keys_values"), events, heads)
    return linear(under(w, "out"), attention(linear(under(w, "query"), queries), k, v, heads))


def target_attention(w: Weights, query: np.ndarray, events: np.ndarray, heads: int) -> np.ndarray:
    """MH-Target-Att.  query [K, H d], events [n, D] -> [K, H d]"""
    k, v = keys_values(under(w, "projections"), events, heads)
    return linear(under(w, "out"), attention(query, k, v, heads))


# Embedding (Eq. 8)


def rows_of(field: ViewField, view: ModelView, value: int, now: int) -> list[int]:
    """The table rows whose sum embeds a raw value; plain Python integers."""
    now = now // (view.lag_quantum_s * 1000) * (view.lag_quantum_s * 1000)
    if field.kind == "hour":
        return [1 + (now + view.utc_offset_s * 1000) // 3_600_000 % 24]
    if value == MISSING:
        return [0]
    if field.kind == "behaviours":
        return [1 + bit for bit in range(field.rows) if value >> bit & 1]
    if field.kind == "category":
        return [1 + value % (field.rows - 1)]
    if field.kind == "id":
        return [1 + mixed(value) % (field.rows - 1)]
    number = max(0, now - value) if field.kind == "time" else value
    return [1 + sum(boundary <= number for boundary in field.boundaries)]


def mixed(value: int) -> int:
    """h (2 g h + g) mod p, products in signed 64 bits; h = g id mod p, g = 2^64 / golden ratio, p = 2^31 - 1."""
    golden, prime = 0x9E3779B97F4A7C15, 2**31 - 1
    h = signed64(value * golden) % prime
    return signed64(h * (2 * golden * h + golden)) % prime


def signed64(value: int) -> int:
    """An integer as a signed 64-bit product wraps it."""
    return (value + 2**63) % 2**64 - 2**63


def embed(w: Weights, view: ModelView, part: Part, row: np.ndarray, now: int) -> np.ndarray:
    """Concat of the fields' embeddings.  row [F] in columns of the part -> [D]"""
    columns = view.columns(part)
    parts = []
    for field in view.fields(part):
        table = w[f"tables.{view.table_name(part, field).replace('.', '_')}.weight"]
        value = MISSING if field.source is None else int(row[columns.index(field.source)])
        parts.append(table[rows_of(field, view, value, now)].sum(0))
    return np.concatenate(parts)


def embed_all(w: Weights, view: ModelView, part: Part, rows: np.ndarray, now: int) -> np.ndarray:
    """[n, F] -> [n, D]"""
    return np.array([embed(w, view, part, row, now) for row in rows]).reshape(len(rows), view.width(part))


# Multi-task heads, from their papers; weights of [candidate, user] side by side


def head_logits(w: Weights, config: ModelConfig, tasks: int, candidate: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Logits of one (candidate, user): y_t = tower_t(f_t(x))."""
    joint = np.concatenate([w["first.candidate.weight"], w["first.user.weight"]], axis=1)
    out = joint @ np.concatenate([candidate, user]) + w["first.user.bias"]
    if config.head == "shared_bottom":
        inputs = [shared_bottom(w, config, np.maximum(out, 0))] * tasks
    else:
        inputs = list(mixed_experts(w, config, tasks, out))
    return np.array([mlp(under(w, f"towers.{t}"), inputs[t])[0] for t in range(tasks)])


def shared_bottom(w: Weights, config: ModelConfig, x: np.ndarray) -> np.ndarray:
    """f_t(x) = f(x): the layers after the first."""
    for layer in range(config.levels - 1):
        x = np.maximum(linear(under(w, f"next.{layer}.0"), x), 0)
    return x


def mixed_experts(w: Weights, config: ModelConfig, tasks: int, out: np.ndarray) -> np.ndarray:
    """f_t(x) of MMoE, CGC, PLE, AdaTT.  out: what the experts of the first level, then its gates, make of x."""
    owners = [t for t in range(tasks) for _ in range(config.task_experts)] + [tasks] * config.shared_experts
    count, width = len(owners), config.expert_width
    experts = np.maximum(out[: count * width].reshape(count, width), 0)
    logits = out[count * width :].reshape(-1, count)
    groups = mixtures(under(w, "first.mixture"), config.head, owners, tasks, logits, experts)
    for level in range(config.levels - 1 if config.head in ("ple", "adatt") else 0):
        groups = next_level(under(w, f"next.{level}"), config.head, owners, tasks, groups)
    return groups


def next_level(w: Weights, head: str, owners: list[int], tasks: int, groups: np.ndarray) -> np.ndarray:
    """Experts and gate of a group read what the group's gate of the level before gave."""
    held = sorted(set(owners))
    outputs = [linear(under(w, f"experts_of.{i}"), groups[g]) for i, g in enumerate(held)]
    experts = np.maximum(np.concatenate(outputs).reshape(len(owners), -1), 0)
    gates = len({name.split(".")[1] for name in w if name.startswith("gates.")})
    logits = np.array([linear(under(w, f"gates.{g}"), groups[g]) for g in range(gates)])
    return mixtures(under(w, "mixture"), head, owners, tasks, logits, experts)


def mixtures(
    w: Weights, head: str, owners: list[int], tasks: int, logits: np.ndarray, experts: np.ndarray
) -> np.ndarray:
    """Each gate's sum over the experts it sees.

    MMoE and AdaTT: all.  CGC and PLE: a task's gate its own and the shared; the shared gate all.
    AdaTT adds sum_i v_i e_i over the group's own experts.
    """
    out = []
    for group, row in enumerate(logits):
        sees_all = head in ("mmoe", "adatt") or group == tasks
        seen = [e for e, owner in enumerate(owners) if sees_all or owner in (group, tasks)]
        mixed = softmax(row[seen]) @ experts[seen]
        if head == "adatt":
            mixed = mixed + sum(w["own.weight"][e] * experts[e] for e, owner in enumerate(owners) if owner == group)
        out.append(mixed)
    return np.array(out)


# Whole models (Eq. 6)


@dataclass(frozen=True)
class UserSide:
    """What the reference computes of one user."""

    video: np.ndarray  # V_video [n1, D1]
    live: np.ndarray  # V_live [n2, D2]
    user: np.ndarray  # embedding of user and context [Du]


@dataclass(frozen=True)
class Reference:
    """FARM or a base model over the weights of a `Ranker`."""

    w: Weights
    config: ModelConfig
    view: ModelView

    def user_side(self, users: UserInputs, u: int) -> UserSide:
        now, own = int(users.now[u]), len(self.view.columns("user"))
        video = embed_all(self.w, self.view, "video", users.video[u, : users.video_length[u]], now)
        live = embed_all(self.w, self.view, "live", users.live[u, : users.live_length[u]], now)
        parts = [embed(self.w, self.view, "user", users.user[u, :own], now)]
        if self.view.context:
            parts.append(embed(self.w, self.view, "context", users.user[u, own:], now))
        return UserSide(video, live, np.concatenate(parts))

    def hats(self, side: UserSide) -> tuple[np.ndarray, np.ndarray]:
        """V_hat of both domains (Eq. 12)."""
        own = {"video": side.video, "live": side.live}
        video, live = (
            sequence_attention(under(self.w, f"farm.self_attentions.{d}"), x, x, self.config.heads)
            + (x if self.config.residual else 0)
            for d, x in own.items()
        )
        return video, live

    def preferences(self, side: UserSide) -> tuple[np.ndarray, np.ndarray]:
        """h_video, h_live (Eq. 13)."""
        video, live = self.hats(side)
        return (
            mlp(under(self.w, "farm.video_preference.mlp"), mean(video)),
            mlp(under(self.w, "farm.live_preference.mlp"), mean(live)),
        )

    def attended(self, side: UserSide) -> dict[str, np.ndarray]:
        """What the target attentions read: F_video, F_live (Eq. 9), V_cross (Eq. 16)."""
        c, slots = self.config, self.view.history_length
        sources = {"video": side.video, "live": side.live}
        for domain, on in (("video", c.video_frequency), ("live", c.live_frequency)):
            if on:
                w = under(self.w, f"farm.{domain}_frequency")
                sources[domain] = frequency(w, sources[domain], slots, c.cutoff, c.spectrum)
        if c.fuse:
            video, live = self.hats(side)
            sources["cross"] = sequence_attention(under(self.w, "farm.fuse.cross"), live, video, c.heads)
            sources["cross"] += live if c.residual else 0
        return sources

    def head_input(self, side: UserSide, candidate: np.ndarray) -> np.ndarray:
        """Candidate embedding [Dc] and, in FARM, F_hat (Eq. 11, 17, 18): the candidate's half of the head's input."""
        if self.config.arch != "farm":
            return candidate
        joint = linear(under(self.w, "query_user"), side.user) + linear(under(self.w, "query_candidate"), candidate)
        sources = self.attended(side)
        queries = np.split(joint, len(sources))
        hats = [
            target_attention(under(self.w, f"farm.targets.{name}"), query[None], events, self.config.heads)[0]
            for (name, events), query in zip(sources.items(), queries, strict=True)
        ]
        return np.concatenate([candidate, *hats])

    def head_user(self, side: UserSide) -> np.ndarray:
        """The user's half of the head's input."""
        return np.concatenate([side.user, mean(side.video), mean(side.live)])

    def logits(self, users: UserInputs, u: int, candidates: np.ndarray) -> np.ndarray:
        """candidates [K, Fc] of user u -> [K, T]"""
        side = self.user_side(users, u)
        user = self.head_user(side)
        embedded = embed_all(self.w, self.view, "candidate", candidates, 0)
        head, tasks = under(self.w, "head"), len(self.view.tasks)
        return np.array([head_logits(head, self.config, tasks, self.head_input(side, c), user) for c in embedded])


# Losses (Eq. 7, 14, 15)


def xtr_loss(logits: np.ndarray, labels: np.ndarray, known: np.ndarray) -> float:
    """Eq. 7: over tasks the sum, over a task's known labels the mean."""
    p = sigmoid(logits.astype(np.float64))
    nll = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    return float(sum(nll[known[:, t], t].mean() for t in range(logits.shape[1]) if known[:, t].any()))


def align_loss(
    h_live: np.ndarray, h_video: np.ndarray, users: np.ndarray, takes_part: np.ndarray, tau: float, normalise: bool
) -> float:
    """Eq. 14: the live preference is the anchor, the video preferences of other users are the negatives."""
    rows = np.flatnonzero(takes_part)
    if len(rows) < 2:
        return 0.0
    if normalise:
        h_live, h_video = (h / np.linalg.norm(h, axis=1, keepdims=True) for h in (h_live, h_video))
    total = 0.0
    for i in rows:
        pool = [i, *(j for j in rows if users[j] != users[i])]
        sims = np.array([h_live[i] @ h_video[j] / tau for j in pool])
        total -= sims[0] - (sims.max() + np.log(np.exp(sims - sims.max()).sum()))
    return total / len(rows)


# Metrics (Eq. 19)


def auc(scores: Sequence[float], labels: Sequence[int]) -> float | None:
    """The share of (positive, negative) pairs in the right order; ties count one half."""
    positive = [s for s, y in zip(scores, labels, strict=True) if y]
    negative = [s for s, y in zip(scores, labels, strict=True) if not y]
    if not positive or not negative:
        return None
    wins = sum((p > n) + 0.5 * (p == n) for p, n in product(positive, negative))
    return float(wins / (len(positive) * len(negative)))


def uauc_gauc(groups: Sequence[object], scores: np.ndarray, labels: np.ndarray) -> tuple[float | None, float | None]:
    """Mean of the groups' AUCs, plain and weighted by samples, over groups with both classes."""
    kept = []
    for group in sorted(set(groups)):  # type: ignore[type-var]
        mine = [i for i, g in enumerate(groups) if g == group]
        value = auc(scores[mine].tolist(), labels[mine].tolist())
        if value is not None:
            kept.append((value, len(mine)))
    if not kept:
        return None, None
    samples = sum(size for _, size in kept)
    return sum(value for value, _ in kept) / len(kept), sum(value * size for value, size in kept) / samples
