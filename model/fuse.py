"""Cross-domain preference fuse module (section 3.3.2; Eq. 12, 16): the live history asks the video history.

Letters: U users, L events.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.attention import SequenceAttention


class SelfAttentions(nn.Module):
    """V_hat of both domains (Eq. 12), which align and fuse share.  -> [U, L, D1], [U, L, D2]"""

    def __init__(self, video_width: int, live_width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.video = SequenceAttention(video_width, video_width, heads, head_width)
        self.live = SequenceAttention(live_width, live_width, heads, head_width)

    def forward(self, video: Tensor, live: Tensor, video_valid: Tensor, live_valid: Tensor) -> tuple[Tensor, Tensor]:
        return self.video(video, video, video_valid, video_valid), self.live(live, live, live_valid, live_valid)


class FuseModule(nn.Module):
    """V_cross = MH-Cross-Att(Q = V_hat_live, K = V = V_hat_video) (Eq. 16).  -> [U, L, D2]"""

    def __init__(self, video_width: int, live_width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.cross = SequenceAttention(live_width, video_width, heads, head_width)

    def forward(self, video: Tensor, live: Tensor, video_valid: Tensor, live_valid: Tensor) -> Tensor:
        fused: Tensor = self.cross(live, video, live_valid, video_valid)
        return fused
