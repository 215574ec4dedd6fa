"""Preference fuse analysis (section 4.5; Figure 4): weights of the cross-attention of Eq. 16, live by video events.

Letters: U users, H heads, Q live events, L video events.
"""

from __future__ import annotations

import numpy as np
import torch

from feature_store.schema import MISSING
from feature_store.view import ModelView
from model.attention import attention_weights, split_heads
from model.datasets.samples import Batch, gather
from model.farm import Ranker
from model.report.markup import Html, Table, element, note, number, paragraph
from model.report.page import section
from model.report.subject import Figures, Subject, histories
from model.report.svg import heat_map
from model.study.grid import FARM

TITLE = "Preference fuse (Figure 4)"
TAG, CLUSTER = "tag", "cluster"
SEVERAL = 5  # tags that the user of the heat map should have in both histories


def measure(subject: Subject) -> Figures:
    model = subject.model(FARM)
    if model is None or model.farm is None or model.farm.fuse is None:
        return {"missing": subject.missing(FARM), "pairs": None, "user": None}
    if any(TAG not in subject.data.view.columns(domain) for domain in ("video", "live")):
        return {"missing": "The data's events have no tag in both domains.", "pairs": None, "user": None}
    pairs, row = _over_users(subject, model)
    return {"missing": None, "pairs": pairs, "user": None if row is None else _user(subject, model, row)}


@torch.inference_mode()
def cross_weights(model: Ranker, batch: Batch) -> np.ndarray:
    """Weights of Eq. 16, mean over heads, without the sink's.  [U, Q, L]; 0 in the pads of both histories."""
    assert model.farm is not None
    assert model.farm.fuse is not None
    assert model.farm.self_attentions is not None
    h = histories(model, batch)
    v_hat, l_hat = model.farm.self_attentions(h.video, h.live, h.video_valid, h.live_valid)
    cross = model.farm.fuse.cross
    keys, _, valid = cross.keys_values(v_hat, h.video_valid)  # [U, H, d, L or L + 1]
    weights = attention_weights(split_heads(cross.query(l_hat), cross.heads), keys, valid).mean(1)
    weights = weights[..., : v_hat.shape[1]]  # [U, Q, L]
    valid = h.live_valid[:, :, None] & h.video_valid[:, None, :]
    return (weights * valid).numpy()


