"""A gate for each head of torch's own attention, which calls no layer that a hook could be on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_fl_ext.gates.checks import check_not_nested
from lightning_fl_ext.gates.hooks import CHILD
from lightning_fl_ext.gates.stochastic import StochasticGateModule


class HeadGatedAttention(nn.MultiheadAttention):
    r"""An ``nn.MultiheadAttention`` whose heads have gates z: :math:`\sum_h z_h W^O_h A_h V_h + b`.

    With :math:`A_h V_h` what head h finds, and :math:`W^O_h` its columns of the output projection (Vaswani et
    al. 2017, section 3.2.2, arXiv:1706.03762; the gates: Michel et al. 2019, section 2.1, arXiv:1905.10650).
    An attention becomes one by :func:`gate_heads`, and is itself again by :func:`bake_heads`.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, gate each head, and project; takes and returns what ``nn.MultiheadAttention`` does."""
        check_not_nested(query)
        batched = query.dim() == 3
        if batched and self.batch_first:
            # One tensor that is given three times stays one: torch then makes one product of the three.
            q = query.transpose(0, 1)
            k = q if key is query else key.transpose(0, 1)
            query, key, value = q, k, k if value is key else value.transpose(0, 1)
        weight = self.out_proj.weight
        heads, attention = F.multi_head_attention_forward(
            *(query, key, value, self.embed_dim, self.num_heads, self.in_proj_weight, self.in_proj_bias),
            *(self.bias_k, self.bias_v, self.add_zero_attn, self.dropout),
            out_proj_weight=torch.eye(self.embed_dim, dtype=weight.dtype, device=weight.device),
            out_proj_bias=None,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=not self._qkv_same_embed_dim,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        heads = heads.transpose(0, 1) if batched else heads[None]  # as the gates expect it: examples first
        output = F.linear(self.get_submodule(CHILD)(heads), weight, self.out_proj.bias)
        if not batched:
            return output[0], attention
        return output if self.batch_first else output.transpose(0, 1), attention


def gate_heads(attention: nn.MultiheadAttention) -> None:
    """Make an attention one that calls the gates in its child, in place."""
    attention.__class__ = HeadGatedAttention


def head_of_each_feature(attention: nn.MultiheadAttention) -> list[int]:
    """The head that each feature of the output projection's input belongs to."""
    return [feature // attention.head_dim for feature in range(attention.embed_dim)]


@torch.no_grad()
def bake_heads(attention: nn.MultiheadAttention) -> bool:
    """Make it a plain attention again, whose closed heads stay closed; tell whether there were any.

    Their columns of the output projection and their rows of the value projection are set to 0. Each is then
    the other's gradient's factor, so that training on leaves both at 0.
    """
    gate = attention.get_submodule(CHILD)
    assert isinstance(gate, StochasticGateModule)
    closed = ~gate.open_positions()
    attention.out_proj.weight[:, closed] = 0
    values = attention.v_proj_weight if attention.in_proj_weight is None else attention.in_proj_weight
    values[-attention.embed_dim :][closed] = 0
    if attention.in_proj_bias is not None:
        attention.in_proj_bias[-attention.embed_dim :][closed] = 0
    if attention.bias_v is not None:
        attention.bias_v[..., closed] = 0
    delattr(attention, CHILD)
    attention.__class__ = nn.MultiheadAttention
    return bool(closed.any())
