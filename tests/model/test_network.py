"""MFDAN does what its paper states, at a size that runs in a second."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.network import (
    DropKey,
    FlowDrivenAttention,
    FlowDrivenLayer,
    FlowEncoder,
    Mfdan,
    MfdanConfig,
    PatchMerging,
    shift_mask,
    window_merge,
    window_partition,
)

SMALL = MfdanConfig(
    image_size=64, channels=12, window=2, encoder_channels=(6, 8), flow_vector=8, dropkey=0.3
)


def small_network(seed: int = 0) -> Mfdan:
    torch.manual_seed(seed)
    return Mfdan(SMALL)


def pair(batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    image, flow = torch.rand(2, batch, 3, 64, 64, generator=draw) * 2 - 1
    return image, flow


def test_the_default_is_the_paper_s_size() -> None:
    network = Mfdan()
    tokens = network.embed_image(torch.zeros(1, 3, 224, 224))
    assert tokens.shape == (1, 56, 56, 96)
    assert network.merge_flow(tokens).shape == (1, 7, 7, 768)
    assert [network.stage1.w_driven.shift, network.stage1.sw_driven.shift] == [0, 3]
    assert [network.stage2.w_driven.shift, network.stage2.sw_driven.shift] == [0, 0]
    assert [stage.w_driven.attention.heads for stage in (network.stage1, network.stage2)] == [3, 6]
    assert network.flow_encoder.vector[0].in_features == 256 * 6 * 6
    assert 20e6 < sum(p.numel() for p in network.parameters()) < 22e6


def test_logits_have_one_column_for_each_class() -> None:
    logits = small_network().eval()(*pair(5))
    assert logits.shape == (5, 3)
    assert logits.isfinite().all()


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    window=st.integers(1, 4),
    batch=st.integers(1, 3),
)
def test_window_merge_undoes_window_partition(
    rows: int, columns: int, window: int, batch: int
) -> None:
    grid = (rows * window, columns * window)
    tokens = torch.arange(batch * grid[0] * grid[1] * 2).reshape(batch, *grid, 2)
    windows = window_partition(tokens, window)
    assert windows.shape == (batch * rows * columns, window**2, 2)
    assert torch.equal(window_merge(windows, window, grid), tokens)


def test_a_window_holds_neighbours() -> None:
    tokens = torch.arange(2 * 6).reshape(1, 2, 6, 1)
    assert window_partition(tokens, 2)[1].flatten().tolist() == [2, 3, 8, 9]


@pytest.mark.parametrize("shift", [0, 1])
def test_a_layer_puts_tokens_back_where_they_came_from(shift: int) -> None:
    """With attention and MLP silenced a layer is the identity, on a grid that is not square."""
    layer = FlowDrivenLayer(12, 3, (4, 6), shift, SMALL).eval()
    for norm in (layer.attention_norm, layer.mlp_norm):
        torch.nn.init.zeros_(norm.weight)
    tokens = torch.rand(2, 4, 6, 12)
    assert torch.equal(layer(tokens, tokens), tokens)


@given(rows=st.integers(2, 4), columns=st.integers(2, 4), shift=st.integers(1, 2))
def test_a_shifted_query_sees_exactly_the_keys_that_lay_beside_it(
    rows: int, columns: int, shift: int
) -> None:
    """Two tokens of a rolled window see each other unless the roll brought one of them round."""
    window = 3
    height, width = rows * window, columns * window
    allowed = shift_mask((height, width), window, shift)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([y, x], dim=-1)[None].roll((-shift, -shift), dims=(1, 2))
    windows = window_partition(places, window)
    apart = (windows[:, :, None] - windows[:, None, :]).abs().amax(dim=-1)
    assert torch.equal(allowed, apart < window)


def test_tokens_from_opposite_borders_do_not_attend_to_each_other() -> None:
    layer = FlowDrivenLayer(12, 3, (4, 6), 1, SMALL).eval()
    tokens = torch.rand(1, 4, 6, 12)
    changed = tokens.clone()
    changed[:, 0] += 1  # the top row, which the roll brings beside the bottom row
    before, after = layer(tokens, tokens), layer(changed, tokens)
    assert torch.equal(before[:, 3], after[:, 3])
    assert not torch.equal(before[:, 0], after[:, 0])


def attention(dropkey: float = 0.5) -> FlowDrivenAttention:
    torch.manual_seed(0)
    return FlowDrivenAttention(12, 3, 2, dropkey)


def test_dropkey_acts_in_training_only() -> None:
    module = attention()
    image, flow = torch.rand(2, 5, 4, 12)
    module.train()
    assert not torch.equal(module(image, flow), module(image, flow))
    module.eval()
    assert torch.equal(module(image, flow), module(image, flow))


@given(rate=st.floats(0.0, 0.999), seed=st.integers(0, 2**31))
def test_dropkey_leaves_every_query_at_least_one_allowed_key(rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    allowed = torch.tensor([[True, False, False], [False, True, True], [True, True, True]])
    mask = DropKey(rate)(torch.Size((4, 2, 3, 3)), allowed)
    assert set(mask.unique().tolist()) <= {0.0, -math.inf}
    assert ((mask == 0) & allowed).any(dim=-1).all()


def test_dropkey_drops_the_given_share() -> None:
    torch.manual_seed(0)
    mask = DropKey(0.4)(torch.Size((50, 49, 49)), torch.ones(49, 49, dtype=torch.bool))
    assert (mask < 0).float().mean().item() == pytest.approx(0.4, abs=0.01)


class _Recorder(DropKey):
    """Keeps the keys in play that it was told, and drops every key but the first allowed."""

    def forward(self, shape: torch.Size, allowed: Tensor) -> Tensor:
        self.allowed = allowed
        first = allowed & (allowed.cumsum(dim=-1) == 1)
        return torch.zeros(shape).masked_fill(~first, -math.inf)


def test_dropkey_comes_after_bias_and_shift_mask_and_before_softmax_in_both_scores() -> None:
    """A single key left, both softmaxes put all weight on it, whatever bias and scores say."""
    module = attention().train()
    module.dropkey = _Recorder(0.5)
    torch.nn.init.constant_(module.bias_table, 50.0)
    image, flow = torch.rand(2, 6, 4, 12)
    allowed = torch.ones(2, 4, 4, dtype=torch.bool)
    allowed[1, :, 0] = False
    values = module.scores(image, flow, allowed)[2]
    first = [0, 1] * 3  # the first allowed key of each window
    picked = torch.stack([values[window, :, key] for window, key in enumerate(first)])
    expected = module.out(2 * picked.flatten(start_dim=1))[:, None].expand(6, 4, 12)
    torch.testing.assert_close(module(image, flow, allowed), expected)
    assert torch.equal(module.dropkey.allowed[:, 0], allowed.repeat(3, 1, 1))


@given(scale=st.floats(0.01, 100.0))
def test_s_flow_does_not_change_when_the_flow_tokens_are_scaled(scale: float) -> None:
    module = attention()
    image, flow = torch.rand(2, 5, 4, 12)
    s_self, s_flow, _ = module.scores(image, flow, None)
    scaled_self, scaled_flow, _ = module.scores(image, scale * flow, None)
    torch.testing.assert_close(scaled_flow, s_flow, atol=1e-4, rtol=1e-4)
    assert torch.equal(scaled_self, s_self)


def test_both_scores_hold_the_same_bias() -> None:
    module = attention()
    image, flow = torch.rand(2, 1, 4, 12)
    before = module.scores(image, flow, None)
    torch.nn.init.zeros_(module.bias_table)
    after = module.scores(image, flow, None)
    torch.testing.assert_close(before[0] - after[0], before[1] - after[1])


def test_the_bias_depends_on_the_offset_between_query_and_key() -> None:
    """Window 2: tokens 0 1 / 2 3, so 0→1 and 2→3 share an offset, 0→1 and 1→0 do not."""
    module = attention()
    nothing = torch.zeros(1, 4, 12)
    bias = module.scores(nothing, nothing, None)[0][0, 0]
    assert bias[0, 1] == bias[2, 3]
    assert bias[0, 2] == bias[1, 3]
    assert bias[0, 1] != bias[1, 0]


def test_tau_below_its_floor_counts_as_the_floor() -> None:
    module = attention()
    torch.nn.init.zeros_(module.bias_table)
    image, flow = torch.rand(2, 1, 4, 12)
    torch.nn.init.constant_(module.tau, 0.0)
    floor = module.scores(image, flow, None)[1]
    torch.nn.init.constant_(module.tau, 0.02)
    torch.testing.assert_close(floor, 2 * module.scores(image, flow, None)[1])
    assert floor.abs().max() <= 100


def test_keys_and_values_come_from_the_image_alone() -> None:
    """Alike image tokens leave nothing to choose from, whatever the flow asks for."""
    module = attention().eval()
    image = torch.rand(3, 1, 12).expand(3, 4, 12)
    first, second = torch.rand(2, 3, 4, 12)
    torch.testing.assert_close(module(image, first), module(image, second))


def test_flow_tokens_of_stage_2_do_not_depend_on_stage_1() -> None:
    network = small_network().eval()
    image, flow = pair()
    before = network.features(image, flow)
    for parameter in network.stage1.parameters():
        torch.nn.init.uniform_(parameter)
    after = network.features(-image, flow)
    assert torch.equal(before.flow_tokens[1], after.flow_tokens[1])
    assert not torch.equal(before.image_tokens, after.image_tokens)


def test_merging_halves_a_grid_that_is_not_square() -> None:
    assert PatchMerging(6)(torch.rand(2, 4, 10, 6)).shape == (2, 2, 5, 12)


def test_local_response_norm_equals_torch_s() -> None:
    norm = FlowEncoder(SMALL).convolutions[2]
    x = 30 * torch.randn(2, 7, 3, 5)
    torch.testing.assert_close(norm(x), torch.nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)(x))


def test_every_parameter_gets_a_gradient() -> None:
    network = small_network().train()
    network(*pair(4)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_flow_that_is_zero_everywhere_gives_finite_gradients() -> None:
    network = small_network().train()
    image, flow = pair()
    network(image, torch.zeros_like(flow)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def undriven_network() -> Mfdan:
    torch.manual_seed(0)
    return Mfdan(replace(SMALL, flow_attention=False))


def test_without_flow_attention_the_output_is_the_self_attended_half_alone() -> None:
    module = FlowDrivenAttention(12, 3, 2, 0.5, flow_attention=False).eval()
    image = torch.rand(5, 4, 12)
    s_self, s_flow, values = module.scores(image, image, None)
    assert s_flow is None
    expected = module.out((s_self.softmax(dim=-1) @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(image, None), expected)


def test_without_flow_attention_the_flow_reaches_the_head_through_its_encoder_alone() -> None:
    network = undriven_network().eval()
    image, flow = pair()
    before, after = network.features(image, flow), network.features(image, -flow)
    assert torch.equal(before.image_tokens, after.image_tokens)
    assert not torch.equal(before.flow_vector, after.flow_vector)
    assert before.flow_tokens is None


def test_without_flow_attention_no_parameter_is_left_without_a_gradient() -> None:
    network = undriven_network().train()
    network(*pair(4)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert not [
        name for name, _ in network.named_parameters() if "flow" in name and "encoder" not in name
    ]


def test_attention_maps_say_what_each_token_receives_as_a_key() -> None:
    """Against the definition, window by window: 64 pixels, 16 tokens a side, windows of 2."""
    network = small_network().eval()
    image, flow = pair(3)
    maps = network.attention_maps(image, flow)
    assert maps.shape == (3, 2, 16, 16)
    attention = network.stage1.w_driven.attention
    tokens = window_partition(network.embed_image(image), 2)
    driving = window_partition(network.embed_flow(flow), 2)
    s_self, s_flow, _ = attention.scores(tokens, driving, None)
    window = 64 + 8 * 2 + 3  # pair 1, third row of windows, fourth column
    for which, score in enumerate((s_self, s_flow)):
        received = score.softmax(dim=-1)[window].mean(dim=0).mean(dim=0) * 4
        torch.testing.assert_close(maps[1, which, 4:6, 6:8].flatten(), received)


def test_attention_maps_are_even_on_average_in_every_window() -> None:
    maps = small_network().train().attention_maps(*pair(2))  # in training too: no DropKey here
    means = window_partition(maps.movedim(1, -1), 2).mean(dim=1)
    torch.testing.assert_close(means, torch.ones_like(means))


def test_without_flow_attention_there_is_one_attention_map() -> None:
    assert undriven_network().attention_maps(*pair(2)).shape == (2, 1, 16, 16)


def test_eight_pairs_are_overfitted() -> None:
    network = small_network().train()
    image, flow = pair(8)
    labels = torch.arange(8) % 3
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _step in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(image, flow), labels).backward()
        optimiser.step()
    assert torch.equal(network.eval()(image, flow).argmax(dim=1), labels)


def test_a_fixed_seed_gives_a_fixed_output() -> None:
    outputs = [small_network(3).train()(*pair()) for _ in range(2)]
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], small_network(4).train()(*pair()))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image_size": 100}, "image_size 100"),
        ({"window": 5}, "not a multiple of the window"),
        ({"heads": (5, 6)}, "do not divide by 5 heads"),
        ({"dropkey": 1.0}, "dropkey"),
        ({"encoder_dropout": -0.1}, "encoder_dropout"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        MfdanConfig(**change)
