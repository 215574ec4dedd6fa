"""Cross-domain preference fuse module (section 3.3.2; Eq. 12, 16): the live history asks the video history.

Letters: U users, L events.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.attention import SequenceAttention


class SelfAttentions(nn.Module):
    """V_hat of both domains (Eq. 12), which align and fuse share.  -> [U, L, D1], [U, L, D2]

    residual: V_hat = V + MH-Self-Att, so that an event stays itself.
    """

    def __init__(self, video_width: int, live_width: int, heads: int, head_width: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.video = SequenceAttention(video_width, video_width, heads, head_width)
        self.live = SequenceAttention(live_width, live_width, heads, head_width)
        if residual:  # each event starts as itself
            nn.init.zeros_(self.video.out.weight)
            nn.init.zeros_(self.live.out.weight)

    def forward(self, video: Tensor, live: Tensor, video_valid: Tensor, live_valid: Tensor) -> tuple[Tensor, Tensor]:
        v_hat, l_hat = self.video(video, video, video_valid, video_valid), self.live(live, live, live_valid, live_valid)
        return (video + v_hat, live + l_hat) if self.residual else (v_hat, l_hat)


class FuseModule(nn.Module):
    """V_cross = MH-Cross-Att(Q = V_hat_live, K = V = V_hat_video) (Eq. 16), plus V_hat_live if `residual`: else nothing
    of the live event that asked would be left for Eq. 17 to find.  -> [U, L, D2]"""

    def __init__(
        self, video_width: int, live_width: int, heads: int, head_width: int, residual: bool, sink: bool
    ) -> None:
        super().__init__()
        self.residual = residual
        self.cross = SequenceAttention(live_width, video_width, heads, head_width, sink)

    def forward(self, video: Tensor, live: Tensor, video_valid: Tensor, live_valid: Tensor) -> Tensor:
        fused: Tensor = self.cross(live, video, live_valid, video_valid)
        return live + fused if self.residual else fused