def _tags(view: ModelView, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Tags of live [U, Q] and of video events [U, L], MISSING in pads."""
    return (
        batch.users.live[..., view.columns("live").index(TAG)],
        batch.users.video[..., view.columns("video").index(TAG)],
    )


def _over_users(subject: Subject, model: Ranker) -> tuple[Figures, int | None]:
    """Mean weights on pairs of one tag and on others over all users, and the row of the user to show."""
    sums, best, chosen = np.zeros((2, 3)), (0, 0), None  # by same tag: pairs, weights, weights times video events
    rows, seen = subject.user_rows(), 0
    for batch in subject.batches(rows):
        live, video = _tags(subject.data.view, batch)
        sums += _pair_sums(cross_weights(model, batch), live, video, batch.users.video_length)
        for user in range(len(live)):
            several = _several(live[user], video[user])
            if several > best:
                best, chosen = several, int(rows[seen + user])
        seen += len(live)
    return _pair_means(sums) | {"users": len(rows)}, chosen


def _several(live: np.ndarray, video: np.ndarray) -> tuple[int, int]:
    """How well a user shows what Eq. 16 does: tags in both histories, up to SEVERAL, then pairs of one tag."""
    known_live, known_video = live[live != MISSING], video[video != MISSING]
    common = np.intersect1d(known_live, known_video)
    pairs = sum(int((known_live == tag).sum() * (known_video == tag).sum()) for tag in common)
    return min(len(common), SEVERAL), pairs


def _pair_sums(weights: np.ndarray, live: np.ndarray, video: np.ndarray, events: np.ndarray) -> np.ndarray:
    """weights [U, Q, L], tags [U, Q], [U, L], video events [U] -> [2, 3], pairs of different tags first."""
    known = (live != MISSING)[:, :, None] & (video != MISSING)[:, None, :]
    same = live[:, :, None] == video[:, None, :]
    lift = weights * events[:, None, None]
    masks = (known & ~same, known & same)
    return np.array([[mask.sum(), weights[mask].sum(), lift[mask].sum()] for mask in masks], float)


def _pair_means(sums: np.ndarray) -> Figures:
    return {
        name: {
            "pairs": int(sums[i, 0]),
            "weight": float(sums[i, 1] / sums[i, 0]) if sums[i, 0] else None,
            "times_uniform": float(sums[i, 2] / sums[i, 0]) if sums[i, 0] else None,
        }
        for i, name in ((1, "same_tag"), (0, "other"))
    }


def _user(subject: Subject, model: Ranker, row: int) -> Figures:
    """Weights of one user, events ordered by tag, then age."""
    batch = gather(subject.data, np.array([row]), trim=True)
    view = subject.data.view
    live, video = (tags[0] for tags in _tags(view, batch))
    q, n = int(batch.users.live_length[0]), int(batch.users.video_length[0])
    live_order, video_order = np.argsort(live[:q], kind="stable"), np.argsort(video[:n], kind="stable")
    weights = cross_weights(model, batch)[0][live_order][:, video_order]
    same = (live[live_order][:, None] == video[video_order]) & (live[live_order] != MISSING)[:, None]
    clusters = _column(view, batch, CLUSTER)
    return {
        "row": row,
        "weights": weights.round(6).tolist(),
        "same_tag": same.tolist(),
        "live": [_name(live[i], None if clusters is None else clusters[i]) for i in live_order],
        "video": [_name(video[i], None) for i in video_order],
        "tags_in_both": len(np.setdiff1d(np.intersect1d(live[:q], video[:n]), [MISSING])),
    }


def _column(view: ModelView, batch: Batch, name: str) -> np.ndarray | None:
    columns = view.columns("live")
    return batch.users.live[0, :, columns.index(name)] if name in columns else None


def _name(tag: int, cluster: int | None) -> str:
    name = "no tag" if tag == MISSING else f"tag {tag}"
    return name if cluster is None or cluster == MISSING else f"{name} / {cluster}"


def render(figures: Figures) -> Html:
    if figures["missing"]:
        return section("fuse", TITLE, note(figures["missing"]))
    explained = paragraph(
        "The live history asks the video history (Eq. 16). Of each live event, the weights over the video events add up"
        " to 1; with n video events, no preference would be 1/n each. A figure above 1 in the last column is more."
    )
    return section("fuse", TITLE, explained, _pairs_table(figures["pairs"]), *_user_part(figures["user"]))


def _pairs_table(pairs: Figures) -> Html:
    names = {"same_tag": "of one tag", "other": "of different tags"}
    rows = [
        [text, f"{pairs[key]['pairs']:,}", number(pairs[key]["weight"], 4), number(pairs[key]["times_uniform"])]
        for key, text in names.items()
    ]
    caption = f"Pairs of a live and a video event of {pairs['users']:,} users: mean weight"
    return Table(caption, ["pairs", "number", "mean weight", "times 1/n"], rows).html()


def _user_part(user: Figures | None) -> list[Html]:
    if user is None:
        return [note("No user on the test days has a tag in both histories, so there is no heat map.")]
    text = (
        f"Of the users with at least {SEVERAL} tags in both histories (this one has"
        f" {user['tags_in_both']}; with the most, if none has so many), the one with the most pairs of one"
        " tag. Events are ordered by tag, then age; cells of one tag are outlined."
    )
    chart = heat_map(
        "Cross-attention weights of one user",
        np.array(user["weights"]),
        user["live"],
        user["video"],
        "video events",
        "live events (tag / cluster)",
        np.array(user["same_tag"], bool),
    )
    return [paragraph(text), element("figure", chart, class_="alone")]
