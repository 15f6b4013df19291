"""The critic: a language model's body with a linear value head, on the same flat tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlcli.engines.logprobs import padded_sequences
from rlcli.engines.micro_batches import PackedRows
from rlcli.models.causal_lm import CausalLM, load_causal_lm


class Critic(nn.Module):
    """V(prompt + response so far), one value per response token."""

    def __init__(
        self, body: CausalLM, *, pad_token_id: int, device: torch.device | None = None
    ) -> None:
        """device: of the value head; None for the device of the body."""
        super().__init__()
        body.model.set_output_embeddings(nn.Identity())
        self.body = body.model
        self.pad_token_id = pad_token_id
        width = body.model.config.get_text_config().hidden_size
        self.value_head = nn.Linear(width, 1, device=device or body.device)
        # a zero head starts at V = 0: no noise in the first advantages
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.lm = body

    def forward(self, rows: PackedRows) -> Tensor:
        """Float32 values of every response token, in row order: V before the token is chosen."""
        if self.lm.packed:
            hidden = self.lm.hidden(rows.token_ids_N, rows.layout.position_ids, rows.layout)
            predicting = hidden[rows.layout.predicts_N]
        else:
            ids, mask, predicts = padded_sequences(rows, self.pad_token_id)
            predicting = self.lm.padded_hidden(ids, mask)[predicts]
        with torch.autocast(predicting.device.type, enabled=False):
            weight, bias = self.value_head.weight.float(), self.value_head.bias.float()
            return F.linear(predicting.float(), weight, bias)[:, 0]


def load_critic(
    path: str, *, device: torch.device, pad_token_id: int, trust_remote_code: bool
) -> Critic:
    """A critic whose body is the model at `path` and whose value head is new."""
    body = load_causal_lm(
        path,
        dtype=torch.float32,
        device=device,
        trust_remote_code=trust_remote_code,
        needs_head=False,
        samples=False,
    )
    return Critic(body, pad_token_id=pad_token_id)
