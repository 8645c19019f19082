"""MFDAN: Multi-Level Flow-Driven Attention Network, in torch (training and export only).

Source: W. Cai et al., "MFDAN: Multi-Level Flow-Driven Attention Network for Micro-Expression
Recognition", IEEE TCSVT 34(12), 2024, DOI 10.1109/TCSVT.2024.3437481. What the paper leaves open
is called "ours" where it appears.

Shapes: b pairs, s pixels of a crop's side, (h w) token grid, c channels of a token, g windows of
all pairs, n tokens of one window, k heads, d = c / k, f width of the flow vector.

    image  (b 3 s s) ─ embed ─ stage 1 ─ merge x3 ─ stage 2 ─ mean ─┐
    flow   (b 3 s s) ─ embed ───┴─────── merge x3 ────┘             ├─ concat ─ FC ─ logits
                   └── flow encoder: two convolutions, two FC ──────┘
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own docs use

__all__ = [
    "DropKey",
    "FlowDrivenAttention",
    "FlowDrivenLayer",
    "FlowEncoder",
    "Mfdan",
    "MfdanConfig",
    "MfdanFeatures",
    "PatchEmbedding",
    "PatchMerging",
    "shift_mask",
    "window_merge",
    "window_partition",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class MfdanConfig:
    """Sizes of the network; the defaults are the paper's, or ours where it is silent."""

    classes: int = 3
    image_size: int = 224
    """Side of both inputs, pixels (paper)."""
    patch: int = 4
    """Side of one token's patch, pixels (paper)."""
    channels: int = 96
    """Width of a stage-1 token (paper); each of the three mergings doubles it."""
    heads: tuple[int, int] = (3, 6)
    """Attention heads of stage 1 and stage 2 (paper)."""
    window: int = 7
    """Side of an attention window, tokens (paper)."""
    dropkey: float = 0.4
    """Probability of dropping a key for a query: .4 CASME II, .3 SAMM and SMIC (paper)."""
    flow_attention: bool = True
    """Off, image tokens attend by their own queries alone: the paper's ablation. What makes the
    flow's tokens is left out then; the flow encoder stays."""
    mlp_ratio: int = 4
    """Hidden width of a layer's MLP over its channels (ours)."""
    encoder_channels: tuple[int, int] = (96, 256)
    """Of the flow encoder's two convolutions (paper)."""
    flow_vector: int = 256
    """Width of the flow encoder's two fully connected layers (ours)."""
    encoder_dropout: float = 0.5
    """Between those two layers (ours)."""

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if self.image_size % (8 * self.patch):
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of 8 patches ({8 * self.patch}): "
                "three mergings halve the token grid three times"
            )
        for stage, grid in enumerate((self.grid, self.grid // 8), start=1):
            if grid % self.window:
                raise ValueError(
                    f"stage {stage} has {grid} tokens a side, not a multiple of the window "
                    f"({self.window})"
                )
        for stage, (width, heads) in enumerate(
            zip((self.channels, 8 * self.channels), self.heads, strict=True), start=1
        ):
            if width % heads:
                raise ValueError(f"stage {stage}: {width} channels do not divide by {heads} heads")
        for name in ("dropkey", "encoder_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1")

    @property
    def grid(self) -> int:
        """Tokens a side in stage 1."""
        return self.image_size // self.patch


def window_partition(tokens: Tensor, window: int) -> Tensor:
    """Cut a token grid (b h w c) into windows (g n c), row by row, g = b·h·w / window²."""
    return rearrange(tokens, "b (i p) (j q) c -> (b i j) (p q) c", p=window, q=window)


def window_merge(windows: Tensor, window: int, grid: tuple[int, int]) -> Tensor:
    """Undo `window_partition`: (g n c) back to (b h w c) for the grid (h, w)."""
    rows, columns = grid[0] // window, grid[1] // window
    return rearrange(
        windows, "(b i j) (p q) c -> b (i p) (j q) c", i=rows, j=columns, p=window, q=window
    )


def shift_mask(grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """Say which keys a query may see once the grid is rolled by -shift: bool (h·w/n, n, n).

    The roll brings tokens from opposite borders into one window; they do not see each other.
    Source: shifted windows of Swin (Liu et al., ICCV 2021).
    """
    height, width = grid
    region = torch.zeros(1, height, width, 1)
    if shift:
        region[:, -shift:] += 1
        region[:, :, -shift:] += 2
        # The last row of windows also holds tokens that did not wrap around: rolling keeps them
        # apart from the wrapped ones, and windows before the last hold one region only.
    regions = window_partition(region, window).squeeze(-1)
    return regions[:, :, None] == regions[:, None, :]


def _relative_positions(window: int) -> Tensor:
    """Index of each (query, key) offset in the bias table: int64 (n, n)."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    span = 2 * window - 1
    dy = rows[:, None] - rows[None, :] + window - 1
    dx = columns[:, None] - columns[None, :] + window - 1
    return dy * span + dx


class DropKey(nn.Module):
    """The mask M: -∞ with probability `rate` for each (query, key), else 0; training only.

    Of each query's allowed keys the one with the largest draw always stays, so no softmax sees an
    empty row (ours). Source: Li et al., "DropKey", CVPR 2023.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, shape: torch.Size, allowed: Tensor) -> Tensor:
        """Draw M of a shape (…, n, n); `allowed` (bool, broadcastable) marks the keys in play."""
        draw = torch.rand(shape, device=allowed.device).masked_fill(~allowed, -1.0)
        dropped = (draw < self.rate) & (draw < draw.amax(dim=-1, keepdim=True))
        return torch.zeros_like(draw).masked_fill(dropped, -math.inf)


class FlowDrivenAttention(nn.Module):
    """Image tokens attend by their own queries and by the flow's, to the same keys and values.

    S_self = Q_m K_mᵀ / √d + B;  S_flow = cos(Q_f, K_m) / τ + B;
    out = softmax(S_self + M) V_m + softmax(S_flow + M) V_m  (paper; its ablation drops the second
    half), then one linear layer that mixes the heads (ours, as in Swin). B is a learned table over
    relative offsets (ours: the first Swin's form) and τ ≥ .01 is learned per head from .1 (ours,
    as in Swin V2). W_qkv has no bias (ours), so that only the direction of a flow token matters
    in S_flow.
    """

    _TAU_MIN = 0.01

    def __init__(
        self, channels: int, heads: int, window: int, dropkey: float, *, flow_attention: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)
        self.tau = nn.Parameter(torch.full((heads, 1, 1), 0.1)) if flow_attention else None
        self.bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.dropkey = DropKey(dropkey)
        self.register_buffer("_offsets", _relative_positions(window), persistent=False)

    def forward(self, image: Tensor, flow: Tensor | None, allowed: Tensor | None = None) -> Tensor:
        """Attend inside windows: image and flow tokens (g n c) → (g n c).

        `allowed` is a shift mask (windows of one pair, n, n), or None where all keys are in play.
        """
        s_self, s_flow, values = self.scores(image, flow, allowed)
        if self.training and self.dropkey.rate:
            # Drawn once and added to both scores, after bias and shift mask.
            mask = self.dropkey(s_self.shape, s_self.detach() > -math.inf)
            s_self = s_self + mask
            s_flow = None if s_flow is None else s_flow + mask
        attention = s_self.softmax(dim=-1)
        if s_flow is not None:
            attention = attention + s_flow.softmax(dim=-1)
        return cast("Tensor", self.out(rearrange(attention @ values, "g k n d -> g n (k d)")))

    def received(self, image: Tensor, flow: Tensor | None) -> Tensor:
        """Return the attention that each token receives as a key, times n: (g n m), 1 when even.

        Mean over heads and over the queries of the window, m scores: by S_self and, where flow
        drives, by S_flow. Without DropKey.
        """
        s_self, s_flow, _values = self.scores(image, flow, None)
        scores = [s_self] if s_flow is None else [s_self, s_flow]
        maps = [score.softmax(dim=-1).mean(dim=(1, 2)) for score in scores]
        return torch.stack(maps, dim=-1) * image.shape[1]

    def scores(
        self, image: Tensor, flow: Tensor | None, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return S_self, S_flow (g k n n), with bias and shift mask, and the values (g k n d).

        S_flow is None where the flow does not drive the attention.
        """
        q_m, k_m, v_m = rearrange(self.qkv(image), "g n (t k d) -> t g k n d", t=3, k=self.heads)
        bias = self._position_bias(allowed)  # (k n n) or, for w windows of a pair, (w k n n)
        # √d and τ divide the queries, not the n times larger scores.
        s_self = _add_bias((q_m / math.sqrt(q_m.shape[-1])) @ k_m.mT, bias)
        if self.tau is None or flow is None:
            return s_self, None, v_m
        w_q = self.qkv.weight[: image.shape[-1]]
        q_f = rearrange(F.linear(flow, w_q), "g n (k d) -> g k n d", k=self.heads)
        s_flow = (_unit(q_f) / self.tau.clamp(min=self._TAU_MIN)) @ _unit(k_m).mT
        return s_self, _add_bias(s_flow, bias), v_m

    def _position_bias(self, allowed: Tensor | None) -> Tensor:
        """B (k n n); under a shift mask (w n n) it is (w k n n), -∞ where a key is forbidden."""
        offsets = cast("Tensor", self._offsets)
        bias = rearrange(self.bias_table[offsets], "n m k -> k n m")
        return bias if allowed is None else bias.masked_fill(~allowed[:, None], -math.inf)


def _add_bias(scores: Tensor, bias: Tensor) -> Tensor:
    """Add (k n n) to each window's scores (g k n n), or (w k n n) to those of each pair."""
    if bias.dim() == 3:  # noqa: PLR2004 - k n n
        return scores + bias
    return (scores.reshape(-1, len(bias), *scores.shape[1:]) + bias).flatten(0, 1)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1, eps=1e-6)


class FlowDrivenLayer(nn.Module):
    """One W-Driven (shift 0) or SW-Driven layer: z' = LN(Attn(z)) + z;  z'' = LN(MLP(z')) + z'."""

    def __init__(
        self, channels: int, heads: int, grid: tuple[int, int], shift: int, config: MfdanConfig
    ) -> None:
        super().__init__()
        self.grid = grid
        self.window = config.window
        self.shift = shift
        self.attention = FlowDrivenAttention(
            channels, heads, config.window, config.dropkey, flow_attention=config.flow_attention
        )
        self.attention_norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, config.mlp_ratio * channels),
            nn.GELU(),  # ours
            nn.Linear(config.mlp_ratio * channels, channels),
        )
        self.mlp_norm = nn.LayerNorm(channels)
        allowed = shift_mask(grid, config.window, shift) if shift else None
        self.register_buffer("_allowed", allowed, persistent=False)

    def forward(self, image: Tensor, flow: Tensor | None) -> Tensor:
        """Image tokens (b h w c), driven by flow tokens (b h w c) → image tokens (b h w c)."""
        allowed = cast("Tensor | None", self._allowed)
        driving = None if flow is None else self._windows(flow)
        attended = self.attention(self._windows(image), driving, allowed)
        image = image + self.attention_norm(self._tokens(attended))
        return image + cast("Tensor", self.mlp_norm(self.mlp(image)))

    def received(self, image: Tensor, flow: Tensor | None) -> Tensor:
        """Return what each token receives as a key in a layer without shift: (b m h w).

        As in `FlowDrivenAttention.received`.
        """
        driving = None if flow is None else self._windows(flow)
        maps = self._tokens(self.attention.received(self._windows(image), driving))
        return rearrange(maps, "b h w m -> b m h w")

    def _windows(self, tokens: Tensor) -> Tensor:
        if self.shift:
            tokens = tokens.roll((-self.shift, -self.shift), dims=(1, 2))
        return window_partition(tokens, self.window)

    def _tokens(self, windows: Tensor) -> Tensor:
        tokens = window_merge(windows, self.window, self.grid)
        return tokens.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else tokens


