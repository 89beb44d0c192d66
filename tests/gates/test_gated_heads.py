"""Gates on the heads of `nn.MultiheadAttention`, against the formula written out by heads."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_fl_ext.gates import gate_modules, shrink

HEADS, WIDTH, LENGTH, EXAMPLES = 4, 8, 5, 3


def tensor(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention(**options):
    """Attentions with biases that are not 0."""
    torch.manual_seed(0)
    made = nn.MultiheadAttention(WIDTH, HEADS, **options)
    for name, parameter in made.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return nn.ModuleDict({"attention": made})


def gated(model, closed=(1, 2), **options):
    gates = gate_modules(model, "attention", on="heads", **{"evaluation": "threshold"} | options)
    gates["attention"].logits.data = torch.tensor([-3.0 if head in closed else 3.0 for head in range(HEADS)])
    return model.eval()


def by_heads(module, query, key, value, factors, allowed=None):
    """Attention written out: for examples one by one, `factors` of (examples, heads), and boolean masks."""
    if module.in_proj_weight is None:
        weights = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    else:
        weights = module.in_proj_weight.chunk(3)
    biases = [0.0] * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    d = WIDTH // HEADS
    outputs = []
    for example in range(len(query)):
        q, k, v = (x[example] @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
        if module.bias_k is not None:
            k, v = torch.cat([k, module.bias_k[0]]), torch.cat([v, module.bias_v[0]])
        if module.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        output = 0.0 if module.out_proj.bias is None else module.out_proj.bias
        for head in range(HEADS):
            part = slice(head * d, (head + 1) * d)
            scores = q[:, part] @ k[:, part].T / math.sqrt(d)
            if allowed is not None:
                scores = scores.masked_fill(~allowed[example], -math.inf)
            found = scores.softmax(1) @ v[:, part]
            output = output + factors[example, head] * found @ module.out_proj.weight[:, part].T
        outputs.append(output)
    return torch.stack(outputs)


VARIANTS = [
    {"batch_first": True},
    {"batch_first": False},
    {"batch_first": True, "bias": False},
    {"batch_first": True, "kdim": 6, "vdim": 7},
    {"batch_first": False, "add_bias_kv": True},
    {"batch_first": True, "add_zero_attn": True},
]


def inputs(options):
    dims = {"query": WIDTH, "key": options.get("kdim", WIDTH), "value": options.get("vdim", WIDTH)}
    lengths = {"query": LENGTH, "key": LENGTH + 2, "value": LENGTH + 2}
    return [tensor(EXAMPLES, lengths[n], dim, seed=i) for i, (n, dim) in enumerate(dims.items())]


def call(module, query, key, value, **options):
    """Call with the batch where the module takes it."""
    if module.batch_first:
        return module(query, key, value, **options)
    output, weights = module(*(x.transpose(0, 1) for x in (query, key, value)), **options)
    return output.transpose(0, 1), weights


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", VARIANTS)
def test_closed_heads_give_nothing_and_the_others_what_they_give(options, need_weights):
    model = gated(attention(**options))
    plain = attention(**options)["attention"].eval()
    given = inputs(options)
    factors = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(EXAMPLES, HEADS)
    output, weights = call(model["attention"], *given, need_weights=need_weights)
    assert torch.allclose(output, by_heads(plain, *given, factors), atol=1e-6)
    expected, attended = call(plain, *given, need_weights=need_weights)
    assert torch.allclose(expected, by_heads(plain, *given, torch.ones(EXAMPLES, HEADS)), atol=1e-6)
    assert (weights is None) == (attended is None)
    assert weights is None or torch.equal(weights, attended)


@pytest.mark.parametrize("batch_first", [True, False])
def test_in_training_each_example_draws_its_own_heads(batch_first):
    model = gated(attention(batch_first=batch_first)).train()
    module = model["attention"]
    module.stochastic_gate.logits.data.zero_()
    drawn = []
    module.stochastic_gate.register_forward_hook(lambda _, args, out: drawn.append((args[0], out)))
    given = inputs({})
    torch.manual_seed(3)
    output, _ = call(module, *given)
    heads, closed = (part.unflatten(-1, (HEADS, -1)) for part in drawn[0])
    factors = (heads == closed).all((1, 3)).float()
    assert torch.equal(heads * factors[:, None, :, None], closed)  # a head is open for a whole example
    assert len({tuple(row) for row in factors.tolist()}) > 1
    assert torch.allclose(output, by_heads(module, *given, factors), atol=1e-6)
    output.sum().backward()
    assert (module.stochastic_gate.logits.grad != 0).all()


def test_the_mean_multiplies_heads_by_their_probabilities():
    model = gated(attention(batch_first=True), evaluation="mean")
    given = inputs({})
    factors = model["attention"].stochastic_gate.probs.expand(EXAMPLES, HEADS)
    assert torch.allclose(
        model["attention"](*given)[0], by_heads(model["attention"], *given, factors), atol=1e-6
    )
    model["attention"].stochastic_gate = model["attention"].stochastic_gate.bake("mean")
    assert torch.allclose(
        model["attention"](*given)[0], by_heads(model["attention"], *given, factors), atol=1e-6
    )


def test_an_input_without_a_batch_is_one_example():
    model = gated(attention(batch_first=True))
    query, key, value = inputs({})
    output, _ = model["attention"](query[0], key[0], value[0])
    assert torch.allclose(output, model["attention"](query, key, value)[0][0], atol=1e-6)
    model.train()["attention"].stochastic_gate.logits.data.zero_()
    found = []
    model["attention"].stochastic_gate.register_forward_hook(
        lambda _, args, out: found.append(out == args[0])
    )
    model["attention"](query[0], key[0], value[0])
    assert (found[0].unflatten(-1, (HEADS, -1)).all(-1) == found[0][:, :1, :: WIDTH // HEADS]).all()


def test_masks_are_those_of_the_attention():
    model = gated(attention(batch_first=True))
    x = tensor(EXAMPLES, LENGTH, WIDTH)
    padded = torch.arange(LENGTH) >= torch.tensor([[5], [3], [4]])
    causal = torch.ones(LENGTH, LENGTH).triu(1).bool()
    output, _ = model["attention"](x, x, x, key_padding_mask=padded, attn_mask=causal)
    factors = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(EXAMPLES, HEADS)
    allowed = ~causal & ~padded[:, None]
    assert torch.allclose(
        output, by_heads(model["attention"], x, x, x, factors, allowed), atol=1e-6, equal_nan=True
    )
    hinted, _ = model["attention"](x, x, x, attn_mask=causal, is_causal=True, need_weights=False)
    assert torch.allclose(
        hinted,
        by_heads(model["attention"], x, x, x, factors, (~causal).expand(EXAMPLES, -1, -1)),
        atol=1e-6,
    )


class OfPlainLayers(nn.Module):
    """The same attention as timm and transformers write it."""

    def __init__(self, module):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.qkv.weight, self.qkv.bias = module.in_proj_weight, module.in_proj_bias
        self.proj.weight, self.proj.bias = module.out_proj.weight, module.out_proj.bias

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_heads_of_plain_layers_are_gated_on_the_input_of_the_projection():
    module = attention(batch_first=True)["attention"]
    model = nn.Sequential(OfPlainLayers(module)).eval()
    groups = [feature // (WIDTH // HEADS) for feature in range(WIDTH)]
    gates = gate_modules(model, "*.proj", HEADS, on="input", groups=groups, evaluation="threshold")
    gates["0.proj"].logits.data = torch.tensor([3.0, -3.0, -3.0, 3.0])
    x = tensor(EXAMPLES, LENGTH, WIDTH)
    factors = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(EXAMPLES, HEADS)
    assert torch.allclose(model(x), by_heads(module, x, x, x, factors), atol=1e-6)
    small = shrink(model, x)
    assert small[0].proj.in_features == WIDTH // 2
    assert torch.allclose(small(x), model(x), atol=1e-6)


class OfAnyNumber(nn.Module):
    """An attention with as many heads as there are features for."""

    def __init__(self, split, mask=None):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.split, self.mask = split, mask

    def forward(self, x):
        q, k, v = (self.split(layer(x)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return self.proj(found.transpose(1, 2).reshape(*x.shape[:-1], -1))


SPLITS = {
    "view": lambda x: x.view(*x.shape[:-1], -1, WIDTH // HEADS),
    "reshape": lambda x: x.reshape(x.shape[0], x.shape[1], -1, WIDTH // HEADS),
    "unflatten": lambda x: x.unflatten(-1, (-1, WIDTH // HEADS)),
    "by a number": lambda x: x.unflatten(-1, (HEADS, WIDTH // HEADS)),
    "by the width": lambda x: x.unflatten(-1, (HEADS, -1)),
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("mask", [None, (LENGTH, LENGTH), (1, 1, LENGTH, LENGTH), (1, HEADS, LENGTH, LENGTH)])
@pytest.mark.parametrize("closed", [[1, 2], [0], [0, 1, 2, 3]])
def test_heads_are_cut_whole_where_their_number_is_not_spelled_out(split, mask, closed):
    torch.manual_seed(0)
    mask = None if mask is None else torch.rand(mask) > 0.3
    model = nn.Sequential(OfAnyNumber(SPLITS[split], mask)).eval()
    groups = [feature // (WIDTH // HEADS) for feature in range(WIDTH)]
    gate = gate_modules(model, "*.proj", HEADS, on="input", groups=groups, evaluation="threshold")["0.proj"]
    gate.logits.data[closed] = -3.0
    x = tensor(EXAMPLES, LENGTH, WIDTH)
    small = shrink(model, x)[0]
    assert torch.allclose(small(x), model(x), atol=1e-6, equal_nan=True)
    left = max(1, HEADS - len(closed)) * WIDTH // HEADS
    cut = "by" not in split and (mask is None or mask.ndim < 3 or mask.shape[1] == 1)
    for layer in (small.q, small.k, small.v):
        assert layer.out_features == (left if cut else WIDTH)
    assert small.proj.in_features == left if closed != [0, 1, 2, 3] else small.proj.in_features <= left


def test_copies_and_pickles_keep_their_gates():
    model = gated(attention(batch_first=True))
    given = inputs({})
    expected = model["attention"](*given)[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other["attention"](*given)[0], expected)
        other["attention"].stochastic_gate.logits.data.fill_(3)
        assert not torch.allclose(other["attention"](*given)[0], expected, atol=1e-3)
    assert torch.equal(model["attention"](*given)[0], expected)
    names = attention(batch_first=True).state_dict().keys()
    assert model.state_dict().keys() - names == {"attention.stochastic_gate.logits"}
    assert isinstance(model["attention"], nn.MultiheadAttention)


class Named(nn.Module):
    """An attention that returns a tensor."""

    def __init__(self, **options):
        super().__init__()
        self.attention = attention(**options)["attention"]

    def forward(self, query, key, value):
        return call(self.attention, query, key, value)[0]


@pytest.mark.parametrize("options", VARIANTS)
def test_shrunk_heads_are_zero_in_a_plain_attention_and_stay_so(options, caplog):
    model = gated(Named(**options))
    given = inputs(options)
    small = shrink(model, tuple(given))
    assert "attention.stochastic_gate" in caplog.text
    assert type(small.attention) is nn.MultiheadAttention
    assert small.state_dict().keys() == Named(**options).state_dict().keys()
    assert torch.allclose(small(*given), model(*given), atol=1e-6)
    small.train()
    optimizer = torch.optim.AdamW(small.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        small(*given).square().sum().backward()
        optimizer.step()
    closed = torch.tensor([0, 1, 1, 0]).bool().repeat_interleave(WIDTH // HEADS)
    assert (small.attention.out_proj.weight[:, closed] == 0).all()
    assert (small.attention.out_proj.weight[:, ~closed] != 0).all()


def test_open_heads_are_shrunk_to_the_plain_attention():
    model = gated(Named(batch_first=True), closed=())
    small = shrink(model, tuple(inputs({})))
    plain = Named(batch_first=True)
    assert all(torch.equal(p, q) for p, q in zip(small.parameters(), plain.parameters(), strict=True))


def test_it_compiles_and_exports():
    model = gated(Named(batch_first=True))
    given = tuple(inputs({}))
    expected = model(*given)
    exported = torch.export.export(model, given).module()
    assert torch.allclose(exported(*given), expected, atol=1e-6)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(*given), expected, atol=1e-6)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"num_gates": 4}, "counts the heads itself: leave out `num_gates`"),
    ({"groups": [0, 1]}, "counts the heads itself: leave out `num_gates`"),
    ({"closed": "skip"}, 'leave out `on="heads"`'),
    ({"names": "linear"}, "is for `nn.MultiheadAttention`"),
    ({"names": "attention.out_proj"}, "is never called"),
    ({"names": "gated"}, "has gates already"),
])  # fmt: skip
def test_what_has_no_heads_to_gate_is_refused(arguments, message):
    model = nn.ModuleDict({
        "attention": nn.MultiheadAttention(4, 2),
        "linear": nn.Linear(4, 4),
        "gated": nn.MultiheadAttention(4, 2),
    })  # fmt: skip
    gate_modules(model, "gated", on="heads")
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        gate_modules(model, **{"names": "attention", "on": "heads"} | arguments)
    assert list(model.state_dict()) == before