class FlowDrivenStage(nn.Module):
    """A W-Driven and an SW-Driven layer; the same flow tokens feed both."""

    def __init__(self, channels: int, heads: int, grid: int, config: MfdanConfig) -> None:
        super().__init__()
        # A grid of one window has nothing to shift.
        shift = config.window // 2 if grid > config.window else 0
        self.w_driven = FlowDrivenLayer(channels, heads, (grid, grid), 0, config)
        self.sw_driven = FlowDrivenLayer(channels, heads, (grid, grid), shift, config)

    def forward(self, image: Tensor, flow: Tensor | None) -> Tensor:
        """Image and flow tokens (b h w c) → image tokens (b h w c)."""
        return cast("Tensor", self.sw_driven(self.w_driven(image, flow), flow))


class PatchEmbedding(nn.Module):
    """Each patch of 3 x patch x patch values through one linear layer."""

    def __init__(self, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(3 * patch * patch, channels)

    def forward(self, picture: Tensor) -> Tensor:
        """(b 3 s s) → tokens (b h w c)."""
        patches = rearrange(picture, "b e (h p) (w q) -> b h w (e p q)", p=self.patch, q=self.patch)
        return cast("Tensor", self.project(patches))


class PatchMerging(nn.Module):
    """Halve the grid, double the channels: 2x2 tokens → linear → LN (order of Swin V2, ours)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(2 * channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b 2h 2w c) → (b h w 2c)."""
        quads = rearrange(tokens, "b (h p) (w q) c -> b h w (p q c)", p=2, q=2)
        return cast("Tensor", self.norm(self.reduce(quads)))


def _merge_thrice(channels: int) -> nn.Sequential:
    return nn.Sequential(*(PatchMerging(channels * 2**step) for step in range(3)))


class LocalResponseNorm(nn.Module):
    """Divide by (1 + α/5 · sum of squares over 5 neighbouring channels)^¾.

    All four constants are ours: AlexNet's n = 5, α = 1e-4, β = ¾, and k = 1 as in torch.

    Written out because torch's own goes through a 3-d pooling that is slow on CPUs.
    """

    _REACH = 2
    _ALPHA = 1e-4

    def forward(self, x: Tensor) -> Tensor:
        """(b c h w) → (b c h w)."""
        channels = x.shape[1]
        squares = F.pad(x * x, (0, 0, 0, 0, self._REACH, self._REACH))
        width = 2 * self._REACH + 1
        total = squares[:, :channels]
        for offset in range(1, width):
            total = total + squares[:, offset : offset + channels]
        root = (1 + self._ALPHA / width * total).rsqrt()
        return x * root * root.sqrt()


class FlowEncoder(nn.Module):
    """The flow as one vector: SSSN (Khor et al., ICIP 2019).

    Conv → ReLU → LRN → MaxPool → Conv → ReLU → LRN → MaxPool → FC → Dropout → FC (paper).
    Kernels and padding follow AlexNet (ours): 11x11 stride 4 padding 2, 5x5 padding 2, pools 3x3
    stride 2; a mean pool of that kind brings 13x13 to the 6x6 grid that the first FC reads (ours).
    """

    def __init__(self, config: MfdanConfig) -> None:
        super().__init__()
        first, second = config.encoder_channels
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, first, 11, stride=4, padding=2),
            nn.ReLU(),
            LocalResponseNorm(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(first, second, 5, padding=2),
            nn.ReLU(),
            LocalResponseNorm(),
            nn.MaxPool2d(3, stride=2),
            nn.AvgPool2d(3, stride=2),
        )
        side = (config.image_size + 2 * 2 - 11) // 4 + 1
        for _pool in range(3):
            side = (side - 3) // 2 + 1
        self.vector = nn.Sequential(
            nn.Linear(second * side * side, config.flow_vector),
            nn.Dropout(config.encoder_dropout),
            nn.Linear(config.flow_vector, config.flow_vector),
        )

    def forward(self, flow: Tensor) -> Tensor:
        """(b 3 s s) → (b f)."""
        return cast("Tensor", self.vector(self.convolutions(flow).flatten(start_dim=1)))


@dataclass(frozen=True, slots=True)
class MfdanFeatures:
    """What the head reads, and the flow tokens of both stages."""

    image_tokens: Tensor
    """After stage 2: (b h/8 w/8 8c)."""
    flow_vector: Tensor
    """(b f)."""
    flow_tokens: tuple[Tensor, Tensor] | None
    """Of stage 1 (b h w c) and of stage 2 (b h/8 w/8 8c); None without flow attention."""


class Mfdan(nn.Module):
    """The whole network: magnified image and flow image of one pair → class logits."""

    def __init__(self, config: MfdanConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MfdanConfig()
        width = 8 * config.channels
        self.flow_encoder = FlowEncoder(config)
        self.embed_image = PatchEmbedding(config.patch, config.channels)
        self.embed_flow = (
            PatchEmbedding(config.patch, config.channels) if config.flow_attention else None
        )
        self.stage1 = FlowDrivenStage(config.channels, config.heads[0], config.grid, config)
        self.merge_image = _merge_thrice(config.channels)
        # Weights of its own: ours.
        self.merge_flow = _merge_thrice(config.channels) if config.flow_attention else None
        self.stage2 = FlowDrivenStage(width, config.heads[1], config.grid // 8, config)
        self.head = nn.Linear(width + config.flow_vector, config.classes)
        self.apply(_initialise)

    def forward(self, image: Tensor, flow: Tensor) -> Tensor:
        """image, flow (b 3 s s) → logits (b classes)."""
        features = self.features(image, flow)
        pooled = features.image_tokens.mean(dim=(1, 2))  # ours
        return cast("Tensor", self.head(torch.cat([pooled, features.flow_vector], dim=-1)))

    def features(self, image: Tensor, flow: Tensor) -> MfdanFeatures:
        """Everything before the head."""
        flow_tokens = self._flow_tokens(flow)
        flow1, flow2 = flow_tokens or (None, None)
        tokens = self.stage1(self.embed_image(image), flow1)
        tokens = self.stage2(self.merge_image(tokens), flow2)
        return MfdanFeatures(tokens, self.flow_encoder(flow), flow_tokens)

    def _flow_tokens(self, flow: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.embed_flow is None or self.merge_flow is None:
            return None
        tokens = self.embed_flow(flow)
        return tokens, self.merge_flow(tokens)  # the embedded flow: it never passes through stage 1

    @torch.no_grad()
    def attention_maps(self, image: Tensor, flow: Tensor) -> Tensor:
        """Say where the W-driven layer of stage 1 looks: (b 3 s s) twice → (b m h w).

        Map 0 comes from S_self, map 1 from S_flow; without flow attention there is map 0 only.
        Each token's value is the attention that it receives as a key, mean over the heads and
        over the queries of its window, times the tokens of a window: 1 is even attention.
        """
        driving = None if self.embed_flow is None else self.embed_flow(flow)
        return self.stage1.w_driven.received(self.embed_image(image), driving)


def _initialise(module: nn.Module) -> None:
    """Draw linear weights from a truncated normal of deviation .02, as in Swin (ours)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
